"""Whether a contender computes the case: no time is reported for a wrong result.

Deterministic results, and random ones that follow the library's key, are compared with the float64 reference. Noise of
another generator is held to its definition: independent draws, whose power in each band of frequencies, measured over
enough of them, is that of the weight. These are sanity checks of the suite; the tests hold the library to more.
"""

from functools import cached_property

import torch
from torch import Tensor

import sagd_kernels
from sagd_kernels import reference
from sagd_kernels.reference import full_weight

from .cases import WITH_BACKWARD, Problem
from .clocks import Call

# ||result - reference|| / ||reference||: several times the error of a good float32 transform, and bfloat16's rounding
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}
BANDS, SIGMAS, LEAST_PIXELS = 8, 6, 1 << 18


class WrongResult(Exception):
    """A contender that does not compute the case."""


class Check:
    """The check of one problem, for any number of contenders: the reference is computed once."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, call: Call, noise: str) -> None:
        """WrongResult unless `call` computes the problem's case; `noise` is the contender's, see `Contender`."""
        problem = self.problem
        with torch.random.fork_rng(devices=[problem.device] if problem.device.type == "cuda" else []):
            torch.manual_seed(0)
            results = as_tensors(call(0))
            if problem.case.operator in ("spectral_filter", "whitened_mse"):
                _compare(results, self._expected, TOLERANCE[problem.case.dtype])
            elif noise == "key":
                _check_keyed(problem, results)
            else:
                _check_drawn(problem, call, results, white=noise == "white")

    @cached_property
    def _expected(self) -> list[Tensor]:
        """The reference of a deterministic case, computed on its device in float64."""
        problem, case, weight = self.problem, self.problem.case, self.problem.weight
        backward = case.direction == WITH_BACKWARD
        input = problem.inputs[0].double().requires_grad_(backward)
        target = problem.targets[0] if problem.targets else None
        if case.operator == "whitened_mse":
            loss = reference.whitened_mse(input, target, weight)
            return [loss.detach(), *(torch.autograd.grad(loss, input) if backward else ())]
        filtered = reference.spectral_filter(input, weight, problem.scale)
        return list(torch.autograd.grad(filtered, input, target.double())) if backward else [filtered]


def as_tensors(result: object) -> tuple[Tensor, ...]:
    """What a call returned, as torch tensors: one, or several in a tuple or list."""
    results = result if isinstance(result, tuple | list) else (result,)
    return tuple(r if isinstance(r, Tensor) else torch.from_dlpack(r) for r in results)


def _check_keyed(problem: Problem, results: tuple[Tensor, ...]) -> None:
    """On the first and the last sample, whose planes' numbers are known; `Check` has seeded the generator."""
    torch.manual_seed(0)
    key = sagd_kernels.next_key(device=problem.device).cpu()
    case, weight = problem.case, problem.weight.cpu()
    samples, channels = case.shape[:2]
    for n in {0, samples - 1}:
        one = slice(n, n + 1)
        offset = {"plane_offset": n * channels}
        if case.operator == "shaped_noise":
            scale = None if problem.scale is None else problem.scale[one].cpu()
            expected = [reference.shaped_noise(key, (1, *case.shape[1:]), weight, scale, **offset)]
        else:
            scales = problem.signal_scale[one].cpu(), problem.noise_scale[one].cpu()
            expected = reference.add_noise(problem.inputs[0][one].cpu(), key, weight, *scales, **offset)
        _compare([r[one] for r in results], expected, TOLERANCE[case.dtype])


def _check_drawn(problem: Problem, call: Call, results: tuple[Tensor, ...], white: bool) -> None:
    case, noise = problem.case, results[-1].double()
    if case.operator == "add_noise":
        signal, factor = problem.columns(problem.signal_scale), problem.columns(problem.noise_scale)
        _compare(results[:1], [signal * problem.inputs[0].double() + factor * noise], 2 * TOLERANCE[case.dtype])
    _check_sizes(results, [problem.case.shape] * len(results))
    draws = [noise]
    for _ in range(LEAST_PIXELS // case.pixels):
        draws.append(as_tensors(call(0))[-1].double())
    if len(draws) == 1:
        draws.append(as_tensors(call(0))[-1].double())
    if torch.equal(draws[0], draws[1]):
        raise WrongResult("two calls drew the same noise")
    scale = 1 if white or problem.scale is None else problem.columns(problem.scale)
    weight = torch.ones_like(problem.weight) if white else problem.weight
    power = sum(torch.fft.fft2(d / scale, norm="ortho").abs().square() for d in draws) / len(draws)
    relative = power / full_weight(weight, case.shape[-1]).square()
    height, width = case.shape[-2:]
    k, l = torch.fft.fftfreq(height, device=noise.device), torch.fft.fftfreq(width, device=noise.device)
    bands = torch.hypot(k[:, None], l).flatten().argsort().tensor_split(BANDS)
    for band in bands:
        mean = relative.flatten(-2)[..., band].mean().item()
        # a bin's power has variance 1 and its negative's is the same; its own negative's has variance 2 and counts once
        allowed = SIGMAS * (2 / (len(draws) * case.shape[0] * case.shape[1] * len(band))) ** 0.5
        if not abs(mean - 1) <= allowed:
            raise WrongResult(f"power of a band over that of the weight: {mean:.4f}, expected 1 +- {allowed:.1g}")


def _compare(results, expected, tolerance: float) -> None:
    _check_sizes(results, [e.shape for e in expected])
    for n, (result, truth) in enumerate(zip(results, expected, strict=True)):
        truth = truth.to(result.device)
        error = ((result.double() - truth).norm() / truth.norm()).item()
        if not error <= tolerance:  # also where it is not a number
            raise WrongResult(f"result {n}: relative error {error:.1e}, allowed {tolerance:.1e}")


def _check_sizes(results, shapes) -> None:
    got, expected = [tuple(r.shape) for r in results], [tuple(s) for s in shapes]
    if got != expected:
        raise WrongResult(f"shapes {got}, expected {expected}")
