"""Reference samplers, to be read: each is the published algorithm with noise T_w xi wherever it draws any.

All take `(process, model, shape, times, key, *, start=None, clip=None)`:

    process: a `DiffusionProcess`; its `prediction` says what the model returns.
    model: `model(x, t)` with x of `shape` and t [N], see `DiffusionProcess`.
    shape: [N, ..., H, W]. The state's dtype is that of the process's weight, or of `start`.
    times: descending, such as `process.schedule.times(steps)`; ending at `schedule.clean` gives x_0.
    key: see `sagd_kernels.key`. x_T is of `fold_in(key, 0)`, the noise of step i = 1, 2, ... of `fold_in(key, i)`. A
        batch of keys [N, 2] gives each sample its own stream: a sample then does not depend on the batch it is in.
    start: x_T, in place of a draw from the prior N(0, s_T^2 Sigma_w).
    clip: clamp every prediction of x_0 to [-clip, clip]. Clamping mixes frequencies, so it warns where w is singular.

Where the weight omits a band, state and predictions are projected on the kept bands at every step.
"""

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..random import fold_in
from .process import DiffusionProcess
from .schedules import EDMSchedule, FlowSchedule, Schedule


@torch.no_grad()
def ddim(process: DiffusionProcess, model, shape, times, key, *, eta: float = 0.0, start=None, clip=None) -> Tensor:
    """Equation 12 of "Denoising Diffusion Implicit Models" (arXiv 2010.02502): deterministic at eta = 0.

    It only asks for levels of signal and noise, so it fits every schedule.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected 0 to 1, got {eta}")
    x, times = _begin(process, shape, times, key, start, clip)
    for i, (t, s) in enumerate(pairwise(times), 1):
        x0, eps = process.denoise(model, x, t, clip=clip)
        x = process.project(process.step(x0, eps, t, s, eta=eta, key=fold_in(key, i) if eta > 0 else None))
    return x


def ddpm(process: DiffusionProcess, model, shape, times, key, *, start=None, clip=None) -> Tensor:
    """Algorithm 2 of "Denoising Diffusion Probabilistic Models" (arXiv 2006.11239), also on a subset of the times.

    Each step draws from `process.posterior` with the predicted x_0, its variance included, which is DDIM at eta = 1.
    """
    return ddim(process, model, shape, times, key, eta=1.0, start=start, clip=clip)


@torch.no_grad()
def edm_heun(
    process: DiffusionProcess,
    model,
    shape,
    times,
    key,
    *,
    churn: float = 0.0,
    churn_range: tuple[float, float] = (0.0, math.inf),
    churn_noise: float = 1.0,
    start=None,
    clip=None,
) -> Tensor:
    """Algorithm 2 of "Elucidating the Design Space of Diffusion-Based Generative Models" (arXiv 2206.00364).

    Heun's method in sigma, an `EDMSchedule`'s time. S_churn, [S_min, S_max] and S_noise are `churn`, `churn_range` and
    `churn_noise`.
    """
    _check_schedule("edm_heun", process, EDMSchedule)
    if churn < 0 or churn_noise < 0:
        raise ValueError(f"churn, churn_noise: expected at least 0, got {churn} and {churn_noise}")
    x, times = _begin(process, shape, times, key, start, clip)
    for i, (t, s) in enumerate(pairwise(times), 1):
        gamma = min(churn / (len(times) - 1), math.sqrt(2) - 1) if churn_range[0] <= t <= churn_range[1] else 0
        before, t = t, t * (1 + gamma)
        if gamma > 0:  # fresh noise of variance t^2 - before^2, as a share of what x_t then holds
            share = process.transition_share(t, before, x)
            x = x + process.noise(fold_in(key, i), x.shape, t, churn_noise * share.sqrt(), x.dtype)
        _, slope = process.denoise(model, x, t, clip=clip)  # dx / dsigma is eps
        if s > process.schedule.clean:
            _, next_slope = process.denoise(model, x + (s - t) * slope, s, clip=clip)
            slope = (slope + next_slope) / 2
        x = process.project(x + (s - t) * slope)
    return x


@torch.no_grad()
def flow_euler(process: DiffusionProcess, model, shape, times, key, *, start=None, clip=None) -> Tensor:
    """Euler's method for dx/dt = eps - x_0, the velocity of flow matching (arXiv 2209.03003)."""
    _check_schedule("flow_euler", process, FlowSchedule)
    x, times = _begin(process, shape, times, key, start, clip)
    for t, s in pairwise(times):
        x0, eps = process.denoise(model, x, t, clip=clip)
        x = process.project(x + (s - t) * (eps - x0))
    return x


