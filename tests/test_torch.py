"""The operators under autocast, in inference mode, on fake and meta tensors, and in forked workers."""

import pytest
import torch
from conftest import each_operator, random_weight, weight_dtype
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import sagd_kernels as sagd

KEY = sagd.fold_in(sagd.key(2025), 7)
SIZE = (2, 3, 8, 6)


# ---- autocast


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_keeps_the_dtype_of_the_input(dtype, autocast):
    x = torch.randn(SIZE).to(dtype)
    weight = random_weight(8, 6, dtype=weight_dtype(dtype))
    expected = sagd.spectral_filter(x, weight), sagd.whitened_mse(x, x.flip(0), weight)
    with torch.autocast("cpu", autocast):
        results = sagd.spectral_filter(x, weight), sagd.whitened_mse(x, x.flip(0), weight)
        noisy, noise = sagd.add_noise(x, KEY, weight, torch.rand(2), torch.rand(2))
        drawn = sagd.shaped_noise(KEY, SIZE, weight, dtype=dtype)
    for got, wanted in zip(results, expected, strict=True):
        assert got.dtype == wanted.dtype and torch.equal(got, wanted)
    assert noisy.dtype == noise.dtype == drawn.dtype == dtype
    assert torch.equal(drawn, noise)


@each_operator
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_takes_a_weight_of_half_precision(operator, half):
    x, scale, weight = torch.randn(SIZE), torch.rand(2), random_weight(8, 6).to(half)

    def call(weight):
        if operator == "spectral_filter":
            return sagd.spectral_filter(x, weight=weight, scale=scale)
        if operator == "shaped_noise":
            return sagd.shaped_noise(KEY, size=SIZE, weight=weight, scale=scale)
        if operator == "add_noise":
            return sagd.add_noise(x, KEY, weight=weight, signal_scale=scale, noise_scale=scale)[0]
        return sagd.whitened_mse(x, x.flip(0), weight=weight)

    with pytest.raises(RuntimeError, match=f"weight: expected torch.float32, got {half}"):
        call(weight)
    expected = call(weight.float())
    with torch.autocast("cpu", half):
        result = call(weight)
    assert result.dtype == torch.float32 and torch.equal(result, expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_does_not_round_a_number_to_the_weight_of_half_precision(half):
    x, weight = torch.randn(SIZE), random_weight(8, 6).to(half)
    with torch.autocast("cpu", half):
        assert torch.equal(sagd.spectral_filter(x, weight, 0.3), sagd.spectral_filter(x, weight, torch.tensor(0.3)))


def test_autocast_trains_a_weight_that_a_network_makes():
    network, x = nn.Linear(4, 8 * 4), torch.randn(SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        weight = network(torch.ones(4)).view(8, 4).exp()
        loss = sagd.whitened_mse(sagd.spectral_filter(x, weight), torch.zeros(SIZE), torch.ones(8, 4))
    assert weight.dtype == torch.bfloat16 and loss.dtype == torch.float32
    loss.backward()
    assert network.weight.grad.dtype == torch.float32 and network.weight.grad.abs().sum() > 0


# ---- modes and kinds of tensors


def every_result(x, key, weight, scale):
    return (
        sagd.spectral_filter(x, weight, scale),
        sagd.spectral_filter(x.bfloat16(), weight),
        sagd.shaped_noise(key, x.shape, weight, scale),
        sagd.shaped_noise(key, x.shape, weight, dtype=torch.float16),
        *sagd.add_noise(x, key, weight, scale, scale),
        sagd.whitened_mse(x, x, weight),
        *torch.ops.sagd._whitened_mse(x, x, weight, True),
        *torch.ops.sagd._whitened_mse(x, x, weight, False),
    )


def test_inference_mode():
    x, weight, scale = torch.randn(SIZE), random_weight(8, 6), torch.rand(2)
    expected = every_result(x, KEY, weight, scale)
    with torch.inference_mode():
        results = every_result(x, KEY, weight, scale)
    for got, wanted in zip(results, expected, strict=True):
        assert got.is_inference() and torch.equal(got, wanted)
    leaf = weight.clone().requires_grad_()
    with torch.inference_mode():
        assert not any(result.requires_grad for result in every_result(x, KEY, leaf, scale))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_fake_and_meta_results_look_like_the_real_ones(kind, layout):
    x = {
        "contiguous": torch.randn(SIZE),
        "transposed": torch.randn(2, 3, 6, 8).mT,
        "expanded": torch.randn(6).expand(SIZE),
    }[layout]
    args = x, KEY, random_weight(8, 6), torch.rand(2)
    expected = every_result(*args)
    if kind == "meta":
        results = every_result(*(a.to("meta") for a in args))
        assert all(r.is_meta for r in results)
    else:
        with FakeTensorMode() as mode:
            results = every_result(*(mode.from_tensor(a) for a in args))
    for got, wanted in zip(results, expected, strict=True):
        assert (got.shape, got.dtype, got.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


# ---- processes


class NoisyImages(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return sagd.shaped_noise(sagd.fold_in(KEY, i), (40, 32, 32), torch.ones(32, 17))


def test_forked_workers_draw_the_same_noise():
    images, before = NoisyImages(), torch.get_num_threads()
    torch.set_num_threads(2)  # a pool of threads, which does not survive the fork
    try:
        expected = torch.stack([images[i] for i in range(4)])
        loader = torch.utils.data.DataLoader(images, 4, num_workers=1, multiprocessing_context="fork", timeout=60)
        assert torch.equal(next(iter(loader)), expected)
    finally:
        torch.set_num_threads(before)
