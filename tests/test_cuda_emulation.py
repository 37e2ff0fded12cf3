"""nvcc's PTX of the CUDA kernels, run by the emulator as the library's host code launches it: right values, no races,
no access out of bounds, full sectors of device memory and, at 64 x 64, hardly a bank conflict."""

import re
from collections.abc import Callable

import pytest
import torch
from conftest import OPERATORS, apply_composite, apply_reference, assert_close, each_operator, random_weight

import sagd_kernels as sagd
from tests.emulation import EmulationError, Launch, toolchain

if not toolchain.has("nvcc", "ptxas"):
    pytest.skip("nvcc is not installed: it compiles the kernels", allow_module_level=True)

from tests.emulation import cuda

QUICK = {(operator, (28, 28), 80) for operator in OPERATORS} | {
    ("shaped_noise", (64, 64), 80),
    ("shaped_noise", (128, 128), 89),
}
SPREAD = [(operator, size, 80) for operator in OPERATORS for size in [(28, 28), (32, 32), (64, 64), (40, 24), (15, 9)]]
NEWER = [(operator, (64, 64), capability) for operator in OPERATORS for capability in (89, 90, 100, 120)]
UNSTAGED = [(operator, (128, 128), 89) for operator in OPERATORS]  # the weight is a table in device memory
KERNELS = [
    pytest.param(*each, id="{} {} sm_{}".format(*each), marks=() if each in QUICK else pytest.mark.slow)
    for each in SPREAD + NEWER + UNSTAGED
]


def arguments(operator: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple:
    key, scale, weight = sagd.key(2025), torch.linspace(0.2, 1.1, shape[0]), random_weight(*shape[-2:])
    return {
        "spectral_filter": lambda: (torch.randn(shape).to(dtype), weight, scale),
        "shaped_noise": lambda: (key, shape, weight, scale),
        "add_noise": lambda: (torch.randn(shape).to(dtype), key, weight, scale, 1 - scale),
        "whitened_mse": lambda: (torch.randn(shape).to(dtype), torch.randn(shape).to(dtype), weight),
    }[operator]()


def emulate(operator: str, args: tuple, capability: int = 80, **options) -> tuple[tuple, list[Launch]]:
    """What the operator returns, and its launches."""
    function: Callable = getattr(cuda.shim_operators(), f"_cuda_{operator}")
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    with cuda.emulated(capability, tensors) as launches:
        result = function(*args, True) if operator == "whitened_mse" else function(*args, **options)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result), launches


@pytest.mark.parametrize(("operator", "size", "capability"), KERNELS)
def test_values(operator, size, capability, poisoned_memory):
    args = arguments(operator, (2, 3, *size))
    results, launches = emulate(operator, args, capability)
    found = results[:1] if operator == "whitened_mse" else results
    expected, peer = apply_reference(operator, *args), apply_composite(operator, *args)
    for parts in zip(found, *((each,) if torch.is_tensor(each) else each for each in (expected, peer)), strict=True):
        assert_close(*parts)
    if operator == "whitened_mse":
        residual = torch.ops.sagd._whitened_mse(*(each.double() for each in args), True)[1]
        assert_close(results[1], residual, residual.float())
    ordered = size == (128, 128)  # first the weight is brought into its table
    assert ("order_weights" in launches[0].kernel.name) == ordered
    main = launches[ordered]
    assert len(launches) == 1 + ordered + (operator == "whitened_mse") and main.kernel.target == f"sm_{capability}"
    if size == (64, 64):
        assert main.counters.traffic("global", None, 4 * 6 * 64 * 64).sector_efficiency == 1
        assert main.counters.traffic("shared").conflict_degree < 1.06  # the tables are filled for a single plane


LARGE = [(operator, (160, 162), 89) for operator in OPERATORS] + [
    (operator, (256, 256), 80) for operator in ("spectral_filter", "add_noise")
]