@torch.no_grad()
def probability_flow_ode(process: DiffusionProcess, model, shape, times, key, *, start=None, clip=None) -> Tensor:
    """Heun's method for the probability flow dx = x_0 da + T_w xi ds (arXiv 2011.13456, section 4.3), any schedule.

    dx/dt = -1/2 beta x - 1/2 beta Sigma_w grad log p is the same curve: written by the increments of the levels a and
    s it needs no derivative of the schedule, so tables will do. The last step, to x_0, is Euler's.
    """
    x, times = _begin(process, shape, times, key, start, clip)
    for t, s in pairwise(times):
        change = process.flow_increment(*process.denoise(model, x, t, clip=clip), t, t, s)
        if s > process.schedule.clean:
            ahead = process.denoise(model, x + change, s, clip=clip)
            change = (change + process.flow_increment(*ahead, s, t, s)) / 2
        x = process.project(x + change)
    return x


@torch.no_grad()
def reverse_sde(process: DiffusionProcess, model, shape, times, key, *, start=None, clip=None) -> Tensor:
    """The reverse-time SDE, dx = [f x - g^2 Sigma_w grad log p] dt + g T_w dW (arXiv 2011.13456, appendix E).

    Discretised as the forward process is: with r = a_t / a_s and V the noise that enters between s and t,
    x_s = (2 - r) x_t + V grad log p + sqrt(V) xi. The last step, to `clean`, returns the prediction of x_0.
    """
    x, times = _begin(process, shape, times, key, start, clip)
    if process.levels(times[0], x)[0] == 0:
        raise ValueError(f"times: the drift is infinite where no signal is left; start below {times[0]}")
    for i, (t, s) in enumerate(pairwise(times), 1):
        x0, eps = process.denoise(model, x, t, clip=clip)
        if s == process.schedule.clean:
            return x0
        (signal_t, noise_t), (signal_s, _) = process.levels(t, x), process.levels(s, x)
        share = process.transition_share(t, s, x)  # V over s_t^2 w^2, so that V grad log p = -share s_t eps
        drift = process.filter(x, 1 - signal_t / signal_s) - process.filter(eps, noise_t * share)
        x = process.project(x + drift + process.noise(fold_in(key, i), x.shape, t, share.sqrt(), x.dtype))
    return x


def _begin(
    process: DiffusionProcess, shape: Sequence[int], times, key: Tensor, start: Tensor | None, clip: float | None
) -> tuple[Tensor, list]:
    """x_T and the times as numbers, after a look at the configuration."""
    times = check_times(process.schedule, times)
    if clip is not None and process.kept_bands is not None:
        warnings.warn(
            "clip: clamping pixels mixes frequencies, and this weight omits some; what leaks there is projected away",
            stacklevel=4,  # the sampler's caller, behind no_grad
        )
    if start is None:
        start = process.noise(fold_in(key, 0), torch.Size(shape), times[0])
    elif start.shape != torch.Size(shape):
        raise ValueError(f"start: expected the shape {list(shape)}, got {list(start.shape)}")
    signal, _ = process.levels(times[0], start)
    if process.prediction in ("eps", "score") and signal == 0:
        raise ValueError(
            f"times: x_0 cannot be told from a prediction of {process.prediction!r} at {times[0]}, where no signal is "
            "left; start below it or predict 'v', 'flow' or 'x0'"
        )
    return process.project(start), times


def check_times(schedule: Schedule, times, *, descending: bool = True) -> list:
    """The times as numbers, or a ValueError unless there are two or more, in order and none before `clean`."""
    times = times if isinstance(times, Tensor) else torch.from_numpy(np.asarray(times))  # floats stay float64
    if times.ndim != 1 or len(times) < 2 or not (times.diff() * (1 if descending else -1) < 0).all():
        order = "descending" if descending else "ascending"
        raise ValueError(f"times: expected two or more in {order} order, got {times.tolist()}")
    if times.min() < schedule.clean:
        raise ValueError(f"times: expected none before {schedule.clean}, the time of x_0, got {times.min().item()}")
    return times.tolist()


def _check_schedule(sampler: str, process: DiffusionProcess, expected: type[Schedule]) -> None:
    if not isinstance(process.schedule, expected):
        got = type(process.schedule).__name__
        raise ValueError(f"process: {sampler} expects the schedule {expected.__name__}, got {got}")
