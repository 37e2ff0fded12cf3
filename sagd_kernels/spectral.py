"""The algebra of half-plane weights: [..., H, W//2+1] tensors in the layout of `torch.fft.rfft2`.

A real plane's spectrum is known from the columns 0 <= l <= W/2: the column l stands for -l, too, except l = 0 and
l = W/2, which are their own negatives and hold both k and -k. Everything here is differentiable.
"""

from numbers import Integral

import torch
from torch import Tensor


def weight_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of weights for planes of `dtype`, in which the operators compute."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def multiplicity(width: int, *, like: Tensor) -> Tensor:
    """How many full-plane bins each half-plane column stands for, [W//2+1]: 1 where it is its own negative, else 2."""
    columns = torch.arange(width // 2 + 1, device=like.device)
    return torch.where(2 * columns % width == 0, 1, 2).to(like.dtype)


def even_part(weight: Tensor, width: int) -> Tensor:
    """The weight that an operator really applies: (w(k) + w(-k)) / 2 on the columns that are their own negatives."""
    mirrored = weight.flip(-2).roll(1, -2)
    return torch.where(multiplicity(width, like=weight) == 1, (weight + mirrored) / 2, weight)


def mean_square(weight: Tensor, width: int) -> Tensor:
    """Mean of w^2 over the full plane's bins, [...]: the variance of noise of this weight."""
    total = (even_part(weight, width).square() * multiplicity(width, like=weight)).sum((-2, -1))
    return total / (weight.shape[-2] * width)


def whitening(weight: Tensor, width: int) -> Tensor:
    """1 / w^2 where w > 0 and 0 elsewhere, times the full plane's bins over those with w > 0.

    The mean over a plane of r . T_whitening r is the mean over the kept bins of |F r|^2 / w^2.
    """
    weight = even_part(weight, width)
    count = kept_bins(weight, width).clamp(min=1)[..., None, None]
    return weight.shape[-2] * width / count * inverse(weight).square()


def inverse(weight: Tensor) -> Tensor:
    """1 / w, and 0 where w = 0: the weight of the pseudo-inverse (Moore-Penrose), with gradient 0 there."""
    kept = weight > 0
    return torch.where(kept, 1 / torch.where(kept, weight, 1), 0)


def kept_bins(weight: Tensor, width: int) -> Tensor:
    """How many of the full plane's bins have w > 0, [...]: the rank of T_w. The weight is even."""
    return ((weight > 0) * multiplicity(width, like=weight)).sum((-2, -1))


def cross_spectrum(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The gradient of <b, T_w a> in the half-plane weight w: summed to the weight's shape and dtype."""
    if a.numel() == 0:  # which torch.fft refuses
        return torch.zeros_like(weight)
    height, width = a.shape[-2:]
    spectra = torch.fft.rfft2(a.to(weight.dtype)), torch.fft.rfft2(b.to(weight.dtype))
    product = (spectra[0].conj() * spectra[1]).real * multiplicity(width, like=weight)
    return (product / (height * width)).sum_to_size(weight.shape)


def check_half_plane(name: str, values: Tensor, width: int) -> Tensor:
    """The values, or an error that names them where they are no half planes of that width."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(values).__name__}")
    if isinstance(width, bool) or not isinstance(width, Integral):
        raise TypeError(f"width: expected an int, got {type(width).__name__}")
    if values.ndim < 2 or values.shape[-1] != width // 2 + 1 or values.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name}: expected float32 or float64 [..., H, {width // 2 + 1}] for width {width}, "
            f"got {values.dtype} {list(values.shape)}"
        )
    return values


def check_nonnegative(name: str, values: Tensor) -> Tensor:
    """The values, or a ValueError that names them where one is negative or not finite."""
    if not (values.isfinite() & (values >= 0)).all():
        raise ValueError(f"{name}: expected finite values >= 0, got {values.min():.4g} to {values.max():.4g}")
    return values
