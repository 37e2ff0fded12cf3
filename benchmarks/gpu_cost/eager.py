"""Bytes and launches of torch's eager pipeline on a GPU, by a counting rule: no kernel of torch's is looked into.

Each kernel reads its operands once from DRAM and writes its result once; nothing stays in a cache.

- `rfft2` and `irfft2` are two kernels of cuFFT each, one for each axis, with the half spectrum between them.
- `irfft2` first clones its input, because cuFFT overwrites it, and ends with a multiplication by 1 / (H W)
  (`_fft_c2r_cufft` in ATen/native/cuda/SpectralOps.cpp).
- The gradient of `rfft2` fills a full complex plane with zeros, copies the half spectrum into it and takes a complex
  transform of two kernels (`fft_r2c_backward` in torch/csrc/autograd/FunctionsManual.cpp).
- Element-wise operations are one kernel each. Half-precision planes are converted to float32 and the result back.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cases import Case


@dataclass(frozen=True)
class Step:
    """One kernel: bytes read and written."""

    what: str
    read: float
    written: float


def pipeline(case: Case) -> list[Step]:
    """The kernels of the composite that one would write with torch.fft, as benchmarks/contenders.py times it."""
    return list({
        "spectral_filter": _filter,
        "shaped_noise": _noise,
        "add_noise": _add_noise,
        "whitened_mse": _loss_with_gradient,
    }[case.operator](_Sizes(case)))  # fmt: skip


def total_bytes(case: Case) -> float:
    return sum(step.read + step.written for step in pipeline(case))


class _Sizes:
    """Bytes of what the kernels move: float32 planes, half spectra, the weight, planes in the case's own dtype."""

    def __init__(self, case: Case) -> None:
        *batch, height, width = case.shape
        self.planes = 4 * case.pixels
        self.half_plane = 4 * height * (width // 2 + 1)
        self.spectra = 2 * self.half_plane * math.prod(batch)
        self.weight = self.half_plane
        self.stored = case.pixels * case.dtype.itemsize
        self.converts = self.stored != self.planes
        self.scale = case.scale


def _filter(sizes: _Sizes) -> Iterator[Step]:
    if sizes.converts:
        yield Step("convert", sizes.stored, sizes.planes)
    yield from _forward_transform(sizes)
    yield from _weighted_inverse(sizes)
    if sizes.scale:
        yield Step("scale", sizes.planes, sizes.planes)
    if sizes.converts:
        yield Step("convert", sizes.planes, sizes.stored)


def _noise(sizes: _Sizes) -> Iterator[Step]:
    yield Step("randn", 0, sizes.planes)
    yield from _forward_transform(sizes)
    yield from _weighted_inverse(sizes)
    if sizes.scale:
        yield Step("scale", sizes.planes, sizes.planes)
    if sizes.converts:
        yield Step("convert", sizes.planes, sizes.stored)


def _add_noise(sizes: _Sizes) -> Iterator[Step]:
    yield from _noise(sizes)
    yield Step("signal_scale * input", sizes.stored, sizes.stored)
    yield Step("noise_scale * noise", sizes.stored, sizes.stored)
    yield Step("sum", 2 * sizes.stored, sizes.stored)


def _loss_with_gradient(sizes: _Sizes) -> Iterator[Step]:
    if sizes.converts:
        yield Step("convert input", sizes.stored, sizes.planes)
        yield Step("convert target", sizes.stored, sizes.planes)
    yield Step("input - target", 2 * sizes.planes, sizes.planes)
    yield from _forward_transform(sizes)
    yield Step("square", sizes.spectra, sizes.spectra)
    yield Step("multiply by 1 / w^2", sizes.spectra + sizes.weight, sizes.spectra)
    yield Step("sum", sizes.spectra, 0)
    yield Step("gradient of multiply", sizes.weight, sizes.spectra)
    yield Step("gradient of square", 2 * sizes.spectra, sizes.spectra)
    full = 2 * sizes.planes
    yield Step("zeros", 0, full)
    yield Step("copy", sizes.spectra, sizes.spectra)
    yield Step("complex transform, columns", full, full)
    yield Step("complex transform, rows", full, full)
    if sizes.converts:
        yield Step("convert", full, sizes.stored)


def _forward_transform(sizes: _Sizes) -> Iterator[Step]:
    yield Step("rfft2, rows", sizes.planes, sizes.spectra)
    yield Step("rfft2, columns", sizes.spectra, sizes.spectra)


def _weighted_inverse(sizes: _Sizes) -> Iterator[Step]:
    yield Step("multiply by w", sizes.spectra + sizes.weight, sizes.spectra)
    yield Step("irfft2, clone", sizes.spectra, sizes.spectra)
    yield Step("irfft2, columns", sizes.spectra, sizes.spectra)
    yield Step("irfft2, rows", sizes.spectra, sizes.planes)
    yield Step("irfft2, normalise", sizes.planes, sizes.planes)
