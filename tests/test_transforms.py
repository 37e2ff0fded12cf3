"""torch.func: vmap equals a loop, over any argument; derivatives are those of the reference, or an error."""

import itertools

import pytest
import torch
from conftest import each_operator, random_weight, weight_dtype
from torch.func import grad, jacrev, jvp, vjp, vmap

import sagd_kernels as sagd
from sagd_kernels import reference

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own

KEY = sagd.fold_in(sagd.key(2025), 7)
SIZE = (2, 3, 8, 6)


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
    weight = random_weight(28, 28, dtype=weight_dtype(dtype))
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
