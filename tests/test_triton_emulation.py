"""Triton kernels run without a GPU: emulated, interpreted or compiled, and Triton is left as it was."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")

from tests.emulation import EmulationError  # noqa: E402
from tests.emulation.examples import triton_kernels as kernels  # noqa: E402
from tests.emulation.toolchain import assemble  # noqa: E402
from tests.emulation.triton import compiled, emulated, interpreted  # noqa: E402

ARCHITECTURES = [80, 89, 90, 100, 120]


@pytest.fixture(autouse=True)
def _fused_multiply_add(monkeypatch):
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # or Triton 3.9 warns that its default will change


def nan(*shape: int) -> torch.Tensor:
    return torch.full(shape, float("nan"))


def add(n: int = 5008, grid: tuple[int, ...] = (5,)) -> None:
    """Like a library's function: a launch on CPU tensors that knows nothing of the emulator."""
    x, y, out = torch.randn(n), torch.randn(n), nan(n)
    kernels.add[grid](x, y, out, n, BLOCK=1024)
    assert torch.equal(out, x + y)


def test_masked_addition():
    with emulated(80) as launches:
        add()
    counters = launches[0].counters
    assert launches[0].kernel.name == "add" and launches[0].constants["BLOCK"] == 1024
    assert counters.dram_bytes == (8 * 5008, 4 * 5008)
    assert counters.traffic("global", "load").sector_efficiency == 1


def product(dtype: torch.dtype, precision: str) -> float:
    """Relative error of three products [32, 32] x [32, 64], against float64."""
    a, b, out = torch.randn(3, 32, 32).to(dtype), torch.randn(3, 32, 64).to(dtype), nan(3, 32, 64)
    kernels.product[(3,)](a, b, out, 32, 64, 32, precision)
    expected = a.double() @ b.double()
    return ((out - expected).norm() / expected.norm()).item()


FLOPS = 2 * 3 * 32 * 64 * 32


@pytest.mark.parametrize(
    ("dtype", "precision", "lowest", "highest", "flops"),
    [
        (torch.float32, "ieee", 0, 3e-7, {}),
        (torch.float32, "tf32", 1e-4, 1e-3, {"tf32": FLOPS}),  # as inexact as tf32 really is
        (torch.float32, "tf32x3", 0, 3e-7, {"tf32": 3 * FLOPS}),
        (torch.bfloat16, "ieee", 0, 1e-6, {"bf16": FLOPS}),
        (torch.float16, "ieee", 0, 1e-6, {"f16": FLOPS}),
    ],
)
def test_matrix_products(dtype, precision, lowest, highest, flops):
    with emulated(80) as launches:
        error = product(dtype, precision)
    assert lowest <= error <= highest
    counters = launches[0].counters
    assert counters.mma_flops == flops
    assert counters.fp32_flops >= (0 if flops else FLOPS)
    assert counters.dram_bytes == (3 * (32 * 32 + 32 * 64) * dtype.itemsize, 3 * 32 * 64 * 4)


@pytest.mark.parametrize("stages", [1, 3])
def test_pipelined_product(stages):
    """With several stages tiles are copied asynchronously, and land only when the kernel waits for them."""
    m, n, k = 100, 72, 208
    a, b, out = torch.randn(m, k).bfloat16(), torch.randn(k, n).bfloat16(), nan(m, n)
    with emulated(80) as launches:
        kernels.pipelined_product[(4, 3)](a, b, out, m, n, k, 32, 32, 32, stages)
    expected = a.double() @ b.double()
    assert (out - expected).norm() < 1e-6 * expected.norm()
    assert any("cp.async" in instr.text for instr in launches[0].kernel.code) == (stages > 1)
    assert launches[0].counters.dram_bytes == (2 * (m * k + k * n), 4 * m * n)


def row_sums() -> None:
    x, out = torch.randn(4, 1024), nan(4)
    kernels.row_sum[(4,)](x, out, 1024)
    assert torch.allclose(out, x.sum(1), atol=1e-4)


