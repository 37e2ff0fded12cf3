"""Gaussian noise with a spectrum, as a distribution of torch."""

import math
from numbers import Real

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints, register_kl

from ..ops import shaped_noise, spectral_filter
from ..random import next_key
from ..spectral import check_half_plane, check_nonnegative, even_part, inverse, kept_bins, mean_square, multiplicity


class SpectralNormal(Distribution):
    """N(loc, scale^2 Sigma_w) over planes [H, W], with Sigma_w = F^-1 diag(w^2) F: the law of loc + scale * T_w xi.

    A plane is one event; channels and samples are batch dimensions, independent of each other, so `log_prob` of images
    [N, C, H, W] is [N, C] (`torch.distributions.Independent` sums over channels). The batch shape is what the leading
    dimensions of `weight` and `loc` and the shape of `scale` broadcast to.

    **Singular weights.** Where w = 0 there is no noise, and the distribution lives on the subspace of planes that agree
    with `loc` in those frequencies. `log_prob` and `entropy` are with respect to Lebesgue's measure on that subspace,
    of dimension `rank`, and use the pseudo-inverse and pseudo-determinant of Sigma_w. `support` checks that a plane
    lies in it, up to the rounding of its dtype: outside, `log_prob` raises a ValueError, or returns -inf with
    `validate_args=False`, as torch's distributions do. The divergence between distributions of different support is
    infinite.

    Args:
        weight: [..., H, W//2+1], float32 or float64, see `sagd_kernels.weights`; its even part counts.
        width: W, which a half plane leaves open between an even and an odd number.
        loc: the mean, a number or [..., H, W].
        scale: a positive factor of the noise, a number or a tensor of the batch shape.

    Everything is differentiable in `weight`, `loc` and `scale`.
    """

    arg_constraints = {  # noqa: RUF012, torch's own spelling
        "weight": constraints.independent(constraints.nonnegative, 2),
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.positive,
    }
    has_rsample = True

    def __init__(
        self,
        weight: Tensor,
        width: int,
        loc: float | Tensor = 0.0,
        scale: float | Tensor = 1.0,
        validate_args: bool | None = None,
    ) -> None:
        check_half_plane("weight", weight, width)
        plane = (weight.shape[-2], width)
        like = dict(dtype=weight.dtype, device=weight.device)
        if isinstance(loc, Real):
            loc = torch.full(plane, float(loc), **like)
        elif loc.shape[-2:] != plane:
            raise ValueError(f"loc: expected a number or [..., {plane[0]}, {plane[1]}], got {list(loc.shape)}")
        scale = torch.full((), float(scale), **like) if isinstance(scale, Real) else scale
        batch = torch.broadcast_shapes(weight.shape[:-2], loc.shape[:-2], scale.shape)
        self.width, self.weight = width, even_part(weight, width)
        self.loc, self.scale = loc.to(weight.dtype), scale.to(weight.dtype)
        super().__init__(batch, torch.Size(plane), validate_args=validate_args)
        if self._validate_args and not check_nonnegative("weight", self.weight).flatten(-2).any(-1).all():
            raise ValueError("weight: expected a positive value at one frequency at least, got zero everywhere")

    @property
    def support(self) -> constraints.Constraint:
        """All planes, or those that agree with `loc` in the frequencies that the weight omits."""
        if (self.weight > 0).all():
            return constraints.independent(constraints.real, 2)
        return _KeptBands(self)

    @property
    def rank(self) -> Tensor:
        """The dimension of the support, [*batch]: how many of the H W frequencies carry noise."""
        return kept_bins(self.weight, self.width).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(self._extended_shape())

    mode = mean

    @property
    def variance(self) -> Tensor:
        """The variance of a pixel, the same at every pixel: [*batch, H, W]."""
        variance = self.scale.square() * mean_square(self.weight, self.width)
        return variance[..., None, None].expand(self._extended_shape())

    def expand(self, batch_shape, _instance=None) -> "SpectralNormal":
        new = self._get_checked_instance(SpectralNormal, _instance)
        new.width = self.width
        new.weight = self.weight.expand(*batch_shape, *self.weight.shape[-2:])
        new.loc = self.loc.expand(*batch_shape, *self.event_shape)
        new.scale = self.scale.expand(batch_shape)
        super(SpectralNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(
        self, sample_shape=(), *, key: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Exact draws [*sample_shape, *batch, H, W], with gradients; of the key, or of a key from the generator."""
        if key is not None and generator is not None:
            raise ValueError("key, generator: expected one of them, got both")
        if key is None:
            key = next_key(generator, self.weight.device)
        size = self._extended_shape(torch.Size(sample_shape))
        return self.loc + shaped_noise(key, size, self.weight, self.scale.expand(size[:-2]))

    @torch.no_grad()
    def sample(self, sample_shape=(), *, key: Tensor | None = None, generator=None) -> Tensor:
        """As `rsample`, without gradients."""
        return self.rsample(sample_shape, key=key, generator=generator)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log density of planes [..., H, W], a number for each: [...]. See above for singular weights."""
        if self._validate_args:
            self._validate_sample(value)
        residual = self._residual(value)
        square = (residual * self._filter(residual, inverse(self.weight).square(), -2)).sum((-2, -1))
        log_prob = -(self.rank * math.log(2 * math.pi) + self._log_determinant() + square) / 2
        if self._validate_args or (self.weight > 0).all():
            return log_prob
        return torch.where(self.support.check(value), log_prob, -math.inf)

    def entropy(self) -> Tensor:
        """rank / 2 (1 + log 2 pi) + log det(scale^2 Sigma_w) / 2, [*batch]; of the kept bands where w is singular."""
        return (self.rank * (1 + math.log(2 * math.pi)) + self._log_determinant()) / 2

    def score(self, value: Tensor) -> Tensor:
        """grad log p = -Sigma_w^-1 (value - loc) / scale^2, [..., H, W]; within the kept bands where w is singular."""
        return -self._filter(self._residual(value), inverse(self.weight).square(), -2)

    def _residual(self, value: Tensor) -> Tensor:
        """value - loc for every index of the batch, in the dtype of the weight or, if wider, of the value."""
        residual = value.to(torch.promote_types(value.dtype, self.weight.dtype)) - self.loc
        return residual.expand(torch.broadcast_shapes(residual.shape, self._extended_shape()))

    def _filter(self, planes: Tensor, weight: Tensor, power: int) -> Tensor:
        """scale^power T_weight planes."""
        return spectral_filter(planes, weight.to(planes.dtype), self.scale.pow(power).expand(planes.shape[:-2]))

    def _log_determinant(self) -> Tensor:
        """log of the (pseudo-)determinant of scale^2 Sigma_w, [*batch], summed in float64."""
        weight = self.weight.double()
        logs = torch.where(weight > 0, weight, 1).log() * multiplicity(self.width, like=weight)
        total = 2 * (logs.sum((-2, -1)) + kept_bins(weight, self.width) * self.scale.double().log())
        return total.expand(self.batch_shape).to(self.weight.dtype)


class _KeptBands(constraints.Constraint):
    """The planes that agree with a distribution's mean in the frequencies that it leaves without noise."""

    event_dim = 2

    def __init__(self, distribution: SpectralNormal) -> None:
        self.distribution = distribution

    def check(self, value: Tensor) -> Tensor:
        d = self.distribution
        residual = d._residual(value)
        omitted = spectral_filter(residual, (d.weight == 0).to(residual.dtype))
        size = value.double().norm(dim=(-2, -1)) + d.loc.double().norm(dim=(-2, -1))
        rounding = max(torch.finfo(dtype).eps for dtype in (value.dtype, d.weight.dtype))
        return omitted.double().norm(dim=(-2, -1)) <= 8 * rounding * size


@register_kl(SpectralNormal, SpectralNormal)
def _kl_spectral_normal(p: SpectralNormal, q: SpectralNormal) -> Tensor:
    """KL(p || q), per bin in closed form; infinite where the supports differ."""
    if p.event_shape != q.event_shape:
        raise ValueError(f"p, q: expected planes of one size, got {list(p.event_shape)} and {list(q.event_shape)}")
    dtype = torch.promote_types(p.weight.dtype, q.weight.dtype)
    kept = (p.weight > 0) & (q.weight > 0)
    w_p, w_q = (torch.where(kept, d.weight.double() * d.scale.double()[..., None, None], 1) for d in (p, q))
    log_ratio = 2 * (w_p / w_q).log()
    per_bin = (log_ratio.expm1() - log_ratio) * multiplicity(p.width, like=log_ratio)
    batch = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    q = q.expand(batch)
    shift = q._residual(p.loc)
    square = (shift * q._filter(shift, inverse(q.weight).square(), -2)).sum((-2, -1))
    divergence = (per_bin.sum((-2, -1)) + square.double()) / 2
    same_support = ((p.weight > 0) == (q.weight > 0)).flatten(-2).all(-1)
    if not (q.weight > 0).all():
        same_support = same_support & q.support.check(p.loc)
    return torch.where(same_support, divergence, math.inf).to(dtype)
