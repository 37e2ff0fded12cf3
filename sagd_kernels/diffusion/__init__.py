"""Diffusion with shaped noise: the distribution, the process, samplers, exact models to test against, weights to learn.

`SpectralNormal` is the noise as a torch distribution. `DiffusionProcess` joins a spectral weight with a schedule
(`DDPMSchedule`, `FlowSchedule`, `EDMSchedule`): forward process, posterior, conversions between predictions, losses.
Samplers: `ddpm`, `ddim`, `edm_heun`, `flow_euler`, `probability_flow_ode`, `reverse_sde`; `log_likelihood` along the
probability flow. `GaussianOracle` is the exact model of Gaussian data, `rank_weights` ranks weights by it, and
`RadialWeight` is a weight to be learned.
"""

from .distribution import SpectralNormal
from .learnable import RadialWeight
from .likelihood import log_likelihood
from .oracle import GaussianOracle, rank_weights, sampled_spectrum, spectrum_error
from .process import DiffusionProcess
from .samplers import ddim, ddpm, edm_heun, flow_euler, probability_flow_ode, reverse_sde
from .schedules import DDPMSchedule, EDMSchedule, FlowSchedule, Schedule

__all__ = [
    "DDPMSchedule",
    "DiffusionProcess",
    "EDMSchedule",
    "FlowSchedule",
    "GaussianOracle",
    "RadialWeight",
    "Schedule",
    "SpectralNormal",
    "ddim",
    "ddpm",
    "edm_heun",
    "flow_euler",
    "log_likelihood",
    "probability_flow_ode",
    "rank_weights",
    "reverse_sde",
    "sampled_spectrum",
    "spectrum_error",
]
