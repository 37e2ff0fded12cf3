"""Spectral weights: the real, even w(f) >= 0 that shapes the noise T_w xi = F^-1[w . F(xi)] of every operator.

Layout: a weight is [..., H, W//2+1], the half plane of `torch.fft.rfft2`: rows k = 0 .. H-1 in FFT order, columns
l = 0 .. W//2. A column strictly between 0 and W/2 stands for two of the plane's H W frequencies (bins); every mean
below is over all H W of them. Radial frequency is r = |(k/H, l/W)| in cycles per pixel: 0.5 is the Nyquist limit of
an axis, 0.7071 the corner.

Calibration: unless `normalized=False`, a weight is multiplied by C = mean(w^2)^(-1/2), so noise has variance exactly 1
at every pixel. C is a constant of the weight, never of the sample: noise divided by its own standard deviation, as
arXiv 2510.09660 does it, is no longer Gaussian and no longer has covariance F^-1 diag(w^2) F.

Bands are half open, [low, high), except that an edge at (to four decimals) or above the plane's highest frequency
closes the band: adjacent bands tile, and nothing at the top is lost. Edges have a `unit`: "cycles" per pixel
(0 to 0.7071), "nyquist" (r / 0.5, 0 to 1.4142) or "corner" (r / 0.7071, 0 to 1).

The DC bin r = 0 is the brightness of a whole plane, so it has a policy of its own, `dc`, on the scale of the formula
before calibration: "nearest" (the weight of the lowest other frequency), "keep" (1), "zero", a number or, where the
formula has a value there, None (that value).

Float parameters (alpha, the gammas, exponents, a number for `dc`) may be tensors that require gradients. A batch of
them, [B], gives a batch of weights, [B, H, W//2+1]. Weights are computed in float64 and returned in `dtype`, float32
unless asked otherwise, on `device`, by default that of the tensors given or else torch's default device. Arguments
are checked by value, which waits for the device: build a weight once, outside compiled or captured code.
"""

import math
from collections.abc import Iterable
from functools import reduce
from numbers import Integral, Real

import torch
from torch import Tensor

from .spectral import check_half_plane, check_nonnegative, even_part, mean_square, multiplicity

_UNITS = {"cycles": 1.0, "nyquist": 0.5, "corner": 0.5**0.5}
_ROUNDING = 1e-12  # far above the rounding of r, far below the distance of two frequencies
_DECIMALS = 4  # of the frequencies in messages; an edge typed from one must mean what the message said


