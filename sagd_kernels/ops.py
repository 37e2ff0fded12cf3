"""The operators: what they promise, and how torch sees them (shapes, gradients, vmap, autocast).

Schemas and CPU kernels are in csrc/, what the operators accept is in checks.py; this file adds everything else that is
the same on every device. Each operator is `torch.ops.sagd.<name>` and, with the documentation below,
`sagd_kernels.<name>`. A plane is the last two dimensions [H, W] of a tensor; F is the unitary 2-D DFT;
T_w = F^-1 diag(w) F.
"""

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor, is_grad_enabled
from torch._C import _any_requires_grad as any_requires_grad
from torch._C import _are_functorch_transforms_active as transforms_active
from torch._C import _AutoDispatchBelowAutograd
from torch._C import _is_any_autocast_enabled as any_autocast
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.compiler import is_compiling

from . import backends, checks, gradients
from ._build import library_path
from .backends import composite
from .random import block_keys
from .spectral import weight_dtype, whitening

torch.ops.load_library(library_path())
_ops = torch.ops.sagd


# ---- the operators -------------------------------------------------------------------------------------------------


def spectral_filter(input: Tensor, weight: Tensor, scale: Tensor | float | None = None) -> Tensor:
    """scale * T_w input, in one pass: covariance, colouring (w), whitening (1/w), score (-1/w^2), by choice of w.

    Args:
        input: [..., H, W], float32, float64, bfloat16 or float16, any strides. Half types are computed in float32.
        weight: [..., H, W//2+1] in the layout of `torch.fft.rfft2`, float32 (float64 for float64 input); leading
            dimensions broadcast against those of `input`. On the columns l = 0 and l = W/2 its even part counts.
        scale: a number, or a floating tensor whose dimensions are the leading ones of `input` ([N], [N, C],
            [N, 1, 1, 1]). `torch.ops.sagd` takes tensors only; `torch.compile` compiles anew for each new float.

    Returns:
        A contiguous tensor of the shape and dtype of `input`. Differentiable in every argument, twice.

    Raises:
        TypeError: an argument of the wrong type; the message names it.
        RuntimeError: an argument of the wrong shape, dtype or device; the message names it.
    """
    if input is None or weight is None:
        raise checks.forgotten(input=input, weight=weight)
    return _spectral_filter(input, weight, _scale(scale, weight))


