"""Gaussian data of a known power spectrum: the exact denoiser under shaped noise, and how to test a spectrum.

With x = a x_0 + s n, x_0 of spectrum C and n of spectrum w^2, every frequency is a scalar Gaussian problem of its own:
E[x_0 | x] = a C / (a^2 C + s^2 w^2) x and E[n | x] = s w^2 / (a^2 C + s^2 w^2) x.
"""

import torch
from torch import Tensor

from sagd_kernels import weights
from sagd_kernels.spectral import even_part

FALSE_ALARM = 1e-6
SIZE = 16
SPECTRUM = 0.25 * weights.power_law(SIZE, SIZE, -1.0).square()


def filtered(x: Tensor, response: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * response, s=x.shape[-2:])


def posterior_means(
    x: Tensor, weight: Tensor, signal: float, noise: float, spectrum: Tensor = SPECTRUM
) -> tuple[Tensor, Tensor]:
    """E[x_0 | x] and E[n | x] at x = signal x_0 + noise n."""
    variance = signal**2 * spectrum + noise**2 * weight.square()
    return filtered(x, signal * spectrum / variance), filtered(x, noise * weight.square() / variance)


def log_spectrum_error(x: Tensor, spectrum: Tensor = SPECTRUM) -> float:
    """Root of the mean over bins of the squared logarithm of measured over expected power."""
    power = torch.fft.rfft2(x, norm="ortho").abs().square().flatten(0, -3).mean(0)
    return (power / spectrum).log().square().mean().sqrt().item()


def assert_spectrum(noise: Tensor, weight: Tensor) -> None:
    """Noise [..., H, W] of weight w: per bin, power / w^2 summed over the planes is chi-square.

    With fixed seeds; a correct fresh draw fails once in a million times.
    """
    height, width = noise.shape[-2:]
    power = torch.fft.rfft2(noise.double(), norm="ortho").abs().square().flatten(0, -3)
    k, l = torch.arange(height)[:, None], torch.arange(width // 2 + 1)
    real = (2 * k % height == 0) & (2 * l % width == 0)
    degrees = torch.where(real, 1, 2) * len(power) / 2
    x = degrees * power.mean(0) / even_part(weight.double(), width).square()
    p = 2 * torch.minimum(torch.special.gammainc(degrees, x), torch.special.gammaincc(degrees, x))
    assert p.min() * p.numel() > FALSE_ALARM, f"smallest of {p.numel()} p-values: {p.min():.1e}"
