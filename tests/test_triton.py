"""The Triton backend computes what the operators promise: in Triton's interpreter, and compiled to PTX and emulated.

The emulator runs what the compiler made for compute capability 8.0: real mma.sync operands, special functions as
inexact as the PTX ISA allows, tensor cores that truncate their sums, every access checked for bounds and races. Here
both work on CPU tensors.
"""

import os
from contextlib import contextmanager

import pytest
import torch
from conftest import (
    SIZES,
    apply_composite,
    apply_reference,
    assert_close,
    each_operator,
    random_weight,
    relative_error,
)

import sagd_kernels as sagd
from sagd_kernels.backends import composite

pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl

from sagd_kernels.backends import triton as backend
from sagd_kernels.backends import triton_functions, triton_kernels
from tests.emulation.triton import compiled, emulated, interpreted

SMALL_SIZES = [size for size in SIZES if max(size) <= backend.LARGEST]
SLOW_SIZES = [size for size in SIZES if max(size) > backend.LARGEST] + [(1, 511), (384, 160), (512, 512)]
EMULATED_SIZES = [(3, 5), (16, 16), (28, 28), (32, 32), (136, 16)]
SLOW_EMULATED_SIZES = [(27, 40), (96, 32), (64, 64), (128, 128), (16, 136), (144, 160), (256, 256)]
TRUNCATION = 3  # times torch.fft's error, not 2, where tensor cores that truncate are emulated: docs/tuning_gpu.md
KEY = torch.tensor([0x0123456789ABCDEF, 2**64 - 50], dtype=torch.uint64)  # the counters carry into the third word


@pytest.fixture
def interpreter(monkeypatch):
    monkeypatch.setattr(triton_functions, "INTERPRETED", tl.constexpr(True))
    with interpreted("sagd_kernels.backends"):
        yield


@pytest.fixture
def tf32_allowed():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def apply(operator: str, *args, **kwargs):
    """The public operator, computed by the backend."""
    if operator == "whitened_mse":
        return backend.whitened_mse(*args, with_residual=False)[0]
    return getattr(backend, operator)(*args, **kwargs)


def assert_operator_close(operator: str, *args, factor: float = 2, **kwargs):
    result = apply(operator, *args, **kwargs)
    expected, peer = apply_reference(operator, *args, **kwargs), apply_composite(operator, *args, **kwargs)
    for parts in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (result, expected, peer)), strict=True):
        assert_close(*parts, factor=factor)
    return result


def arguments(operator: str, height: int, width: int, *, batch=(1, 2), dtype=torch.float32) -> tuple:
    """Arguments with a weight for each channel, asymmetric, and scales for each plane."""
    x, target = torch.randn(2, *batch, height, width).to(dtype)
    weight, scale = random_weight(batch[-1], height, width), torch.rand(batch) + 0.5
    return {
        "spectral_filter": (x, weight, scale),
        "shaped_noise": (KEY, x.shape, weight, scale),
        "add_noise": (x, KEY, weight, scale, 2 * scale),
        "whitened_mse": (x, target, weight),
    }[operator]


# ---- numbers ---------------------------------------------------------------------------------------------------------