def shaped_noise(
    key: Tensor,
    size: Sequence[int],
    weight: Tensor,
    scale: Tensor | float | None = None,
    *,
    plane_offset: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """scale * T_w xi with xi ~ N(0, I), in one pass: no forward transform, no white noise in memory.

    The noise is a function of the key and of a plane's number alone: the same on every device up to rounding, in any
    batch, on any number of threads and processes. docs/contract.md defines the stream.

    Args:
        key: uint64 [2], see `sagd_kernels.key`; or [*B, 2], one key for each index of the leading dimensions B of
            `size`, whose planes are then numbered for each key from 0.
        size: [..., H, W], the shape of the result.
        weight, scale: as in `spectral_filter`. With mean w^2 = 1 over the full plane the noise has variance 1.
        plane_offset: the number of the first plane: planes p of a batch are planes plane_offset + p of the stream.
        dtype: of the result; that of `weight` unless given. float64 needs a float64 weight.

    Returns:
        A contiguous tensor on the device of `weight`. Differentiable in `weight` and `scale`, twice.
    """
    if weight is None:
        raise checks.forgotten(weight=weight)
    checks.stream(key, plane_offset)
    return _shaped_noise(key, size, weight, _scale(scale, weight), plane_offset=plane_offset, dtype=dtype)


def add_noise(
    input: Tensor,
    key: Tensor,
    weight: Tensor,
    signal_scale: Tensor | float,
    noise_scale: Tensor | float,
    *,
    plane_offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """(signal_scale * input + noise_scale * noise, noise) with noise = T_w xi: the forward process, in one pass.

    With signal_scale = sqrt(abar_t) and noise_scale = sqrt(1 - abar_t) this draws x_t ~ q(x_t | x_0) and the target
    of epsilon prediction. Arguments as in `spectral_filter` and `shaped_noise`; both scales broadcast from the left.
    Returns two contiguous tensors of the shape and dtype of `input`. Differentiable in every floating argument, twice.
    """
    if input is None or weight is None or signal_scale is None or noise_scale is None:
        raise checks.forgotten(input=input, weight=weight, signal_scale=signal_scale, noise_scale=noise_scale)
    checks.stream(key, plane_offset)
    signal_scale, noise_scale = _scale(signal_scale, weight), _scale(noise_scale, weight)
    return _add_noise(input, key, weight, signal_scale, noise_scale, plane_offset=plane_offset)


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over planes, and over the full-plane bins with w > 0, of |F(input - target)|^2 / w^2.

    The exact evidence bound's loss for noise of weight w; for w = 1 it is `torch.nn.functional.mse_loss`. Bins with
    w = 0 do not count, and a plane without any other counts as 0. One pass gives the loss and its gradient.
    `torch.vmap(whitened_mse, in_dims=(0, 0, None))(input, target, weight)` is a loss for each sample.

    Args:
        input, target: [..., H, W] of one shape; of two dtypes the wider counts.
        weight: as in `spectral_filter`.

    Returns:
        A scalar: float32, or float64 for float64 input. Differentiable in every argument, twice. float16 overflows
        in the gradient where T_u (input - target), u = 1/w^2, exceeds 65504: take float32 or bfloat16 for small w.
    """
    if input is None or target is None or weight is None:
        raise checks.forgotten(input=input, target=target, weight=weight)
    if not (isinstance(input, Tensor) and isinstance(target, Tensor)):
        try:
            return _ops.whitened_mse(input, target, weight)  # torch.fx, which traces with proxies, gets here
        except RuntimeError:
            checks.types(_ops.whitened_mse.default, (input, target, weight), {})
            raise
    if input.dtype != target.dtype:
        checks.floating("input", input.dtype)
        checks.floating("target", target.dtype)
        dtype = torch.promote_types(input.dtype, target.dtype)
        input, target = input.to(dtype), target.to(dtype)
    with_residual = is_grad_enabled() and (input.requires_grad or target.requires_grad)
    return _whitened_mse(input, target, weight, with_residual)


def _scale(scale: Tensor | float | None, weight: Tensor) -> Tensor | None:
    """A number as a tensor beside the weight, in the precision of the computation (autocast takes half weights)."""
    # what is usual first: to ask an abstract class takes longer
    if scale is None or isinstance(scale, Tensor) or not isinstance(scale, Real):
        return scale
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    return torch.full((), scale, dtype=weight_dtype(weight.dtype), device=weight.device)


# ---- shapes, and devices without kernels ---------------------------------------------------------------------------


def _fake_spectral_filter(input, weight, scale=None):
    return input.new_empty(input.shape)


def _fake_shaped_noise(key, size, weight, scale=None, *, plane_offset=0, dtype=None):
    return weight.new_empty(size, dtype=dtype or weight.dtype)


def _fake_add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0):
    return input.new_empty(input.shape), input.new_empty(input.shape)


def _fake_whitened_mse(input, target, weight, with_residual):
    return weight.new_empty(()), input.new_empty(input.shape if with_residual else 0)


def _checked(check, function):
    def run(*args, **kwargs):
        check(*args, **kwargs)
        return function(*args, **kwargs)

    return run


_library = torch.library.Library("sagd", "IMPL")
for _name, _check_arguments, _fake, _composite in [
    ("spectral_filter", checks.spectral_filter, _fake_spectral_filter, composite.spectral_filter),
    ("shaped_noise", checks.shaped_noise, _fake_shaped_noise, composite.shaped_noise),
    ("add_noise", checks.add_noise, _fake_add_noise, composite.add_noise),
    ("_whitened_mse", checks.whitened_mse, _fake_whitened_mse, composite.whitened_mse),
]:
    torch.library.register_fake(f"sagd::{_name}", _checked(_check_arguments, _fake), lib=_library)
    _library.impl(_name, _checked(_check_arguments, _composite), "CompositeExplicitAutograd")
    _library.impl(_name, _checked(_check_arguments, backends.on_cuda(_name)), "CUDA")


torch.library.register_fake("sagd::_block_keys", lambda key: key.new_empty(key.shape), lib=_library)
_library.impl("_block_keys", block_keys, "CompositeExplicitAutograd")

for _key in ("CompositeImplicitAutograd", "FuncTorchBatchedDecomposition"):
    _library.impl("whitened_mse", whitened_mse, _key)


# ---- gradients -----------------------------------------------------------------------------------------------------


def _whole(output):
    return output


def _first(output):
    return output[0]


def _differentiable(name: str, backward, save, result=_whole):
    """Gives an operator its gradient, as `torch.library.register_autograd` does; that one refuses torch.func.grad
    (pytorch/pytorch#168393) and lets the tangents of forward mode vanish. Here every transform of torch.func works that
    needs no forward mode, and forward mode is an error.

    Returns the operator for callers in Python, who get result(output). The dispatcher would come back to Python to ask
    for gradients, with all arguments converted twice, which takes as long as a small batch's transforms; so that is
    asked before it is called. Where something else happens above autograd or in it (tracing, transforms, forward mode,
    autocast), the dispatcher keeps the order.
    """
    operator = getattr(_ops, name).default
    arguments = len([a for a in operator._schema.arguments if not a.kwarg_only])
    redispatch, after_autograd = operator.redispatch, torch._C._after_autograd_keyset

    class Function(_SingleLevelFunction):
        @staticmethod
        def forward(ctx, implementation, result, kwargs, *args):
            output = implementation(*args, **kwargs)
            save(ctx, *_padded(args, arguments), output=output, **kwargs)
            return result(output)

        @staticmethod
        def backward(ctx, *grads):
            return None, None, None, *backward(ctx, _padded(ctx.needs_input_grad[3:], arguments), *grads)

        @staticmethod
        def jvp(ctx, *tangents):
            raise NotImplementedError(
                f"sagd::{name}: expected reverse mode (backward, grad, vjp, jacrev, jacrev of jacrev); forward-mode "
                "derivatives (jvp, jacfwd, linearize, hessian) are not implemented"
            )

    def below_autograd(*args, **kwargs):
        with _AutoDispatchBelowAutograd():
            return operator(*args, **kwargs)

    def from_python(*args, **kwargs):
        if is_compiling():
            return result(operator(*args, **kwargs))
        try:
            if transforms_active() or forward_ad._current_level >= 0 or any_autocast():
                return result(operator(*args, **kwargs))
            if is_grad_enabled() and any_requires_grad(*args):
                return Function.apply(below_autograd, result, kwargs, *args)
            return result(below_autograd(*args, **kwargs))
        except RuntimeError:
            checks.types(operator, args, kwargs)
            raise

    def from_dispatcher(keyset, *args, **kwargs):
        keyset = keyset & after_autograd
        if not (is_grad_enabled() and any_requires_grad(*args)) and forward_ad._current_level < 0:
            return redispatch(keyset, *args, **kwargs)

        def implementation(*args, **kwargs):
            # enabled for the outer transforms of torch.func; below autograd what the implementation is composed of
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _AutoDispatchBelowAutograd():
                return redispatch(keyset, *args, **kwargs)

        with enable_single_level_autograd_function():
            return Function.apply(implementation, _whole, kwargs, *args)

    _library.impl(name, from_dispatcher, "Autograd", with_keyset=True)
    return from_python


def _padded(values: Sequence, length: int) -> list:
    """The dispatcher drops trailing arguments that have their default value; None and False stand for them alike."""
    return [*values, *[None] * (length - len(values))]


_spectral_filter = _differentiable(
    "spectral_filter", gradients.spectral_filter_backward, gradients.spectral_filter_save
)
_shaped_noise = _differentiable("shaped_noise", gradients.shaped_noise_backward, gradients.shaped_noise_save)
_add_noise = _differentiable("add_noise", gradients.add_noise_backward, gradients.add_noise_save)
_whitened_mse = _differentiable(
    "_whitened_mse", gradients.whitened_mse_backward, gradients.whitened_mse_save, result=_first
)


# ---- vmap: the new dimension becomes the first batch dimension -----------------------------------------------------


def _to_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _weight_to_front(weight: Tensor, dim: int | None, ndim: int) -> Tensor:
    """A weight broadcasts from the right: dimensions that it lacks of the `ndim` inner ones come after the new one."""
    if dim is None:
        return weight
    weight = weight.movedim(dim, 0)
    return weight.reshape(weight.shape[0], *[1] * (ndim - weight.ndim + 1), *weight.shape[1:])


def _scale_to_front(scale: Tensor | None, dim: int | None) -> Tensor | None:
    """A scale broadcasts from the left."""
    if scale is None:
        return None
    return scale.unsqueeze(0) if dim is None else scale.movedim(dim, 0)


def _vmap_block_keys(info, in_dims, key):
    return _ops._block_keys(key.movedim(in_dims[0], 0)), 0


def _vmap_spectral_filter(info, in_dims, input, weight, scale=None):
    input_dim, weight_dim, scale_dim = _padded(in_dims, 3)
    input = _to_front(input, input_dim, info.batch_size)
    weight = _weight_to_front(weight, weight_dim, input.ndim - 1)
    return _ops.spectral_filter(input, weight, _scale_to_front(scale, scale_dim)), 0


def _vmap_shaped_noise(info, in_dims, key, size, weight, scale=None, *, plane_offset=0, dtype=None):
    key_dim, _, weight_dim, scale_dim = _padded(in_dims, 4)
    key = _to_front(key, key_dim, info.batch_size)
    weight = _weight_to_front(weight, weight_dim, len(size))
    scale = _scale_to_front(scale, scale_dim)
    size = [info.batch_size, *size]
    return _ops.shaped_noise(key, size, weight, scale, plane_offset=plane_offset, dtype=dtype), 0


def _vmap_add_noise(info, in_dims, input, key, weight, signal_scale, noise_scale, *, plane_offset=0):
    input_dim, key_dim, weight_dim, signal_dim, noise_dim = in_dims
    input = _to_front(input, input_dim, info.batch_size)
    key = _to_front(key, key_dim, info.batch_size)
    weight = _weight_to_front(weight, weight_dim, input.ndim - 1)
    scales = _scale_to_front(signal_scale, signal_dim), _scale_to_front(noise_scale, noise_dim)
    return _ops.add_noise(input, key, weight, *scales, plane_offset=plane_offset), (0, 0)


def _vmap_whitened_mse(info, in_dims, input, target, weight, with_residual):
    input_dim, target_dim, weight_dim, _ = in_dims
    input = _to_front(input, input_dim, info.batch_size)
    residual = input.to(weight.dtype) - _to_front(target, target_dim, info.batch_size).to(weight.dtype)
    weight = _weight_to_front(weight, weight_dim, input.ndim - 1)
    whitened = _ops.spectral_filter(residual, whitening(weight, input.shape[-1]))
    loss = (residual * whitened).flatten(1).mean(1)
    return (loss, whitened.to(input.dtype) if with_residual else input.new_empty(info.batch_size, 0)), (0, 0)


for _name, _vmap in [
    ("_block_keys", _vmap_block_keys),
    ("spectral_filter", _vmap_spectral_filter),
    ("shaped_noise", _vmap_shaped_noise),
    ("add_noise", _vmap_add_noise),
    ("_whitened_mse", _vmap_whitened_mse),
]:
    torch.library.register_vmap(f"sagd::{_name}", _vmap, lib=_library)


# ---- autocast ------------------------------------------------------------------------------------------------------
# The operators keep the dtype of their input and compute in float32 whatever it is, so autocast has nothing to cast
# but a weight that some matrix product produced in half precision.


def _autocast(name: str, device: str):
    operator = getattr(_ops, name).default
    argument = [a.name for a in operator._schema.arguments].index("weight")
    key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def run(*args, **kwargs):
        with torch._C._ExcludeDispatchKeyGuard(key):
            if args[argument].dtype in (torch.bfloat16, torch.float16):
                args = (*args[:argument], args[argument].float(), *args[argument + 1 :])
            return operator(*args, **kwargs)

    return run


for _name in ("spectral_filter", "shaped_noise", "add_noise", "_whitened_mse"):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _autocast(_name, _device), f"Autocast{_device}")