def radial_frequency(
    height: int, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """r = sqrt((k/H)^2 + (l/W)^2) of every bin, in cycles per pixel: [H, W//2+1], from 0 to at most 0.7071."""
    for name, size in (("height", height), ("width", width)):
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{name}: expected an int, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    row = torch.arange(height, dtype=torch.float64, device=device)
    vertical = torch.minimum(row, height - row) / height
    horizontal = torch.arange(width // 2 + 1, dtype=torch.float64, device=device) / width
    return torch.hypot(vertical.unsqueeze(1), horizontal).to(dtype)


def power_law(
    height: int,
    width: int,
    alpha: float | Tensor,
    *,
    dc: str | float | Tensor = "nearest",
    normalized: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """w = r^alpha (r in cycles per pixel): the power spectral density follows r^(2 alpha); alpha > 0 favours detail.

    `dc="paper"` reproduces the weight of arXiv 2510.09660, (r + 1e-10)^alpha with DC included, w(0) = 10^(-10 alpha).
    Its calibration by each sample's own standard deviation, which does not see DC, is replaced by the constant C,
    which does: the covariance is the published one up to that factor, and for alpha below about -0.2 it is almost
    all DC.
    """
    alpha = _parameter("alpha", alpha, device)
    r = radial_frequency(height, width, dtype=torch.float64, device=alpha.device)
    if isinstance(dc, str) and dc == "paper":
        return _finish((r + 1e-10) ** alpha, width, normalized, dtype)
    if dc is None:
        raise ValueError("dc: r^alpha has no value at r = 0; expected 'nearest', 'keep', 'zero', 'paper' or a number")
    # 1 instead of 0 at DC keeps the gradient in alpha finite there
    weight = torch.where(r > 0, r, 1) ** alpha
    return _finish(_with_dc(weight, width, dc), width, normalized, dtype)


def band_pass(
    height: int,
    width: int,
    low: float,
    high: float,
    *,
    unit: str = "cycles",
    dc: str | float | Tensor | None = None,
    normalized: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """w = 1 where low <= r < high, else 0. Edges are in `unit`; `dc=None` treats r = 0 as any other frequency.

    A band that holds no frequency of the plane is a ValueError that names the reachable range.
    """
    weight = _band("low, high", height, width, (low, high), unit, device).double()
    return _finish(_with_dc(weight, width, dc), width, normalized, dtype)


def omit_band(
    height: int,
    width: int,
    low: float,
    high: float,
    *,
    unit: str = "cycles",
    dc: str | float | Tensor | None = None,
    normalized: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """w = 0 where low <= r < high, else 1: selective omission, the complement of `band_pass`, with its arguments."""
    weight = 1 - _band("low, high", height, width, (low, high), unit, device).double()
    return _finish(_with_dc(weight, width, dc), width, normalized, dtype)


def two_band(
    height: int,
    width: int,
    low_band: tuple[float, float],
    high_band: tuple[float, float],
    *,
    gamma_low: float | Tensor = 0.5,
    gamma_high: float | Tensor = 0.5,
    unit: str = "cycles",
    mixture: str = "one_draw",
    dc: str | float | Tensor | None = None,
    normalized: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """w = gamma_low on low_band, gamma_high on high_band, 0 elsewhere. Bands are (low, high) in `unit`.

    `mixture="one_draw"` filters one white draw, so equal gammas on touching bands that cover the plane give exactly
    white noise. `mixture="paper"` has the covariance of arXiv 2510.09660, two independent draws M xi, each scaled to
    unit variance, mixed with the gammas: w^2 = gamma_low^2 M_low / mean(M_low) + gamma_high^2 M_high / mean(M_high),
    bands closed at both edges as published. With `normalized=False` its variance is the published
    gamma_low^2 + gamma_high^2. Equal gammas then do not give white noise.
    """
    if device is None:
        device = next((gamma.device for gamma in (gamma_low, gamma_high) if isinstance(gamma, Tensor)), None)
    gamma_low = check_nonnegative("gamma_low", _parameter("gamma_low", gamma_low, device))
    gamma_high = check_nonnegative("gamma_high", _parameter("gamma_high", gamma_high, device))
    if mixture not in ("one_draw", "paper"):
        raise ValueError(f"mixture: expected 'one_draw' or 'paper', got {mixture!r}")
    low, high = (
        _band(name, height, width, edges, unit, gamma_low.device, closed=mixture == "paper").double()
        for name, edges in (("low_band", low_band), ("high_band", high_band))
    )
    if mixture == "paper":
        gamma_low, gamma_high = (g / mean_square(m, width).sqrt() for g, m in ((gamma_low, low), (gamma_high, high)))
    elif high_band[0] < low_band[1]:
        raise ValueError(
            f"low_band, high_band: expected bands in ascending order that do not overlap, got "
            f"{tuple(low_band)} and {tuple(high_band)}"
        )
    # the root of a sum of squares only where the bands meet: its gradient is not finite at 0
    meet = (low * high).bool()
    both = torch.hypot(torch.where(meet, gamma_low, 1), torch.where(meet, gamma_high, 1))
    weight = torch.where(meet, both, gamma_low * low + gamma_high * high)
    return _finish(_with_dc(weight, width, dc), width, normalized, dtype)


def from_power_spectrum(
    spectrum: Tensor,
    width: int,
    exponent: float | Tensor = 1.0,
    *,
    radial: bool = False,
    dc: str | float | Tensor | None = "nearest",
    normalized: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """w = C^(exponent / 2) for a power spectrum C [..., H, W//2+1], such as `power_spectrum` of the data.

    Exponent 1 makes w^2 proportional to C: equal signal-to-noise ratio in every bin ("EqualSNR", arXiv 2505.11278);
    0 is white noise on the spectrum's support, negative exponents invert it. `radial=True` first averages C over
    rings of equal r (`radial_profile`). `dc` defaults to "nearest" because C(0) of images is their mean brightness
    squared, which says nothing about the spectrum's slope.
    """
    spectrum = even_part(check_nonnegative("spectrum", check_half_plane("spectrum", spectrum, width)).double(), width)
    if radial:
        spectrum = radial_profile(spectrum, width)[..., _ring(spectrum.shape[-2], width, spectrum.device)]
    exponent = _parameter("exponent", exponent, spectrum.device)
    return _finish(_with_dc(_power(spectrum, exponent / 2), width, dc), width, normalized, dtype)


def power_spectrum(images: Tensor | Iterable) -> Tensor:
    """Mean of |F(x)|^2 over all planes of `images`, F unitary: float32 (float64 for float64) [H, W//2+1].

    `images` is a tensor [..., H, W] or, for data that does not fit in memory, an iterable of such tensors: batches of
    any size, a DataLoader, a Dataset. Where it yields tuples (images, labels, ...) their first entry counts. In
    squared pixel units: the mean over all bins is the mean squared pixel.
    """
    try:  # a Dataset may have no __iter__, but numbers
        batches = iter((images,) if isinstance(images, Tensor) else images)
    except TypeError:
        raise TypeError(f"images: expected a tensor or an iterable of tensors, got {type(images).__name__}") from None
    total, planes, size, dtype = 0, 0, None, torch.float32
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(x, Tensor) or x.ndim < 2 or not x.is_floating_point() or x.numel() == 0:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"images: expected a non-empty floating tensor [..., H, W], got {got}")
        size = size or x.shape[-2:]
        if x.shape[-2:] != size:
            raise ValueError(f"images: expected planes of one size, got {list(x.shape[-2:])} after {list(size)}")
        power = torch.fft.rfft2(x.double(), norm="ortho").abs().square()
        power = power.reshape(-1, *power.shape[-2:])
        total, planes, dtype = total + power.sum(0), planes + len(power), torch.promote_types(x.dtype, dtype)
    if planes == 0:
        raise ValueError("images: expected at least one batch, got none")
    return (total / planes).to(dtype)


def radial_profile(values: Tensor, width: int) -> Tensor:
    """Mean of `values` [..., H, W//2+1] over rings of r: [..., R], ring i around r = i / max(H, W) cycles per pixel."""
    ring = _ring(check_half_plane("values", values, width).shape[-2], width, values.device)
    total = values.new_zeros(*values.shape[:-2], int(ring.max()) + 1, dtype=torch.float64)
    count = multiplicity(width, like=total).expand(ring.shape).flatten()
    total = total.index_add(-1, ring.flatten(), values.double().flatten(-2) * count)
    count = count.new_zeros(total.shape[-1]).index_add(0, ring.flatten(), count)
    return (total / count).to(values.dtype)


def combine(*weights: Tensor, width: int) -> Tensor:
    """The product of weights [..., H, W//2+1], calibrated: filters one after another, as one."""
    if not weights:
        raise ValueError("weights: expected at least one, got none")
    planes = {check_half_plane("weights", weight, width).shape[-2:] for weight in weights}
    if len(planes) > 1:
        raise ValueError(f"weights: expected planes of one size, got {sorted(map(list, planes))}")
    return normalize(reduce(torch.mul, weights), width)


def normalize(weight: Tensor, width: int) -> Tensor:
    """C w, with C such that the mean of w^2 over all H W bins is 1, for each plane of a weight [..., H, W//2+1].

    The result is even: on the columns l = 0 and W/2, which hold both f and -f, w is replaced by its even part, which
    is all that the operators use. ValueError where w is negative, not finite, or zero everywhere.
    """
    return _finish(check_half_plane("weight", weight, width).double(), width, True, weight.dtype)


def power(weight: Tensor, exponent: float | Tensor) -> Tensor:
    """w^exponent, not calibrated, with 0^p = 0 for every p: the pseudo-inverse (Moore-Penrose) of an omitted band.

    -1 whitens, -2 is the score's weight, 0 the projector on the kept bands. `weight` is even, as all weights of this
    module are. The gradient with respect to a weight of 0 is 0.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    if weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weight: expected float32 or float64, got {weight.dtype}")
    exponent = _parameter("exponent", exponent, weight.device)
    return check_nonnegative(
        "weight^exponent", _power(check_nonnegative("weight", weight).double(), exponent).to(weight.dtype)
    )


def _power(base: Tensor, exponent: Tensor) -> Tensor:
    kept = base > 0
    return torch.where(kept, torch.where(kept, base, 1) ** exponent, 0)


def _band(name, height, width, edges, unit, device, *, closed=False) -> Tensor:
    """Bool [H, W//2+1]: the bins of one band, which must not be empty."""
    if unit not in _UNITS:
        raise ValueError(f"unit: expected one of {', '.join(map(repr, _UNITS))}, got {unit!r}")
    try:
        low, high = edges
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a pair (low, high), got {edges}") from None
    if not all(isinstance(edge, Real) and math.isfinite(edge) for edge in (low, high)) or not 0 <= low < high:
        raise ValueError(f"{name}: expected numbers 0 <= low < high, got {low!r} and {high!r}")
    r = radial_frequency(height, width, dtype=torch.float64, device=device) / _UNITS[unit]
    inside = ~_below(r, low) & _below(r, high)
    if closed:
        inside |= ((r - low).abs() < _ROUNDING) | ((r - high).abs() < _ROUNDING)
    if not inside.any():
        others = f" and {r[r > 0].min():.{_DECIMALS}f} to {r.max():.{_DECIMALS}f}" if r.numel() > 1 else ""
        raise ValueError(
            f"{name}: no frequency of a {height} x {width} plane lies in [{low}, {high}) "
            f"(unit {unit!r}); its radial frequencies are 0{others}"
        )
    return inside


def _below(r: Tensor, edge: float) -> Tensor:
    """The bins below a band edge: all of them where the edge reaches the highest frequency, which closes the band."""
    if edge > 0 and edge > r.max() - 0.5 * 10**-_DECIMALS:
        return torch.ones_like(r, dtype=torch.bool)
    return r < edge - _ROUNDING


def _with_dc(weight: Tensor, width: int, dc: str | float | Tensor | None) -> Tensor:
    """The weight with its value at r = 0 replaced as the policy `dc` says."""
    r = radial_frequency(weight.shape[-2], width, dtype=torch.float64, device=weight.device)
    if isinstance(dc, str):
        if dc not in ("nearest", "keep", "zero"):
            raise ValueError(
                f"dc: expected 'nearest', 'keep', 'zero', a number or (power_law only) 'paper', got {dc!r}"
            )
        if dc == "nearest" and r.numel() == 1:
            return weight
        if dc == "nearest":
            lowest = multiplicity(width, like=r) * (r < r[r > 0].min() + _ROUNDING) * (r > 0)
            value = (weight * lowest).sum((-2, -1), keepdim=True) / lowest.sum()
        else:
            value = 1.0 if dc == "keep" else 0.0
    elif dc is None:
        return weight
    else:
        value = check_nonnegative("dc", _parameter("dc", dc, weight.device))
    return torch.where(r > 0, weight, value)


def _finish(weight: Tensor, width: int, normalized: bool, dtype: torch.dtype) -> Tensor:
    """What every weight passes at last: even part, calibration, conversion, and a look at the values."""
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    weight = even_part(check_nonnegative("weight", weight), width)
    if not weight.sum((-2, -1)).all():
        raise ValueError("weight: expected a positive value at one frequency at least, got zero everywhere")
    if normalized:
        weight = weight / weight.detach().amax((-2, -1), keepdim=True)  # so that no square overflows
        weight = weight * mean_square(weight, width).rsqrt()[..., None, None]
    return check_nonnegative("weight", weight.to(dtype))


def _ring(height: int, width: int, device: torch.device) -> Tensor:
    """The ring of each bin, int64 [H, W//2+1]: one step of the longer side apart, DC by itself, none empty."""
    return (radial_frequency(height, width, dtype=torch.float64, device=device) * max(height, width)).round().long()


def _parameter(name: str, value: float | Tensor, device: torch.device | str | None) -> Tensor:
    """A float parameter as float64 [..., 1, 1], ready to meet a plane."""
    if isinstance(value, Tensor) and value.is_complex():
        raise TypeError(f"{name}: expected real values, got {value.dtype}")
    if isinstance(value, Tensor):
        value = value.to(value.device if device is None else device, torch.float64)
    elif isinstance(value, Real):
        value = torch.tensor(value, dtype=torch.float64, device=device)
    else:
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    if not value.isfinite().all():
        raise ValueError(f"{name}: expected finite values, got {value.tolist()}")
    return value[..., None, None]
