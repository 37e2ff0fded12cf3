"""The picture, from the rows alone: bound over the DRAM time of the compulsory bytes, by operator and device."""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from benchmarks.plots import INK, MUTED, STYLE, log_ticks

from .cost import Row

COLORS = ["#1d5b8f", "#3a8a5f", "#7a6bb0", "#b59b2c"]
EAGER = "torch.fft eager, by bytes"


def draw(rows: list[Row], path: Path) -> None:
    """Columns are operators, rows devices. float32 only: half types halve the bytes and not the work."""
    rows = [row for row in rows if row.dtype == "float32"]
    operators, devices = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("what", "device"))
    colors = dict(zip(dict.fromkeys(row.contender for row in rows), COLORS, strict=False))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(devices), len(operators), sharex="col", sharey=True, squeeze=False, layout="constrained",
            figsize=(3.1 * len(operators), 1.9 * len(devices) + 0.8),
        )  # fmt: skip
        for i, device in enumerate(devices):
            for j, what in enumerate(operators):
                _panel(axes[i][j], [row for row in rows if (row.device, row.what) == (device, what)], colors)
                axes[i][j].set_title(f"{what}, {device}", fontsize=9)
        figure.suptitle("Estimates from counted work, not measurements on a GPU", fontsize=10, color=INK)
        figure.supylabel("bound / DRAM time of the compulsory bytes", fontsize=9.5)
        lines = {line.get_label(): line for axis in axes.flat for line in axis.get_legend_handles_labels()[0]}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=8.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


def _panel(axis: plt.Axes, rows: list[Row], colors: dict[str, str]) -> None:
    """Over the planes, the smallest first: a line for each contender and one for torch."""
    planes = sorted({row.plane for row in rows}, key=_pixels)
    lines = {name: {r.plane: r.ratio for r in rows if r.contender == name} for name in colors}
    lines[EAGER] = {row.plane: row.eager_us / row.compulsory_us for row in rows}
    for name, values in lines.items():
        shown = [plane for plane in planes if plane in values]
        color, style = (MUTED, "s--") if name == EAGER else (colors[name], "o-")
        places, ratios = [planes.index(plane) for plane in shown], [values[plane] for plane in shown]
        axis.plot(places, ratios, style, color=color, label=name, markersize=4)
    axis.axhline(1, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(planes)), planes, rotation=60, ha="right", fontsize=8)
    log_ticks(axis, "y", "")


def _pixels(plane: str) -> int:
    return math.prod(map(int, plane.split("x")[-2:]))
