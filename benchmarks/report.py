"""What a run says, in Markdown, and whether another run says otherwise. Everything is computed from the rows alone."""

import math
import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .rows import Row

OURS = "sagd"
FASTEST = "fastest library"
LIBRARIES = ("FFTW", "ducc0", "scipy.fft", "MKL", "JAX")
README_START, README_END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
SPEEDUP_PLOT, SIZES_PLOT = "speedup.png", "sizes.png"

# A change counts as a regression when it is above both: three standard errors of the run's own samples and of the
# peers' changes, and a floor for what those do not see (another layout in memory, another neighbour on the machine).
SIGMAS, FLOOR = 3.0, 0.05

BUSY = 0.05  # share of the cores taken by other processes from which on a run says more about them


def by_case(rows: Iterable[Row]) -> dict[tuple[str, int], dict[str, Row]]:
    """The rows of each case and number of threads, by contender, in the order of the run."""
    cases: dict[tuple[str, int], dict[str, Row]] = {}
    for row in rows:
        cases.setdefault((row.case, row.threads), {})[row.contender] = row
    return cases


def speedups(contenders: dict[str, Row]) -> dict[str, float]:
    """How many times faster sagd is than each contender of one case, and than the fastest of the libraries."""
    found = {name: row.speedup for name, row in contenders.items() if name != OURS}
    libraries = [found[name] for name in LIBRARIES if name in found]
    return {**found, FASTEST: min(libraries)} if len(libraries) > 1 else found