@each_operator
@pytest.mark.parametrize(
    "size",
    [*SMALL_SIZES, (24, 150), *(pytest.param(size, marks=pytest.mark.slow) for size in SLOW_SIZES)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_every_size(interpreter, operator, size):
    assert_operator_close(operator, *arguments(operator, *size))


@each_operator
@pytest.mark.parametrize(
    ("size", "dtype"),
    [((32, 24), torch.float16), ((32, 24), torch.bfloat16), ((8, 132), torch.bfloat16)],
    ids=str,
)
def test_half_types(interpreter, operator, size, dtype):
    args = arguments(operator, *size, dtype=dtype)
    assert_operator_close(operator, *args, **({"dtype": dtype} if operator == "shaped_noise" else {}))


@pytest.mark.parametrize("operator", ["spectral_filter", "shaped_noise"])
def test_precision_where_tf32_is_allowed(interpreter, operator, tf32_allowed):
    args = arguments(operator, 64, 64)
    expected = apply_reference(operator, *args)
    exact = relative_error(apply_composite(operator, *args), expected)
    assert 10 * exact < relative_error(apply(operator, *args), expected) < 2e-3


@pytest.mark.parametrize(("size", "magnitude"), [((32, 32), 1e-30), ((32, 32), 1e30), ((4, 160), 1e30)], ids=str)
def test_planes_of_any_magnitude_keep_their_relative_precision(interpreter, size, magnitude):
    x = torch.randn(2, *size) * torch.tensor([1.0, magnitude]).view(2, 1, 1)
    weight = torch.stack([random_weight(*size) / magnitude, random_weight(*size)])
    filtered = backend.spectral_filter(x, weight)
    noise = backend.shaped_noise(KEY, (2, *size), weight)
    for p in range(2):
        plane = x[p : p + 1], weight[p]
        assert_close(filtered[p : p + 1], apply_reference("spectral_filter", *plane), composite.spectral_filter(*plane))
        args = (KEY, (1, *size), weight[p])
        peer = composite.shaped_noise(*args, plane_offset=p)
        assert_close(noise[p : p + 1], apply_reference("shaped_noise", *args, plane_offset=p), peer)


def test_an_outlier_costs_no_precision(interpreter):
    x = torch.randn(1, 64, 64)
    x[0, 3, 5] = 64.0
    assert_operator_close("spectral_filter", x, random_weight(64, 64))


@pytest.mark.parametrize("column", [0, 20, 47])
@pytest.mark.parametrize("factor", [1e5, 1e30])
def test_a_column_of_large_weights_sets_the_range_wherever_it_stands(interpreter, column, factor):
    weight = random_weight(8, 96)
    weight[:, column] *= factor
    assert_operator_close("shaped_noise", KEY, (2, 8, 96), weight)


@pytest.mark.parametrize(
    ("size", "kept"), [((28, 32), 0.0), ((28, 32), 0.5), ((33, 48), 0.5), ((9, 144), 0.5)], ids=str
)
def test_whitening_counts_the_bins_that_a_weight_keeps(interpreter, size, kept):
    weight = random_weight(2, *size)
    weight[torch.rand_like(weight) > kept] = 0
    weight[1, 3, 0] = 0
    weight[1, -3, 0] = 0
    x, target = torch.randn(2, 1, 2, *size)
    loss, whitened = backend.whitened_mse(x, target, weight, with_residual=True)
    expected = apply_reference("whitened_mse", x, target, weight)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(((x - target) * whitened).mean().double(), expected, rtol=1e-5, atol=0)


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 7), (28, 28), (32, 48), (64, 64), (17, 160)], ids=str)
def test_noise_is_the_cpu_kernels(interpreter, size):
    weight = random_weight(*size)
    ours, theirs = backend.shaped_noise(KEY, (3, *size), weight), sagd.shaped_noise(KEY, (3, *size), weight)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=4e-6 * theirs.std().item())


def test_keys_and_plane_numbers(interpreter):
    weight, shape = random_weight(16, 16), (3, 2, 16, 16)
    keys = torch.stack([sagd.key(1), KEY, sagd.key(3)])
    noise = assert_operator_close("shaped_noise", keys, shape, weight)
    for n, key in enumerate(keys):
        assert torch.equal(noise[n], backend.shaped_noise(key, shape[1:], weight))
    for offset in (1, 16, 2**40, 2**63 - 2):
        part = backend.shaped_noise(keys[0], (1, 16, 16), weight, plane_offset=offset)
        expected = apply_reference("shaped_noise", keys[0], (1, 16, 16), weight, plane_offset=offset)
        assert relative_error(part, expected) < 1e-6
    assert torch.equal(noise[0, 1:], backend.shaped_noise(keys[0], (1, 16, 16), weight, plane_offset=1))


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 2), (3, 1), (1, 2), (3, 1, 1, 1)], ids=str)
def test_scales_broadcast_from_the_left(interpreter, shape):
    scale = torch.rand(shape) + 0.5
    assert_operator_close("spectral_filter", torch.randn(3, 2, 8, 8), random_weight(8, 8), scale)
    assert_operator_close("add_noise", torch.randn(3, 2, 8, 8), KEY, random_weight(8, 8), scale, scale.bfloat16())


