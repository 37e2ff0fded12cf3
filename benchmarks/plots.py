"""Pictures of a run, made from its rows.

Of a CPU: how many times faster sagd is, and the time per pixel over the size. Of a GPU, where memory is the limit: the
share of the copy bandwidth in place of both.
"""

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator, PercentFormatter

from .report import FASTEST, OURS, SHARE_PLOT, SIZES_PLOT, SPEEDUP_PLOT, by_case, speedups
from .rows import Row

INK, MUTED = "#1f2a37", "#8a94a3"
COLORS = {
    OURS: "#1d5b8f",
    "sagd by cuda": "#4aa3a8",
    "sagd by triton": "#7a6bb0",
    "torch.fft": "#d9622b",
    "torch.compile": "#a8431a",
    FASTEST: "#3a8a5f",
    "FFTW": "#3a8a5f",
    "ducc0": "#7a6bb0",
    "scipy.fft": "#b59b2c",
    "MKL": "#4aa3a8",
    "JAX": "#b0567f",
    "torch.randn": "#8a94a3",
}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 128,
}


def draw(rows: list[Row], directory: Path) -> list[Path]:
    """Write the pictures that the rows have the measurements for; returns their paths."""
    threads = max(row.threads for row in rows)
    rows = [row for row in rows if row.threads == threads]
    on_gpu = rows[0].on_gpu
    where = rows[0].device if on_gpu else f"{rows[0].device}, {threads} thread{'s' * (threads > 1)}"
    title = f"{where}, float32, {rows[0].date}"
    targets = (SHARE_PLOT, "targets", _share) if on_gpu else (SPEEDUP_PLOT, "targets", _speedup)
    written = []
    with plt.rc_context(STYLE):
        for name, group, figure_of in (targets, (SIZES_PLOT, "sizes", _sizes)):
            chosen = [row for row in rows if row.group == group]
            if chosen:
                figure = figure_of(chosen)
                figure.suptitle(title, fontsize=9.5, color=MUTED)
                figure.savefig(directory / name, metadata={"Software": None})
                plt.close(figure)
                written.append(directory / name)
    return written


def _speedup(rows: list[Row]) -> plt.Figure:
    """One panel for each computation: a line for each peer over the sizes."""
    figure, panels = _panels(rows, width=3.1)
    for what, axis in panels.items():
        lines: dict[str, dict[str, float]] = {}
        sizes = list(dict.fromkeys(row.size for row in rows if row.what == what))
        for contenders in by_case(row for row in rows if row.what == what).values():
            found = speedups(contenders)
            shown = [n for n in found if n in ("torch.fft", "torch.compile", "torch.randn", FASTEST)]
            for name in shown or found:
                lines.setdefault(name, {})[contenders[OURS].size] = found[name]
        for name, values in lines.items():
            points = [(sizes.index(size), ratio) for size, ratio in values.items()]
            axis.plot(*zip(*points, strict=True), "o-", color=COLORS.get(name, INK), label=name, markersize=4)
        axis.axhline(1, color=MUTED, linewidth=0.8)
        axis.set_xticks(range(len(sizes)), sizes, rotation=60, ha="right", fontsize=8)
        log_ticks(axis, "y", "x")
    figure.supylabel("times faster", fontsize=9.5)
    _legend(figure)
    return figure


def _share(rows: list[Row]) -> plt.Figure:
    """One panel for each computation: the share of the copy bandwidth over the sizes, a line for each contender."""
    figure, panels = _panels(rows, width=2.7)
    for what, axis in panels.items():
        sizes = list(dict.fromkeys(row.size for row in rows if row.what == what))
        for name in dict.fromkeys(row.contender for row in rows if row.what == what):
            chosen = [row for row in rows if (row.what, row.contender) == (what, name)]
            points = [(sizes.index(row.size), row.share_of_copy) for row in chosen]
            axis.plot(*zip(*points, strict=True), "o-", label=name, **_line(name))
        samples = [size.split("x", 1)[1] for size in sizes]  # without the batch, which fills the GPU
        axis.set_xticks(range(len(sizes)), samples, rotation=60, ha="right", fontsize=8)
        _percent(axis)
    figure.supylabel("share of the copy bandwidth", fontsize=9.5)
    _legend(figure)
    return figure


def _sizes(rows: list[Row]) -> plt.Figure:
    """Time per pixel, or share of the copy bandwidth, over the square root of a plane's pixels, for every contender."""
    figure, panels = _panels(rows, width=4.8)
    for what, axis in panels.items():
        for name in dict.fromkeys(row.contender for row in rows if row.what == what):
            points: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                if (row.what, row.contender) == (what, name):
                    height, width = map(int, row.size.split("x")[2:])
                    kind = "s" if height != width else "x" if _is_prime(height) else "o-"
                    value = row.share_of_copy if row.on_gpu else row.ns_per_pixel
                    points.setdefault(kind, []).append(((height * width) ** 0.5, value))
            for n, (kind, found) in enumerate(points.items()):
                axis.plot(*zip(*sorted(found), strict=True), kind, label=None if n else name, **_line(name))
        log_ticks(axis, "x", "")
        if rows[0].on_gpu:
            _percent(axis)
        else:
            log_ticks(axis, "y", "")
    figure.supylabel("share of the copy bandwidth" if rows[0].on_gpu else "ns per pixel", fontsize=9.5)
    figure.supxlabel(
        "square root of a plane's pixels (lines: squares; crosses: primes; boxes: non-square)", fontsize=9.5
    )
    _legend(figure)
    return figure


def _panels(rows: list[Row], width: float) -> tuple[plt.Figure, dict[str, Axes]]:
    """A figure with one panel for each computation, side by side."""
    names = list(dict.fromkeys(row.what for row in rows))
    size = {"figsize": (width * len(names), 3.9), "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(1, len(names), **size)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name, fontsize=9.5)
    return figure, dict(zip(names, axes[0], strict=True))


def _line(name: str) -> dict[str, object]:
    """The library's line is drawn on top and thicker than the others."""
    ours = name == OURS
    return {
        "color": COLORS.get(name, INK),
        "markersize": 4,
        "linewidth": 2 if ours else 1,
        "zorder": 3 if ours else 2,
    }


def _percent(axis: Axes) -> None:
    axis.set_ylim(0, None)
    axis.axhline(1, color=MUTED, linewidth=0.8)
    axis.yaxis.set_major_formatter(PercentFormatter(1))


def _legend(figure: plt.Figure) -> None:
    """One legend for all panels."""
    lines = {line.get_label(): line for axis in figure.axes for line in axis.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside right center", fontsize=8.5)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def log_ticks(axis: Axes, which: str, unit: str) -> None:
    """A logarithmic axis with plain numbers: 0.5, 1, 2, 5, 10, ... or 32, 64, 128, ..."""
    getattr(axis, f"set_{which}scale")("log", base=2)
    ticks = getattr(axis, f"{which}axis")
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}{unit}"))
    ticks.set_minor_formatter(NullFormatter())
    ticks.set_minor_locator(NullLocator())
