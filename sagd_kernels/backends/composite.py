"""The operators as composites of torch.fft: what runs on devices without kernels, and the tests' measure.

Arguments have been checked. Computes in float32 (float64 for float64), at the price of several passes over memory.
Empty batches, which torch.fft refuses, have nothing to compute.
"""

import torch
from torch import Tensor

from ..reference import align_left, white_spectrum
from ..spectral import even_part, whitening


def unable(height: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
    """There is nothing that it cannot compute."""


def describe(height: int, width: int, dtype: torch.dtype, device: torch.device) -> str:
    return ""


def spectral_filter(input: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    if input.numel() == 0:
        return torch.empty_like(input, memory_format=torch.contiguous_format)
    spectrum = torch.fft.rfft2(input.to(weight.dtype)) * even_part(weight, input.shape[-1])
    return _scaled(torch.fft.irfft2(spectrum, s=input.shape[-2:]), scale).to(input.dtype)


def shaped_noise(key, size, weight, scale=None, *, plane_offset=0, dtype=None) -> Tensor:
    if 0 in size:
        return weight.new_empty(size, dtype=dtype or weight.dtype)
    half = white_spectrum(key, size, plane_offset)[..., : weight.shape[-1]]
    spectrum = half.to(device=weight.device, dtype=weight.dtype.to_complex()) * even_part(weight, size[-1])
    return _scaled(torch.fft.irfft2(spectrum, s=tuple(size[-2:])), scale).to(dtype or weight.dtype)


def add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0) -> tuple[Tensor, Tensor]:
    noise = shaped_noise(key, input.shape, weight, plane_offset=plane_offset)
    noisy = _scaled(input.to(noise.dtype), signal_scale) + _scaled(noise, noise_scale)
    return noisy.to(input.dtype), noise.to(input.dtype)


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor, with_residual: bool) -> tuple[Tensor, Tensor]:
    residual = input.to(weight.dtype) - target.to(weight.dtype)
    whitened = spectral_filter(residual, whitening(weight, input.shape[-1]))
    return (residual * whitened).mean(), whitened.to(input.dtype) if with_residual else input.new_empty(0)


def _scaled(planes: Tensor, scale: Tensor | None) -> Tensor:
    return planes if scale is None else planes * align_left(scale, planes.ndim).to(planes.dtype)