def geometric_mean(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


# ---- tables --------------------------------------------------------------------------------------------------------


def summary(rows: list[Row], every_library: bool = True) -> str:
    """The targets' sizes in one table: each computation against each peer, on all threads and on one.

    Without `every_library`, those that the fastest of them stands for are left out.
    """
    numbers = sorted({row.threads for row in rows}, reverse=True)
    collected: dict[tuple[str, str], dict[tuple[str, int], list[tuple[float, str]]]] = {}
    for contenders in by_case(r for r in rows if r.group in ("targets", "single call")).values():
        ours = contenders[OURS]
        for peer, ratio in speedups(contenders).items():
            cell = collected.setdefault((ours.what, peer), {}).setdefault((ours.group, ours.threads), [])
            cell.append((ratio, ours.size))

    def line(what: str, peer: str) -> list[str]:
        found, cells = collected[what, peer], [f"`{what}`", peer]
        for threads in numbers:
            sizes, single = found.get(("targets", threads)), found.get(("single call", threads))
            several = sizes and len(sizes) > 1
            cells.append(_times(geometric_mean(ratio for ratio, _ in sizes)) if several else "")
            cells.append(_worst(sizes) if sizes else "")
            cells.append(_times(single[0][0]) if single else "")
        return cells

    header = ["computation", "against"]
    for threads in numbers:
        header += [f"{_threads(threads)}: mean", "worst size", "single call"]
    order = sorted(collected, key=lambda pair: (_position(rows, pair[0]), pair[1] != "torch.fft", pair[1] != FASTEST))
    if not every_library:
        order = [(what, peer) for what, peer in order if peer not in LIBRARIES or (what, FASTEST) not in collected]
    return _table(header, [line(what, peer) for what, peer in order])


def markdown(rows: list[Row]) -> str:
    """The whole run: the machine, the summary, then every case."""
    parts = [f"# {rows[0].device}, {rows[0].date}", description(rows), "How to read this: docs/benchmarks.md."]
    if any(row.group in ("targets", "single call") for row in rows):
        sizes = "Geometric mean and worst of the sizes of the group *targets*; how many times faster sagd is."
        parts += ["## Summary", sizes, summary(rows)]
    for group, threads in dict.fromkeys((row.group, row.threads) for row in rows):
        chosen = [row for row in rows if (row.group, row.threads) == (group, threads)]
        parts += [f"## {group.capitalize()}, {_threads(threads)}", _cases_table(chosen)]
    return "\n\n".join(parts) + "\n"


def description(rows: list[Row]) -> str:
    """The machine and its measured limits, as a list."""
    row = rows[0]
    limits = {r.threads: f"{r.copy_gb_per_s:.0f} GB/s copied, {r.peak_gflop_per_s:.0f} GFlop/s" for r in rows}
    others = statistics.fmean(r.others_share for r in rows)
    warning = f": **more than {BUSY:.0%}, do not publish**" if others > BUSY else ""
    lines = [
        f"Device: {row.device}, {row.cores} core{'s' * (row.cores > 1)} used",
        *(f"Measured limits, {_threads(threads)}: {text}" for threads, text in limits.items()),
        f"Other processes took {others:.1%} of the cores' time{warning}",
        f"sagd_kernels {row.sagd}, {row.instruction_set} kernels, compiled by {row.compiler}",
        f"torch {row.torch}, Python {row.python}; {row.peers}",
        *([f"Not installed: {row.missing}"] if row.missing else []),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _cases_table(rows: list[Row]) -> str:
    cases = by_case(rows)
    peers = list(dict.fromkeys(name for contenders in cases.values() for name in contenders if name != OURS))
    weights, caches = len({row.weight for row in rows}) > 1, len({row.cache for row in rows}) > 1
    header = ["case", "sagd", "ns/pixel", "GB/s", "of copy", "of peak", "extra memory", *peers]
    lines = []
    for contenders in cases.values():
        ours = contenders[OURS]
        name = " ".join([f"`{ours.what}`", ours.size, *[ours.weight] * weights, *[ours.cache] * caches])
        ratios = [_times(contenders[peer].speedup) if peer in contenders else "" for peer in peers]
        rates = [f"{ours.ns_per_pixel:.2f}", f"{ours.gb_per_s:.1f}", f"{ours.share_of_copy:.0%}"]
        memory = "" if ours.extra_bytes is None else _memory(contenders)
        lines.append([name, _microseconds(ours.median_us), *rates, f"{ours.share_of_peak:.0%}", memory, *ratios])
    return _table([h for h in header if h != "extra memory" or any(line[6] for line in lines)], _drop_empty(lines, 6))


def _memory(contenders: dict[str, Row]) -> str:
    others = [f"{name} {r.extra_bytes / 2**20:.1f}" for name, r in contenders.items() if name != OURS and r.extra_bytes]
    return f"{contenders[OURS].extra_bytes / 2**20:.1f} MB ({', '.join(others)})"


def _drop_empty(lines: list[list[str]], column: int) -> list[list[str]]:
    if any(line[column] for line in lines):
        return lines
    return [line[:column] + line[column + 1 :] for line in lines]


def _table(header: list[str], lines: list[list[str]]) -> str:
    rule = ["---"] * 2 + ["---:"] * (len(header) - 2)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def _position(rows: list[Row], what: str) -> int:
    return list(dict.fromkeys(row.what for row in rows)).index(what)


def _worst(sizes: list[tuple[float, str]]) -> str:
    ratio, size = min(sizes)
    return f"{_times(ratio)} ({size})"


def _times(ratio: float) -> str:
    return f"{ratio:.2g}x" if ratio < 10 else f"{ratio:.0f}x"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _microseconds(value: float) -> str:
    return f"{value:.1f} us" if value < 100 else f"{value / 1000:.2f} ms"


# ---- README --------------------------------------------------------------------------------------------------------


def update_readme(readme: Path, csv: Path, rows: list[Row]) -> None:
    """Put the summary and its picture between the README's markers. ValueError if it has none."""
    text = readme.read_text()
    parts = re.split(f"({README_START}|{README_END})", text)
    if parts[1::2] != [README_START, README_END]:
        raise ValueError(f"{readme}: expected {README_START} and, after it, {README_END}, once each")
    results = Path(os.path.relpath(csv.parent, readme.parent)).as_posix()
    row, sizes = rows[0], len({r.size for r in rows if r.group == "targets"})
    caption = (
        f"How many times faster sagd is, measured on {row.cores} core{'s' * (row.cores > 1)} of an {row.device} "
        f"({row.instruction_set}) with torch {row.torch}, {row.date}: geometric mean and worst of {sizes} sizes in "
        f"float32, and one call on 1x3x32x32. The {FASTEST} is the fastest for each size of "
        f"{', '.join(LIBRARIES)}. [All results]({results}/results.md)."
    )
    picture = f"![How many times faster sagd is than each peer]({results}/{SPEEDUP_PLOT})"
    inside = "\n\n".join([README_START, caption, summary(rows, every_library=False), picture, README_END])
    readme.write_text(parts[0] + inside + parts[-1])


# ---- comparison ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """One row of ours in two runs: new median over old, the machine's drift removed, and the noise allowed for."""

    row: Row
    ratio: float
    allowed: float

    @property
    def regressed(self) -> bool:
        return self.ratio > 1 + self.allowed

    def __str__(self) -> str:
        return f"{self.row.case}, {_threads(self.row.threads)}: {self.ratio:.2f} (noise {self.allowed:.0%})"


def compare(old: list[Row], new: list[Row]) -> tuple[list[Change], float]:
    """Every measurement of ours that both runs have, and the machine's drift between them.

    The peers have not changed, so the median of their changes is the machine's, and is divided out; the spread of
    their changes is how much a measurement moves from run to run, and is added to the noise of the run's own samples.
    ValueError if the runs are of two devices, of other versions of torch or have nothing in common.
    """
    for name in ("device_key", "device", "torch"):
        values = {getattr(old[0], name), getattr(new[0], name)}
        if len(values) > 1:
            raise ValueError(f"{name}: expected two runs of the same, got {' and '.join(sorted(values))}")
    before = {row.identity: row for row in old}
    pairs = [(before[row.identity], row) for row in new if row.identity in before]
    changes = [math.log(b.median_us / a.median_us) for a, b in pairs if b.contender != OURS]
    drift = statistics.median(changes) if changes else 0.0
    between_runs = _spread(changes) if len(changes) > 3 else 0.0
    found = []
    for a, b in pairs:
        if b.contender == OURS:
            noise = SIGMAS * math.hypot(_standard_error(a), _standard_error(b), between_runs)
            found.append(Change(b, b.median_us / a.median_us / math.exp(drift), max(FLOOR, noise)))
    if not found:
        raise ValueError("the two runs have no measurement of sagd in common")
    return found, math.exp(drift)


def comparison(changes: list[Change], drift: float) -> str:
    """The comparison in words: what became slower beyond noise, and what became faster."""
    slower = [c for c in changes if c.regressed]
    faster = [c for c in changes if c.ratio < 1 / (1 + c.allowed)]
    lines = [f"{len(changes)} measurements in common; peers take {drift:.2f} of their old time, which is divided out"]
    for title, chosen in (("slower beyond noise", slower), ("faster beyond noise", faster)):
        lines.append(f"{title}: {len(chosen) or 'none'}")
        lines += [f"  {change}" for change in sorted(chosen, key=lambda c: -abs(math.log(c.ratio)))]
    return "\n".join(lines)


def _spread(values: list[float]) -> float:
    """Standard deviation from the quartiles, which outliers do not move."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 1.349


def _standard_error(row: Row) -> float:
    """Of the median, over the median, for a normal distribution with the row's quartiles."""
    return 1.2533 * (row.p75_us - row.p25_us) / 1.349 / row.samples**0.5 / row.median_us
