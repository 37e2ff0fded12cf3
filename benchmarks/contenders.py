"""The registry of contenders: the library and its peers.

A contender's `prepare(problem)` does what may be done once (plans, compilation, weights in the form that it likes) and
returns the call that is timed, `call(i) -> result`, on copy i of the data. The result is a tensor, or a tuple of them:

    spectral_filter forward     the filtered planes; backward: their gradient in the input
    shaped_noise                the noise
    add_noise                   the noisy planes, the noise
    whitened_mse                the loss; with backward: the loss, its gradient in the input

Peers get every advantage that a careful user would give them: FFTW's plans are measured beforehand, the libraries fold
the normalisation into the weight, multiply in place with torch's threads and, where they can, write to memory that is
already there.
"""

import importlib.metadata
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import sagd_kernels
from sagd_kernels.backends import unable

from .cases import FORWARD, WARM, WITH_BACKWARD, Case, Problem
from .clocks import Call

OURS = "sagd"
EVERY_OPERATOR = ("spectral_filter", "shaped_noise", "add_noise", "whitened_mse")


@dataclass(frozen=True)
class Contender:
    """Who computes a case.

    Attributes:
        prepare: Problem -> Call, see above.
        requires: the distribution that it comes with, as pip names it.
        noise: "key" if random results are those of `sagd_kernels.next_key()`, "own" if of another generator, "white"
            if they are white noise in place of shaped noise: a yardstick, not a peer.
        only: cases that it is run on; others pass it by silently, as not its business.
    """

    name: str
    prepare: Callable[[Problem], Call]
    operators: tuple[str, ...] = EVERY_OPERATOR
    requires: str = "torch"
    devices: tuple[str, ...] = ("cpu",)
    noise: str = "own"
    only: Callable[[Case], bool] = lambda case: True

    def takes(self, case: Case, device: torch.device) -> bool:
        return case.operator in self.operators and device.type in self.devices and self.only(case)

    def missing(self) -> str | None:
        """Why it cannot run here, None if it can."""
        try:
            importlib.metadata.version(self.requires)
        except importlib.metadata.PackageNotFoundError:
            return f"{self.requires} is not installed"
        return None

    def version(self) -> str:
        engine = ""
        if self.requires == "pyfftw":  # any FFTW can be behind it
            import pyfftw

            engine = f" with FFTW {pyfftw.fftw_version}"
        return f"{self.requires} {importlib.metadata.version(self.requires)}{engine}"


# ---- torch: the library, eager and compiled ------------------------------------------------------------------------


