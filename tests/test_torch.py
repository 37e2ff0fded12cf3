"""The operators are citizens of torch: opcheck, compile, export, torch.func, autocast, fake tensors, modules."""

import copy
import itertools
import pickle

import pytest
import torch
from conftest import apply_composite, random_weight
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import sagd_kernels as sagd
from sagd_kernels import reference
from sagd_kernels.backends import composite

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own

KEY = sagd.fold_in(sagd.key(2025), 7)
SIZE = (2, 3, 8, 6)
OPERATORS = ["spectral_filter", "shaped_noise", "add_noise", "whitened_mse"]
each_operator = pytest.mark.parametrize("operator", OPERATORS)


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


def step(x, key, weight, scale):
    """All operators, one after the other."""
    noisy, noise = sagd.add_noise(x, key, weight, scale, 1 - scale)
    restored = sagd.spectral_filter(noisy, weight, scale) + sagd.shaped_noise(key, x.shape, weight, plane_offset=7)
    return sagd.whitened_mse(restored, noise, weight)


@pytest.fixture
def compile_once():
    """torch.compile(fullgraph=True, dynamic=True) of a function, which may be compiled in its first call alone."""
    torch._dynamo.reset()

    def compile(function, backend="aot_eager"):
        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)

        def call(*args):
            result = compiled(*args)
            torch.compiler.set_stance("fail_on_recompile")
            return result

        return call

    yield compile
    torch.compiler.set_stance("default")


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
    for step in (5, 9, 2**40):  # from the second one on, or from the start, a symbol
        assert torch.equal(compiled(step), draw(step))


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


# ---- vmap: every subset of the arguments equals a loop


def loop(function, in_dims, args):
    """What vmap promises: the function on each slice, stacked in front."""
    count = next(a.shape[d] for a, d in zip(args, in_dims, strict=True) if d is not None)
    slices = [[a if d is None else a.select(d, i) for a, d in zip(args, in_dims, strict=True)] for i in range(count)]
    results = [function(*arguments) for arguments in slices]
    if isinstance(results[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))
    return torch.stack(results)


VMAPPED = {  # functions of the tensors that can be mapped
    "spectral_filter": (lambda x, w, s: sagd.spectral_filter(x, w, s), "xws"),
    "spectral_filter without scale": (lambda x, w: sagd.spectral_filter(x, w), "xw"),
    "shaped_noise": (lambda k, w, s: sagd.shaped_noise(k, SIZE, w, s, plane_offset=3), "kws"),
    "shaped_noise without scale": (lambda k, w: sagd.shaped_noise(k, SIZE, w, dtype=torch.float16), "kw"),
    "add_noise": (lambda x, k, w, a, b: sagd.add_noise(x, k, w, a, b, plane_offset=3), "xkwss"),
    "whitened_mse": (lambda x, y, w: sagd.whitened_mse(x, y, w), "xxw"),
}
MAPPED = 4


def mapped_argument(kind, dim, *, weight_lead=(), scale_shape=(2,), seed=0):
    """An argument of the inner function, with a new dimension at `dim` unless that is None."""
    count = 1 if dim is None else MAPPED
    if kind == "k":
        stacked = sagd.split(sagd.fold_in(KEY, seed), count)
    elif kind == "w":
        stacked = random_weight(count, *weight_lead, *SIZE[-2:], seed=seed)
    else:
        stacked = torch.randn(count, *(SIZE if kind == "x" else scale_shape))
    return stacked[0] if dim is None else stacked.movedim(0, dim)


@pytest.fixture(autouse=True)
def _no_loops_in_vmap():
    """Where an operator has no rule for vmap, torch calls it in a loop: here that is an error."""
    torch._C._functorch._set_vmap_fallback_enabled(False)
    yield
    torch._C._functorch._set_vmap_fallback_enabled(True)


def assert_vmap_equals_loop(function, in_dims, args):
    results, expected = vmap(function, in_dims)(*args), loop(function, in_dims, args)
    for got, wanted in zip(*(r if isinstance(r, tuple) else (r,) for r in (results, expected)), strict=True):
        if got.ndim > 1:
            assert torch.equal(got, wanted)
        else:  # losses: sums, in another order
            torch.testing.assert_close(got, wanted)


def subsets(kinds):
    return [dims for dims in itertools.product((None, 0), repeat=len(kinds)) if any(d == 0 for d in dims)]


