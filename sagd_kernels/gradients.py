"""The operators' gradients.

T_w is its own adjoint, so the gradient of a filter is the same filter. Every formula consists of differentiable
operators, so second derivatives follow. A `save` function keeps what its formula needs of the operator's arguments,
with their defaults, and of its output; a `backward` function returns the gradients of the positional arguments.
"""

import torch
from torch import Tensor

from .reference import align_left
from .spectral import cross_spectrum, even_part, whitening

_ops = torch.ops.sagd


def _scale_gradient(product: Tensor, scale: Tensor) -> Tensor:
    """The sum of a product of planes over everything that one entry of the scale multiplied."""
    padded = scale.shape + (1,) * (product.ndim - scale.ndim)
    return product.sum_to_size(padded).reshape(scale.shape).to(scale.dtype)


def _times(planes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    planes = planes.to(dtype)
    return planes if scale is None else planes * align_left(scale, planes.ndim).to(dtype)


def spectral_filter_save(ctx, input, weight, scale, *, output):
    ctx.save_for_backward(input, weight, scale)


def spectral_filter_backward(ctx, needs_grad, grad):
    input, weight, scale = ctx.saved_tensors
    needs_input, needs_weight, needs_scale = needs_grad
    dtype = weight.dtype
    grad_input = grad_weight = grad_scale = None
    if needs_input:
        grad_input = _ops.spectral_filter(grad, weight, scale)
    if needs_weight:
        grad_weight = cross_spectrum(input, _times(grad, scale, dtype), weight)
    if needs_scale:
        grad_scale = _scale_gradient(grad.to(dtype) * _ops.spectral_filter(input.to(dtype), weight), scale)
    return grad_input, grad_weight, grad_scale


def shaped_noise_save(ctx, key, size, weight, scale, *, plane_offset=0, dtype=None, output):
    ctx.save_for_backward(key, weight, scale)
    ctx.size, ctx.plane_offset = tuple(size), plane_offset


def _white_noise(key, size, weight, plane_offset):
    ones = torch.ones(weight.shape[-2:], dtype=weight.dtype, device=weight.device)
    return _ops.shaped_noise(key, size, ones, plane_offset=plane_offset)


def shaped_noise_backward(ctx, needs_grad, grad):
    key, weight, scale = ctx.saved_tensors
    _, _, needs_weight, needs_scale = needs_grad
    dtype = weight.dtype
    grad_weight = grad_scale = None
    if needs_weight:
        white = _white_noise(key, ctx.size, weight, ctx.plane_offset)
        grad_weight = cross_spectrum(white, _times(grad, scale, dtype), weight)
    if needs_scale:
        noise = _ops.shaped_noise(key, ctx.size, weight, plane_offset=ctx.plane_offset)
        grad_scale = _scale_gradient(grad.to(dtype) * noise, scale)
    return None, None, grad_weight, grad_scale


def add_noise_save(ctx, *args, plane_offset=0, output):
    ctx.save_for_backward(*args)
    ctx.plane_offset = plane_offset
    ctx.set_materialize_grads(False)  # often only one of the outputs has a gradient


def add_noise_backward(ctx, needs_grad, grad_noisy, grad_noise):
    input, key, weight, signal_scale, noise_scale = ctx.saved_tensors
    needs_input, _, needs_weight, needs_signal_scale, needs_noise_scale = needs_grad
    dtype = weight.dtype
    grad_input = grad_weight = grad_signal_scale = grad_noise_scale = None
    if needs_input and grad_noisy is not None:
        grad_input = _times(grad_noisy, signal_scale, dtype).to(input.dtype)
    if needs_weight:
        white = _white_noise(key, input.shape, weight, ctx.plane_offset)
        through_noisy = None if grad_noisy is None else _times(grad_noisy, noise_scale, dtype)
        grad = _sum(through_noisy, None if grad_noise is None else grad_noise.to(dtype))
        grad_weight = None if grad is None else cross_spectrum(white, grad, weight)
    if needs_signal_scale and grad_noisy is not None:
        grad_signal_scale = _scale_gradient(grad_noisy.to(dtype) * input.to(dtype), signal_scale)
    if needs_noise_scale and grad_noisy is not None:
        noise = _ops.shaped_noise(key, input.shape, weight, plane_offset=ctx.plane_offset)
        grad_noise_scale = _scale_gradient(grad_noisy.to(dtype) * noise, noise_scale)
    return grad_input, None, grad_weight, grad_signal_scale, grad_noise_scale


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None stands for 0."""
    return a if b is None else b if a is None else a + b


def whitened_mse_save(ctx, input, target, weight, with_residual, *, output):
    ctx.save_for_backward(input, target, weight, output[1])
    ctx.with_residual = with_residual
    ctx.set_materialize_grads(False)  # outside of second derivatives only the loss has a gradient


def _per_value(grad_loss: Tensor, planes: Tensor, factor: int = 1) -> Tensor:
    """grad_loss * factor / the number of values; by a tensor, as vmap takes no symbolic number."""
    return grad_loss * torch.full((), factor / max(planes.numel(), 1), dtype=grad_loss.dtype, device=grad_loss.device)


def whitened_mse_backward(ctx, needs_grad, grad_loss, grad_whitened=None):
    # loss = <r, T_u r> / numel and whitened = T_u r, with r = input - target and u = whitening(w)
    input, target, weight, whitened = ctx.saved_tensors
    needs_input, needs_target, needs_weight, _ = needs_grad
    width = input.shape[-1]
    if not ctx.with_residual:
        grad_whitened = None
    grad_residual = grad_weight = None
    if needs_input or needs_target:
        # an outer transform of torch.func may need what an inner one did not; second derivatives need more than a value
        if not ctx.with_residual or (torch.is_grad_enabled() and not whitened.requires_grad):
            residual = input.to(weight.dtype) - target.to(weight.dtype)
            whitened = _ops.spectral_filter(residual, whitening(weight, width)).to(input.dtype)
        grad_residual = _sum(
            None if grad_loss is None else whitened * _per_value(grad_loss, input, 2),
            None if grad_whitened is None else _ops.spectral_filter(grad_whitened, whitening(weight, width)),
        )
    if needs_weight:
        residual = input.to(weight.dtype) - target.to(weight.dtype)
        even = even_part(weight, width)
        slope = torch.where(even > 0, -2 * whitening(weight, width) / torch.where(even > 0, even, 1), 0)
        slope = slope.expand(*input.shape[:-2], *slope.shape[-2:])
        adjoint = _sum(
            None if grad_loss is None else residual * _per_value(grad_loss, input),
            None if grad_whitened is None else grad_whitened.to(weight.dtype),
        )
        if adjoint is not None:
            grad_weight = (cross_spectrum(residual, adjoint, slope) * slope).sum_to_size(weight.shape)
    grad_target = -grad_residual if needs_target and grad_residual is not None else None
    return grad_residual if needs_input else None, grad_target, grad_weight, None
