"""Where a run's randomness comes from: the process that `--weight` names, and one key for each purpose and step."""

from enum import IntEnum
from functools import cache

import torch
from torch import Tensor

from sagd_kernels import fold_in, key, weights
from sagd_kernels.diffusion import DDPMSchedule, DiffusionProcess

from .config import RunError

WEIGHT_FORMS = "white, power:ALPHA, band:LO:HI, two-band:LO1:HI1:LO2:HI2[:GAMMA_LOW:GAMMA_HIGH] or omit:LO:HI"
_NUMBERS = {"white": (0,), "power": (1,), "band": (2,), "two-band": (4, 6), "omit": (2,)}


class Purpose(IntEnum):
    """What a run draws at random. The values are part of what a checkpoint means: append, never renumber."""

    MODEL = 0
    ORDER = 1
    TIMESTEPS = 2
    TRAINING_NOISE = 3
    SAMPLES = 4
    MEASUREMENT = 6


def run_key(seed: int, purpose: Purpose, index: int = 0) -> Tensor:
    """The key of draw number `index` (a step, an epoch) for `purpose`: a pure function, so a resumed run redraws it."""
    return fold_in(_purpose_key(seed, purpose), index)


@cache
def _purpose_key(seed: int, purpose: Purpose) -> Tensor:
    return fold_in(key(seed), int(purpose))


def run_generator(seed: int, purpose: Purpose, index: int = 0) -> torch.Generator:
    """The same as a torch generator, for the draws that are not noise."""
    return torch.Generator().manual_seed(run_key(seed, purpose, index)[0].item())


def build_process(spec: str, height: int, width: int) -> DiffusionProcess:
    """Prediction of noise of the weight that `spec` names, along DDPM's linear schedule of 1,000 timesteps."""
    return DiffusionProcess(DDPMSchedule.linear(), build_weight(spec, height, width), width)


def parse_weight(spec: str) -> tuple[str, list[float]]:
    """The name and the numbers of a weight's text form, `NAME[:NUMBER]*` as in WEIGHT_FORMS."""
    name, *texts = spec.split(":")
    if name not in _NUMBERS:
        raise RunError(f"--weight: expected {WEIGHT_FORMS}, got {spec!r}")
    try:
        numbers = [float(text) for text in texts]
    except ValueError as error:
        raise RunError(f"--weight: {spec!r}: {error}") from None
    if len(numbers) not in _NUMBERS[name]:
        expected = " or ".join(map(str, _NUMBERS[name]))
        raise RunError(f"--weight: {name} takes {expected} number(s), got {len(numbers)} in {spec!r}")
    return name, numbers


def build_weight(spec: str, height: int, width: int) -> Tensor:
    """The weight [height, width // 2 + 1] that `spec` names, mean w^2 = 1. Band edges are in cycles/pixel."""
    name, numbers = parse_weight(spec)
    try:
        match name:
            case "white":
                return weights.power_law(height, width, 0.0)
            case "power":
                return weights.power_law(height, width, *numbers)
            case "band":
                return weights.band_pass(height, width, *numbers)
            case "omit":
                return weights.omit_band(height, width, *numbers)
            case "two-band":
                low, high = (numbers[0], numbers[1]), (numbers[2], numbers[3])
                gamma_low, gamma_high = numbers[4:] or (1.0, 1.0)
                return weights.two_band(height, width, low, high, gamma_low=gamma_low, gamma_high=gamma_high)
    except ValueError as error:
        raise RunError(f"--weight: {spec!r} on {height} x {width} images: {error}") from error
    raise AssertionError(name)
