"""The CUDA kernels compute the operators: the same sources, compiled for the CPU (tests/cuda_shim), on every plane size
that they take, every dtype, strides and broadcast; planes do not meet; and the noise is that of the CPU's operators."""

import ctypes

import pytest
import torch
from conftest import (
    DTYPES,
    apply_composite,
    apply_reference,
    arguments,
    assert_close,
    each_operator,
    outputs,
    random_weight,
    relative_error,
)
from cuda_shim.build import build_library

import sagd_kernels as sagd

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Shapes with kernels of their own; every radix; odd, flat and tall ones; up to what fits an H100's shared memory.
OWN = [(n, n) for n in (16, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224)]
ANY = [
    (1, 1), (1, 7), (7, 1), (2, 2), (1, 2), (2, 1), (3, 5), (4, 6), (8, 8), (9, 10), (12, 14), (15, 16), (20, 24),
    (27, 35), (36, 45), (48, 80), (63, 64), (100, 100), (1, 1024), (1024, 2), (243, 8), (160, 24), (36, 240),
    (192, 210), (210, 128), (240, 210),
]  # fmt: skip
SMALL_SIZES = [(2, 3), (6, 5), (8, 8), (9, 14), (16, 16), (28, 28)]
# Planes that no block of an H100 holds: of a cluster, and in passes.
LARGE = [(256, 256), (256, 240), (245, 256)]
LARGEST = [(512, 512), (1024, 1024), (320, 1024), (60, 1000), (625, 729)]


class InPasses(tuple):
    """A size of planes that no block of a small device holds: they take the passes that large planes take elsewhere."""


SMALL_DEVICE = 6000, 1 << 16  # bytes of shared memory for a block, and of L2, which takes a few planes at a time
PASSES = [InPasses(size) for size in [(8, 240), (240, 7), (36, 45), (45, 49), (64, 64)]]
GPU_DTYPES = [dtype for dtype in DTYPES if dtype != torch.float64]
H100, RTX_4090 = 232448, 101376  # bytes of shared memory that a block may have


@pytest.fixture(scope="module", autouse=True)
def shim():
    torch.ops.load_library(build_library())
    return ctypes.CDLL(str(build_library()))


@pytest.fixture
def size(request, shim):
    """The size of the planes, on a device where they take the passes if they shall."""
    if isinstance(request.param, InPasses):
        shim.shim_use_small_device(*SMALL_DEVICE)
        assert "passes" in torch.ops.sagd_shim._cuda_plan(*request.param)
    yield tuple(request.param)
    shim.shim_use_device(None)


def sizes(*wanted):
    ids = [f"{tuple(size)}{' in passes' * isinstance(size, InPasses)}" for size in wanted]
    return pytest.mark.parametrize("size", wanted, ids=ids, indirect=True)


def apply_cuda(operator: str, *args, **kwargs):
    function = getattr(torch.ops.sagd_shim, f"_cuda_{operator}")
    if operator == "whitened_mse":
        return function(*args, with_residual=False)[0]
    return function(*args, **kwargs)


def assert_cuda_close(operator: str, *args, **kwargs) -> tuple:
    results = outputs(apply_cuda(operator, *args, **kwargs))
    expected = outputs(apply_reference(operator, *args, **kwargs))
    peers = outputs(apply_composite(operator, *args, **kwargs))
    for parts in zip(results, expected, peers, strict=True):
        assert_close(*parts)
    return results


@sizes(*OWN, *ANY, *PASSES, *LARGE)
@each_operator
def test_every_operator_at_every_size(operator, size):
    planes = 2 if size[0] * size[1] >= 64 else 50  # enough values for a ratio of errors
    args, kwargs = arguments(operator, (planes, *size))
    assert_cuda_close(operator, *args, **kwargs)


@pytest.mark.slow
@sizes(*LARGEST)
@each_operator
def test_every_operator_on_the_largest_planes(operator, size):
    args, kwargs = arguments(operator, (1, *size))
    assert_cuda_close(operator, *args, **kwargs)


