"""python -m benchmarks: run the suite, or make the report, the plots and the README's table from a run's CSV."""

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import process, report
from .rows import Row, read_csv, write_csv

if TYPE_CHECKING:
    from .runner import Options

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PARTIAL = ROOT / "runs" / "benchmarks"
LAST = Path("the last run")

DESCRIPTION = """\
Times sagd_kernels and its peers, interleaved in one process on pinned threads, and writes results.csv. Every contender
is first held to the float64 reference; a wrong one is not timed. docs/benchmarks.md says how to read the results.
"""

EXAMPLES = """\
examples:
  python -m benchmarks                                  everything, about 5 minutes
  python -m benchmarks --quick                          the few cases that tell most, under a minute
  python -m benchmarks --filter 'shaped_noise.*64x64'   the cases whose name matches a regular expression
  python -m benchmarks --list                           the names of the cases, and the contenders
  python -m benchmarks --device cuda                    everything on a GPU
  python -m benchmarks --compare OLD.csv                run, then flag what became slower beyond noise
  python -m benchmarks --compare OLD.csv NEW.csv        the same of two runs that are there
  python -m benchmarks --plot                           results.md and the pictures of the last run
  python -m benchmarks --readme CSV                     the README's table and picture

exit status: 0; 1 if a contender was wrong or failed, or something became slower; 2 for a wrong argument
"""


def parser() -> argparse.ArgumentParser:
    cores = len(process.physical_cores())
    p = argparse.ArgumentParser("python -m benchmarks", None, DESCRIPTION, EXAMPLES)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--quick", action="store_true", help="few cases, all threads, without torch.compile")
    p.add_argument("--filter", default="", metavar="REGEX", help="only cases whose name matches (see --list)")
    p.add_argument("--contenders", nargs="+", metavar="NAME", help="only these, and sagd (see --list)")
    p.add_argument(
        "--threads",
        nargs="+",
        type=int,
        metavar="N",
        help=f"numbers of threads; all cases run on the largest, the targets on the others too (here: {cores} and 1; "
        f"beside a GPU {cores})",
    )
    p.add_argument("--seconds", type=float, default=0.1, help="time for each contender on each case (0.1)")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run (cpu)")
    p.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="where results.csv goes (benchmarks/results/DEVICE for a whole run, runs/benchmarks for a part of it)",
    )
    p.add_argument("--compare", nargs="+", type=Path, metavar="CSV", help="OLD: run and compare; OLD NEW: compare")
    p.add_argument(
        "--plot",
        nargs="?",
        type=Path,
        const=LAST,
        metavar="CSV",
        help="run nothing; write results.md and the pictures of a run beside it (of the last one, unless named)",
    )
    p.add_argument("--readme", type=Path, metavar="CSV", help="run nothing; rewrite the table in README.md")
    p.add_argument("--list", action="store_true", help="run nothing; list cases and contenders")
    return p


def main(arguments: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    if args.compare and len(args.compare) > 2:
        p.error(f"argument --compare: expected OLD or OLD NEW, got {len(args.compare)} files")
    try:
        if args.list:
            return list_registry(args.device)
        if args.plot:
            return plot(last_run(args.output) if args.plot == LAST else args.plot)
        if args.readme:
            return readme(args.readme)
        if args.compare and len(args.compare) == 2:
            return compare(*args.compare)
        options, threads = run_options(args)
        old = read_csv(args.compare[0]) if args.compare else []
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)  # fails before minutes of measuring
    except (OSError, ValueError, re.error) as error:
        p.error(str(error))
    return run(options, threads, args.output, old)


# Modules that load torch are imported where they are used: help, reports and comparisons do not wait for it.


