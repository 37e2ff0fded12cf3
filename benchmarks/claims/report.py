"""From the results to results.csv, and from results.csv to results.md and the figures."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib
import numpy as np
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from sagd_kernels.train.report import STYLE

from ..rows import read_csv
from .arms import ARMS

CSV_NAME = "results.csv"
METRICS = {
    "feature_fd": "Fréchet distance, classifier features",
    "pixel_fd": "Fréchet distance, pooled pixels",
    "low_db": "energy < 0.1, dB",
    "middle_db": "energy 0.1–0.3, dB",
    "corrupted_db": "energy 0.3–0.4, dB",
    "high_db": "energy > 0.4, dB",
    "label_entropy": "label entropy, nats",
}
DISTANCES = ("feature_fd", "pixel_fd")
DATA = ("data-clean", "data-corrupted", "data-notched")  # the floor and what omission starts from, at 0 steps


@dataclass(frozen=True)
class Row:
    """One line of the CSV."""

    arm: str
    seed: int
    steps: int
    metric: str
    value: float


def gather(output: Path) -> list[Row]:
    """What the results in an output folder say, in the order of the arms."""
    rows = []
    for arm in [*DATA, *ARMS]:
        for path in (output / "results" / arm).glob("*.json"):
            seed, steps = map(int, path.stem.split("-"))
            rows += [Row(arm, seed, steps, *item) for item in json.loads(path.read_text()).items()]
    return sorted(rows, key=lambda row: ([*DATA, *ARMS].index(row.arm), row.steps, row.seed))


class Table:
    """The values by arm, step count and metric, as {seed: value}."""

    def __init__(self, rows: list[Row]):
        self.values: dict[tuple[str, int, str], dict[int, float]] = {}
        for row in rows:
            self.values.setdefault((row.arm, row.steps, row.metric), {})[row.seed] = row.value
        self.step_counts = sorted({row.steps for row in rows} - {0})
        self.metrics = list(dict.fromkeys(row.metric for row in rows))

    def of(self, arm: str, steps: int, metric: str) -> list[float]:
        return list(self.values.get((arm, steps, metric), {}).values())

    def differences(self, arm: str, steps: int, metric: str) -> list[float]:
        """Arm minus its baseline, for each seed that both have."""
        mine = self.values.get((arm, steps, metric), {})
        baseline = self.values.get((ARMS[arm].baseline, steps, metric), {})
        return [mine[seed] - baseline[seed] for seed in mine.keys() & baseline.keys()]

    def arms(self, steps: int, metric: str) -> Iterator[str]:
        """The arms that have results."""
        return (arm for arm in ARMS if (arm, steps, metric) in self.values)


def standard_error(values: list[float]) -> float:
    """Of the mean; nan for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def write_report(output: Path) -> list[Path]:
    """results.md, metrics.png, spectra.png and samples.png from results.csv and what lies beside it."""
    table = Table(read_csv(output / CSV_NAME, Row))
    (output / "results.md").write_text(markdown(table, _notes(output)))
    with plt.rc_context(STYLE):
        figures = {"metrics.png": _draw_metrics(table), "spectra.png": _draw_spectra(table)}
        figures["samples.png"] = _draw_samples(table, output)
        for name, figure in figures.items():
            if figure is not None:
                figure.savefig(output / name)
                plt.close(figure)
    return [output / "results.md", *(output / name for name, figure in figures.items() if figure is not None)]


def markdown(table: Table, notes: str = "") -> str:
    """For each step count a table of means and one of paired differences, each with its standard error over seeds."""
    lines = ["# Results", "", notes, ""] if notes else ["# Results", ""]
    for steps in table.step_counts:
        arms = list(table.arms(steps, "feature_fd"))
        compared = [arm for arm in arms if ARMS[arm].baseline != arm and table.differences(arm, steps, "feature_fd")]
        lines += [f"## {steps:,} steps", "", "Mean ± standard error over seeds.", ""]
        lines += _header("arm")
        lines += [_line(arm, [table.of(arm, 0, metric) for metric in METRICS]) for arm in DATA]
        lines += [_line(arm, [table.of(arm, steps, metric) for metric in METRICS]) for arm in arms]
        lines += ["", "Differences to the baseline, seed by seed: mean ± standard error.", ""]
        lines += _header("arm − baseline")
        for arm in compared:
            differences = [table.differences(arm, steps, metric) for metric in METRICS]
            lines.append(_line(f"{arm} − {ARMS[arm].baseline}", differences, sign="+"))
        lines.append("")
    return "\n".join(lines)


def _header(first: str) -> list[str]:
    return [f"| {first} | seeds | {' | '.join(METRICS.values())} |", "| --- " + "| ---: " * (len(METRICS) + 1) + "|"]


def _line(name: str, columns: list[list[float]], sign: str = "") -> str:
    return f"| {name} | {len(columns[0])} | {' | '.join(_number(values, sign) for values in columns)} |"


