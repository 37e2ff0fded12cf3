"""The Gaussian oracle: the exact model of Gaussian data with a power spectrum, and what samplers make of it.

For data N(0, F^-1 diag(C) F) the best prediction is linear and diagonal in frequency: with the levels a, s and the
weight w, eps*(f) = s w^2 / (a^2 C + s^2 w^2) x(f). So samplers can be tested without training, and the spectrum of
their samples is known exactly, which ranks weights for a data set before any training. That ranking measures what the
prior and the sampler's steps lose, not how well a network learns.
"""

import copy
from collections.abc import Callable, Mapping
from itertools import count

import torch
from torch import Tensor

from .. import ops
from ..random import key
from ..spectral import check_half_plane, check_nonnegative, even_part, inverse, multiplicity
from .process import DiffusionProcess
from .samplers import ddim
from .schedules import Schedule


class GaussianOracle:
    """`model(x, t)`, exact for data N(0, F^-1 diag(C) F): returns what `process.prediction` names.

    Args:
        process: whose levels, weight and form of prediction count.
        spectrum: C [..., H, W//2+1], the data's power spectrum in squared pixel units, such as
            `weights.power_spectrum` of the data; leading dimensions broadcast against the batch.
    """

    def __init__(self, process: DiffusionProcess, spectrum: Tensor) -> None:
        check_nonnegative("spectrum", check_half_plane("spectrum", spectrum, process.width))
        self.process, self.spectrum = process, even_part(spectrum, process.width).double()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        signal, noise = self.process.levels(t, x)
        noise_power = noise * self.process.weight_at(t, x).double().square()
        shrunk = inverse(signal.square() * self.spectrum + noise * noise_power)
        x0 = self.process.filter(x, signal * self.spectrum * shrunk)
        eps = self.process.filter(x, noise_power * shrunk)
        return self.process.target(x0, eps, t)


def sampled_spectrum(process: DiffusionProcess, spectrum: Tensor, times, sampler: Callable = ddim) -> Tensor:
    """The exact power spectrum of what `sampler` draws with the oracle of data of power spectrum `spectrum`.

    Runs the sampler itself, in float64, with each draw of noise replaced by an impulse in a sample of its own: the
    sampler is linear, so the sum of the samples' powers is the spectrum. `sampler` is any of
    `sagd_kernels.diffusion`, with options by `functools.partial`. For one that draws noise at every step, time and
    memory grow with the square of the number of steps.

    Returns:
        float64 [..., H, W//2+1] in the units of `spectrum`, with the leading dimensions of weight and spectrum.
    """
    probe = copy.copy(process)
    probe.dtype = torch.float64
    model = GaussianOracle(probe, spectrum)
    weight = process.weight[0] if process.per_timestep else process.weight
    batch = torch.broadcast_shapes(weight.shape[:-2], spectrum.shape[:-2])
    plane = (weight.shape[-2], process.width)

    def run(samples: int) -> tuple[Tensor, int]:
        """Samples of which number i holds the effect of draw number i alone, and how many draws there were."""
        draws = count()

        def impulse(key, size, weight, scale, *, dtype):
            white, number = weight.new_zeros(size, dtype=dtype), next(draws)
            if number < samples:
                white[number, ..., 0, 0] = (plane[0] * plane[1]) ** 0.5  # |F|^2 = 1 in every bin
            return ops.spectral_filter(white, weight, scale)

        probe.draw = impulse
        return sampler(probe, model, (samples, *batch, *plane), times, key(0, weight.device)), next(draws)

    samples, draws = run(1)
    if draws > 1:
        samples, _ = run(draws)
    power = torch.fft.rfft2(samples, norm="ortho").abs().square().sum(0)
    return power if process.kept_bands is None else power * process.kept_bands  # 0, not its rounding


def spectrum_error(actual: Tensor, expected: Tensor, width: int) -> float:
    """Root mean square of log(actual / expected), natural, over all bins of the full planes with expected > 0.

    Both are power spectra [..., H, W//2+1]. A band that is missing altogether makes it infinite.
    """
    bins = multiplicity(width, like=expected.double()) * (expected > 0)
    log_ratio = torch.where(expected > 0, actual.double() / torch.where(expected > 0, expected, 1), 1).log()
    bins, log_ratio = torch.broadcast_tensors(bins, log_ratio)
    return ((bins * log_ratio.square()).sum() / bins.sum()).sqrt().item()


def rank_weights(
    candidates: Mapping[str, Tensor],
    spectrum: Tensor,
    width: int,
    schedule: Schedule,
    times,
    *,
    sampler: Callable = ddim,
) -> dict[str, float]:
    """The weights by how well `sampler` at these `times` reproduces the data's spectrum with the oracle, best first.

    Args:
        candidates: weights [..., H, W//2+1] by name.
        spectrum: the data's power spectrum, `weights.power_spectrum(data)`; `data` may be a DataLoader.
        width, schedule: as in `DiffusionProcess`.
        times, sampler: as in `sampled_spectrum`.

    Returns:
        The `spectrum_error` of each name, ascending.
    """
    errors = {}
    for name, weight in candidates.items():
        process = DiffusionProcess(schedule, weight, width, prediction="x0")
        errors[name] = spectrum_error(sampled_spectrum(process, spectrum, times, sampler), spectrum, width)
    return dict(sorted(errors.items(), key=lambda item: item[1]))