def test_strided_arguments(interpreter):
    x = torch.randn(2, 3, 18, 12)
    weight = random_weight(2, 1, 9, 12).mT.contiguous().mT
    for view in (
        x[:, :, ::2],
        x.to(memory_format=torch.channels_last)[:, :, :9],
        x[:, :, :9].flip(0),
        x[:1, :, :9].expand(2, 3, 9, 12),
    ):
        assert_operator_close("spectral_filter", view, weight, torch.rand(3, 2).T)
        assert_operator_close("whitened_mse", view, x[:, :, 9:], weight)
    assert_operator_close("spectral_filter", x.transpose(-1, -2), random_weight(12, 18))


def test_planes_beyond_the_kernels_offsets_are_copied():
    far = torch.empty_strided((2, 3, 4), (1, 2**30, 2), device="meta")
    assert backend._addressable(far).is_contiguous()
    near = torch.empty_strided((2, 3, 4), (2**40, 2**29, 2), device="meta")
    assert backend._addressable(near) is near


def test_batches_that_no_grid_has_the_axes_for(interpreter):
    x = torch.randn(2, 2, 2, 2, 5, 4).transpose(0, 2)
    weight, scale = random_weight(2, 1, 2, 5, 4), torch.rand(2, 1, 2)
    assert_operator_close("spectral_filter", x, weight, scale)
    assert_operator_close("add_noise", x, torch.stack([KEY, sagd.key(2)]), weight, scale, scale)
    assert_operator_close("whitened_mse", x, x.roll(1), weight)


@pytest.mark.parametrize("operator", ["spectral_filter", "add_noise"])
def test_how_many_planes_are_in_the_cache_at_a_time_changes_no_bit(interpreter, monkeypatch, operator):
    x = torch.randn(2, 2, 9, 132).transpose(0, 1)[..., ::2, :]
    keys, weight = sagd.split(KEY), random_weight(2, 5, 132)
    args = {
        "spectral_filter": (x, weight, torch.rand(2) + 0.5),
        "add_noise": (x, keys, weight, torch.rand(2), torch.rand(2, 2)),
    }[operator]
    together = assert_operator_close(operator, *args)
    monkeypatch.setattr(backend, "L2_BYTES", 3 * 16 * 16 * 80)  # two times two of four planes
    torch.testing.assert_close(apply(operator, *args), together, rtol=0, atol=0)


@pytest.mark.parametrize("weights", [(), (7, 1)], ids=["one weight", "a weight for each"])
def test_how_many_planes_a_program_takes_changes_no_bit(interpreter, monkeypatch, weights):
    x, target = torch.randn(2, 7, 2, 9, 12)
    weight, scale = random_weight(*weights, 9, 12), torch.rand(7, 2) + 0.5
    calls = [
        ("spectral_filter", x, weight, scale),
        ("add_noise", x, KEY, weight, scale, scale),
        ("whitened_mse", x, target, weight),
    ]
    alone = [assert_operator_close(*call) for call in calls]
    monkeypatch.setattr(backend, "_planes_of_program", lambda *_: 4)
    for call, expected in zip(calls, alone, strict=True):
        torch.testing.assert_close(apply(*call), expected, rtol=0, atol=0)


@pytest.mark.parametrize("capturing", [False, True])
def test_what_a_graph_may_read_again_is_kept_and_what_it_has_yet_to_compute_is_not(monkeypatch, capturing):
    streams = []

    class Stream:
        def synchronize(self):
            streams.append("waited")

    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    kept = backend._kept(lambda length, device: torch.full((1,), float(length)))
    on_gpu, lengths = torch.device("cuda", 0), range(100)
    first = [kept(length, on_gpu) for length in lengths]
    assert [int(x) for x in first] == list(lengths)
    assert all((kept(length, on_gpu) is x) != capturing for length, x in zip(lengths, first, strict=True))
    assert len(streams) == (0 if capturing else 100)
    assert kept(3, torch.device("cuda", 1)) is not first[3]


def test_empty_batches(interpreter):
    weight = random_weight(8, 8)
    assert backend.spectral_filter(torch.empty(0, 3, 8, 8), weight).shape == (0, 3, 8, 8)
    assert backend.shaped_noise(KEY, (2, 0, 8, 8), weight).shape == (2, 0, 8, 8)
    assert backend.whitened_mse(torch.empty(0, 8, 8), torch.empty(0, 8, 8), weight, False)[0].isnan()


