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
SPEEDUP_PLOT, SHARE_PLOT, SIZES_PLOT = "speedup.png", "share_of_copy.png", "sizes.png"

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


def is_ours(contender: str) -> bool:
    """Whether it is the library, by one of its backends or in a CUDA graph, too."""
    return contender == OURS or contender.startswith((f"{OURS} ", f"{OURS},"))


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
            cells.append(_mean(sizes) if sizes and len(sizes) > 1 else "")
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


def gpu_summary(rows: list[Row]) -> str:
    """A GPU's targets and training's batches in one table, with a line for each computation."""
    cases = by_case(r for r in rows if r.group in ("targets", "training")).values()
    header = ["computation", "of copy: mean", "worst size", "against torch.fft: mean", "worst size", "torch.compile"]
    header += ["torch.randn", "training, torch.fft", "both in CUDA graphs"]

    def line(what: str) -> list[str]:
        chosen = [contenders for contenders in cases if contenders[OURS].what == what]
        targets, training = ([c for c in chosen if c[OURS].group == group] for group in ("targets", "training"))

        def ratios(some: list[dict[str, Row]], peer: str, ours: str = OURS) -> list[tuple[float, str]]:
            return [(c[peer].median_us / c[ours].median_us, c[ours].size) for c in some if {peer, ours} <= c.keys()]

        eager, shares = ratios(targets, "torch.fft"), [(c[OURS].share_of_copy, c[OURS].size) for c in targets]
        others = [ratios(targets, "torch.compile"), ratios(targets, "torch.randn"), ratios(training, "torch.fft")]
        others.append(ratios(training, "torch.fft, CUDA graph", "sagd, CUDA graph"))
        cells = [f"{geometric_mean(s for s, _ in shares):.0%}", f"{min(shares)[0]:.0%} ({min(shares)[1]})"]
        cells += [_mean(eager), _worst(eager) if eager else "", *map(_mean, others)]
        return [f"`{what}`", *cells]

    return _table(header, [line(what) for what in dict.fromkeys(r.what for r in rows if r.group == "targets")], names=1)


def _mean(ratios: list[tuple[float, str]]) -> str:
    return _times(geometric_mean(ratio for ratio, _ in ratios)) if ratios else ""


def markdown(rows: list[Row]) -> str:
    """The whole run: the machine, the summary, then every case."""
    parts = [f"# {rows[0].device}, {rows[0].date}", description(rows), "How to read this: docs/benchmarks.md."]
    parts += _summary(rows)
    for group, threads in dict.fromkeys((row.group, row.threads) for row in rows):
        chosen = [row for row in rows if (row.group, row.threads) == (group, threads)]
        where = "" if chosen[0].on_gpu else f", {_threads(threads)}"
        parts += [f"## {group.capitalize()}{where}", _cases_table(chosen)]
    return "\n\n".join(parts) + "\n"


def _summary(rows: list[Row]) -> list[str]:
    """The section with the summary; empty where a part of the suite has nothing for it."""
    on_gpu, groups = rows[0].on_gpu, {row.group for row in rows}
    if not groups & ({"targets"} if on_gpu else {"targets", "single call"}):
        return []
    parts = ["## Summary", "Geometric mean and worst of the sizes of the group *targets*"]
    if on_gpu:
        parts[1] += ": the time of a copy over sagd's, and how many times faster sagd is."
        return [*parts, gpu_summary(rows)]
    parts[1] += "; how many times faster sagd is."
    return [*parts, summary(rows)]


