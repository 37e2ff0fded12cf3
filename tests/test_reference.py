"""reference.py computes what it says, checked against dense DFT matrices on planes small enough to write them out."""

import math

import pytest
import torch
from conftest import random_weight

import sagd_kernels as sagd
from sagd_kernels import reference

SIZES = [(1, 1), (1, 2), (1, 7), (1, 8), (7, 1), (8, 1), (2, 2), (3, 5), (4, 6), (6, 6), (5, 4), (2, 9)]
each_size = pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")


def dft(n: int) -> torch.Tensor:
    """The unitary DFT matrix."""
    index = torch.arange(n)
    angle = -2 * torch.pi / n * (index[:, None] * index % n).double()
    return torch.polar(torch.full_like(angle, n**-0.5), angle)


def transform(planes: torch.Tensor) -> torch.Tensor:
    return dft(planes.shape[-2]) @ planes.to(torch.complex128) @ dft(planes.shape[-1])


def inverse(spectra: torch.Tensor) -> torch.Tensor:
    return dft(spectra.shape[-2]).conj() @ spectra @ dft(spectra.shape[-1]).conj()


def written_out(weight: torch.Tensor, width: int) -> torch.Tensor:
    """The even full-plane weight of one half-plane weight, bin by bin."""
    height = weight.shape[0]
    full = torch.zeros(height, width, dtype=torch.float64)
    for k in range(height):
        for l in range(width):
            full[k, l] = weight[k, l] if 2 * l <= width else weight[-k % height, width - l]
    return torch.stack(
        [(full[k, l] + full[-k % height, -l % width]) / 2 for k in range(height) for l in range(width)]
    ).view(height, width)


def assert_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@each_size
def test_full_weight_is_even_and_holds_every_bin(size):
    weight = random_weight(2, *size)
    full = reference.full_weight(weight, size[1])
    assert_equal(full, torch.stack([written_out(w, size[1]) for w in weight]))
    assert torch.equal(full, full.flip(-2, -1).roll((1, 1), (-2, -1)))  # w(-k, -l) = w(k, l)
    assert full.dtype == torch.float64 and full.shape == (2, *size)


@each_size
def test_the_even_part_is_what_the_real_part_of_the_inverse_keeps(size):
    height, width = size
    plane, weight = torch.randn(size, dtype=torch.float64), random_weight(*size, dtype=torch.float64)
    uneven = torch.zeros(size, dtype=torch.float64)
    for l in range(width):
        uneven[:, l] = weight[:, l] if 2 * l <= width else weight[-torch.arange(height) % height, width - l]
    assert_equal(inverse(uneven * transform(plane)).real, reference.spectral_filter(plane, weight))


@each_size
def test_spectral_filter(size):
    planes, weight, scale = torch.randn(2, 3, *size), random_weight(3, *size), torch.tensor([0.5, -2.0])
    full = torch.stack([written_out(w, size[1]) for w in weight])
    filtered = inverse(full * transform(planes))
    assert filtered.imag.abs().max() < 1e-12
    assert_equal(reference.spectral_filter(planes, weight), filtered.real)
    assert_equal(reference.spectral_filter(planes, weight, scale), filtered.real * scale.view(2, 1, 1, 1).double())


@each_size
def test_noise_is_the_filter_of_white_noise(size, key):
    size, scale = (2, 3, *size), torch.tensor([[1.0, 2.0, 3.0]])
    weight = random_weight(2, 1, *size[2:], dtype=torch.float64)
    white = inverse(reference.white_spectrum(key, size, 5)) / (size[2] * size[3]) ** 0.5
    assert white.imag.abs().max() < 1e-12
    noise = reference.shaped_noise(key, size, weight, scale, plane_offset=5)
    assert_equal(noise, reference.spectral_filter(white.real, weight) * scale.view(1, 3, 1, 1).double())


@each_size
def test_add_noise(size, key):
    planes, weight = torch.randn(2, 3, *size), random_weight(*size)
    signal_scale, noise_scale = torch.tensor([0.9, 0.1]), torch.tensor([[0.3, 0.5, 0.7]])
    noisy, noise = reference.add_noise(planes, key, weight, signal_scale, noise_scale, plane_offset=2)
    assert torch.equal(noise, reference.shaped_noise(key, planes.shape, weight, plane_offset=2))
    expected = signal_scale.view(2, 1, 1, 1).double() * planes.double()
    assert_equal(noisy, expected + noise_scale.view(1, 3, 1, 1).double() * noise)


