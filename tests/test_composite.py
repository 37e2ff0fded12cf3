"""Devices without kernels run the composite of torch.fft, which agrees with the kernels and stays on its device."""

import pytest
import torch
from conftest import apply_composite, each_operator, random_weight

import sagd_kernels as sagd
from sagd_kernels.backends import composite

KEY = sagd.fold_in(sagd.key(2025), 7)
SIZE = (2, 3, 8, 6)


@each_operator
def test_devices_without_kernels_run_the_composite(operator, monkeypatch):
    """The dispatcher's entry of a device that nobody here has leads to the composite, checks included."""
    x, weight, scale = torch.randn(SIZE), random_weight(3, 8, 6), torch.rand(2)
    args = {
        "spectral_filter": (x, weight, scale),
        "shaped_noise": (KEY, SIZE, weight, scale),
        "add_noise": (x, KEY, weight, scale, 1 - scale),
        "whitened_mse": (x, x.flip(0), weight, False),
    }[operator]
    name = "_whitened_mse" if operator == "whitened_mse" else operator
    entry = torch._C.DispatchKeySet(torch._C.DispatchKey.HPU)

    def run(*args):
        return getattr(torch.ops.sagd, name).default.redispatch(entry, *args)

    results, expected = run(*args), getattr(composite, operator)(*args)
    for got, wanted in zip(*(r if isinstance(r, tuple) else (r,) for r in (results, expected)), strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(RuntimeError, match=r"weight: expected \[\.\.\., 8, 4\]"):
        run(*(random_weight(3, 8, 8) if a is weight else a for a in args))


@each_operator
def test_the_composite_stays_on_its_device(operator):
    """The meta device holds no values: what strays to another, or waits for a value of this one, is an error there."""
    x, key, weight, scale = (t.to("meta") for t in (torch.randn(SIZE), KEY, random_weight(3, 8, 6), torch.rand(2)))
    args = {
        "spectral_filter": (x, weight, scale),
        "shaped_noise": (key, SIZE, weight, scale),
        "add_noise": (x, key, weight, scale, 1 - scale),
        "whitened_mse": (x, x.flip(0), weight),
    }[operator]
    results = apply_composite(operator, *args)
    assert all(result.is_meta for result in (results if isinstance(results, tuple) else (results,)))


@each_operator
@pytest.mark.parametrize("size", [(2, 3, 28, 27), (2, 1, 7), (0, 3, 8, 6)], ids=str)
def test_the_composite_agrees_with_the_kernels(operator, size):
    x, weight, scale = torch.randn(size), random_weight(*size[-2:]), torch.rand(size[0])
    args = {
        "spectral_filter": (x, weight, scale),
        "shaped_noise": (KEY, size, weight, scale),
        "add_noise": (x, KEY, weight, scale, 1 - scale),
        "whitened_mse": (x, x.flip(-1), weight),
    }[operator]
    torch.testing.assert_close(
        getattr(sagd, operator)(*args), apply_composite(operator, *args), rtol=1e-5, atol=1e-5, equal_nan=True
    )