def _eager_filter(input: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
    planes = torch.fft.irfft2(torch.fft.rfft2(input.float()) * weight, s=input.shape[-2:])
    return (planes if scale is None else planes * scale.view(-1, 1, 1, 1)).to(input.dtype)


def _eager_noise(size: torch.Size, weight: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    return _eager_filter(torch.randn(size, device=weight.device), weight, scale).to(dtype)


def _eager_add_noise(input: Tensor, weight: Tensor, signal_scale: Tensor, noise_scale: Tensor):
    noise = _eager_noise(input.shape, weight, None, input.dtype)
    noisy = signal_scale.view(-1, 1, 1, 1) * input + noise_scale.view(-1, 1, 1, 1) * noise
    return noisy.to(input.dtype), noise


def _eager_whitened_mse(input: Tensor, target: Tensor, bin_weight: Tensor) -> Tensor:
    # by Parseval's theorem on the spectrum, its parts as reals: the fastest form, backward included, of several tried
    spectrum = torch.view_as_real(torch.fft.rfft2(input.float() - target.float(), norm="ortho"))
    return (spectrum.square() * bin_weight).sum()


def bin_weight(problem: Problem) -> Tensor:
    """1 / w^2 of each half-plane bin, times the full-plane bins it stands for, over the number of pixels: [..., 1]."""
    width = problem.case.shape[-1]
    columns = torch.arange(width // 2 + 1, device=problem.device)
    multiplicity = torch.where(2 * columns % width == 0, 1.0, 2.0)
    return (multiplicity / problem.weight.square() / problem.case.pixels).unsqueeze(-1)


def _torch_call(problem: Problem, operators: SimpleNamespace) -> Call:
    """The call of a case through four functions on tensors, each with the arguments that stand here."""
    case, x, y = problem.case, problem.inputs, problem.targets
    size, weight, scale = torch.Size(case.shape), problem.weight, problem.scale

    def filter_gradient(i):
        input = x[i].detach().requires_grad_()
        return torch.autograd.grad(operators.spectral_filter(input, weight, scale), input, y[i])

    def mse_gradient(i):
        input = x[i].detach().requires_grad_()
        loss = operators.whitened_mse(input, y[i])
        return loss.detach(), *torch.autograd.grad(loss, input)

    return {
        ("spectral_filter", FORWARD): lambda i: operators.spectral_filter(x[i], weight, scale),
        ("spectral_filter", WITH_BACKWARD): filter_gradient,
        ("shaped_noise", FORWARD): lambda i: operators.shaped_noise(size, weight, scale, case.dtype),
        ("add_noise", FORWARD): lambda i: operators.add_noise(x[i], weight, problem.signal_scale, problem.noise_scale),
        ("whitened_mse", FORWARD): lambda i: operators.whitened_mse(x[i], y[i]),
        ("whitened_mse", WITH_BACKWARD): mse_gradient,
    }[case.operator, case.direction]


def _sagd(problem: Problem) -> Call:
    def key() -> Tensor:  # a fresh one for each call, as sagd_kernels.ShapedNoise draws it
        return sagd_kernels.next_key(device=problem.device)

    operators = SimpleNamespace(
        spectral_filter=sagd_kernels.spectral_filter,
        shaped_noise=lambda size, weight, scale, dtype: sagd_kernels.shaped_noise(
            key(), size, weight, scale, dtype=dtype
        ),
        add_noise=lambda input, *rest: sagd_kernels.add_noise(input, key(), *rest),
        whitened_mse=lambda input, target: sagd_kernels.whitened_mse(input, target, problem.weight),
    )
    return _torch_call(problem, operators)


def _sagd_by(backend: str) -> Callable[[Problem], Call]:
    """The library's operators, all by one of its backends."""

    def prepare(problem: Problem) -> Call:
        call = _sagd(problem)

        def forced(i: int):
            with mock.patch.dict(os.environ, SAGD_BACKEND=backend):
                return call(i)

        return forced

    return prepare


def _able(backend: str) -> Callable[[Case], bool]:
    """Whether a backend computes a case on the current GPU, whose work hides what it costs to force a backend."""

    def able(case: Case) -> bool:
        device = torch.device("cuda", torch.cuda.current_device())
        return not _launch_bound(case) and unable(backend, *case.shape[-2:], case.dtype, device) is None

    return able


def _eager(problem: Problem, transform: Callable = lambda function: function) -> Call:
    bins = bin_weight(problem)
    whitened_mse = transform(_eager_whitened_mse)
    operators = SimpleNamespace(
        spectral_filter=transform(_eager_filter),
        shaped_noise=transform(_eager_noise),
        add_noise=transform(_eager_add_noise),
        whitened_mse=lambda input, target: whitened_mse(input, target, bins),
    )
    return _torch_call(problem, operators)


def _compiled(problem: Problem) -> Call:
    torch.compiler.reset()  # or its cache of shapes fills up and it falls back to eager
    return _eager(problem, partial(torch.compile, dynamic=False))


def _white(problem: Problem) -> Call:
    case = problem.case
    return lambda i: torch.randn(case.shape, dtype=case.dtype, device=problem.device)


def _captured(prepare: Callable[[Problem], Call]) -> Callable[[Problem], Call]:
    """A contender that replays a CUDA graph instead of launching kernels, on the one copy of a case's warm data."""

    def prepare_graph(problem: Problem) -> Call:
        call, side = prepare(problem), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # what happens on first use may not be captured
            for _ in range(3):
                call(0)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = call(0)

        def replay(i: int):
            graph.replay()
            return result

        return replay

    return prepare_graph


# ---- libraries of Fourier transforms, and JAX ----------------------------------------------------------------------


def _library(problem: Problem, forward: Callable, inverse: Callable) -> Call:
    """The filter around forward(i) -> spectrum and inverse(spectrum) -> planes, both unnormalised, both on ndarrays."""
    height, width = problem.case.shape[-2:]
    # on real and imaginary parts as reals, [..., 2]: torch multiplies these faster than complex by real
    weight = (problem.weight / (height * width)).unsqueeze(-1).expand(*problem.weight.shape, 2).contiguous()
    scale = None if problem.scale is None else problem.scale.view(-1, 1, 1, 1)

    def call(i: int) -> Tensor:
        spectrum = forward(i)
        torch.view_as_real(torch.from_numpy(spectrum)).mul_(weight)
        planes = torch.from_numpy(inverse(spectrum))
        return planes if scale is None else planes.mul_(scale)

    return call


def _buffers(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """A spectrum and planes to write to, with torch's alignment of 64 bytes."""
    *batch, width = case.shape
    return torch.empty(*batch, width // 2 + 1, dtype=torch.complex64).numpy(), torch.empty(case.shape).numpy()


def _fftw(problem: Problem) -> Call:
    import pyfftw

    x = [input.numpy() for input in problem.inputs]
    spectrum, planes = _buffers(problem.case)
    plan = partial(pyfftw.FFTW, axes=(-2, -1), threads=problem.threads)
    forward = plan(planes, spectrum, flags=("FFTW_MEASURE",))
    inverse = plan(spectrum, planes, direction="FFTW_BACKWARD", flags=("FFTW_MEASURE", "FFTW_DESTROY_INPUT"))

    def transform(i: int):
        forward.update_arrays(x[i], spectrum)
        forward.execute()
        return spectrum

    def transform_back(spectrum):
        inverse.execute()
        return planes

    return _library(problem, transform, transform_back)


def _ducc0(problem: Problem) -> Call:
    import ducc0

    x, width = [input.numpy() for input in problem.inputs], problem.case.shape[-1]
    spectrum, planes = _buffers(problem.case)
    options = {"axes": (-2, -1), "nthreads": problem.threads}

    def transform(i: int):
        return ducc0.fft.r2c(x[i], out=spectrum, **options)

    def transform_back(spectrum):
        back = {"lastsize": width, "forward": False, "allow_overwriting_input": True}
        return ducc0.fft.c2r(spectrum, out=planes, **back, **options)

    return _library(problem, transform, transform_back)


def _scipy(problem: Problem) -> Call:
    import scipy.fft

    x, size = [input.numpy() for input in problem.inputs], problem.case.shape[-2:]
    workers = problem.threads

    def transform_back(spectrum):
        return scipy.fft.irfft2(spectrum, size, norm="forward", overwrite_x=True, workers=workers)

    return _library(problem, lambda i: scipy.fft.rfft2(x[i], workers=workers), transform_back)


def _mkl(problem: Problem) -> Call:
    from .mkl import Plan

    plan, x = Plan(problem.case.shape), [input.numpy() for input in problem.inputs]
    spectrum, planes = _buffers(problem.case)

    def transform(i: int):
        plan.forward(x[i], spectrum)
        return spectrum

    def transform_back(spectrum):
        plan.inverse(spectrum, planes)
        return planes

    return _library(problem, transform, transform_back)


def _jax(problem: Problem) -> Call:
    import jax
    import jax.numpy as jnp

    case = problem.case
    shape, size, dtype = case.shape, case.shape[-2:], case.dtype_name
    x, y = ([jnp.from_dlpack(tensor) for tensor in tensors] for tensors in (problem.inputs, problem.targets))
    weight, bins = jnp.from_dlpack(problem.weight), jnp.from_dlpack(bin_weight(problem).squeeze(-1))
    signal_scale, noise_scale = (
        jnp.from_dlpack(problem.columns(s)) for s in (problem.signal_scale, problem.noise_scale)
    )
    keys = iter(range(2**31))

    def filtered(x):
        planes = jnp.fft.irfft2(jnp.fft.rfft2(x.astype("float32")) * weight, s=size)
        return planes * noise_scale if case.scale else planes

    def noise(seed):
        return filtered(jax.random.normal(jax.random.key(seed), shape))

    def add_noise(x, seed):
        drawn = noise(seed)
        return (signal_scale * x + noise_scale * drawn).astype(dtype), drawn.astype(dtype)

    def whitened_mse(x, y):
        spectrum = jnp.fft.rfft2(x.astype("float32") - y.astype("float32"), norm="ortho")
        return ((spectrum.real**2 + spectrum.imag**2) * bins).sum()

    function, arguments = {
        ("spectral_filter", FORWARD): (lambda x: filtered(x).astype(dtype), lambda i: (x[i],)),
        ("shaped_noise", FORWARD): (lambda seed: noise(seed).astype(dtype), lambda i: (next(keys),)),
        ("add_noise", FORWARD): (add_noise, lambda i: (x[i], next(keys))),
        ("whitened_mse", FORWARD): (whitened_mse, lambda i: (x[i], y[i])),
        ("whitened_mse", WITH_BACKWARD): (jax.value_and_grad(whitened_mse), lambda i: (x[i], y[i])),
    }[case.operator, case.direction]
    compiled = jax.jit(function)
    return lambda i: jax.block_until_ready(compiled(*arguments(i)))


# ---- the registry --------------------------------------------------------------------------------------------------


def _filters_float32(case: Case) -> bool:
    return case.direction == FORWARD and case.dtype == torch.float32


def _one_size(case: Case) -> bool:
    """For what takes seconds to compile."""
    return case.group == "targets" and case.shape[-2:] == (64, 64)


def _quickly_compiled(case: Case) -> bool:
    """What JAX is run on: XLA takes seconds to compile its random numbers, and the filter's gradient is not written."""
    if case.operator in ("shaped_noise", "add_noise"):
        return _one_size(case)
    return case.operator == "whitened_mse" or case.direction == FORWARD


def _launch_bound(case: Case) -> bool:
    """On a GPU: what is too small for the cache is too small to hide its launches."""
    return case.cache == WARM


BOTH, GPU = ("cpu", "cuda"), ("cuda",)
NOISE, FILTER = ("shaped_noise",), ("spectral_filter",)

CONTENDERS = {
    contender.name: contender
    for contender in [
        Contender(OURS, _sagd, devices=BOTH, noise="key"),
        Contender("torch.fft", _eager, devices=BOTH),
        Contender("torch.compile", _compiled, devices=BOTH, only=_one_size),
        Contender("FFTW", _fftw, FILTER, "pyfftw", only=_filters_float32),
        Contender("ducc0", _ducc0, FILTER, "ducc0", only=_filters_float32),
        Contender("scipy.fft", _scipy, FILTER, "scipy", only=_filters_float32),
        Contender("MKL", _mkl, FILTER, "mkl", only=_filters_float32),
        Contender("JAX", _jax, requires="jax", only=_quickly_compiled),
        Contender("torch.randn", _white, NOISE, devices=BOTH, noise="white"),
        Contender("sagd by cuda", _sagd_by("cuda"), devices=GPU, noise="key", only=_able("cuda")),
        Contender("sagd by triton", _sagd_by("triton"), EVERY_OPERATOR, "triton", GPU, "key", _able("triton")),
        Contender("sagd, CUDA graph", _captured(_sagd), devices=GPU, only=_launch_bound),
        Contender("torch.fft, CUDA graph", _captured(_eager), devices=GPU, only=_launch_bound),
    ]
}

COMPILING = (OURS, "torch.compile", "sagd by triton")  # on a GPU, for each kind of case, and keep it on disk