def _number(values: list[float], sign: str) -> str:
    if not values:
        return "–"
    mean, error = fmean(values), standard_error(values)
    return f"{mean:{sign}.2f}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _notes(output: Path) -> str:
    """The settings and the classifier's accuracy, where the CSV lies beside them."""
    parts = []
    if (path := output / "settings.json").exists():
        parts.append(", ".join(f"{name} {value}" for name, value in json.loads(path.read_text()).items()) + ".")
    if (path := output / "classifier.json").exists():
        share = json.loads(path.read_text())["accuracy"]
        parts.append(f"The classifier names {share:.1%} of the held-out images rightly.")
    return " ".join(parts)


def _draw_metrics(table: Table) -> plt.Figure:
    """Each metric by arm, a mark for each step count, bars of one standard error; a line for the held-out data."""
    arms = [arm for arm in ARMS if any((arm, steps, "feature_fd") in table.values for steps in table.step_counts)]
    figure, grid = plt.subplots(1, len(METRICS), figsize=(2.6 * len(METRICS), 1.5 + 0.32 * len(arms)), sharey=True)
    places = np.arange(len(arms))
    for axes, (metric, title) in zip(grid, METRICS.items(), strict=True):
        for index, steps in enumerate(table.step_counts):
            values = [table.of(arm, steps, metric) or [math.nan] for arm in arms]
            means, errors = [fmean(each) for each in values], [standard_error(each) for each in values]
            shift = 0.25 * (index - (len(table.step_counts) - 1) / 2)
            axes.errorbar(means, places + shift, xerr=np.nan_to_num(errors), fmt="o", ms=4, label=f"{steps:,} steps")
        if floor := table.of("data-clean", 0, metric):
            axes.axvline(fmean(floor), color="0.6", linewidth=1, zorder=0, label="held-out data")
        if metric in DISTANCES:
            axes.set_xscale("log")
        elif metric.endswith("_db"):
            axes.set_xlim(left=max(axes.get_xlim()[0], -20))  # an omitted band reaches -130
        axes.set_title(title, fontsize=8.5)
    grid[0].set(yticks=places, yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
    figure.tight_layout()
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="upper center", ncols=4, frameon=False, bbox_to_anchor=(0.5, 0)
    )
    return figure


def _draw_spectra(table: Table) -> plt.Figure:
    """Radial power over the clean data's, by arm, in dB: a panel for clean and for corrupted data and step count."""
    rings = [metric for metric in table.metrics if metric.startswith("power_")]
    groups = ("white", "corrupted-white")  # the baselines
    shape = (len(table.step_counts), len(groups))
    figure, grid = plt.subplots(*shape, figsize=(13, 4 * shape[0]), sharex=True, squeeze=False)
    clean = np.array([fmean(table.of("data-clean", 0, ring)) for ring in rings])
    for axes_row, steps in zip(grid, table.step_counts, strict=True):
        for axes, baseline in zip(axes_row, groups, strict=True):
            for arm in table.arms(steps, "feature_fd"):
                if ARMS[arm].baseline == baseline:
                    power = np.array([fmean(table.of(arm, steps, ring)) for ring in rings])
                    axes.plot(range(1, len(rings) + 1), 10 * np.log10(power / clean), label=arm)
            axes.axhline(0, color="0.6", linewidth=1, zorder=0)
            axes.set(xlabel="ring of spatial frequencies", ylabel="power over data, dB")
            axes.set_ylim(bottom=-30)  # an omitted band reaches -100
            axes.set_title(f"baseline {baseline}, {steps:,} steps", loc="left")
            if axes.lines[1:]:
                axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def _draw_samples(table: Table, output: Path) -> plt.Figure | None:
    """A strip for each arm at the largest step count, from the first seed; None where no strips lie beside the CSV."""
    steps, seed = max(table.step_counts), min(seed for seeds in table.values.values() for seed in seeds)
    paths = {arm: output / "results" / arm / f"{seed}-{0 if arm in DATA else steps}.png" for arm in [*DATA, *ARMS]}
    paths = {arm: path for arm, path in paths.items() if path.exists()}
    if not paths:
        return None
    figure, grid = plt.subplots(len(paths), 1, figsize=(9, 0.75 * len(paths)), squeeze=False)
    for axes, (arm, path) in zip(grid[:, 0], paths.items(), strict=True):
        with Image.open(path) as strip:
            axes.imshow(np.asarray(strip), cmap="gray", vmin=0, vmax=255)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_ylabel(arm, rotation=0, ha="right", va="center", fontsize=8)
    grid[0, 0].set_title(
        f"{steps:,} steps, seed {seed}: the same white noise in every row of samples", loc="left", fontsize=9
    )
    figure.tight_layout(h_pad=0.2)
    return figure