@pytest.mark.parametrize(
    ("operator", "size", "capability"),
    [
        pytest.param(*each, id="{} {} sm_{}".format(*each), marks=() if i == 0 else pytest.mark.slow)
        for i, each in enumerate(LARGE)
    ],
)
def test_values_of_planes_that_no_block_holds(operator, size, capability, poisoned_memory):
    args = arguments(operator, (1, *size))
    results, launches = emulate(operator, args, capability)
    expected, peer = apply_reference(operator, *args), apply_composite(operator, *args)
    outputs = [(each,) if torch.is_tensor(each) else each for each in (expected, peer)]
    for parts in zip(results[: len(outputs[0])], *outputs, strict=True):
        assert_close(*parts)
    passes = [launch for launch in launches if re.search("_columns|_rows", launch.kernel.name)]
    assert len(passes) == 2 + (operator in ("spectral_filter", "whitened_mse"))
    for each in passes:
        if size == (256, 256):
            assert each.counters.traffic("global", None, 4 * 256 * 256).sector_efficiency == 1
            assert each.counters.traffic("shared").conflict_degree < 1.35  # twiddle factors of rows in the first stage


CLUSTERED = [(operator, capability) for operator in OPERATORS for capability in (90, 100, 120)]


@pytest.mark.parametrize(
    ("operator", "capability"),
    [pytest.param(*each, marks=() if i == 0 else pytest.mark.slow) for i, each in enumerate(CLUSTERED)],
)
def test_values_of_planes_that_clusters_hold(operator, capability, poisoned_memory):
    args = arguments(operator, (2, 256, 256))
    results, launches = emulate(operator, args, capability)
    expected, peer = apply_reference(operator, *args), apply_composite(operator, *args)
    outputs = [(each,) if torch.is_tensor(each) else each for each in (expected, peer)]
    for parts in zip(results[: len(outputs[0])], *outputs, strict=True):
        assert_close(*parts)
    if operator == "whitened_mse":
        residual = torch.ops.sagd._whitened_mse(*(each.double() for each in args), True)[1]
        assert_close(results[1], residual, residual.float())
    table, main = launches[:2]
    assert "order_weights" in table.kernel.name and "ClusterShape" in main.kernel.name
    assert (table.cluster, main.cluster, main.grid) == (1, 8, (16, 1, 1))
    ways = 1 if operator in ("shaped_noise", "add_noise") else 2  # of all points, into the row storage and back
    traffic = main.counters.traffic("cluster")
    assert traffic.bytes == ways * 4 * 2 * 256 * 256 + (operator == "whitened_mse") * 2 * 8 * 8 * 16
    assert traffic.sector_efficiency > 0.9
    assert main.counters.traffic("global", None, 4 * 2 * 256 * 256).sector_efficiency == 1
    assert main.counters.traffic("shared").conflict_degree < 1.3  # roots of rows in the first stage


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@each_operator
def test_half_precision(operator, dtype):
    args = arguments(operator, (1, 5, 28, 28), dtype)
    options = {"dtype": dtype} if operator == "shaped_noise" else {}
    results, _ = emulate(operator, args, **options)
    here = getattr(cuda.shim_operators(), f"_cuda_{operator}")
    expected = here(*args, True) if operator == "whitened_mse" else here(*args, **options)
    for result, other in zip(results, (expected,) if torch.is_tensor(expected) else expected, strict=True):
        assert result.dtype == other.dtype
        assert torch.allclose(result.float(), other.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)


def test_a_sample_is_of_blocks_that_take_all_their_planes(poisoned_memory):
    """A batch that fills the GPU more than once: the first blocks come back for the planes behind the grid."""
    x, weight = torch.randn(900, 64, 64), random_weight(64, 64)
    with cuda.emulated(80, [x, weight], races=False, sample=2) as launches:
        filtered = cuda.shim_operators()._cuda_spectral_filter(x, weight)
    (main,) = launches
    blocks, per_block = main.grid[0], main.threads // 256
    assert (blocks, per_block) == (108 * 3, 1) or (blocks, per_block) == (108 * 4, 1)
    taken = [plane for block in range(2) for plane in range(block, 900, blocks)]
    expected = apply_composite("spectral_filter", x, weight)
    assert torch.allclose(filtered[taken], expected[taken], atol=1e-5)
    assert (filtered[2:blocks] > 1e38).all()  # untouched
    assert main.counters.blocks_run == 2 and main.counters.traffic("shared").conflict_degree < 1.03


def test_errors_come_out_of_the_host_code():
    """A weight whose memory ends before it does."""
    x, weight = torch.randn(2, 28, 28), random_weight(28, 28)
    weight.untyped_storage().resize_(20 * 15 * 4)
    with pytest.raises(EmulationError, match="out of bounds"), cuda.emulated(80, [x, weight]):
        cuda.shim_operators()._cuda_spectral_filter(x, weight)
