"""The cost report of GPU kernels: its counts are right for kernels whose costs are known, and it reads as estimates."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from benchmarks.cases import WITH_BACKWARD, Case
from benchmarks.gpu_cost import __main__ as command
from benchmarks.gpu_cost import contenders, cost, eager, report
from benchmarks.rows import read_csv, write_csv
from tests.emulation import Kernel, launch, toolchain
from tests.emulation.devices import DEVICES

COPY = """.version 8.0
.target sm_80
.address_size 64
.visible .entry copy(.param .u64 x, .param .u64 y) {
    .reg .b32 %r<8>; .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [x]; ld.param.u64 %rd2, [y];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3; mul.wide.s32 %rd3, %r4, 16;
    add.s64 %rd4, %rd1, %rd3; add.s64 %rd5, %rd2, %rd3;
    ld.global.v4.b32 {%r4, %r5, %r6, %r7}, [%rd4]; st.global.v4.b32 [%rd5], {%r4, %r5, %r6, %r7}; ret; }"""
FILTER = Case("emulated", "spectral_filter", (4096, 3, 64, 64), scale=True)


def copies(times: int) -> contenders.Contender:
    """A "filter" that copies its input so often: as fast as DRAM is, but for the passes."""

    def launches(case: Case, capability: int, sample: int | None):
        arrays = [np.empty(case.pixels, np.float32) for _ in range(times + 1)]
        grid, block = (case.pixels // 1024,), (256,)
        return [launch(Kernel(COPY), grid, block, pair, blocks=range(sample)) for pair in pairwise(arrays)]

    def supports(case: Case) -> bool:
        return case.operator == "spectral_filter" and case.shape[-2:] == (64, 64) and case.dtype == torch.float32

    return contenders.Contender(f"{times} copies", launches, supports, lambda: "", lambda: "hand-written PTX")


@pytest.fixture(scope="module")
def rows() -> list[cost.Row]:
    if not toolchain.has("ptxas"):
        pytest.skip("ptxas is not installed: it comes with triton and with nvcc")
    return [row for times in (1, 2) for row in cost.cost(copies(times), FILTER, sample=2)]


def test_one_copy_is_the_bound_of_one_pass(rows):
    once = rows[: len(DEVICES)]
    assert [row.device for row in once] == list(DEVICES)
    for row in once:
        assert row.limiter == "dram" and row.ratio == pytest.approx(1, rel=1e-4)
        assert row.traffic == pytest.approx(1, rel=1e-4)
        assert row.load_efficiency == row.store_efficiency == 1 and row.conflict_degree is None
        assert row.dram_read_bytes == row.dram_written_bytes == 4 * FILTER.pixels
        assert row.compulsory_us == pytest.approx(8 * FILTER.pixels / DEVICES[row.device].dram_gb_s / 1e3, rel=1e-3)
        assert 2 <= row.instructions <= 8  # about a dozen for four pixels
        assert row.fp32_flops == row.tensor_flops == row.spills == 0
        assert row.next_ratio < 0.5


def test_two_copies_cost_two_passes(rows):
    for row in rows[len(DEVICES) :]:
        assert row.launches == 2 and row.kernels == "copy"
        assert row.ratio == pytest.approx(2, rel=1e-4) and row.traffic == pytest.approx(2, rel=1e-4)


PIXELS, HALF = 4096 * 3 * 64 * 64, 4096 * 3 * 64 * 33


@pytest.mark.parametrize(
    ("operator", "scale", "launches", "planes"),
    [
        ("spectral_filter", True, 8, 6),  # rfft2 reads one and irfft2 writes one; two each for 1 / (H W) and the scale
        ("spectral_filter", False, 7, 4),
        ("shaped_noise", True, 9, 7),  # randn writes one
        ("add_noise", False, 11, 12),  # two products and a sum instead of the scale
    ],
)
def test_eager_pipeline_by_hand(operator, scale, launches, planes):
    case = replace(FILTER, operator=operator, scale=scale)
    assert len(eager.pipeline(case)) == launches
    spectra = 10  # rfft2 writes, its columns 2, times w 2, clone 2, columns 2, irfft2's rows read
    assert eager.total_bytes(case) == 4 * PIXELS * planes + 8 * HALF * spectra + 4 * 64 * 33


def test_eager_gradient_and_half_precision():
    loss = replace(FILTER, operator="whitened_mse", direction=WITH_BACKWARD, scale=False)
    steps = eager.pipeline(loss)
    assert len(steps) == 12
    assert sum(step.read for step in steps) < eager.total_bytes(loss)
    half = replace(FILTER, dtype=torch.bfloat16)
    assert eager.total_bytes(half) == eager.total_bytes(FILTER) + 2 * (2 + 4) * PIXELS


def test_every_case_has_a_pipeline_and_a_name_of_its_own():
    found = contenders.cases()
    assert len({contenders.label(case) for case in found}) == len(found) >= 40
    assert all(eager.total_bytes(case) > 0 for case in found)


def test_operands_are_large_and_hardly_touched():
    operands = contenders.Operands(FILTER)
    assert operands.input.shape == FILTER.shape and operands.scale.shape == (4096,)
    filled = operands.input.view(-1, 64, 64)[: contenders.FILLED_PLANES]
    assert filled.std().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(operands.input[0], operands.target[0])
    assert operands.weight.shape == (64, 33)


def test_report_says_that_it_estimates(rows, tmp_path):
    write_csv(tmp_path / "rows.csv", rows, cost.Row)
    again = read_csv(tmp_path / "rows.csv", cost.Row)
    assert [(row.contender, row.device, row.limiter) for row in again] == [
        (row.contender, row.device, row.limiter) for row in rows
    ]
    text = report.markdown(again)
    assert "Estimates, not measurements" in text
    assert "| 1 copies | `spectral_filter+scale 64x64 float32` | 1.00 | 1.00 | 1.00 | 1.00 |" in text
    assert "| 2 copies | `spectral_filter+scale 64x64 float32` | 2.00 | 2.00 | 2.00 | 2.00 |" in text


def test_command(rows, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    absent = replace(copies(3), name="absent", missing=lambda: "a tool is not installed")
    monkeypatch.setattr(contenders, "contenders", lambda: [copies(1), copies(2), absent])
    output = ["--output", str(tmp_path)]
    assert command.main(["--filter", "64x64", "--contenders", "1 copies", *output]) == 0
    assert len(read_csv(tmp_path / "estimates.csv", cost.Row)) == len(DEVICES)
    assert (tmp_path / "estimates.png").stat().st_size > 10_000
    assert command.main(["--report", str(tmp_path / "estimates.csv")]) == 0
    assert command.main(["--filter", "64x64", "--contenders", "absent", *output]) == 1
    assert "absent: a tool is not installed" in capsys.readouterr().err
    assert command.main(["--filter", "whitened", *output]) == 1
    assert "no contender has kernels" in capsys.readouterr().err
    assert command.main(["--list"]) == 0
    assert "absent: a tool is not installed" in capsys.readouterr().out
    for wrong, named in ((["--sample", "1"], "--sample"), (["--filter", "["], ""), (["--contenders", "x"], "1 copies")):
        with pytest.raises(SystemExit):
            command.main(wrong)
        assert named in capsys.readouterr().err
