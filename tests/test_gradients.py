"""Every operator is differentiable twice in every floating argument, and its gradients are accurate and well-formed."""

import pytest
import torch
from conftest import DTYPES, apply_composite, apply_reference, assert_close, random_weight, weight_dtype
from torch.utils._python_dispatch import TorchDispatchMode

import sagd_kernels as sagd
from sagd_kernels import reference

KEY = sagd.fold_in(sagd.key(2025), 7)
BATCH, PLANE = (2, 2), (3, 4)
WEIGHTS = [(), (2,), (2, 1), (1, 2), (2, 2)]  # leading dimensions
SCALES = [(), (2,), (2, 1), (1, 2), (2, 2), (2, 1, 1, 1), (1, 2, 1, 1)]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def weight_leaf(*lead: int, plane=PLANE, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return random_weight(*lead, *plane, dtype=dtype).requires_grad_()


def check_twice(function, inputs) -> None:
    """Both derivatives, against finite differences."""
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


# ---- both derivatives


@pytest.mark.parametrize("plane", [(1, 1), (3, 4), (4, 3), (1, 5), (2, 2)], ids=str)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
def test_spectral_filter_twice(plane, batch):
    check_twice(sagd.spectral_filter, (leaf(*batch, *plane), weight_leaf(plane=plane)))
    check_twice(sagd.spectral_filter, (leaf(*batch, *plane), weight_leaf(*batch, plane=plane), leaf(*batch)))


@pytest.mark.parametrize("lead", WEIGHTS, ids=lambda lead: f"weight{list(lead)}")
def test_spectral_filter_twice_for_weights_that_broadcast(lead):
    check_twice(sagd.spectral_filter, (leaf(*BATCH, *PLANE), weight_leaf(*lead), leaf(2)))


@pytest.mark.parametrize("shape", SCALES, ids=lambda shape: f"scale{list(shape)}")
def test_spectral_filter_twice_for_scales_that_broadcast(shape):
    check_twice(sagd.spectral_filter, (leaf(*BATCH, *PLANE), weight_leaf(), leaf(*shape)))


@pytest.mark.parametrize("plane", [(1, 1), (3, 4), (4, 3), (1, 5)], ids=str)
def test_shaped_noise_twice(plane):
    check_twice(
        lambda w, s: sagd.shaped_noise(KEY, (2, *plane), w, s, plane_offset=5), (weight_leaf(plane=plane), leaf(2))
    )


@pytest.mark.parametrize("lead", WEIGHTS, ids=lambda lead: f"weight{list(lead)}")
@pytest.mark.parametrize("keys", [(), (2,), (2, 2)], ids=lambda keys: f"key{[*keys, 2]}")
def test_shaped_noise_twice_for_weights_and_keys_that_broadcast(lead, keys):
    key = sagd.split(KEY, 4).view(2, 2, 2)[(0,) * (2 - len(keys))]
    assert key.shape == (*keys, 2)
    check_twice(lambda w, s: sagd.shaped_noise(key, (*BATCH, *PLANE), w, s), (weight_leaf(*lead), leaf(1, 2)))


@pytest.mark.parametrize("lead", [(), (2, 1)], ids=lambda lead: f"weight{list(lead)}")
@pytest.mark.parametrize("shapes", [((), (2,)), ((2, 2), (1, 2, 1, 1)), ((2, 1), ())], ids=str)
def test_add_noise_twice(shapes, lead):
    signal_scale, noise_scale = shapes
    inputs = leaf(*BATCH, *PLANE), weight_leaf(*lead), leaf(*signal_scale), leaf(*noise_scale)
    check_twice(lambda x, w, a, b: sagd.add_noise(x, KEY, w, a, b, plane_offset=3), inputs)
    check_twice(lambda x, w, a, b: sagd.add_noise(x, KEY, w, a, b, plane_offset=3)[0], inputs)


@pytest.mark.parametrize("plane", [(1, 1), (3, 4), (4, 3), (1, 5)], ids=str)
@pytest.mark.parametrize("lead", [(), (2, 1), (1, 2)], ids=lambda lead: f"weight{list(lead)}")
def test_whitened_mse_twice(plane, lead):
    inputs = leaf(*BATCH, *plane), leaf(*BATCH, *plane), weight_leaf(*lead, plane=plane)
    check_twice(sagd.whitened_mse, inputs)


def test_whitened_mse_and_its_residual_twice():
    """The operator that torch.func, torch.compile and autocast see, whose second output has gradients, too."""
    inputs = leaf(*BATCH, *PLANE), leaf(*BATCH, *PLANE), weight_leaf(2, 1)
    check_twice(lambda x, y, w: torch.ops.sagd._whitened_mse(x, y, w, True), inputs)


def test_whitened_mse_twice_where_some_bins_do_not_count():
    weight = random_weight(2, *PLANE, dtype=torch.float64)
    weight[0, 0, 0], weight[0, :, -1], weight[1] = 0, -1, 0
    check_twice(lambda x, y: sagd.whitened_mse(x, y, weight), (leaf(*BATCH, *PLANE), leaf(*BATCH, *PLANE)))
    # the gradient in a weight that does not count is 0, where finite differences would see a jump
    weight.requires_grad_()
    x = leaf(*BATCH, *PLANE)
    (gradient,) = torch.autograd.grad(sagd.whitened_mse(x, torch.zeros_like(x), weight), weight, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), weight)
    for derivative in (gradient, second):
        assert torch.equal(derivative != 0, weight > 0)


