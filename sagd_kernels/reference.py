"""The float64 definition of every operator. Every backend must agree with this file; one that does not is wrong.

Written to be read beside the paper ("Learning What Matters: Steering Diffusion via Spectrally Anisotropic Forward
Noise", arXiv 2510.09660), not to be fast: dense full-plane transforms, one line per formula. Notation: a plane is
the last two dimensions [H, W]; F is the unitary 2-D DFT; w is a real, even weight over the frequencies of a plane;
T_w = F^-1 diag(w) F. Arguments and errors are those of the operators in `sagd_kernels.ops`; results are float64.
"""

import torch
from torch import Tensor

from .random import philox


def spectral_filter(input: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """scale * F^-1[w . F(input)]."""
    filtered = torch.fft.ifft2(full_weight(weight, input.shape[-1]) * torch.fft.fft2(input.double())).real
    return filtered if scale is None else align_left(scale, filtered.ndim) * filtered


def shaped_noise(key: Tensor, size, weight: Tensor, scale: Tensor | None = None, *, plane_offset: int = 0) -> Tensor:
    """scale * T_w xi, with xi ~ N(0, I) from the stream of `white_spectrum`."""
    spectrum = full_weight(weight, size[-1]) * white_spectrum(key, size, plane_offset)
    noise = torch.fft.ifft2(spectrum).real
    return noise if scale is None else align_left(scale, noise.ndim) * noise


def add_noise(
    input: Tensor, key: Tensor, weight: Tensor, signal_scale: Tensor, noise_scale: Tensor, *, plane_offset: int = 0
) -> tuple[Tensor, Tensor]:
    """(signal_scale * input + noise_scale * noise, noise): the forward process q(x_t | x_0) and its target."""
    noise = shaped_noise(key, input.shape, weight, plane_offset=plane_offset)
    noisy = align_left(signal_scale, input.ndim) * input.double() + align_left(noise_scale, input.ndim) * noise
    return noisy, noise


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean over planes of the mean over full-plane bins with w > 0 of |F(input - target)|^2 / w^2, F unitary.

    A plane whose weight is zero everywhere counts as 0.
    """
    power = torch.fft.fft2(input.double() - target.double(), norm="ortho").abs().square()
    w = full_weight(weight, input.shape[-1]).expand_as(power)
    kept = w > 0
    whitened = torch.where(kept, power / w.where(kept, torch.ones_like(w)).square(), 0)
    return (whitened.sum((-2, -1)) / kept.sum((-2, -1)).clamp(min=1)).mean()


def full_weight(weight: Tensor, width: int) -> Tensor:
    """The even weight on all bins, [..., H, W], that a half-plane weight [..., H, W//2+1] (rfft2's layout) stands for.

    Columns beyond W/2 follow from w(-k, -l) = w(k, l). The columns l = 0 and l = W/2 hold both k and -k, so a weight
    that differs there is replaced by its even part, which is what taking the real part of the inverse does.
    """
    weight = weight.double()
    mirrored = _negate_frequency(torch.nn.functional.pad(weight, (0, width - weight.shape[-1])))
    full = torch.cat([weight, mirrored[..., weight.shape[-1] :]], dim=-1)
    return (full + _negate_frequency(full)) / 2


def white_spectrum(key: Tensor, size, plane_offset: int = 0) -> Tensor:
    """The unnormalised DFT of white noise xi of shape `size`, complex128, drawn from the library's stream.

    Plane p and frequency orbit (k', l'), 0 <= k' <= H//2 and 0 <= l' <= W//2, own one Philox4x32-10 block at counter
    key.offset + p (H//2+1) (W//2+1) + k' (W//2+1) + l'. Its four normals are F(k', l') and F(k', -l'), scaled so that
    E|F|^2 = H W; where k' or l' is its own negative the two coincide up to conjugation and the first serves alone,
    and where both are, F is real. A key [*B, 2] gives every index of the leading dimensions B its own stream.
    """
    height, width = size[-2:]
    lead = key.shape[:-1]
    if tuple(size[: len(lead)]) != tuple(lead):
        raise ValueError(f"key: leading dimensions {tuple(lead)} must be those of size {tuple(size)}")
    rows, columns = height // 2 + 1, width // 2 + 1
    planes_per_key = int(torch.Size(size[len(lead) : -2]).numel())
    counter = torch.arange(planes_per_key * rows * columns, device=key.device).view(planes_per_key, rows, columns)
    origin = plane_offset * rows * columns  # may be beyond 64 bits
    g0, g1, g2, g3 = normals(philox(key.reshape(-1, 1, 1, 1, 2), counter, origin))

    k, l = torch.arange(rows, device=key.device).view(-1, 1), torch.arange(columns, device=key.device)
    k_is_own_negative, l_is_own_negative = (2 * k) % height == 0, (2 * l) % width == 0
    generic = (height * width / 2) ** 0.5
    first, second = generic * torch.complex(g0, g1), generic * torch.complex(g2, g3)
    real = k_is_own_negative & l_is_own_negative
    first = torch.where(real, torch.complex((height * width) ** 0.5 * g0, torch.zeros_like(g0)), first)

    spectrum = first.new_zeros(first.shape[0], planes_per_key, height, width)
    k, l = torch.broadcast_tensors(k, l)
    paired = ~(k_is_own_negative | l_is_own_negative)
    spectrum[..., -k % height, -l % width] = first.conj()
    spectrum[..., -k[paired] % height, l[paired]] = second[..., paired].conj()
    spectrum[..., k[paired], -l[paired] % width] = second[..., paired]
    spectrum[..., k, l] = first
    return spectrum.reshape(*size)


def normals(words: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four standard normals from the four 32-bit words [..., 4] of a Philox block, by Box and Muller's method."""
    words = words.double()
    radius = (-2 * torch.log((words[..., 0::2] + 0.5) * 2.0**-32)).sqrt()
    angle = words[..., 1::2] * (2 * torch.pi * 2.0**-32)
    g = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return g[..., 0, 0], g[..., 0, 1], g[..., 1, 0], g[..., 1, 1]


def align_left(scale: Tensor, ndim: int) -> Tensor:
    """A scale, its dimensions the input's from the left ([N], [N, C], [N, 1, 1, 1]), as float64 [..., 1, 1]."""
    return scale.double().reshape(scale.shape + (1,) * (ndim - scale.ndim))


def _negate_frequency(plane: Tensor) -> Tensor:
    """g(k, l) = f(-k, -l), indices modulo the size."""
    return plane.flip(-2, -1).roll((1, 1), (-2, -1))