@each_size
def test_whitened_mse(size):
    planes, target, weight = torch.randn(2, 3, *size), torch.randn(2, 3, *size), random_weight(3, *size)
    weight[0, 0, 0] = 0  # a bin of the first channel
    weight[1, :, -1] = 0  # a column of the second
    if size[1] > 2:
        weight[2, -1, 1] = -1  # no bin of the third counts where w <= 0
    power = transform(planes.double() - target.double()).abs().square()
    losses = []
    for c in range(3):
        full = written_out(weight[c], size[1])
        for n in range(2):
            kept = [(power[n, c, k, l] / full[k, l] ** 2).item() for k, l in (full > 0).nonzero().tolist()]
            losses.append(math.fsum(kept) / max(len(kept), 1))
    assert reference.whitened_mse(planes, target, weight).item() == pytest.approx(sum(losses) / 6, rel=1e-12)


@each_size
def test_whitened_mse_of_a_white_weight_is_the_mean_square_error(size):
    planes, target = torch.randn(2, 3, *size).double(), torch.randn(2, 3, *size).double()
    loss = reference.whitened_mse(planes, target, torch.ones(size[0], size[1] // 2 + 1))
    assert_equal(loss, torch.nn.functional.mse_loss(planes, target))


def test_whitened_mse_counts_a_plane_without_weight_as_zero():
    planes, weight = torch.randn(2, 4, 4).double(), torch.ones(2, 4, 3)
    weight[1] = 0
    loss = reference.whitened_mse(planes, torch.zeros_like(planes), weight)
    assert_equal(loss, planes[0].square().mean() / 2)


@each_size
def test_white_spectrum_is_exactly_white(size, key, monkeypatch):
    """The noise is linear in the orbits' normals, xi = A g, with as many columns as normals: A A^T must be 1."""
    orbits = (size[0] // 2 + 1) * (size[1] // 2 + 1)
    basis = torch.eye(4 * orbits, dtype=torch.float64).view(4 * orbits, size[0] // 2 + 1, size[1] // 2 + 1, 4)
    monkeypatch.setattr(reference, "normals", lambda words: tuple(g.unsqueeze(0) for g in basis.unbind(-1)))
    spectra = reference.white_spectrum(key, (4 * orbits, *size))
    fields = inverse(spectra) / (size[0] * size[1]) ** 0.5
    assert fields.imag.abs().max() < 1e-12
    mixing = fields.real.flatten(1)
    assert_equal(mixing.mT @ mixing, torch.eye(size[0] * size[1], dtype=torch.float64))


@pytest.mark.parametrize("size", [(3, 1, 4, 5), (3, 2, 5, 4)])
def test_every_key_has_its_own_planes(size, key):
    keys = sagd.split(key, 3)
    together = reference.white_spectrum(keys, size, 4)
    assert torch.equal(together, torch.stack([reference.white_spectrum(k, size[1:], 4) for k in keys]))
    with pytest.raises(ValueError, match=r"key: leading dimensions \(3,\) must be those of size \(2, 1, 4, 5\)"):
        reference.white_spectrum(keys, (2, 1, 4, 5))


def test_noise_is_on_the_device_of_the_key_and_not_on_the_default_one(key):
    expected = reference.shaped_noise(key, (2, 5, 4), torch.ones(5, 3))
    with torch.device("meta"):
        assert torch.equal(reference.shaped_noise(key, (2, 5, 4), torch.ones(5, 3, device="cpu")), expected)


def test_normals_follow_box_and_muller():
    words = torch.tensor([[0, 0, 0xFFFFFFFF, 1 << 30], [1 << 31, 1 << 31, 123456789, 987654321]])
    expected = []
    for r in words.tolist():
        for u, angle in ((r[0], r[1]), (r[2], r[3])):
            radius = math.sqrt(-2 * math.log(u * 2.0**-32 + 2.0**-33))
            expected += [radius * math.cos(2 * math.pi * angle / 2**32), radius * math.sin(2 * math.pi * angle / 2**32)]
    assert_equal(torch.stack(reference.normals(words), -1).flatten(), torch.tensor(expected, dtype=torch.float64))
