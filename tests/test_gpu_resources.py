"""The library's GPU kernels need no more registers and shared memory, and spill no more, than the table allows."""

from dataclasses import replace

import pytest
import torch

from benchmarks.cases import Case
from benchmarks.gpu_cost import resources
from benchmarks.gpu_cost.contenders import Operands, contenders, label, triton_contender
from benchmarks.rows import read_csv, write_csv
from tests.emulation import toolchain

KERNELS = [
    pytest.param(contender, case, capability, id=f"{contender.name} {label(case)} sm_{capability}", marks=marks)
    for contender in contenders()
    for case in resources.table_cases(contender)
    for capability in resources.ARCHITECTURES
    for plane in [(capability, case.shape[-1], case.dtype) == (80, 64, torch.float32)]
    for quick in [plane and case.operator in ("spectral_filter", "shaped_noise")]
    for marks in [() if quick else pytest.mark.slow]
]


def needs_ptxas() -> None:
    if not toolchain.has("ptxas"):
        pytest.skip("ptxas is not installed: it comes with triton and with nvcc")


@pytest.mark.parametrize(("contender", "case", "capability"), KERNELS)
def test_kernels_keep_to_the_table(contender, case, capability):
    needs_ptxas()
    if contender.missing():
        pytest.skip(contender.missing())
    found = resources.measure(contender, case, capability)
    table = read_csv(resources.TABLE, resources.Row)
    assert found
    assert resources.complaints(table, found) == []
    made_with, here = ({row.toolchain for row in rows if row.contender == contender.name} for rows in (table, found))
    if not made_with & here:
        pytest.skip(f"only spills were checked: the table was made with {made_with}, here are {here}")


def test_table_has_no_stale_rows():
    """Each row is of a contender's case; that its kernel is still launched shows when the table is made again."""
    known = {(each.name, label(case)) for each in contenders() for case in resources.table_cases(each)}
    assert {(row.contender, row.case) for row in read_csv(resources.TABLE, resources.Row)} <= known


ROW = resources.Row(
    "triton", "shaped_noise 64x64 float32", "noise", "128 threads", "sm_80", 96, 0, 8192, "triton 3.9.0"
)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({}, None),
        ({"registers": 95, "shared": 0}, None),
        ({"registers": 97}, "registers grew from 96 to 97"),
        ({"shared": 8193}, "shared grew from 8192 to 8193"),
        ({"spills": 4}, "spills 4 bytes"),
        ({"registers": 97, "toolchain": "triton 3.6.0"}, None),
        ({"spills": 4, "toolchain": "triton 3.6.0"}, "spills 4 bytes"),
        ({"configuration": "64 threads"}, "not in resources.csv"),
    ],
)
def test_complaints(change, complaint):
    found = resources.complaints([ROW], [replace(ROW, **change)])
    assert (not found) if complaint is None else (len(found) == 1 and complaint in found[0])


def test_known_spills_may_not_grow():
    spilling = replace(ROW, spills=8)
    assert not resources.complaints([spilling], [spilling, ROW])
    assert "spills grew from 8 to 12" in resources.complaints([spilling], [replace(ROW, spills=12)])[0]


def test_table_survives_a_round_trip(tmp_path):
    rows = [ROW, replace(ROW, kernel="filter", configuration="256 threads, N=64 P=2", registers=255)]
    write_csv(tmp_path / "table.csv", rows, resources.Row)
    assert read_csv(tmp_path / "table.csv", resources.Row) == rows


def test_measuring_a_triton_kernel(monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    pytest.importorskip("triton", reason="triton is not installed")
    needs_ptxas()
    from tests.emulation.examples import triton_kernels as kernels

    def call(operands: Operands) -> None:
        x = operands.input
        kernels.add[(x.numel() // 1024,)](x, x, torch.empty_like(x), x.numel(), BLOCK=1024)
        kernels.add[(1,)](x, x, torch.empty_like(x), 1024, BLOCK=1024)

    example = triton_contender("example", call, lambda case: case.operator == "spectral_filter")
    case = Case("emulated", "spectral_filter", (4096, 3, 64, 64))
    (row,) = resources.measure(example, case, 90)  # the same configuration twice
    assert (row.contender, row.case, row.kernel, row.architecture) == (
        "example",
        "spectral_filter 64x64 float32",
        "add",
        "sm_90",
    )
    assert row.configuration.startswith("128 threads, BLOCK=1024") and "triton" in row.toolchain
    assert 8 < row.registers < 64 and row.spills == row.shared == 0
    first, second = example.launches(case, 80, 2)
    assert first.counters.blocks_total == 4096 * 3 * 64 * 64 // 1024 and first.counters.blocks_run == 2
    assert first.counters.dram_bytes == (4 * case.pixels, 4 * case.pixels)
    assert second.counters.blocks_run == 1
