"""The arms: what each trains with, how it samples, and what it is compared with."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sagd_kernels import weights
from sagd_kernels.diffusion import DDPMSchedule, DiffusionProcess
from sagd_kernels.spectral import multiplicity

from .data import BAND

TILT = -0.5  # what the two controls stand beside
Process = Callable[[Tensor], DiffusionProcess]  # from clean images [N, C, H, W] in [-1, 1]


def power_law(alpha: float) -> Process:
    """The amplitude r^alpha; 0 is white noise."""
    return lambda images: _process(images, weights.power_law(*images.shape[-2:], alpha))


def dc_only(images: Tensor) -> DiffusionProcess:
    """White noise but for DC, whose weight is that of the tilt: how much of the tilt is an offset of brightness."""
    plane = images.shape[-2:]
    return _process(images, weights.power_law(*plane, 0.0, dc=weights.power_law(*plane, TILT)[0, 0].item()))


def schedule_shift(images: Tensor) -> DiffusionProcess:
    """White noise on a schedule whose log-SNR, averaged over frequencies, is the tilt's at every timestep.

    A bin's SNR is abar C / ((1 - abar) w^2), so the tilt raises the mean log-SNR by -mean(log w^2): how much of the
    tilt is a milder schedule.
    """
    height, width = images.shape[-2:]
    weight = weights.power_law(height, width, TILT, dtype=torch.float64)
    shift = -(weight.square().log() * multiplicity(width, like=weight)).sum() / (height * width)
    abar = DDPMSchedule.linear().alphas_cumprod
    return _process(images, weights.power_law(height, width, 0.0), DDPMSchedule((abar.logit() + shift).sigmoid()))


def data_spectrum(images: Tensor) -> DiffusionProcess:
    """w^2 is the data's radial power spectrum: the same SNR in all rings."""
    return _process(images, weights.from_power_spectrum(weights.power_spectrum(images), images.shape[-1], radial=True))


def omission(images: Tensor) -> DiffusionProcess:
    """No noise in the corrupted band."""
    return _process(images, weights.omit_band(*images.shape[-2:], *BAND))


def _process(images: Tensor, weight: Tensor, schedule: DDPMSchedule | None = None) -> DiffusionProcess:
    return DiffusionProcess(schedule or DDPMSchedule.linear(), weight, images.shape[-1])


@dataclass(frozen=True)
class Training:
    """A process, and the variant of the data (`data.VARIANTS`) that it is trained on."""

    process: Process
    data: str = "clean"


@dataclass(frozen=True)
class Arm:
    """A training and a way to sample it.

    sampling: the process to sample with, where it is not the one trained with.
    notch: take the corrupted band out of the samples.
    baseline: the arm whose results are subtracted.
    """

    training: str
    sampling: Process | None = None
    notch: bool = False
    baseline: str = "white"


TRAININGS = {
    "white": Training(power_law(0.0)),
    "power-0.04": Training(power_law(-0.04)),
    "power-0.25": Training(power_law(-0.25)),
    "power-0.5": Training(power_law(-0.5)),
    "power+0.25": Training(power_law(0.25)),
    "dc-only": Training(dc_only),
    "schedule-shift": Training(schedule_shift),
    "data-spectrum": Training(data_spectrum),
    "corrupted-white": Training(power_law(0.0), "corrupted"),
    "corrupted-notched-data": Training(power_law(0.0), "notched"),
    "corrupted-omission": Training(omission, "corrupted"),
}

_WHITE = "corrupted-white"
ARMS = {name: Arm(name) for name, training in TRAININGS.items() if training.data == "clean"} | {
    "corrupted-white": Arm("corrupted-white", baseline=_WHITE),
    "corrupted-notched-outputs": Arm("corrupted-white", notch=True, baseline=_WHITE),
    "corrupted-notched-data": Arm("corrupted-notched-data", baseline=_WHITE),
    # white x_T and no projection: DDIM's update is the same for all weights, so this is sampling as if trained white
    "corrupted-paper": Arm("corrupted-omission", sampling=power_law(0.0), baseline=_WHITE),
    "corrupted-projected": Arm("corrupted-omission", baseline=_WHITE),
}