def random_words() -> torch.Tensor:
    out = torch.zeros(512, dtype=torch.int32)
    kernels.random_words[(2,)](out, 77, 64)
    return out


def test_reduction_uses_shuffles():
    with emulated(80) as launches:
        row_sums()
    assert launches[0].counters.instructions()["shuffle"] > 0


def test_approximate_functions_are_inexact():
    x, out = torch.linspace(-3, 3, 1024), nan(1024)
    errors = []
    for approximate in (True, False):
        with emulated(80, approximate=approximate):
            kernels.fast_sine[(1,)](x, out, 1024)
        errors.append((out - x.double().sin()).abs().max().item())
    assert 1e-7 < errors[0] <= 2**-21.41 + 2**-24  # its bound, and a rounding
    assert errors[1] <= 2**-25


def test_out_of_bounds_is_found():
    with emulated(80), pytest.raises(EmulationError, match=r"out of bounds: 4 bytes at .* byte 128 of an array of 128"):
        kernels.add[(1,)](torch.randn(64), torch.randn(64), torch.empty(32), 64, BLOCK=64)


def test_pointers_may_reach_all_of_a_tensors_storage():
    x, out = torch.randn(4, 96), torch.zeros(96)
    with emulated(80):
        kernels.add[(1,)](x[2], x[3], out, 96, BLOCK=128)
    assert torch.equal(out, x[2] + x[3])


def test_a_sample_of_blocks_counts_for_the_grid():
    n = 64 * 1024
    x, out = torch.randn(n), torch.zeros(n)
    with emulated(80, sample=2) as launches:
        kernels.add[(64,)](x, x, out, n, BLOCK=1024)
    counters = launches[0].counters
    assert (counters.blocks_run, counters.blocks_total) == (2, 64)
    assert counters.dram_bytes == (4 * n, 4 * n)
    assert torch.equal(out[:2048], 2 * x[:2048]) and not out[2048:].any()


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_compiled_for_every_architecture(capability):
    out = torch.zeros(3, 32, 64)
    with compiled(capability) as launches:
        kernels.product[(3,)](torch.randn(3, 32, 32), torch.randn(3, 32, 64), out, 32, 64, 32, "tf32")
    assert not out.any() and launches[0].counters is None
    assert launches[0].kernel.target.startswith(f"sm_{capability}")
    assert launches[0].dynamic_shared > 0
    resources, _ = assemble(launches[0].kernel, f"sm_{capability}")
    assert 16 < resources.registers < 256 and resources.spill_stores == 0


def test_unknown_architecture():
    with pytest.raises(ValueError, match=r"capability: expected one of .*, got 12"), emulated(12):
        pass


def test_switching_between_modes_leaves_nothing_behind():
    """Each mode gives the same words, in any order, also after a mode was left by an error."""
    driver, globals_before = triton.runtime.driver._active, dict(vars(kernels))
    language_before = {name: dict(vars(getattr(triton.language, name))) for name in ("core", "math", "tensor")}
    words = []
    for _ in range(2):
        with interpreted("tests.emulation.examples"):
            words.append(random_words())
            row_sums()
            add()
        with emulated(80):
            words.append(random_words())
        with emulated(90), pytest.raises(ZeroDivisionError):
            words.append(random_words())
            _ = 1 / 0
    assert all(torch.equal(each, words[0]) for each in words) and words[0].unique().numel() > 500
    assert triton.runtime.driver._active is driver
    assert dict(vars(kernels)) == globals_before
    assert all(dict(vars(getattr(triton.language, name))) == before for name, before in language_before.items())


def test_modes_nest():
    with emulated(80) as outer:
        add()
        with compiled(90) as inner:
            kernels.add[(1,)](torch.randn(64), torch.randn(64), torch.empty(64), 64, BLOCK=64)
        add()
    assert [launch.kernel.target for launch in outer] == ["sm_80"] * 2
    assert [launch.kernel.target for launch in inner] == ["sm_90a"]


def test_interpreting_no_kernels_is_an_error():
    with pytest.raises(ValueError, match="packages: expected some with Triton kernels"), interpreted("tests.nowhere"):
        pass
