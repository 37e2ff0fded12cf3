"""Shaped noise for k-diffusion and samplers of its protocol, which ask a `noise_sampler(sigma, sigma_next)` for noise.

k-diffusion itself is not needed. Its other sources of noise are the caller's x_T and training noise (`ShapedNoise`) and
the churn of `sample_euler`, `sample_heun` and `sample_dpm_2`, a bare `torch.randn_like` (`intercept`).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import random, weights
from ..modules import ShapedNoise
from ..ops import shaped_noise, spectral_filter
from .placed_weight import PlacedWeight

_DEPTH = 24  # of the tree
_ROUNDING = 1e-6  # of times that a sampler has transformed and back in float32


def noise_sampler(
    x: Tensor, weight: Tensor, generator: torch.Generator | None = None
) -> Callable[[Tensor | float, Tensor | float], Tensor]:
    """Independent noise of a weight for every call: what stands for k-diffusion's `default_noise_sampler(x)`.

    Args:
        x: [..., H, W], whose shape, dtype and device the noise has.
        weight: [..., H, W//2+1], see `sagd_kernels.weights`.
        generator: where keys are drawn from; the default generator of the device of `x` unless given.
    """
    draw = ShapedNoise(_fitting(x, weight).like(x), generator)
    return lambda sigma, sigma_next: draw(x)


class BrownianTreeNoiseSampler:
    """The increments of one Brownian motion of a weight: what stands for k-diffusion's class of this name.

    `sampler(sigma, sigma_next)` is (W(t') - W(t)) / sqrt|t' - t| with t = transform(sigma), t' = transform(sigma_next)
    and W = T_w B, B a standard Brownian motion: noise of variance 1 for each call, and of the covariances of one path
    for several, whatever their order and however their intervals overlap. The same seed gives the same path for any
    steps, so samples can be compared between numbers of steps.

    W is evaluated along a virtual tree of Brownian bridges (Li et al., "Scalable gradients for stochastic differential
    equations", AISTATS 2020), whose nodes own a key each and store nothing; an evaluation draws noise 26 times. The law
    is exact for times that do not fall into the same of the range's 2^24 equal parts.

    Args:
        x: [..., H, W], whose shape, dtype and device the noise has.
        sigma_min, sigma_max: what `sigma` and `sigma_next` are between, ends included.
        seed: of the path; drawn from torch's default generator unless given. A list has one for each sample, whose
            path is then the same in any batch.
        transform: from sigma to the time t of the Brownian motion; monotone.
        weight: [..., H, W//2+1], see `sagd_kernels.weights`.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Tensor | float,
        sigma_max: Tensor | float,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = lambda sigma: sigma,
        *,
        weight: Tensor,
    ) -> None:
        self._size, self._dtype = x.shape, x.dtype
        self._weight = _fitting(x, weight).like(x)
        self._transform = transform
        self._start, self._end = sorted((self._time(sigma_min), self._time(sigma_max)))
        if not -math.inf < self._start < self._end < math.inf:
            raise ValueError(
                f"sigma_min, sigma_max: expected two different finite times, got {self._start} and {self._end}"
            )
        self._key = self._make_key(seed, x)
        self._last: tuple[float, Tensor] | None = None

    def __call__(self, sigma: Tensor | float, sigma_next: Tensor | float) -> Tensor:
        """Noise of the shape, dtype and device of `x` for the step from `sigma` to `sigma_next`."""
        t, t_next = self._time_in_range("sigma", sigma), self._time_in_range("sigma_next", sigma_next)
        if t == t_next:
            raise ValueError(f"sigma_next: expected another time than that of sigma, got {t_next} for both")
        before = self._last[1] if self._last is not None and self._last[0] == t else self._path(t)
        after = self._path(t_next)
        self._last = t_next, after  # where the next step of a sampler starts
        return ((after - before) / math.sqrt(abs(t_next - t))).to(self._dtype)

    def _time(self, sigma: Tensor | float) -> float:
        return float(self._transform(torch.as_tensor(sigma)))

    def _time_in_range(self, name: str, sigma: Tensor | float) -> float:
        """The time of a sigma, moved to the ends of the range from where a float32 rounding or two has put it."""
        time = self._time(sigma)
        inside = min(max(time, self._start), self._end)
        if not abs(time - inside) <= _ROUNDING * max(abs(self._start), abs(self._end)):
            raise ValueError(f"{name}: expected a time from {self._start} to {self._end}, got {time}")
        return inside

    def _make_key(self, seed: int | Sequence[int] | None, x: Tensor) -> Tensor:
        if seed is None:
            return random.next_key(device=x.device)
        if hasattr(seed, "tolist"):  # of NumPy or torch
            seed = seed.tolist()
        if not isinstance(seed, Sequence):
            return random.key(seed, device=x.device)
        if x.ndim < 3 or len(seed) != x.shape[0]:
            raise ValueError(f"seed: expected one for each of the {x.shape[0]} samples, got {len(seed)}")
        return torch.stack([random.key(s, device=x.device) for s in seed])

    def _path(self, time: float) -> Tensor:
        """W(time), with W = 0 at the start: down the tree's bridges to a leaf, and one more bridge within it.

        Node 0 is the increment over the whole range, node 1 the root, 2 n and 2 n + 1 the halves of node n.
        """
        position = (time - self._start) / (self._end - self._start) * 2**_DEPTH
        leaf = min(int(position), 2**_DEPTH - 1)
        nodes = [0, *((1 << level) + (leaf >> _DEPTH - level) for level in range(_DEPTH + 1))]
        nodes = torch.tensor(nodes, device=self._key.device).view(-1, *[1] * (self._key.ndim - 1))
        noise = (shaped_noise(key, self._size, self._weight) for key in random.fold_in(self._key, nodes))
        right = next(noise)
        left = torch.zeros_like(right)
        for level in range(_DEPTH):
            middle = torch.lerp(left, right, 0.5).add_(next(noise), alpha=2 ** (-level / 2 - 1))
            if leaf >> _DEPTH - level - 1 & 1:
                left = middle
            else:
                right = middle
        share = position - leaf
        bridge = torch.lerp(left, right, share).add_(next(noise), alpha=math.sqrt(share * (1 - share) / 2**_DEPTH))
        return bridge.mul_(math.sqrt(self._end - self._start))


def on_kept_bands(denoiser: Callable[..., Tensor], weight: Tensor) -> Callable[..., Tensor]:
    """A denoiser of k-diffusion's protocol, `denoiser(x, sigma, **kwargs)`, projected on the bands with w > 0.

    What a singular weight needs: a network leaks a little into bands that it never saw noised, and a sampler would
    amplify that.
    """
    kept = PlacedWeight(weights.power(PlacedWeight(weight).weight, 0))

    def denoise(x: Tensor, sigma: Tensor, **kwargs) -> Tensor:
        return spectral_filter(denoiser(spectral_filter(x, kept.like(x)), sigma, **kwargs), kept.like(x))

    return denoise


def _fitting(x: Tensor, weight: Tensor) -> PlacedWeight:
    placed = PlacedWeight(weight)
    if not placed.fits(x.shape):
        raise ValueError(f"x: expected {placed.expected_size()} for this weight, got {list(x.shape)}")
    return placed