@sizes(*SMALL_SIZES, InPasses((36, 45)))
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@each_operator
def test_every_dtype_and_more_planes_than_fit_at_a_time(operator, dtype, size):
    args, kwargs = arguments(operator, (67, *size), dtype)
    assert_cuda_close(operator, *args, **kwargs)


@sizes((6, 5), (16, 16), (28, 28), (128, 128), InPasses((36, 45)), InPasses((45, 49)))
@each_operator
def test_strides_weights_and_scales_of_any_broadcast(operator, size):
    height, width = size
    shape = (3, 2, *size)
    strided = [
        torch.randn(3, height, width, 2).permute(0, 3, 1, 2),  # channels last
        torch.randn(3, 1, *size).expand(shape),
        torch.randn(3, 2, 2 * width, height).mT[..., ::2],
    ]
    weights = [random_weight(*lead, *size) for lead in [(3, 1), (1, 2), (3, 2), (2,)]]
    weights.append(random_weight(3, 1, width, 2 * height).mT[..., :height, : width // 2 + 1])
    scales = [(torch.rand(3, 2), torch.rand(3, 1, 1, 1)), (torch.rand(()), torch.rand(1, 2).double())]
    scales.append((torch.rand(3).half(), torch.rand(3, 2).bfloat16()))
    for i, weight in enumerate(weights):
        args, kwargs = arguments(operator, shape, planes=strided[i % 3], weight=weight, scales=scales[i % 3])
        assert_cuda_close(operator, *args, **kwargs)


@sizes((9, 14), (32, 32), (27, 35), *PASSES)
def test_noise_is_that_of_the_cpu(size):
    weight = random_weight(*size)
    keys = torch.stack([sagd.fold_in(sagd.key(11), i) for i in range(3)])
    for key, offset in [(keys[0], 0), (keys[1], 2**40 + 3), (keys, 9)]:
        noise = apply_cuda("shaped_noise", key, (3, 4, *size), weight, plane_offset=offset)
        expected = sagd.shaped_noise(key, (3, 4, *size), weight, plane_offset=offset)
        assert relative_error(noise, expected) < 4e-7
        assert (noise - expected).abs().max() < 4e-6  # a few roundings of the largest normal's


@sizes((6, 5), (16, 16), (28, 28), (64, 64), InPasses((45, 49)))
@pytest.mark.parametrize("operator", ["spectral_filter", "add_noise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_planes_are_independent_to_the_bit(operator, size, value):
    planes = torch.randn(37, *size)
    args, kwargs = arguments(operator, planes.shape, planes=planes)
    clean = outputs(apply_cuda(operator, *args, **kwargs))
    poisoned = planes.clone()
    poisoned[11] = value
    args, kwargs = arguments(operator, planes.shape, planes=poisoned)
    others = torch.arange(37) != 11
    for a, b in zip(clean, outputs(apply_cuda(operator, *args, **kwargs)), strict=True):
        assert torch.equal(a[others], b[others])


@sizes((6, 5), (16, 16), (28, 28), (64, 64), InPasses((36, 45)), InPasses((45, 49)))
def test_a_plane_has_the_same_bits_in_any_batch(size):
    planes, weight, key = torch.randn(37, *size), random_weight(*size), sagd.key(3)
    filtered = apply_cuda("spectral_filter", planes, weight)
    noise = apply_cuda("shaped_noise", key, planes.shape, weight)
    residual = torch.ops.sagd_shim._cuda_whitened_mse(planes, planes * 0, weight, True)[1]
    for begin, end in [(0, 1), (5, 9), (36, 37)]:
        part = planes[begin:end]
        assert torch.equal(apply_cuda("spectral_filter", part, weight), filtered[begin:end])
        drawn = apply_cuda("shaped_noise", key, part.shape, weight, plane_offset=begin)
        assert torch.equal(drawn, noise[begin:end])
        again = torch.ops.sagd_shim._cuda_whitened_mse(part, part * 0, weight, True)[1]
        assert torch.equal(again, residual[begin:end])
        many = weight.expand(end - begin, *weight.shape).contiguous()  # another table in shared memory for each plane
        assert torch.equal(apply_cuda("spectral_filter", part, many), filtered[begin:end])


@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@sizes((6, 5), (28, 28), (27, 35), *PASSES)
def test_the_residual_is_that_of_the_cpu(size, dtype):
    input, target = torch.randn(2, 5, *size).to(dtype)
    weight = random_weight(5, *size)
    weight = torch.where(weight > 0.6, weight, -weight)  # below zero, or zero: bins that do not count
    weight[..., 0] = 1  # on this column a sum of both signs would amplify every rounding
    weight[..., size[1] // 2] = 1
    weight[3] = 0
    loss, residual = torch.ops.sagd_shim._cuda_whitened_mse(input, target, weight, True)
    expected_loss, expected = torch.ops.sagd._whitened_mse(input.double(), target.double(), weight.double(), True)
    assert relative_error(loss, expected_loss) < 1e-6
    assert residual.dtype == dtype and relative_error(residual, expected) < max(1e-6, torch.finfo(dtype).eps)
    assert torch.all(residual[3] == 0)


@sizes((8, 8), InPasses((45, 49)))
def test_empty_batches(size):
    weight = random_weight(*size)
    assert apply_cuda("spectral_filter", torch.randn(0, *size), weight).shape == (0, *size)
    assert apply_cuda("shaped_noise", sagd.key(0), (2, 0, *size), weight).shape == (2, 0, *size)


@pytest.mark.parametrize(("shared_bytes", "largest", "staged"), [(H100, 238, 192), (RTX_4090, 156, 125)])
def test_the_plan_says_which_planes_there_are_kernels_for(shared_bytes, largest, staged):
    def plan(height, width):
        return torch.ops.sagd_shim._cuda_plan(height, width, shared_bytes)

    smooth = [n for n in range(1, 1025) if all(p in (2, 3, 5, 7) for p in prime_factors(n))]
    for n in smooth:
        in_clusters = n == 256 and shared_bytes == H100
        assert plan(n, n).startswith("three passes") == (n > largest and not in_clusters), n
        assert plan(n, n) and plan(n, 2) and plan(2, n), n
    assert not plan(11, 8) and not plan(8, 13) and not plan(1050, 1)
    assert not plan(11, 1024) and not plan(1024, 1022) and not plan(300, 1050)
    assert plan(96, 80) == "columns 12 x 8, rows 10 x 8 points, 160 threads a plane"
    passes = "three passes: rows 16 x 16 points, 16 pairs at a time, columns 12 x 5 x 5 points, 16 at a time"
    assert plan(300, 256) == passes
    if shared_bytes == H100:  # the device here
        assert plan(256, 256) == "columns 16 x 16, rows 16 x 16 points, in clusters of 8 blocks"
    for n in filter(lambda n: n <= largest, smooth):
        assert ("weight read from memory" in plan(n, n)) == (n > staged or n in (128, 160, 192)), n


def test_code_for_older_gpus_knows_no_clusters(shim):
    # as on a GPU that compiles an older one's PTX for itself
    plan, args = torch.ops.sagd_shim._cuda_plan, (torch.randn(2, 256, 256), random_weight(256, 256))
    assert "clusters" in plan(256, 256)
    shim.shim_use_code_for(80)
    try:
        assert plan(256, 256).startswith("three passes")
        assert_cuda_close("spectral_filter", *args)
    finally:
        shim.shim_use_device(None)


def test_a_gpu_that_the_library_has_no_code_for_has_no_kernels(shim):
    plan = torch.ops.sagd_shim._cuda_plan
    shim.shim_use_code_for(0)
    try:
        assert plan(16, 16) == plan(256, 256) == plan(512, 512) == plan(16, 16, device=0) == ""
    finally:
        shim.shim_use_device(None)
    assert plan(16, 16, device=0)


def prime_factors(n: int) -> list[int]:
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors


def test_what_has_no_kernel_is_an_error():
    for size in [(11, 8), (1050, 4), (256, 253)]:
        with pytest.raises(RuntimeError, match=f"{size[0]} x {size[1]}"):
            apply_cuda("spectral_filter", torch.randn(size), random_weight(*size))
    with pytest.raises(RuntimeError, match="float64"):
        apply_cuda("spectral_filter", torch.randn(8, 8).double(), random_weight(8, 8).double())
