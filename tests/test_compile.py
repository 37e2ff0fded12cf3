"""opcheck, torch.compile and torch.export: the operators compile whole, once for any batch, to the eager results."""

import pytest
import torch
from conftest import random_weight, step
from torch import nn

import sagd_kernels as sagd

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own

KEY = sagd.fold_in(sagd.key(2025), 7)
SIZE = (2, 3, 8, 6)


def needing_grad(tensor):
    return tensor.clone().requires_grad_()


# ---- torch's own check of an operator: schema, autograd registration, fake kernel, compilation of both passes


SAMPLES = {
    "spectral_filter": [
        lambda x, w, s: ((needing_grad(x), needing_grad(w), needing_grad(s)), {}),
        lambda x, w, s: ((needing_grad(x.mT.contiguous().mT), w), {}),
        lambda x, w, s: ((x.bfloat16(), needing_grad(w), needing_grad(s.bfloat16())), {}),
    ],
    "shaped_noise": [
        lambda x, w, s: ((KEY, SIZE, needing_grad(w), needing_grad(s)), {"plane_offset": 3}),
        lambda x, w, s: ((sagd.split(KEY, 2), SIZE, w), {"dtype": torch.float16}),
        lambda x, w, s: ((KEY, SIZE, needing_grad(random_weight(2, 1, 8, 6).double())), {}),
    ],
    "add_noise": [
        lambda x, w, s: ((needing_grad(x), KEY, needing_grad(w), needing_grad(s), needing_grad(1 - s)), {}),
        lambda x, w, s: ((needing_grad(x.half()), sagd.split(KEY, 2), w, s, s), {"plane_offset": 3}),
    ],
    "whitened_mse": [
        lambda x, w, s: ((needing_grad(x), needing_grad(x.flip(0)), needing_grad(w)), {}),
        lambda x, w, s: ((x, x.flip(0).bfloat16(), w), {}),
    ],
    "_whitened_mse": [
        lambda x, w, s: ((needing_grad(x), needing_grad(x.flip(0)), needing_grad(w), True), {}),
        lambda x, w, s: ((x, x.flip(0), needing_grad(w), False), {}),
    ],
    "_block_keys": [lambda x, w, s: ((sagd.split(KEY, 6).view(2, 3, 2),), {})],
}


@pytest.mark.parametrize(
    ("operator", "sample"), [(name, i) for name, samples in SAMPLES.items() for i in range(len(samples))]
)
def test_opcheck(operator, sample):
    args, kwargs = SAMPLES[operator][sample](torch.randn(SIZE), random_weight(*SIZE[-2:]), torch.rand(2))
    torch.library.opcheck(getattr(torch.ops.sagd, operator).default, args, kwargs)


# ---- torch.compile and torch.export


def value_and_gradients(function, *leaves):
    leaves = [needing_grad(leaf) for leaf in leaves]
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves)


def test_compiled_equals_eager_in_any_batch(compile_once):
    compiled, weight = compile_once(step), random_weight(*SIZE[1:])
    for batch in (5, 4, 2):  # first a size that no other dimension has: torch.compile takes equal sizes for one
        leaves = torch.randn(batch, *SIZE[1:]), weight, torch.rand(batch)
        results = value_and_gradients(lambda x, w, s: compiled(x, KEY, w, s), *leaves)
        torch.testing.assert_close(results, value_and_gradients(lambda x, w, s: step(x, KEY, w, s), *leaves))


def test_the_default_backend_compiles_the_operators(compile_once):
    def loss(x):
        noisy, noise = sagd.add_noise(2 * x, KEY, weight, scale, scale)
        return sagd.whitened_mse(sagd.spectral_filter(noisy, weight), noise, weight).sqrt()

    weight, scale = random_weight(8, 6), torch.rand(1)
    compiled = compile_once(loss, "inductor")
    for batch in (5, 4):
        x = torch.randn(batch, *SIZE[1:])
        torch.testing.assert_close(value_and_gradients(compiled, x), value_and_gradients(loss, x))


def test_compiled_forward_draws_the_same_bits(compile_once):
    def draw(n, weight):
        return sagd.shaped_noise(KEY, (n, 3, 8, 6), weight, plane_offset=n)

    compiled, weight = compile_once(draw), random_weight(*SIZE[-2:])
    for n in (2, 4, 7):
        assert torch.equal(compiled(n, weight), draw(n, weight))


def test_compiled_keys_are_the_eager_ones(compile_once):
    def derive(key, number, steps):
        return sagd.fold_in(key, number), sagd.fold_in(key, steps), sagd.split(key, 3)

    compiled, steps = compile_once(derive), torch.tensor([3, -1])
    for number in (5, 9, 2**40):
        for got, expected in zip(compiled(KEY, number, steps), derive(KEY, number, steps), strict=True):
            assert torch.equal(got, expected)


def test_the_default_backend_compiles_keys(compile_once):
    def draw(step):
        return sagd.shaped_noise(sagd.fold_in(sagd.key(3), step), (2, 8, 6), weight, 0.5)

    weight = random_weight(8, 6)
    compiled = compile_once(draw, "inductor")
    for number in (5, 9, 2**40):  # from the second one on, or from the start, a symbol
        assert torch.equal(compiled(number), draw(number))


def test_the_default_backend_compiles_numbers(compile_once):
    def draw(num, plane_offset):
        return sagd.shaped_noise(sagd.split(KEY, num), (num, 2, 8, 6), weight, plane_offset=plane_offset)

    weight = random_weight(8, 6)
    compiled = compile_once(draw, "inductor")
    for numbers in ((3, 5), (4, 2**40), (5, 2**63 - 1)):
        assert torch.equal(compiled(*numbers), draw(*numbers))


def test_compiled_module_follows_the_seed(compile_once):
    module = sagd.ShapedNoise(random_weight(8, 6))
    compiled = compile_once(module)
    for batch in (2, 3):
        x, drawn = torch.randn(batch, *SIZE[1:]), []
        for function in (compiled, module):
            torch.manual_seed(5)
            drawn.append(function(x))
        assert torch.equal(*drawn)
        assert not torch.equal(compiled(x), drawn[0])


class Diffuse(nn.Module):
    def __init__(self):
        super().__init__()
        self.noise = sagd.ShapedNoise(random_weight(8, 6))

    def forward(self, x, key, scale):
        noisy, noise = sagd.add_noise(x, key, self.noise.weight, scale, 1 - scale)
        return sagd.spectral_filter(noisy, self.noise.weight), noise, self.noise(x)


def test_export_with_a_dynamic_batch():
    batch = torch.export.Dim("batch")
    module, example = Diffuse(), (torch.randn(SIZE), KEY, torch.rand(2))
    shapes = ({0: batch}, None, {0: batch})
    exported = torch.export.export(module, example, dynamic_shapes=shapes)
    for n in (2, 5):
        args = torch.randn(n, *SIZE[1:]), KEY, torch.rand(n)
        results = []
        for function in (exported.module(), module):
            torch.manual_seed(5)
            results.append(function(*args))
        for got, expected in zip(*results, strict=True):
            assert torch.equal(got, expected)
