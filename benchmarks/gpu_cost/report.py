"""Markdown, from the rows alone."""

from collections.abc import Iterable

from .cost import Row

CAVEAT = """\
**Estimates, not measurements.** The kernels ran in an emulator that counts what they do; the times are lower bounds
from public limits of the devices. docs/gpu_costs.md says how to read them and what they cannot see.
"""


def markdown(rows: list[Row]) -> str:
    """The bounds by device, then the counts behind them (of one device: the counts hardly depend on it)."""
    devices = list(dict.fromkeys(row.device for row in rows))
    counted = next((row.device for row in rows if row.device == "H100"), devices[0])
    parts = [
        "# Estimated cost of the GPU kernels",
        CAVEAT,
        "## Bound over the DRAM time of the compulsory bytes",
        "1 is the best that one pass over memory allows. In parentheses what limits, where that is not DRAM.",
        _table(["kernels", "case", *devices], _bounds(rows, devices)),
        "## torch's eager pipeline over the bound",
        "By how much the same operator costs more as a composite of torch.fft, by bytes alone; launches of both.",
        _table(["kernels", "case", *devices, "launches", "eager launches"], _eager(rows, devices)),
        f"## Counts per pixel, compiled for {counted}",
        _table(
            ["kernels", "case", "DRAM traffic / compulsory", "load, store efficiency of planes", "bank conflicts",
             "instructions", "float32 flops", "tensor flops", "registers", "spills", "warps / SM"],
            _counts(row for row in rows if row.device == counted),
        ),
        f"Compiled by {'; '.join(sorted({row.toolchain for row in rows}))}.",
    ]  # fmt: skip
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _bounds(rows: list[Row], devices: list[str]) -> Iterable[list[str]]:
    for head, found in _by_case(rows):
        yield [*head, *(_bound(found.get(device)) for device in devices)]


def _bound(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row.ratio:.2f}" + ("" if row.limiter == "dram" else f" ({row.limiter})")


def _eager(rows: list[Row], devices: list[str]) -> Iterable[list[str]]:
    for head, found in _by_case(rows):
        ratios = [f"{found[d].eager_us / found[d].bound_us:.1f}x" if d in found else "" for d in devices]
        first = next(iter(found.values()))
        yield [*head, *ratios, str(first.launches), str(first.eager_launches)]


def _counts(rows: Iterable[Row]) -> Iterable[list[str]]:
    for row in rows:
        efficiency = ", ".join("" if e is None else f"{e:.0%}" for e in (row.load_efficiency, row.store_efficiency))
        conflicts = "" if row.conflict_degree is None else f"{row.conflict_degree:.2f}"
        counts = [f"{value:.1f}" for value in (row.instructions, row.fp32_flops, row.tensor_flops)]
        resources = [str(value) for value in (row.registers, row.spills, row.warps)]
        yield [row.contender, f"`{row.case}`", f"{row.traffic:.2f}", efficiency, conflicts, *counts, *resources]


def _by_case(rows: list[Row]) -> Iterable[tuple[list[str], dict[str, Row]]]:
    """([contender, case], its rows by device)."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        found.setdefault((row.case, row.contender), {})[row.device] = row
    return (([contender, f"`{case}`"], by_device) for (case, contender), by_device in found.items())


def _table(head: list[str], lines: Iterable[list[str]]) -> str:
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))
