"""Log-likelihood along the probability flow ("Score-Based Generative Modeling through SDEs", arXiv 2011.13456)."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ..ops import shaped_noise
from ..random import fold_in
from ..spectral import weight_dtype
from .process import DiffusionProcess
from .samplers import check_times


@torch.inference_mode(False)
@torch.no_grad()
def log_likelihood(
    process: DiffusionProcess, model, x: Tensor, times, key: Tensor | None = None, *, probes: int | None = 1
) -> Tensor:
    """log p(x) in nats, [N], of x [N, ..., H, W] as a state at times[0], by the model's probability flow.

    Heun's method carries x up to times[-1], where the prior N(0, s^2 Sigma_w) gives its density, and integrates the
    flow's divergence on the way. Where the weight is singular, this is the density of the projection of x on the kept
    bands, on that subspace. Take times[0] so small that noise of that level does not matter to the data.

    Args:
        times: ascending, none of them `clean`, where a model is not defined.
        key: for the probes.
        probes: Hutchinson's estimator of the divergence with that many probes for the whole path: unbiased for the
            divergence at a given state. Probes are signs of white noise of the key. None takes the exact trace, one
            derivative for each pixel and channel: for small planes.

    The model is differentiated in x, also within `torch.no_grad` and `torch.inference_mode`. The result carries no
    gradients.
    """
    times = check_times(process.schedule, times, descending=False)
    if times[0] <= process.schedule.clean:
        raise ValueError(f"times: expected none at {process.schedule.clean}, the time of x_0, got {times[0]}")
    if probes is not None and (probes < 1 or key is None):
        raise ValueError(f"probes: expected a positive number and a key, or None, got {probes} and key {key}")
    x = process.project(x.detach().clone())  # autograd does not keep tensors of inference mode
    log_determinant = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for t, s in pairwise(times):
        change, trace = _increment(process, model, x, t, t, s, key, probes)
        ahead, trace_ahead = _increment(process, model, x + change, s, t, s, key, probes)
        x = process.project(x + (change + ahead) / 2)
        log_determinant += (trace + trace_ahead) / 2
    prior = process.prior(times[-1], x).log_prob(x)
    return prior.double().reshape(len(x), -1).sum(1) + log_determinant


def _increment(process, model, x, at, t, s, key, probes) -> tuple[Tensor, Tensor]:
    """The flow's increment from time t to s at the state x of time `at`, and the trace of its Jacobian, [N]."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        change = process.flow_increment(*process.denoise(model, x, at), at, t, s)
        trace = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for probe in _basis(x) if probes is None else _signs(process, x, key, probes):
            (product,) = torch.autograd.grad(change, x, probe, retain_graph=True)
            trace += (product * probe).double().flatten(1).sum(1)
    return change.detach(), trace / (probes or 1)


def _basis(x: Tensor) -> Iterator[Tensor]:
    """For each entry of a sample, the unit vector of that entry, in all samples at once."""
    for entry in range(x[0].numel()):
        unit = torch.zeros_like(x)
        unit.view(len(x), -1)[:, entry] = 1
        yield unit


def _signs(process: DiffusionProcess, x: Tensor, key: Tensor, probes: int) -> Iterator[Tensor]:
    """Rademacher's probes, projected on the kept bands, out of which the Jacobian does not lead."""
    white = torch.ones(process.weight.shape[-2:], dtype=weight_dtype(x.dtype), device=x.device)
    for i in range(probes):
        yield process.project(shaped_noise(fold_in(key, i), x.shape, white, dtype=x.dtype).sign())