# ---- first derivatives, at every dtype, against the reference's


def every_gradient(function, inputs, upstream) -> list[torch.Tensor]:
    """The gradients of <upstream, function(inputs)> in every input."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.autograd.grad(outputs, inputs, [u.to(y.dtype) for u, y in zip(upstream, outputs, strict=True)])


def cases(dtype: torch.dtype, plane):
    """(name, function of the floating arguments and the implementation, floating arguments, upstream gradients)"""
    size = (2, 3, *plane)
    weight = random_weight(3, *plane, dtype=weight_dtype(dtype))
    x, y = torch.randn(size).to(dtype), torch.randn(size).to(dtype)
    a, b = torch.rand(2).to(dtype), torch.rand(2, 3).to(dtype)
    up = [torch.randn(size).to(dtype) for _ in range(2)]
    return {
        "spectral_filter": (lambda f, x, w, a: f("spectral_filter", x, w, a), (x, weight, a), up[:1]),
        "shaped_noise": (
            lambda f, w, b: f("shaped_noise", KEY, size, w, b, plane_offset=4, dtype=dtype), (weight, b), up[:1]
        ),
        "add_noise": (lambda f, x, w, a, b: f("add_noise", x, KEY, w, a, b, plane_offset=4), (x, weight, a, b), up),
        "whitened_mse": (lambda f, x, y, w: f("whitened_mse", x, y, w), (x, y, weight), [torch.tensor(0.7)]),
    }  # fmt: skip


def apply_kernel(operator, *args, **kwargs):
    return getattr(sagd, operator)(*args, **kwargs)


@pytest.mark.parametrize("plane", [(1, 1), (8, 6), (7, 9), (28, 28)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("operator", ["spectral_filter", "shaped_noise", "add_noise", "whitened_mse"])
def test_gradients_equal_those_of_the_reference(operator, dtype, plane):
    function, inputs, upstream = cases(dtype, plane)[operator]

    def gradients(implementation):
        return every_gradient(lambda *inputs: function(implementation, *inputs), inputs, upstream)

    results = gradients(apply_kernel)
    for x, *compared in zip(inputs, results, gradients(apply_reference), gradients(apply_composite), strict=True):
        assert compared[0].dtype == x.dtype and compared[0].shape == x.shape
        assert_close(*compared)
    # one argument at a time: the others' gradients are not computed, this one's is the same
    for i, x in enumerate(inputs):
        only = x.detach().clone().requires_grad_()
        outputs = function(apply_kernel, *inputs[:i], only, *inputs[i + 1 :])
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        (alone,) = torch.autograd.grad(
            outputs, only, [u.to(y.dtype) for u, y in zip(upstream, outputs, strict=True)], allow_unused=True
        )
        assert torch.equal(alone, results[i])


@pytest.mark.parametrize("other", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_whitened_mse_keep_the_dtype_of_each_argument(other):
    x = torch.randn(2, 8, 8, requires_grad=True)
    y = torch.randn(2, 8, 8).to(other).requires_grad_()
    sagd.whitened_mse(x, y, random_weight(8, 8)).backward()
    assert x.grad.dtype == torch.float32 and y.grad.dtype == other
    assert torch.equal(y.grad, -x.grad.to(other))


# ---- what a gradient may look like


UPSTREAM = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand_as(g),
    "transposed": lambda g: g.mT.contiguous().mT,
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "sliced": lambda g: g.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("layout", UPSTREAM)
@pytest.mark.parametrize("operator", ["spectral_filter", "shaped_noise", "add_noise"])
def test_strides_of_the_gradient_do_not_matter(operator, layout):
    function, inputs, upstream = cases(torch.float32, (8, 6))[operator]

    def gradients(upstream):
        return every_gradient(lambda *inputs: function(apply_kernel, *inputs), inputs, upstream)

    changed = [UPSTREAM[layout](g) for g in upstream]
    assert not any(g.is_contiguous() for g in changed)
    for got, expected in zip(gradients(changed), gradients([g.contiguous() for g in changed]), strict=True):
        torch.testing.assert_close(got, expected)  # sums may run in another order


def test_the_sum_of_the_result_can_be_differentiated():
    x, weight = torch.randn(2, 3, 8, 6, requires_grad=True), random_weight(8, 6)
    sagd.spectral_filter(x, weight).sum().backward()
    # T_w of a constant is the constant times w(0, 0)
    torch.testing.assert_close(x.grad, weight[0, 0].expand_as(x))


@pytest.mark.parametrize("plane", [(1, 1), (1, 9), (8, 6), (27, 31), (64, 64), (53, 20)], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_spectral_filter_is_its_own_adjoint(dtype, tolerance, plane):
    weight = random_weight(3, *plane, dtype=dtype)
    x, y = torch.randn(2, 2, 3, *plane, dtype=torch.float64).to(dtype).unbind()
    forward = (sagd.spectral_filter(x, weight).double() * y.double()).sum()
    backward = (x.double() * sagd.spectral_filter(y, weight).double()).sum()
    assert abs(forward - backward) < tolerance * x.double().norm() * y.double().norm()


def test_gradients_of_empty_batches_are_zero():
    weight, scale = random_weight(8, 6).requires_grad_(), torch.ones((), requires_grad=True)
    x = torch.randn(0, 3, 8, 6, requires_grad=True)
    noisy, noise = sagd.add_noise(x, KEY, weight, scale, scale)
    total = sagd.spectral_filter(x, weight, scale).sum() + noisy.sum() + noise.sum()
    total = total + sagd.shaped_noise(KEY, x.shape, weight, scale).sum()
    total.backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight)) and scale.grad == 0


# ---- what has no gradient


def test_the_key_has_no_gradient_and_noise_without_arguments_that_need_one_is_a_leaf():
    weight = random_weight(8, 6)
    assert not sagd.shaped_noise(KEY, (2, 8, 6), weight).requires_grad
    noisy, noise = sagd.add_noise(torch.randn(2, 8, 6), KEY, weight, torch.ones(2), torch.ones(2))
    assert not noisy.requires_grad and not noise.requires_grad
    noise = sagd.shaped_noise(KEY, (2, 8, 6), weight.requires_grad_())
    assert noise.grad_fn.next_functions[0][0] is None  # the key's place
    with torch.no_grad():
        assert not sagd.shaped_noise(KEY, (2, 8, 6), weight).requires_grad


class Residuals(TorchDispatchMode):
    """Records which calls of whitened_mse ask for the residual."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.sagd._whitened_mse.default:
            self.asked.append(args[3])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("whitened_mse", [sagd.whitened_mse, torch.ops.sagd.whitened_mse], ids=["python", "torch.ops"])
