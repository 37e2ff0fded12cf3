"""The picture, from the rows alone: bound over the DRAM time of the compulsory bytes, by operator and device."""

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
    rows = [row for row in rows if row.case.endswith("float32")]
    operators = list(dict.fromkeys(row.case.rsplit(" ", 2)[0] for row in rows))
    devices = list(dict.fromkeys(row.device for row in rows))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(devices), len(operators), sharex="col", sharey=True, squeeze=False, layout="constrained",
            figsize=(3.1 * len(operators), 1.9 * len(devices) + 0.8),
        )  # fmt: skip
        for i, device in enumerate(devices):
            for j, operator in enumerate(operators):
                chosen = [row for row in rows if row.device == device and row.case.rsplit(" ", 2)[0] == operator]
                _panel(axes[i][j], chosen)
                axes[i][j].set_title(f"{operator}, {device}", fontsize=9)
        figure.suptitle("Estimates from counted work, not measurements on a GPU", fontsize=10, color=INK)
        figure.supylabel("bound / DRAM time of the compulsory bytes", fontsize=9.5)
        lines, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), fontsize=8.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
        plt.close(figure)


def _panel(axis: plt.Axes, rows: list[Row]) -> None:
    sizes = list(dict.fromkeys(row.case.rsplit(" ", 2)[1] for row in rows))
    for name, color in zip(dict.fromkeys(row.contender for row in rows), COLORS, strict=False):
        _line(axis, sizes, {_size(row): row.ratio for row in rows if row.contender == name}, "o-", color, name)
    _line(axis, sizes, {_size(row): row.eager_us / row.compulsory_us for row in rows}, "s--", MUTED, EAGER)
    axis.axhline(1, color=INK, linewidth=0.8)
    axis.set_xticks(range(len(sizes)), sizes, rotation=60, ha="right", fontsize=8)
    log_ticks(axis, "y", "")


def _line(axis: plt.Axes, sizes: list[str], values: dict[str, float], style: str, color: str, name: str) -> None:
    places = [sizes.index(size) for size in values]
    axis.plot(places, list(values.values()), style, color=color, label=name, markersize=4)


def _size(row: Row) -> str:
    return row.case.rsplit(" ", 2)[1]
