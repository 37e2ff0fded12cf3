"""The operators on a GPU, by each of its backends: values, stream, bits, and torch's CUDA machinery.

Everything here needs a CUDA device. Arguments are made on the CPU, where the reference and the peer are computed, too.
"""

import pytest
import torch
from conftest import (
    LARGE_SIZES,
    SIZES,
    apply_composite,
    apply_reference,
    arguments,
    assert_close,
    each_operator,
    outputs,
    random_weight,
    relative_error,
    step,
)
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

import sagd_kernels as sagd
from sagd_kernels import backends, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GPU_DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KEY = sagd.fold_in(sagd.key(2025), 7)


@pytest.fixture(params=backends.BACKENDS)
def backend(request, monkeypatch):
    """The name of a backend, which computes every call of the test."""
    device = torch.device("cuda", torch.cuda.current_device())
    if why := backends.unable(request.param, 8, 8, torch.float32, device):
        pytest.skip(why)
    monkeypatch.setenv("SAGD_BACKEND", request.param)
    return request.param


def skip_unless_able(backend: str, size, dtype=torch.float32) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    if why := backends.unable(backend, *size[-2:], dtype, device):
        pytest.skip(why)


def on_gpu(values):
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.cuda(), values)


def planes_of(operator, args, kwargs) -> tuple[Tensor, ...]:
    """Every tensor of planes that the operator computes, the residual of whitened_mse among them."""
    if operator == "whitened_mse":
        return (torch.ops.sagd._whitened_mse(*args, True)[1],)
    return outputs(getattr(sagd, operator)(*args, **kwargs))


def assert_gpu_close(operator, args, kwargs):
    results = outputs(getattr(sagd, operator)(*on_gpu(args), **kwargs))
    expected = outputs(apply_reference(operator, *args, **kwargs))
    peers = outputs(apply_composite(operator, *args, **kwargs))
    for result, *rest in zip(results, expected, peers, strict=True):
        assert result.is_cuda
        assert_close(result, *rest)


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES + LARGE_SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("dtype", GPU_DTYPES, ids=str)
@each_operator
def test_equals_the_reference(backend, operator, dtype, size):
    skip_unless_able(backend, size, dtype)
    planes = (50,) if size[0] * size[1] < 64 else (2, 3) if size[0] * size[1] <= 64 * 64 else (2,)
    assert_gpu_close(operator, *arguments(operator, (*planes, *size), dtype))


@each_operator
def test_float64_runs_the_composite(operator):
    assert_gpu_close(operator, *arguments(operator, (2, 3, 28, 27), torch.float64))