@pytest.mark.parametrize(
    ("size", "bad"),
    [
        ((32, 32), float("nan")),
        ((32, 32), float("inf")),
        ((32, 32), 1e30),
        pytest.param((4, 130), float("nan"), marks=pytest.mark.slow),
        pytest.param((130, 4), 1e30, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_planes_do_not_see_each_other(interpreter, size, bad):
    x, weight = torch.randn(3, *size), random_weight(*size)
    spoilt = x.clone()
    spoilt[1] = bad
    for apply in (
        lambda x: backend.spectral_filter(x, weight),
        lambda x: backend.add_noise(x, KEY, weight, torch.ones(3), torch.ones(3))[0],
        lambda x: backend.whitened_mse(x, torch.zeros_like(x), weight, with_residual=True)[1],
    ):
        assert torch.equal(apply(spoilt)[::2], apply(x)[::2])


@pytest.mark.parametrize(
    ("operator", "with_residual", "kernels"),
    [
        ("spectral_filter", None, ["rows_forward_kernel", "columns_filter_kernel", "rows_inverse_kernel"]),
        ("shaped_noise", None, ["columns_noise_kernel", "rows_inverse_kernel"]),
        ("whitened_mse", True, ["rows_forward_kernel", "columns_filter_kernel", "rows_inverse_kernel"]),
        ("whitened_mse", False, ["rows_forward_kernel", "columns_filter_kernel"]),
    ],
)
def test_launches_for_larger_planes(operator, with_residual, kernels):
    args = arguments(operator, 8, 130)
    with compiled(80) as launches:
        if with_residual is None:
            apply(operator, *args)
        else:
            backend.whitened_mse(*args, with_residual)
    assert [launch.kernel.name for launch in launches] == kernels


# ---- compiled code ---------------------------------------------------------------------------------------------------


@contextmanager
def emulator():
    with emulated(capability=80) as launches:
        yield
    assert launches, "nothing was launched"


@each_operator
@pytest.mark.parametrize(
    "size",
    [*EMULATED_SIZES, *(pytest.param(size, marks=pytest.mark.slow) for size in SLOW_EMULATED_SIZES)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_compiled_kernels(operator, size):
    with emulator():
        assert_operator_close(operator, *arguments(operator, *size, batch=(2,)), factor=TRUNCATION)


@pytest.mark.parametrize(
    ("operator", "side", "capability"),
    [
        ("shaped_noise", 128, 90),
        pytest.param("spectral_filter", 128, 90, marks=pytest.mark.slow),
        pytest.param("spectral_filter", 128, 100, marks=pytest.mark.slow),
        pytest.param("spectral_filter", 256, 90, marks=pytest.mark.slow),
        pytest.param("spectral_filter", 256, 100, marks=pytest.mark.slow),
    ],
)
def test_products_are_those_that_are_emulated(operator, side, capability, monkeypatch):
    monkeypatch.setenv("DISABLE_MMA_V3", "0")
    with compiled(capability) as launches:
        apply(operator, *arguments(operator, side, side))
    assert os.environ["DISABLE_MMA_V3"] == "0" and "DISABLE_MMA_V5" not in os.environ
    for launch in launches:
        instructions = {instruction.text.split(".")[0] for instruction in launch.kernel.code}
        assert "mma" in instructions and not instructions & {"wgmma", "tcgen05"}


def test_the_environment_is_the_users_while_kernels_are_launched(monkeypatch):
    monkeypatch.setenv("DISABLE_MMA_V3", "0")
    seen = []
    before_launches = [lambda *args, **options: seen.append(os.environ["DISABLE_MMA_V3"])]
    monkeypatch.setattr(triton_kernels.noise_kernel, "pre_run_hooks", before_launches)
    with compiled(90):
        apply("shaped_noise", *arguments("shaped_noise", 128, 128))
    assert seen == ["0"]


@pytest.mark.slow
@each_operator
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_compiled_kernels_of_half_types(operator, dtype):
    args = arguments(operator, 32, 32, dtype=dtype)
    with emulator():
        dtypes = {"dtype": dtype} if operator == "shaped_noise" else {}
        assert_operator_close(operator, *args, factor=TRUNCATION, **dtypes)