@pytest.mark.parametrize(("name", "in_dims"), [(n, d) for n, (_, kinds) in VMAPPED.items() for d in subsets(kinds)])
def test_vmap_equals_a_loop(name, in_dims):
    function, kinds = VMAPPED[name]
    args = [mapped_argument(kind, dim, seed=i) for i, (kind, dim) in enumerate(zip(kinds, in_dims, strict=True))]
    assert_vmap_equals_loop(function, in_dims, args)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_vmap_of_keys_equals_a_loop(dim):
    keys = sagd.split(KEY, 3 * MAPPED).view(MAPPED, 3, 2).movedim(0, dim)
    assert_vmap_equals_loop(torch.ops.sagd._block_keys, (dim,), (keys,))


def test_vmap_of_what_makes_keys_equals_a_loop():
    keys, data = sagd.split(KEY, MAPPED), torch.arange(MAPPED)
    assert_vmap_equals_loop(sagd.split, (0,), (keys,))
    assert_vmap_equals_loop(sagd.fold_in, (0, None), (keys, data[2]))
    assert_vmap_equals_loop(sagd.fold_in, (None, 0), (KEY, data))
    assert_vmap_equals_loop(vmap(sagd.fold_in, (0, None)), (None, 0), (keys, data))


@pytest.mark.parametrize("name", VMAPPED)
@pytest.mark.parametrize("dim", [1, -1])
def test_vmap_over_any_dimension(name, dim):
    function, kinds = VMAPPED[name]
    args = [mapped_argument(kind, dim, seed=i) for i, kind in enumerate(kinds)]
    assert_vmap_equals_loop(function, (dim,) * len(kinds), args)


