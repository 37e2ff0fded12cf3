"""python -m benchmarks.gpu_cost: estimate what the GPU kernels cost, or make the report of such a run again."""

import argparse
import re
import sys
from pathlib import Path

from benchmarks.rows import read_csv, write_csv

RESULTS = Path(__file__).parent / "results"
DESCRIPTION = """\
Emulates a few blocks of each launch of the library's GPU kernels, counts, and writes estimates.csv, estimates.md and
estimates.png. No GPU is needed and no time is measured. docs/gpu_costs.md says how to read the results.
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.gpu_cost", description=DESCRIPTION)
    p.add_argument("--filter", default="", metavar="REGEX", help="only cases whose name matches (see --list)")
    p.add_argument("--contenders", nargs="+", metavar="NAME", help="only these (see --list)")
    p.add_argument("--sample", type=int, default=2, metavar="BLOCKS", help="blocks to run of each launch (2)")
    p.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help=f"where the results go ({RESULTS})")
    p.add_argument("--report", type=Path, metavar="CSV", help="run nothing; write the table and picture beside it")
    p.add_argument("--list", action="store_true", help="run nothing; list cases and contenders")
    return p


def main(arguments: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(arguments)
    from .cost import Row

    if args.list:
        return list_registry()
    if args.report:
        return report(read_csv(args.report, Row), args.report.parent)
    try:
        chosen, absent = select(args)
    except (ValueError, re.error) as error:
        p.error(str(error))
    for name, reason in absent.items():
        print(f"error: {name}: {reason}", file=sys.stderr)
    rows = run(chosen, args.sample)
    if not rows:
        print("error: no contender has kernels for such a case", file=sys.stderr)
        return 1
    write_csv(args.output / "estimates.csv", rows, Row)
    report(rows, args.output)
    return 1 if absent else 0


# Modules that load torch are imported where they are used: help does not wait for it.


def select(args: argparse.Namespace) -> tuple[list[tuple], dict[str, str]]:
    """The (contender, case) pairs to run, and why contenders that were asked for are missing."""
    from .contenders import cases, contenders, label

    if args.sample < 2:
        raise ValueError(f"argument --sample: expected 2 or more (what more blocks add must show), got {args.sample}")
    known = {each.name: each for each in contenders()}
    names = args.contenders or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"argument --contenders: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    absent = {name: known[name].missing() for name in names if known[name].missing()}
    usable = [known[name] for name in names if name not in absent]
    matching = [case for case in cases() if re.search(args.filter, label(case))]
    return [(each, case) for each in usable for case in matching if each.supports(case)], absent


def run(chosen: list[tuple], sample: int) -> list:
    from .contenders import label
    from .cost import cost

    rows = []
    for contender, case in chosen:
        found = cost(contender, case, sample)
        summary = ", ".join(f"{row.device} {row.ratio:.2f} ({row.limiter})" for row in found)
        print(f"{contender.name} {label(case)}: {summary}", flush=True)
        rows += found
    return rows


def list_registry() -> int:
    from .contenders import cases, contenders, label

    print(*map(label, cases()), "", "contenders", sep="\n")
    print(*(f"  {each.name}: {each.missing() or each.toolchain()}" for each in contenders()), sep="\n")
    return 0


def report(rows: list, directory: Path) -> int:
    """Write the table and the picture."""
    from .plots import draw
    from .report import markdown

    draw(rows, directory / "estimates.png")
    picture = "\n![Bound over the DRAM time of the compulsory bytes, estimated](estimates.png)\n"
    (directory / "estimates.md").write_text(markdown(rows) + picture)
    print(f"Wrote {directory}/estimates.md and estimates.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