def description(rows: list[Row]) -> str:
    """The machine and its measured limits, as a list."""
    row = rows[0]
    limits = {r.threads: f"{r.copy_gb_per_s:.0f} GB/s copied, {r.peak_gflop_per_s:.0f} GFlop/s" for r in rows}
    others = statistics.fmean(r.others_share for r in rows)
    warning = f": **more than {BUSY:.0%}, do not publish**" if others > BUSY else ""
    lines = [
        f"Device: {row.device}, {row.cores} core{'s' * (row.cores > 1)} {'beside it' if row.on_gpu else 'used'}",
        *(f"Measured limits{'' if row.on_gpu else f', {_threads(n)}'}: {text}" for n, text in limits.items()),
        f"Other processes took {others:.1%} of the cores' time{warning}",
        f"sagd_kernels {row.sagd}, {row.instruction_set} kernels, compiled by {row.compiler}",
        f"torch {row.torch}, Python {row.python}{row.peers and '; '}{row.peers}",
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
        per_pixel = f"{ours.ns_per_pixel:.2f}" if ours.ns_per_pixel > 0.1 else f"{ours.ns_per_pixel:.2g}"
        rates = [per_pixel, f"{ours.gb_per_s:.1f}", f"{ours.share_of_copy:.0%}"]
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


def _table(header: list[str], lines: list[list[str]], names: int = 2) -> str:
    """The first columns are names, the others numbers."""
    rule = ["---"] * names + ["---:"] * (len(header) - names)
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
    return f"{value:.1f} us" if value < 100 else f"{value:.0f} us" if value < 1000 else f"{value / 1000:.2f} ms"


# ---- README --------------------------------------------------------------------------------------------------------


def update_readme(readme: Path, csv: Path, rows: list[Row]) -> None:
    """Put the summary and its picture between the README's markers for this kind of device. ValueError without them."""
    text, (start, end) = readme.read_text(), readme_markers(rows[0].on_gpu)
    parts = re.split(f"({start}|{end})", text)
    if parts[1::2] != [start, end]:
        raise ValueError(f"{readme}: expected {start} and, after it, {end}, once each")
    results = Path(os.path.relpath(csv.parent, readme.parent)).as_posix()
    link = f"[All results]({results}/results.md)."
    if rows[0].on_gpu:
        inside = [f"{_gpu_caption(rows)} {link}", gpu_summary(rows)]
        inside.append(f"![Share of the copy bandwidth that each contender reaches]({results}/{SHARE_PLOT})")
    else:
        inside = [f"{_cpu_caption(rows)} {link}", summary(rows, every_library=False)]
        inside.append(f"![How many times faster sagd is than each peer]({results}/{SPEEDUP_PLOT})")
    readme.write_text(parts[0] + "\n\n".join([start, *inside, end]) + parts[-1])


def readme_markers(on_gpu: bool) -> tuple[str, str]:
    kind = "gpu benchmarks" if on_gpu else "benchmarks"
    return f"<!-- {kind}:start -->", f"<!-- {kind}:end -->"


def _cpu_caption(rows: list[Row]) -> str:
    row, sizes = rows[0], len({r.size for r in rows if r.group == "targets"})
    return (
        f"How many times faster sagd is, measured on {row.cores} core{'s' * (row.cores > 1)} of an {row.device} "
        f"({row.instruction_set}) with torch {row.torch}, {row.date}: geometric mean and worst of {sizes} sizes in "
        f"float32, and one call on 1x3x32x32. The {FASTEST} is the fastest for each size of "
        f"{', '.join(LIBRARIES)}."
    )


def _gpu_caption(rows: list[Row]) -> str:
    row, sizes = rows[0], len({r.size for r in rows if r.group == "targets"})
    return (
        f"Measured on an {row.device} with torch {row.torch}, {row.date}: *of copy* is the time in which the bytes "
        f"that one pass must move are copied, at {row.copy_gb_per_s:.0f} GB/s, over sagd's time; the other columns say "
        f"how many times faster sagd is. Geometric mean and worst of {sizes} sizes in float32, in batches that fill "
        f"the GPU; *training* is on small batches, which wait for their launches unless they are in CUDA graphs."
    )


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
    changes = [math.log(b.median_us / a.median_us) for a, b in pairs if not is_ours(b.contender)]
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
