"""A run as a table: one row for each case, number of threads and contender, each with the machine's description."""

import csv
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Identity(NamedTuple):
    """What makes two rows of two runs the same measurement."""

    case: str
    threads: int
    contender: str


@dataclass
class Row:
    """One line of the CSV.

    Attributes:
        case, group, what, size, dtype, weight, cache: see `cases.Case`; `case` is its name.
        threads: of the CPU; a GPU's rows have them for the processes beside it.
        median_us .. p75_us: microseconds per call over `samples` samples.
        others_share: of the time of the cores in use, what other processes took while the case was measured.
        ns_per_pixel, gb_per_s: of the median; the latter for the case's one-pass bytes.
        share_of_copy, share_of_peak: time at the limit over the median, for copy_gb_per_s and peak_gflop_per_s.
        speedup: this contender's median over that of sagd in the same run: how many times faster sagd is.
        extra_bytes: peak memory of a call beyond its results, see memory.py; None where it was not measured.
        device_key .. date: see `machine.Machine`.
    """

    case: str
    group: str
    what: str
    size: str
    dtype: str
    weight: str
    cache: str
    threads: int
    contender: str
    median_us: float
    min_us: float
    p25_us: float
    p75_us: float
    samples: int
    others_share: float
    ns_per_pixel: float
    gb_per_s: float
    share_of_copy: float
    share_of_peak: float
    speedup: float
    extra_bytes: int | None
    copy_gb_per_s: float
    peak_gflop_per_s: float
    device_key: str
    device: str
    cores: int
    sagd: str
    instruction_set: str
    compiler: str
    torch: str
    python: str
    peers: str
    missing: str
    date: str

    @property
    def on_gpu(self) -> bool:
        return self.instruction_set == "cuda"

    @property
    def identity(self) -> Identity:
        return Identity(self.case, self.threads, self.contender)


def write_csv(path: Path, rows: list[T], kind: type[T] = Row) -> None:
    """Rows of a dataclass. Floats are written to five digits, more than a timing has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(kind)], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = dataclasses.asdict(row)
            writer.writerow({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in values.items()})


def read_csv(path: Path, kind: type[T] = Row) -> list[T]:
    """ValueError if the columns are not those of the dataclass."""
    readers = {int: int, float: float, str: str}
    readers |= {type_ | None: lambda text, type_=type_: type_(text) if text else None for type_ in (int, float)}
    kinds = {field.name: readers[field.type] for field in dataclasses.fields(kind)}
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or []) != list(kinds):
            raise ValueError(f"{path}: expected the columns {list(kinds)}, got {reader.fieldnames}")
        return [kind(**{name: kinds[name](text) for name, text in line.items()}) for line in reader]
