"""The operators as composites of torch.fft: what runs on devices without kernels, and the tests' measure.

Arguments have been checked. Computes in float32 (float64 for float64), at the price of several passes over memory, some
hundred of them to draw noise. Everything happens on the tensors' device and nothing waits for it, so CUDA graphs can
capture it. Empty batches, which torch.fft refuses, have nothing to compute.
"""

import math

import torch
from torch import Tensor

from ..random import philox
from ..reference import align_left, normals
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
    spectrum = _white_spectrum(key, size, plane_offset, weight.dtype) * even_part(weight, size[-1])
    return _scaled(torch.fft.irfft2(spectrum, s=tuple(size[-2:])), scale).to(dtype or weight.dtype)


def add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0) -> tuple[Tensor, Tensor]:
    noise = shaped_noise(key, input.shape, weight, plane_offset=plane_offset)
    noisy = _scaled(input.to(noise.dtype), signal_scale) + _scaled(noise, noise_scale)
    return noisy.to(input.dtype), noise.to(input.dtype)


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor, with_residual: bool) -> tuple[Tensor, Tensor]:
    residual = input.to(weight.dtype) - target.to(weight.dtype)
    whitened = spectral_filter(residual, whitening(weight, input.shape[-1]))
    return (residual * whitened).mean(), whitened.to(input.dtype) if with_residual else input.new_empty(0)


def _white_spectrum(key: Tensor, size, plane_offset: int, dtype: torch.dtype) -> Tensor:
    """The half plane of `reference.white_spectrum`, on the key's device; the normals, too, are drawn in float64."""
    height, width = size[-2:]
    rows, columns = height // 2 + 1, width // 2 + 1
    planes_per_key = math.prod(size[key.ndim - 1 : -2])
    counter = torch.arange(planes_per_key * rows * columns, device=key.device).view(planes_per_key, rows, columns)
    words = philox(key.reshape(-1, 1, 1, 1, 2), counter, plane_offset * rows * columns)
    g0, g1, g2, g3 = (g.to(dtype) for g in normals(words))

    k, l = torch.arange(rows, device=key.device)[:, None], torch.arange(columns, device=key.device)
    l_is_own_negative = 2 * l % width == 0
    real = (2 * k % height == 0) & l_is_own_negative
    amplitude = (height * width / torch.where(real, 1, 2).to(dtype)).sqrt()
    upper = amplitude * torch.complex(g0, torch.where(real, 0, g1))
    # F(-k, l) = conj F(k, -l), a coefficient of its own unless -l is l
    lower = torch.where(l_is_own_negative, upper, amplitude * torch.complex(g2, g3))
    spectrum = torch.cat([upper, lower[..., 1 : (height + 1) // 2, :].flip(-2).conj()], dim=-2)
    return spectrum.reshape(*size[:-1], columns)


def _scaled(planes: Tensor, scale: Tensor | None) -> Tensor:
    return planes if scale is None else planes * align_left(scale, planes.ndim).to(planes.dtype)
