"""ShapedNoise stands where randn_like stood: it keeps its weight, and copies of it draw the same."""

import copy
import pickle

import pytest
import torch
from conftest import random_weight
from torch import nn
from torch.func import functional_call

import sagd_kernels as sagd

SIZE = (2, 3, 8, 6)


def test_the_module_keeps_its_weight_exactly(tmp_path):
    weight = random_weight(3, 8, 6)
    module = nn.Sequential(nn.Conv2d(3, 3, 1), sagd.ShapedNoise(weight))
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other = nn.Sequential(nn.Conv2d(3, 3, 1), sagd.ShapedNoise(torch.ones_like(weight)))
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other[1].weight, weight)
    assert not list(sagd.ShapedNoise(weight).parameters())
    for cast in (nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.to(torch.float16)):
        changed = cast(copy.deepcopy(module))
        assert changed[0].weight.dtype != torch.float32
        assert changed[1].weight.dtype == torch.float32 and torch.equal(changed[1].weight, weight)
        assert "weight" in dict(changed[1].named_buffers())
        assert changed[1](torch.randn(SIZE)).dtype == torch.float32
    assert copy.deepcopy(module).to("meta")[1].weight.is_meta


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("seeded", [False, True])
def test_a_copy_of_the_module_draws_what_the_original_would(duplicate, seeded):
    x = torch.randn(SIZE)
    module = sagd.ShapedNoise(random_weight(8, 6), torch.Generator().manual_seed(3) if seeded else None)
    module(x)
    other = duplicate(module)
    assert torch.equal(other.weight, module.weight) and other.weight is not module.weight
    state = torch.get_rng_state()
    expected = module(x)
    torch.set_rng_state(state)
    assert torch.equal(other(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_module_stands_where_randn_like_stood(dtype):
    x = torch.randn(64, 3, 8, 6).to(dtype).mT.contiguous().mT
    noise = sagd.ShapedNoise(torch.ones(8, 4))(x)
    assert (noise.shape, noise.dtype, noise.device) == (x.shape, x.dtype, x.device)
    assert not noise.requires_grad
    assert noise.double().std().item() == pytest.approx(1, abs=0.05)  # 9,216 values: 6 standard errors


def test_the_module_takes_another_weight_for_a_call():
    module, x, weight = sagd.ShapedNoise(torch.ones(8, 4)), torch.randn(SIZE), random_weight(8, 6).requires_grad_()
    torch.manual_seed(5)
    noise = functional_call(module, {"weight": weight}, (x,))
    torch.manual_seed(5)
    assert torch.equal(noise, sagd.ShapedNoise(weight.detach())(x))
    noise.square().sum().backward()
    assert weight.grad.abs().sum() > 0


def test_the_module_says_what_it_holds():
    assert repr(sagd.ShapedNoise(random_weight(3, 8, 6))) == "ShapedNoise(weight=[3, 8, 4])"