def run_options(args: argparse.Namespace) -> tuple["Options", list[int]]:
    """What to run, and on which numbers of threads, the largest first. ValueError names a wrong argument."""
    from .clocks import clock_of
    from .contenders import CONTENDERS, OURS
    from .runner import Options

    clock_of(args.device)  # or there is no such device
    cores = len(process.physical_cores())
    default = [cores] if args.quick or args.device == "cuda" else [cores, 1]
    threads = sorted(set(args.threads or default), reverse=True)
    if threads[0] > cores or threads[-1] < 1:
        raise ValueError(f"argument --threads: expected 1 to {cores}, the physical cores here, got {args.threads}")
    if not 0 < args.seconds < float("inf"):
        raise ValueError(f"argument --seconds: expected more than 0, got {args.seconds}")
    names = args.contenders or [name for name in CONTENDERS if not (args.quick and name == "torch.compile")]
    unknown = [name for name in names if name not in CONTENDERS]
    if unknown:
        raise ValueError(f"argument --contenders: expected some of {', '.join(CONTENDERS)}, got {', '.join(unknown)}")
    options = Options(
        device=args.device,
        cores=threads[0],
        seconds=args.seconds,
        quick=args.quick,
        filter=args.filter,
        contenders=tuple(dict.fromkeys([OURS, *names])),
    )
    if not options.cases(threads[0]):
        raise ValueError(f"argument --filter: expected to match a name that --list shows, got {args.filter!r}")
    return options, threads


def run(options: "Options", threads: list[int], output: Path | None, old: list[Row]) -> int:
    """Measure, write the CSV, print the summary and, where there is an old run, the comparison with it."""
    from . import memory, runner
    from .contenders import CONTENDERS

    rows, problems = [], []
    if options.device == "cuda":
        process.in_children(options.cores, runner.compile_kernels, options)
    for number in threads:
        outcome = process.in_child(number, runner.run, options, number)
        rows += outcome.rows
        problems += outcome.problems
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not rows:
        return 1
    if not options.quick:
        memory.fill(rows, options.cases(threads[0]), options.device, threads[0])
    whole = not (options.quick or options.filter) and options.contenders == tuple(CONTENDERS)
    target = (output or (RESULTS / rows[0].device_key if whole else PARTIAL)) / "results.csv"
    write_csv(target, rows)
    print(report.description(rows), report.summary(rows), f"Wrote {target}", sep="\n\n")
    status = _print_comparison(old, rows) if old else 0
    return 1 if problems else status


def last_run(output: Path | None) -> Path:
    """The CSV that was written last: in the directory named, or where runs go by themselves."""
    runs = [*output.glob("results.csv")] if output else [*RESULTS.glob("*/results.csv"), *PARTIAL.glob("results.csv")]
    if not runs:
        raise ValueError("argument --plot: no run has been written yet; run python -m benchmarks, or name a CSV")
    return max(runs, key=lambda path: path.stat().st_mtime)


def plot(path: Path) -> int:
    from .plots import draw

    rows = read_csv(path)
    written = draw(rows, path.parent)
    table = path.parent / "results.md"
    pictures = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in written)
    table.write_text(report.markdown(rows) + pictures)
    print(f"Wrote {', '.join(map(str, [table, *written]))}")
    return 0


def readme(path: Path) -> int:
    report.update_readme(ROOT / "README.md", path.resolve(), read_csv(path))
    print(f"Wrote {ROOT / 'README.md'}")
    return 0


def compare(old: Path, new: Path) -> int:
    return _print_comparison(read_csv(old), read_csv(new))


def _print_comparison(old: list[Row], new: list[Row]) -> int:
    changes, drift = report.compare(old, new)
    print(report.comparison(changes, drift))
    return 1 if any(change.regressed for change in changes) else 0


def list_registry(device: str) -> int:
    from .cases import registry
    from .contenders import CONTENDERS

    print(*(case.name for case in registry(device)), sep="\n")
    print("\ncontenders")
    for contender in CONTENDERS.values():
        print(f"  {contender.name}: {contender.missing() or contender.version()} ({', '.join(contender.devices)})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
