"""Registers, spills and shared memory of the library's kernels, and the table that they are held to.

`python -m benchmarks.gpu_cost.resources` compiles every contender's kernels for every architecture and rewrites
resources.csv, which takes minutes; with `--check` it compares instead. A test does the same: what needs more than the
table says, or spills for the first time, fails. Change the table on purpose only, and say why in the commit.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.cases import Case
from benchmarks.rows import read_csv, write_csv
from tests.emulation.machine import Launch
from tests.emulation.toolchain import assemble

from .contenders import Contender, cases, contenders, label

ARCHITECTURES = (80, 89, 90, 100, 120)
# Sides of the planes in the table: one for each kind of configuration, or each size with a kernel of its own.
SIDES = {"triton": (16, 32, 64, 128, 256, 512), "cuda": (16, 28, 32, 48, 64, 96, 128, 256)}
TABLE = Path(__file__).parent / "resources.csv"


class Identity(NamedTuple):
    """What makes two rows the same kernel."""

    contender: str
    case: str
    kernel: str
    configuration: str
    architecture: str


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        case: see `contenders.label`.
        configuration: what the kernel is specialised for: threads per block and constants.
        registers: per thread; `spills` in bytes per thread, stores and loads; `shared` in bytes per block.
        toolchain: what compiled it. Numbers of different toolchains are not compared.
    """

    contender: str
    case: str
    kernel: str
    configuration: str
    architecture: str
    registers: int
    spills: int
    shared: int
    toolchain: str

    @property
    def identity(self) -> Identity:
        return Identity(self.contender, self.case, self.kernel, self.configuration, self.architecture)


def table_cases(contender: Contender) -> list[Case]:
    """Those of `contenders.cases` that the table has rows for."""
    return [case for case in cases() if case.shape[-2] in SIDES[contender.name] and contender.supports(case)]


def measure(contender: Contender, case: Case, capability: int) -> list[Row]:
    """The kernels that one call launches, each configuration once. Needs ptxas."""
    rows = {}
    for launch in contender.launches(case, capability, None):
        found, _ = assemble(launch.kernel, f"sm_{capability}")
        row = Row(
            contender=contender.name,
            case=label(case),
            kernel=launch.kernel.name,
            configuration=configuration(launch),
            architecture=f"sm_{capability}",
            registers=found.registers,
            spills=found.spill_stores + found.spill_loads,
            shared=found.static_shared + launch.dynamic_shared,
            toolchain=f"{contender.toolchain()}, ptxas {found.assembler}",
        )
        rows[row.identity] = row
    return list(rows.values())


def configuration(launch: Launch) -> str:
    """ "128 threads, N=64 P=2": the constants that are numbers, truth values or names."""
    plain = {name: value for name, value in launch.constants.items() if isinstance(value, (int, float, str, bool))}
    return ", ".join([f"{launch.threads} threads", " ".join(f"{name}={value}" for name, value in plain.items())])


def complaints(table: Iterable[Row], found: Iterable[Row]) -> list[str]:
    """What is wrong with the rows found, given the table: rows that it lacks, new spills, and growth."""
    known, problems = {row.identity: row for row in table}, []
    for row in found:
        name, old = " ".join(row.identity), known.get(row.identity)
        if row.spills and not (old and old.spills):
            problems.append(f"{name}: spills {row.spills} bytes")
        if old is None:
            problems.append(f"{name}: not in {TABLE.name}; run python -m benchmarks.gpu_cost.resources")
        elif old.toolchain == row.toolchain:
            for what in ("registers", "spills", "shared"):
                before, now = getattr(old, what), getattr(row, what)
                if now > before and (what != "spills" or before):
                    problems.append(f"{name}: {what} grew from {before} to {now}")
    return problems


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu_cost.resources", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the table instead of rewriting it")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="only these; rows of others stay as they are")
    args = parser.parse_args(arguments)
    table, rows = read_csv(TABLE, Row), []
    for contender in contenders():
        wanted = args.contenders is None or contender.name in args.contenders
        if why := contender.missing() if wanted else "not asked for":
            print(f"{contender.name}: {why}, its rows stay as they are")
            rows += [row for row in table if row.contender == contender.name]
            continue
        for case in table_cases(contender):
            print(f"{contender.name} {label(case)}", flush=True)
            for capability in ARCHITECTURES:
                rows += measure(contender, case, capability)
    problems = complaints(table if args.check else rows, rows)
    print(*problems, sep="\n")
    if not args.check:
        write_csv(TABLE, rows, Row)
        print(f"Wrote {len(rows)} rows to {TABLE}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
