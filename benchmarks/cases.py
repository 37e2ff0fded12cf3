"""The registry of cases, and the data of one.

A case is one computation: an operator on tensors of one shape and dtype, forward or forward and backward. To add one,
add it to `registry`; every contender that can compute it will.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sagd_kernels import weights

FORWARD, WITH_BACKWARD = "forward", "forward+backward"
COLD, WARM = "cold", "warm"

TRAINING_SHAPES = [
    (256, 1, 28, 28),
    (128, 3, 32, 32),
    (64, 3, 64, 64),
    (32, 3, 96, 96),
    (32, 3, 128, 128),
    (8, 3, 256, 256),
    (2, 3, 512, 512),
    (4, 768, 16, 16),
]
QUICK_PLANES = [(32, 32), (64, 64), (256, 256)]
GPU_PIXELS = 1 << 25  # of a tensor that keeps a GPU busy and exceeds its cache
SINGLE_CALL = (1, 3, 32, 32)
SQUARES = [28, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024]
PRIMES = [31, 61, 97, 127, 251]
NON_SQUARE = [(48, 80), (90, 160), (128, 512), (240, 320)]


@dataclass(frozen=True)
class Case:
    """One computation. `name` is what `--filter` searches.

    Attributes:
        group: the question that the case answers: "targets", "training", "single call", "cache", "bfloat16",
            "weights", "gradients" or "sizes".
        operator: the name of a function of `sagd_kernels`.
        shape: [N, C, H, W].
        direction: "forward+backward" takes the gradient in the input.
        scale: whether there is a factor for each sample (spectral_filter and shaped_noise; add_noise has two).
        weight: "power_law", one plane for the batch, or "per_channel", one for each channel.
        cache: "cold" takes every call's input from memory, "warm" from the cache.
    """

    group: str
    operator: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    direction: str = FORWARD
    scale: bool = False
    weight: str = "power_law"
    cache: str = COLD

    @property
    def what(self) -> str:
        """The computation without its size."""
        backward = " backward" if self.direction == WITH_BACKWARD else ""
        return f"{self.operator}{'+scale' if self.scale else ''}{backward}"

    @property
    def size(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return f"{self.group}: {self.what} {self.size} {self.dtype_name} {self.weight} {self.cache}"

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def tensors_read(self) -> int:
        """Tensors of the case's shape that one forward pass reads."""
        return {"spectral_filter": 1, "shaped_noise": 0, "add_noise": 1, "whitened_mse": 2}[self.operator]


def _operators(group: str, shape: tuple[int, int, int, int], **options) -> Iterator[Case]:
    """The five rows of the targets' table on one shape."""
    yield Case(group, "spectral_filter", shape, **options)
    yield Case(group, "spectral_filter", shape, scale=True, **options)
    yield Case(group, "shaped_noise", shape, scale=True, **options)
    yield Case(group, "add_noise", shape, **options)
    yield Case(group, "whitened_mse", shape, direction=WITH_BACKWARD, **options)


def target_shapes(device: str) -> list[tuple[int, int, int, int]]:
    """Training's batches; on a GPU, which these hardly occupy, the same samples in batches that fill it."""
    return TRAINING_SHAPES if device == "cpu" else [_batch(GPU_PIXELS, *shape[1:]) for shape in TRAINING_SHAPES]


def registry(device: str = "cpu") -> list[Case]:
    """Every case for a kind of device, in the order in which they run."""
    cases, targets = [], target_shapes(device)
    of_plane = {shape[-2:]: shape for shape in targets}
    medium, large, latents = (of_plane[plane] for plane in ((64, 64), (256, 256), (16, 16)))
    for shape in targets:
        cases += _operators("targets", shape)
    if device == "cuda":  # whose launches take longer than the work, if the input is where the step before left it
        for shape in TRAINING_SHAPES:
            cases += _operators("training", shape, cache=WARM)
    cases += _operators("single call", SINGLE_CALL, cache=WARM)
    if device == "cpu":
        for plane in QUICK_PLANES:
            cases.append(Case("cache", "spectral_filter", of_plane[plane], scale=True, cache=WARM))
    for shape in (medium, large):
        cases += _operators("bfloat16", shape, dtype=torch.bfloat16)
    for shape in (medium, latents):
        cases.append(Case("weights", "spectral_filter", shape, scale=True, weight="per_channel"))
        cases.append(Case("weights", "shaped_noise", shape, scale=True, weight="per_channel"))
    cases.append(Case("gradients", "spectral_filter", medium, direction=WITH_BACKWARD, scale=True))
    cases.append(Case("gradients", "whitened_mse", medium))
    pixels = {"cpu": 3 << 17, "cuda": GPU_PIXELS}[device]
    for plane in [*((n, n) for n in ([16] if device == "cuda" else []) + SQUARES + PRIMES), *NON_SQUARE]:
        cases.append(Case("sizes", "spectral_filter", _batch(pixels, 3, *plane)))
        cases.append(Case("sizes", "shaped_noise", _batch(pixels, 3, *plane), scale=True))
    return cases


def _batch(pixels: int, *sample: int) -> tuple[int, int, int, int]:
    """As many samples [C, H, W] as have at most so many pixels, but at least one."""
    return max(1, pixels // math.prod(sample)), *sample


def quick(cases: list[Case]) -> list[Case]:
    """The few that tell most: three of the targets' sizes and the single call."""
    return [c for c in cases if c.group == "single call" or (c.group == "targets" and c.shape[-2:] in QUICK_PLANES)]


def one_thread(cases: list[Case]) -> list[Case]:
    """Those that are measured on one thread too."""
    return [c for c in cases if c.group in ("targets", "single call")]


class Problem:
    """A case's data on a device, in as many copies as it takes to find none of them in the cache.

    Attributes:
        inputs, targets: tensors of the case's shape and dtype, `copies` of each with equal values (`targets` is also
            the incoming gradient of spectral_filter). Empty where the operator reads none.
        weight: float32 [H, W//2+1] or [C, H, W//2+1], even and positive.
        scale, signal_scale: float32 [N]; `scale` is None unless the case has it.
    """

    def __init__(self, case: Case, device: torch.device, threads: int, cache_bytes: int) -> None:
        self.case, self.device, self.threads = case, device, threads
        generator, on = torch.Generator(device).manual_seed(0), {"device": device}
        kinds = max(case.tensors_read, 2 if case.direction == WITH_BACKWARD else 0)
        one_call = max(1, kinds * case.pixels * case.dtype.itemsize)
        self.copies = max(2, math.ceil(2 * cache_bytes / one_call)) if case.cache == COLD and kinds else 1
        originals = [torch.randn(case.shape, generator=generator, **on).to(case.dtype) for _ in range(kinds)]
        copied = [[x.clone() for _ in range(self.copies)] for x in originals]
        self.inputs, self.targets = (*copied, [], [])[:2]
        height, width = case.shape[-2:]
        exponents = {"power_law": -0.5, "per_channel": -torch.rand(case.shape[1], generator=generator, **on)}
        self.weight = weights.power_law(height, width, exponents[case.weight], **on)
        factors = torch.rand(2, case.shape[0], generator=generator, **on).add(0.5)
        self.signal_scale, self.noise_scale = factors
        self.scale = self.noise_scale if case.scale else None

    def columns(self, factor: Tensor) -> Tensor:
        """A factor per sample, [N], in the shape that multiplies the planes: [N, 1, 1, 1]."""
        return factor.view(-1, 1, 1, 1)


def with_batch(case: Case, samples: int) -> Case:
    return replace(case, shape=(samples, *case.shape[1:]))