@pytest.mark.parametrize("lead", [(), (3,), (2, 1), (1, 3), (2, 3)], ids=lambda lead: f"weight{list(lead)}")
@pytest.mark.parametrize("scale", [(), (2,), (2, 3), (1, 3), (2, 1, 1, 1)], ids=lambda shape: f"scale{list(shape)}")
@pytest.mark.parametrize("name", ["spectral_filter", "shaped_noise", "add_noise"])
def test_vmap_broadcasts_as_the_inner_call_does(name, lead, scale):
    function, kinds = VMAPPED[name]
    for in_dims in ((0,) * len(kinds), *((0 if k == kind else None for k in kinds) for kind in "ws")):
        in_dims = tuple(in_dims)
        args = [
            mapped_argument(kind, dim, weight_lead=lead, scale_shape=scale, seed=i)
            for i, (kind, dim) in enumerate(zip(kinds, in_dims, strict=True))
        ]
        assert_vmap_equals_loop(function, in_dims, args)


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_of_vmap_equals_a_loop_of_loops(name):
    function, kinds = VMAPPED[name]
    inner_dims = tuple(0 if i % 2 == 0 else None for i in range(len(kinds)))
    args = []
    for i, (kind, dim) in enumerate(zip(kinds, inner_dims, strict=True)):
        parts = [mapped_argument(kind, dim, seed=10 * i + j) for j in range(3)]
        args.append(torch.stack(parts))
    outer = (0,) * len(kinds)
    assert_vmap_equals_loop(vmap(function, inner_dims), outer, args)
    both = vmap(vmap(function, inner_dims), outer)(*args)
    looped = loop(lambda *inner: loop(function, inner_dims, inner), outer, args)
    for got, wanted in zip(*(r if isinstance(r, tuple) else (r,) for r in (both, looped)), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_vmap_of_whitened_mse_is_as_accurate_as_the_operator(dtype):
    x, y = torch.randn(2, 5, 3, 28, 28).to(dtype)
    weight = random_weight(28, 28, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        vmap(sagd.whitened_mse, (0, 0, None))(x, y, weight), loop(sagd.whitened_mse, (0, 0, None), (x, y, weight))
    )


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_of_the_module_draws_as_its_randomness_says(randomness):
    module = sagd.ShapedNoise(random_weight(8, 6))
    noise = vmap(module, randomness=randomness)(torch.randn(SIZE))
    assert torch.equal(noise[0], noise[1]) == (randomness == "same")


# ---- torch.func: the transforms give what they give of the reference


def double_arguments():
    x, y = torch.randn(2, *SIZE, dtype=torch.float64)
    return x, y, random_weight(8, 6, dtype=torch.float64), torch.rand(2, dtype=torch.float64)


TRANSFORMED = {
    "grad in the input": lambda m, x, y, w, s: grad(lambda x: m.spectral_filter(x, w, s).pow(3).sum())(x),
    "grad in the weight": lambda m, x, y, w, s: grad(lambda w: m.spectral_filter(x, w, s).pow(3).sum())(w),
    "grad in the scale": lambda m, x, y, w, s: grad(lambda s: m.shaped_noise(KEY, SIZE, w, s).pow(3).sum())(s),
    "vjp of add_noise": lambda m, x, y, w, s: vjp(lambda *a: m.add_noise(a[0], KEY, *a[1:]), x, w, s, 1 - s)[1]((y, x)),
    "jacrev": lambda m, x, y, w, s: jacrev(lambda w: m.spectral_filter(x[0, 0], w))(w),
    "hessian in the input": lambda m, x, y, w, s: jacrev(jacrev(lambda x: m.whitened_mse(x, y[0, 0], w)))(x[0, 0]),
    "hessian in the weight": lambda m, x, y, w, s: jacrev(jacrev(lambda w: m.whitened_mse(x, y, w)))(w),
    "hessian of noise": lambda m, x, y, w, s: jacrev(jacrev(lambda w: m.shaped_noise(KEY, SIZE, w).pow(3).sum()))(w),
    "mixed derivative": lambda m, x, y, w, s: jacrev(lambda x: grad(lambda w: m.whitened_mse(x, y, w))(w))(x),
    "grad past an inner grad": lambda m, x, y, w, s: grad(
        lambda x: grad(lambda factor: factor * m.whitened_mse(x, y, w))(torch.ones((), dtype=torch.float64))
    )(x),
    "vmap of grad": lambda m, x, y, w, s: vmap(grad(lambda x, y: m.whitened_mse(x, y, w)))(x, y),
    "vmap of grad in the weight": lambda m, x, y, w, s: vmap(
        grad(lambda w, x, y: m.whitened_mse(x, y, w)), (None, 0, 0)
    )(w, x, y),
    "grad of vmap": lambda m, x, y, w, s: grad(lambda w: vmap(m.whitened_mse, (0, 0, None))(x, y, w).prod())(w),
    "vmap of grad of noise": lambda m, x, y, w, s: vmap(
        grad(lambda s, x: m.add_noise(x, KEY, w, s, 1 - s)[0].pow(3).sum())
    )(s, x),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMED)
def test_transforms_equal_those_of_the_reference(name):
    arguments = double_arguments()
    torch.testing.assert_close(TRANSFORMED[name](sagd, *arguments), TRANSFORMED[name](reference, *arguments))


def test_transforms_inside_compiled_functions(compile_once):
    x, y, weight, _ = double_arguments()
    per_sample = vmap(grad(lambda w, x, y: sagd.whitened_mse(x, y, w)), (None, 0, 0))
    compiled = compile_once(per_sample)
    torch.testing.assert_close(compiled(weight, x, y), per_sample(weight, x, y))


@each_operator
def test_forward_mode_is_refused_and_not_silently_zero(operator):
    x, y, weight, scale = double_arguments()
    call = {
        "spectral_filter": lambda w: sagd.spectral_filter(x, w),
        "shaped_noise": lambda w: sagd.shaped_noise(KEY, SIZE, w),
        "add_noise": lambda w: sagd.add_noise(x, KEY, w, scale, scale),
        "whitened_mse": lambda w: sagd.whitened_mse(x, y, w),
    }[operator]
    with pytest.raises(NotImplementedError, match=f"sagd::_?{operator}: .* forward-mode"):
        jvp(call, (weight,), (weight,))
    # over reverse mode, as in torch.func.hessian, too
    with pytest.raises(NotImplementedError, match=r"sagd::.* forward-mode"):
        jvp(
            grad(lambda w: torch.as_tensor(call(w)[0] if operator == "add_noise" else call(w)).pow(3).sum()),
            *[(weight,)] * 2,
        )


def test_reverse_over_reverse_equals_the_hessian_of_the_reference():
    x, y, weight, _ = double_arguments()
    x, y = x[0, 0], y[0, 0]
    hessian = jacrev(jacrev(lambda x: sagd.whitened_mse(x, y, weight)))(x)
    torch.testing.assert_close(hessian, jacrev(jacrev(lambda x: reference.whitened_mse(x, y, weight)))(x))


# ---- autocast


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast_keeps_the_dtype_of_the_input(dtype, autocast):
    x = torch.randn(SIZE).to(dtype)
    weight = random_weight(8, 6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
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


def test_inference_mode():
    x, weight, scale = torch.randn(SIZE), random_weight(8, 6), torch.rand(2)
    expected = step(x, KEY, weight, scale)
    with torch.inference_mode():
        result = step(x, KEY, weight, scale)
    assert result.is_inference() and torch.equal(result, expected)
    leaf = weight.clone().requires_grad_()
    with torch.inference_mode():
        assert not step(x, KEY, leaf, scale).requires_grad


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


# ---- devices without kernels


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


# ---- ShapedNoise


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