def test_whitened_mse_computes_its_residual_only_where_someone_needs_it(whitened_mse):
    x, weight = torch.randn(2, 8, 6), random_weight(8, 6)
    with Residuals() as residuals:
        whitened_mse(x, x.flip(0), weight)
        whitened_mse(x, x.flip(0), weight.clone().requires_grad_())
        x.requires_grad_()
        whitened_mse(x, x.flip(0), weight)
        whitened_mse(x.detach(), x.flip(0), weight)
        with torch.no_grad():
            whitened_mse(x, x.flip(0), weight)
    assert residuals.asked == [False, False, True, True, False]


def test_the_gradient_of_the_noisy_image_alone_leaves_the_noise_out():
    weight = random_weight(8, 6, dtype=torch.float64).requires_grad_()
    x, scale = torch.randn(2, 8, 6).double(), torch.tensor([0.5, 0.25]).double()
    noisy, _ = sagd.add_noise(x, KEY, weight, scale, scale)
    (gradient,) = torch.autograd.grad(noisy.square().sum(), weight)
    other = weight.detach().clone().requires_grad_()
    noisy, _ = reference.add_noise(x, KEY, other, scale, scale)
    (expected,) = torch.autograd.grad(noisy.square().sum(), other)
    torch.testing.assert_close(gradient, expected)