@pytest.mark.parametrize("size", [(16, 16), (32, 32), (28, 28), (64, 64), (256, 192)], ids=str)
@each_operator
def test_batches_that_fill_the_gpu(backend, operator, size):
    planes = (1 << 22) // (size[0] * size[1])
    assert_gpu_close(operator, *arguments(operator, (planes // 4 + 1, 3, *size)))


@pytest.mark.parametrize("lead", [(3,), (2, 1), (2, 3)], ids=lambda lead: f"weight{list(lead)}")
@each_operator
def test_weights_of_channels_and_samples(backend, operator, lead):
    for size in [(28, 27), (9, 140)]:
        assert_gpu_close(operator, *arguments(operator, (2, 3, *size), weight=random_weight(*lead, *size)))


@pytest.mark.parametrize("size", [(32, 32), (40, 160)], ids=str)
@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_planes_of_any_magnitude_keep_their_relative_precision(backend, size, magnitude):
    planes, weight = magnitude * torch.randn(3, *size), random_weight(*size)
    assert_gpu_close("spectral_filter", (planes, weight), {})
    assert_gpu_close("shaped_noise", (KEY, (3, *size), magnitude * weight), {})


def test_strided_arguments(backend):
    gpu = torch.randn(2, 3, 18, 12, device="cuda")
    for view in (
        gpu[:, :, ::2],
        gpu.contiguous(memory_format=torch.channels_last)[:, :, :9],
        gpu.mT[..., :9].mT,
        gpu[:1, :, :9].expand(2, -1, -1, -1),
    ):
        for operator in ("spectral_filter", "add_noise", "whitened_mse"):
            (_, *rest), kwargs = on_gpu(arguments(operator, tuple(view.shape)))
            strided, dense = (planes_of(operator, (v, *rest), kwargs) for v in (view, view.contiguous()))
            torch.testing.assert_close(strided, dense, rtol=0, atol=0)


def test_empty_batches(backend):
    weight = random_weight(8, 8).cuda()
    empty = torch.empty(0, 3, 8, 8, device="cuda")
    assert sagd.spectral_filter(empty, weight).shape == empty.shape
    assert sagd.shaped_noise(KEY.cuda(), (2, 0, 8, 8), weight).shape == (2, 0, 8, 8)
    assert sagd.whitened_mse(empty, empty, weight).isnan()


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["spectral_filter", "add_noise"])
def test_offsets_beyond_32_bits(backend, operator):
    """The last planes of a batch of more than 2^31 elements are those of a batch of their own."""
    size = (2**31 // (64 * 64) + 2, 64, 64)
    if torch.cuda.mem_get_info()[0] < 64 << 30:
        pytest.skip("needs 64 GB of device memory")
    if backend == "composite" and operator == "add_noise":
        pytest.skip("its intermediates need more memory than that")
    weight, ones = random_weight(64, 64).cuda(), torch.ones(1, device="cuda")
    planes = torch.randn(size, device="cuda", dtype=torch.bfloat16)
    last = size[0] - 3
    if operator == "spectral_filter":
        whole, part = sagd.spectral_filter(planes, weight)[last:], sagd.spectral_filter(planes[last:], weight)
    else:
        whole = sagd.add_noise(planes, KEY.cuda(), weight, ones, ones)[0][last:]
        part = sagd.add_noise(planes[last:], KEY.cuda(), weight, ones, ones, plane_offset=last)[0]
    torch.testing.assert_close(whole, part, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_precision_where_tf32_is_allowed(monkeypatch, precision):
    """Only where it is allowed, and only in the backend that multiplies matrices."""
    skip_unless_able("triton", (64, 64))
    args, _ = arguments("spectral_filter", (4, 64, 64))
    expected, errors = apply_reference("spectral_filter", *args), {}
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        for name in ("triton", "composite"):
            monkeypatch.setenv("SAGD_BACKEND", name)
            errors[name] = relative_error(sagd.spectral_filter(*on_gpu(args)), expected)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert errors["composite"] < 5e-7
    assert errors["triton"] < 1e-6 if precision == "ieee" else 1e-5 < errors["triton"] < 2e-3


# ---- the stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 7), (16, 16), (28, 28), (32, 48), (64, 64), (37, 53), (128, 128), (200, 160)])
def test_noise_is_the_cpus(backend, size):
    weight, keys = random_weight(*size), sagd.split(KEY, 2)
    for key in (KEY, keys, torch.tensor([0x0123456789ABCDEF, 2**64 - 50], dtype=torch.uint64)):
        for offset in (0, 3, 2**40):
            args, options = (key, (2, 3, *size), weight), {"plane_offset": offset}
            ours, cpus = sagd.shaped_noise(*on_gpu(args), **options), sagd.shaped_noise(*args, **options)
            torch.testing.assert_close(ours.cpu(), cpus, rtol=0, atol=4e-6 * cpus.std().item())


def test_keys_and_the_module_follow_the_gpus_generator():
    generator = torch.Generator("cuda").manual_seed(3)
    first, second = (sagd.next_key(generator) for _ in range(2))
    assert first.is_cuda and not torch.equal(first, second)
    generator.manual_seed(3)
    assert torch.equal(sagd.next_key(generator), first)
    module, x = sagd.ShapedNoise(random_weight(28, 28)).cuda(), torch.randn(64, 3, 28, 28, device="cuda")
    drawn = []
    for seed in (5, 5, 6):
        torch.cuda.manual_seed(seed)
        drawn.append(module(x))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (32, 32), (27, 31), (64, 64), (128, 96), (48, 160)], ids=str)
@each_operator
def test_planes_are_independent_and_calls_repeat(backend, operator, size):
    if backend == "composite":
        pytest.skip("cuFFT promises neither")
    count, bad = 37, 11
    weight = random_weight(count, *size)
    args, kwargs = on_gpu(arguments(operator, (count, *size), weight=weight, key=sagd.split(KEY, count)))
    together = planes_of(operator, args, kwargs)
    torch.testing.assert_close(planes_of(operator, args, kwargs), together, rtol=0, atol=0)

    def part(value):
        return value[5:9] if isinstance(value, Tensor) else (4, *size) if isinstance(value, tuple) else value

    alone = planes_of(operator, [part(a) for a in args], kwargs)
    torch.testing.assert_close(alone, tuple(t[5:9] for t in together), rtol=0, atol=0)
    spoilt = [a.clone() if isinstance(a, Tensor) else a for a in args]
    for tensor in spoilt:
        if isinstance(tensor, Tensor) and tensor.is_floating_point():
            tensor[bad] = torch.nan
    others = torch.arange(count) != bad
    for result, clean in zip(planes_of(operator, spoilt, kwargs), together, strict=True):
        assert torch.equal(result[others], clean[others]) and result[bad].isnan().all()


# ---- gradients -------------------------------------------------------------------------------------------------------


@each_operator
def test_gradients_are_the_cpus(backend, operator):
    args, kwargs = arguments(operator, (3, 2, 28, 30))

    def gradients(args):
        leaves = [a.requires_grad_() for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        value = sum(t.square().sum() for t in outputs(getattr(sagd, operator)(*args, **kwargs)))
        first = torch.autograd.grad(value, leaves, create_graph=True)
        return *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    for gpu, cpu in zip(gradients(list(on_gpu(args))), gradients(list(args)), strict=True):
        assert relative_error(gpu, cpu) < 5e-6


# ---- torch's machinery -----------------------------------------------------------------------------------------------


def step_arguments(size=(4, 3, 32, 32)):
    return on_gpu((torch.randn(size), KEY, random_weight(*size[-2:]), torch.linspace(0.1, 0.9, size[0])))


def test_compiled_equals_eager(backend):
    torch._dynamo.reset()
    args = step_arguments()
    compiled = torch.compile(step, fullgraph=True)
    results = []
    for function in (step, compiled):
        x = args[0].clone().requires_grad_()
        loss = function(x, *args[1:])
        results.append((loss, *torch.autograd.grad(loss, x)))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("size", [(64, 3, 32, 32), (2, 3, 160, 144)], ids=str)
def test_graphs_replay_with_new_arguments(backend, size):
    x, key, weight, scale = step_arguments(size)

    def run():
        return *sagd.add_noise(x, key, weight, scale, 1 - scale), step(x, key, weight, scale)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = run()
    for number in range(3):
        x.normal_()
        key.copy_(sagd.fold_in(KEY, number))
        weight.uniform_(0.5, 2)
        graph.replay()
        torch.testing.assert_close(results, run(), rtol=1e-6, atol=1e-6)


def test_work_goes_to_the_current_stream(backend):
    side, weight = torch.cuda.Stream(), random_weight(64, 64).cuda()
    x = torch.zeros(256, 64, 64, device="cuda")
    expected = sagd.spectral_filter(torch.ones_like(x), weight)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # some 50 ms: what does not wait for it reads zeros
        result = sagd.spectral_filter(x.fill_(1), weight)
    side.synchronize()
    assert torch.equal(result, expected)


def test_autocast_leaves_the_noise_in_its_dtype(backend):
    x, key, weight, scale = step_arguments()
    with torch.autocast("cuda", torch.bfloat16):
        noisy, noise = sagd.add_noise(x, key, weight, scale, scale)
        loss = sagd.whitened_mse(nn.Conv2d(3, 3, 1, device="cuda")(noisy), noise, weight)
    assert noisy.dtype == noise.dtype == loss.dtype == torch.float32 and loss.isfinite()


def test_vmap_equals_a_loop(backend):
    x, weight = torch.randn(4, 3, 28, 28, device="cuda"), random_weight(4, 28, 28).cuda()
    keys = sagd.split(KEY, 4).cuda()
    filtered = vmap(sagd.spectral_filter)(x, weight)
    noise = vmap(lambda k, w: sagd.shaped_noise(k, (3, 28, 28), w))(keys, weight)
    for n in range(4):
        torch.testing.assert_close(filtered[n], sagd.spectral_filter(x[n], weight[n]), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(noise[n], sagd.shaped_noise(keys[n], (3, 28, 28), weight[n]), rtol=1e-6, atol=1e-6)


@each_operator
def test_a_call_takes_no_memory_beyond_its_results(backend, operator):
    if backend == "composite":
        pytest.skip("its intermediates are tensors")
    args, kwargs = on_gpu(arguments(operator, (512, 3, 64, 64)))
    getattr(sagd, operator)(*args, **kwargs)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = outputs(getattr(sagd, operator)(*args, **kwargs))
    extra = torch.cuda.max_memory_allocated() - before - sum(t.numel() * t.element_size() for t in results)
    assert extra <= 1 << 20


def test_measuring_picks_a_backend_that_is_able(monkeypatch):
    monkeypatch.setattr(backends, "_fastest", {})
    monkeypatch.setattr(sagd, "benchmark", True)
    monkeypatch.delenv("SAGD_BACKEND", raising=False)
    assert_gpu_close("spectral_filter", *arguments("spectral_filter", (64, 3, 32, 32)))
    assert list(backends._fastest.values()) and set(backends._fastest.values()) <= set(backends.BACKENDS)


def test_weights_are_made_on_the_gpu():
    weight = weights.power_law(28, 28, -0.5, device="cuda")
    assert "kernels" in sagd.explain((64, 3, 28, 28), device="cuda")
    assert weight.is_cuda and sagd.shaped_noise(sagd.key(0, "cuda"), (2, 28, 28), weight).is_cuda


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_tensors_of_another_device_than_the_current_one(backend):
    args, _ = arguments("spectral_filter", (2, 3, 32, 32))
    there = [a.to("cuda:1") for a in args]
    assert_close(sagd.spectral_filter(*there), apply_reference("spectral_filter", *args), sagd.spectral_filter(*args))
