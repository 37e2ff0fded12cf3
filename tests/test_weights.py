"""Spectral weights: calibrated exactly, defined at DC and at band edges, even, differentiable, loud about nonsense."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from sagd_kernels import weights
from sagd_kernels.reference import full_weight

SIZES = [(1, 2), (1, 7), (1, 16), (7, 1), (16, 1), (2, 2), (3, 5), (8, 8), (27, 31), (28, 28), (16, 48), (48, 17)]
CORNER = 0.5**0.5


def bins(height, width):
    """r of every bin of the full plane, from torch's own frequency grids."""
    vertical, horizontal = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (height, width))
    return torch.hypot(vertical[:, None], horizontal)


def natural_spectrum(height, width):
    """A smooth anisotropic spectrum, even in f, of shape [H, W//2+1]."""
    vertical = torch.fft.fftfreq(height, dtype=torch.float64)[:, None]
    horizontal = torch.fft.rfftfreq(width, dtype=torch.float64)
    return 1 / (0.01 + vertical**2 + 3 * horizontal**2)


WEIGHTS = {
    "power_law": lambda h, w, **o: weights.power_law(h, w, -0.5, **o),
    "power_law_up": lambda h, w, **o: weights.power_law(h, w, 1.5, **o),
    "power_law_paper": lambda h, w, **o: weights.power_law(h, w, -0.04, dc="paper", **o),
    "band_pass": lambda h, w, **o: weights.band_pass(h, w, 0.2, 1, **o),
    "omit_band": lambda h, w, **o: weights.omit_band(h, w, 0.3, 1, **o),
    "two_band": lambda h, w, **o: weights.two_band(h, w, (0, 0.3), (0.3, 1), gamma_low=0.2, gamma_high=0.9, **o),
    "two_band_paper": lambda h, w, **o: weights.two_band(h, w, (0, 0.3), (0.3, 1), mixture="paper", **o),
    "from_power_spectrum": lambda h, w, **o: weights.from_power_spectrum(natural_spectrum(h, w), w, 0.7, **o),
}


# ---- calibration and layout


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_mean_square_over_the_full_plane_is_one_and_the_weight_is_even(name, size):
    weight = WEIGHTS[name](*size)
    assert weight.dtype == torch.float32 and weight.shape == (size[0], size[1] // 2 + 1)
    full = full_weight(weight, size[1])
    assert full.square().mean().item() == pytest.approx(1, abs=2e-7)
    assert torch.equal(full[:, : weight.shape[1]], weight.double())  # taking the even part changes nothing
    exact = full_weight(WEIGHTS[name](*size, dtype=torch.float64), size[1])
    assert exact.square().mean().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize("name", WEIGHTS)
def test_calibration_is_one_constant(name):
    raw, calibrated = (WEIGHTS[name](28, 27, normalized=n, dtype=torch.float64) for n in (False, True))
    constant = full_weight(raw, 27).square().mean() ** -0.5
    assert constant != pytest.approx(1)
    torch.testing.assert_close(calibrated, constant * raw, rtol=1e-14, atol=0)


def test_a_plane_of_one_pixel_has_only_dc():
    for weight in (weights.power_law(1, 1, -0.5), weights.band_pass(1, 1, 0, 0.3), weights.power_law(1, 1, 2, dc=7)):
        assert weight.tolist() == [[1.0]]
    with pytest.raises(ValueError, match="zero everywhere"):
        weights.power_law(1, 1, -0.5, dc="zero")


@pytest.mark.parametrize("size", [(1, 1), *SIZES])
def test_radial_frequency(size):
    r = weights.radial_frequency(*size)
    assert r.dtype == torch.float32 and r[0, 0] == 0 and r.max() <= 0.70711
    torch.testing.assert_close(r.double(), bins(*size)[:, : size[1] // 2 + 1], rtol=1e-7, atol=0)


# ---- power law and DC


@pytest.mark.parametrize("alpha", [-2, -0.04, 0, 0.7])
def test_power_law_away_from_dc(alpha):
    weight = weights.power_law(12, 15, alpha, normalized=False, dtype=torch.float64)
    expected = bins(12, 15)[:, :8] ** alpha
    torch.testing.assert_close(weight.flatten()[1:], expected.flatten()[1:], rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("dc", "value"),
    [("nearest", 20**0.5), ("keep", 1), ("zero", 0), (2.5, 2.5), (0, 0), (torch.tensor(3.0), 3), ("paper", 1e5)],
)
def test_dc_policies_change_dc_alone(dc, value):
    weight = weights.power_law(10, 20, -0.5, dc=dc, normalized=False, dtype=torch.float64)
    assert weight[0, 0].item() == pytest.approx(value, rel=1e-12)
    other = weights.power_law(10, 20, -0.5, normalized=False, dtype=torch.float64)
    torch.testing.assert_close(weight.flatten()[1:], other.flatten()[1:], rtol=1e-8, atol=0)


def test_paper_power_law_is_the_published_formula_at_every_bin():
    weight = weights.power_law(28, 28, -0.04, dc="paper", normalized=False, dtype=torch.float64)
    torch.testing.assert_close(weight, (bins(28, 28)[:, :15] + 1e-10) ** -0.04, rtol=1e-14, atol=0)
    assert weight[0, 0].item() == pytest.approx(2.512, abs=1e-3)


def test_nearest_takes_the_mean_over_all_the_lowest_frequencies():
    spectrum = torch.full((6, 4), 9.0)
    spectrum[1, 0] = spectrum[5, 0] = 1  # (+-1, 0): weight 1; (0, +-1): weight 3
    weight = weights.from_power_spectrum(spectrum, 6, normalized=False)
    assert weight[0, 0] == 2


def test_bands_treat_dc_as_any_frequency_unless_told():
    assert weights.band_pass(8, 8, 0, 0.3, normalized=False)[0, 0] == 1
    assert weights.band_pass(8, 8, 0.01, 0.3, normalized=False)[0, 0] == 0
    assert weights.band_pass(8, 8, 0.01, 0.3, normalized=False, dc="nearest")[0, 0] == 1
    assert weights.band_pass(8, 8, 0.2, 0.3, normalized=False, dc="keep")[0, 0] == 1
    assert weights.band_pass(8, 8, 0, 0.3, normalized=False, dc="zero")[0, 0] == 0
    assert weights.omit_band(8, 8, 0, 0.3, normalized=False)[0, 0] == 0
    assert weights.two_band(8, 8, (0, 0.3), (0.3, 1), normalized=False, dc=2)[0, 0] == 2


# ---- bands


@pytest.mark.parametrize("unit", ["cycles", "nyquist", "corner"])
@pytest.mark.parametrize("size", [(8, 8), (20, 20), (28, 28), (27, 31), (1, 40), (16, 48)])
def test_adjacent_bands_partition_the_plane(size, unit):
    scale = {"cycles": 1, "nyquist": 0.5, "corner": CORNER}[unit]
    top = bins(*size).max().item() / scale
    # edges that fall on bins and between them, ties of the 3-4-5 kind, and the top as one would type it
    edges = [0, 0.1 / scale, 0.25 / scale, 0.3 / scale, 0.5 / scale, round(top, 4)]
    edges = [edge for edge in edges if edge < top - 0.01] + [edges[-1]]
    bands = [weights.band_pass(*size, *band, unit=unit, normalized=False) for band in pairwise(edges)]
    assert torch.equal(sum(bands), torch.ones_like(bands[0]))


def test_bands_are_half_open_on_bins_that_decimal_edges_name():
    # r = 0.3 lies on (3, 0), (0, 3); r = 0.5 on (5, 0), (0, 5), (3, 4), (4, 3)
    below, above = (weights.band_pass(10, 10, *band, normalized=False) for band in ((0, 0.3), (0.3, 0.5)))
    for k, l in ((3, 0), (7, 0), (0, 3)):
        assert (below[k, l], above[k, l]) == (0, 1)
    for k, l in ((5, 0), (0, 5), (3, 4), (4, 3), (6, 3)):
        assert above[k, l] == 0
    assert above[4, 2] == 1  # 0.447


@pytest.mark.parametrize(("unit", "top"), [("cycles", 0.7071), ("nyquist", 1.4142), ("corner", 1.0)])
def test_the_top_edge_is_closed(unit, top):
    assert weights.band_pass(16, 16, 0.3, top, unit=unit)[8, 8] > 0
    assert weights.band_pass(16, 16, 0.3, 0.99 * top, unit=unit)[8, 8] == 0


def test_units_name_the_same_edges():
    cycles = weights.band_pass(30, 32, 0.1, 0.25)
    assert torch.equal(weights.band_pass(30, 32, 0.2, 0.5, unit="nyquist"), cycles)
    assert torch.equal(weights.band_pass(30, 32, 0.1 / CORNER, 0.25 / CORNER, unit="corner"), cycles)
    # exactly half way to the corner
    assert [weights.band_pass(16, 16, 0, top, unit="corner")[4, 4] > 0 for top in (0.5, 0.500001)] == [False, True]
    r = weights.radial_frequency(30, 32, dtype=torch.float64)
    assert torch.equal(cycles > 0, (r >= 0.1 - 1e-9) & (r < 0.25 - 1e-9))


def test_omit_band_is_the_complement_of_band_pass():
    kept, omitted = (f(20, 21, 0.2, 0.35, normalized=False) for f in (weights.band_pass, weights.omit_band))
    assert torch.equal(kept + omitted, torch.ones_like(kept)) and 0 < kept.mean() < 1


@pytest.mark.parametrize(
    ("size", "band", "unit", "reach"),
    [
        ((28, 28), (0.8, 0.9), "cycles", "0 and 0.0357 to 0.7071"),
        ((28, 28), (0.001, 0.03), "cycles", "0 and 0.0357 to 0.7071"),
        ((28, 28), (1.5, 2), "nyquist", "0 and 0.0714 to 1.4142"),
        ((27, 27), (0.97, 1), "corner", "0 and 0.0524 to 0.9630"),
        ((1, 64), (0.6, 0.7), "cycles", "0 and 0.0156 to 0.5000"),
        ((1, 1), (0.1, 0.5), "cycles", "0$"),
    ],
)
@pytest.mark.parametrize("make", [weights.band_pass, weights.omit_band])
def test_an_empty_band_is_an_error_that_names_the_reachable_range(make, size, band, unit, reach):
    with pytest.raises(ValueError, match=reach):
        make(*size, *band, unit=unit)


# ---- two bands


@pytest.mark.parametrize("size", [(28, 28), (27, 31), (1, 40), (16, 48)])
def test_equal_gammas_on_touching_bands_are_exactly_white(size):
    weight = weights.two_band(*size, (0, 0.25), (0.25, 0.7071))
    assert torch.equal(weight, torch.ones_like(weight))


def test_two_band_values():
    weight = weights.two_band(20, 20, (0, 0.2), (0.3, 0.5), gamma_low=0.3, gamma_high=0.8, normalized=False)
    r = bins(20, 20)[:, :11]
    expected = torch.where(r < 0.2 - 1e-9, 0.3, 0.0) + torch.where((r > 0.3 - 1e-9) & (r < 0.5 - 1e-9), 0.8, 0.0)
    torch.testing.assert_close(weight, expected, rtol=1e-7, atol=0)
    assert torch.equal(weights.two_band(20, 20, (0, 0.2), (0.3, 0.5), gamma_high=0), weights.band_pass(20, 20, 0, 0.2))


def test_paper_mixture_has_the_covariance_of_two_independent_unit_draws():
    bands, gammas = ((0, 0.25), (0.25, 0.45)), (0.3, 0.8)
    weight = weights.two_band(
        20, 20, *bands, gamma_low=gammas[0], gamma_high=gammas[1], mixture="paper", normalized=False
    )
    r = bins(20, 20)
    power = torch.zeros_like(r)
    for (low, high), gamma in zip(bands, gammas, strict=True):
        published = ((r >= low - 1e-9) & (r <= high + 1e-9)).double()  # closed at both edges: r = 0.25 is in both
        power += gamma**2 * published / published.mean()
    full = full_weight(weight, 20)
    torch.testing.assert_close(full.square(), power, rtol=1e-6, atol=0)
    assert full.square().mean().item() == pytest.approx(0.3**2 + 0.8**2, rel=1e-6)


def test_paper_mixture_with_equal_gammas_is_not_white():
    power = weights.two_band(32, 32, (0, 0.5), (0.5, 1), mixture="paper", normalized=False).square()
    assert (power[-12, 12] / power[0, 1]).item() == pytest.approx(3.44, abs=0.01)
    unit = weights.two_band(32, 32, (0, 0.5), (0.5, 1), mixture="paper")
    torch.testing.assert_close(unit, weights.normalize(power.sqrt(), 32))


# ---- the data's own spectrum


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 9)])
def test_a_known_spectrum_is_recovered_from_images(size):
    spectrum = natural_spectrum(*size)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(20000, *size, generator=generator, dtype=torch.float64)
    images = torch.fft.irfft2(torch.fft.rfft2(white) * spectrum.sqrt(), s=size)
    weight = weights.from_power_spectrum(weights.power_spectrum(images), size[1], dc=None, dtype=torch.float64)
    expected = weights.normalize(spectrum.sqrt(), size[1])
    # the power of one bin is exponential or chi-square: relative error of its mean at most sqrt(2 / 20000), twice w's
    assert (weight / expected - 1).abs().max() < 5 * 0.5 * math.sqrt(2 / 20000)
    assert (weight / expected - 1).abs().max() > 0


def test_power_spectrum_is_in_squared_pixel_units_and_averages_over_batches():
    images = torch.randn(6, 3, 10, 7, generator=torch.Generator().manual_seed(1))
    spectrum = weights.power_spectrum(images)
    full = full_weight(spectrum, 7)
    assert full.mean().item() == pytest.approx(images.square().mean().item(), rel=1e-6)
    batches = torch.stack([weights.power_spectrum(batch) for batch in images.split(2)])
    torch.testing.assert_close(spectrum, batches.mean(0))
    torch.testing.assert_close(weights.power_spectrum(images[0, 0]), weights.power_spectrum(images[:1, :1]))
    assert weights.power_spectrum(images.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("size", [1, 4, 6])
def test_power_spectrum_of_batches_is_that_of_the_whole(size):
    images = torch.randn(6, 3, 10, 7, generator=torch.Generator().manual_seed(1))
    spectrum = weights.power_spectrum(images)
    torch.testing.assert_close(weights.power_spectrum(iter(images.split(size))), spectrum)
    labelled = [(batch, torch.zeros(len(batch))) for batch in images.split(size)]
    torch.testing.assert_close(weights.power_spectrum(labelled), spectrum)
    torch.testing.assert_close(weights.power_spectrum(TensorDataset(images, torch.zeros(6))), spectrum)
    assert weights.power_spectrum([images[:1].double(), images[1:]]).dtype == torch.float64


def test_exponent_tilts_between_white_and_the_spectrum():
    spectrum = natural_spectrum(9, 8)
    white = weights.from_power_spectrum(spectrum, 8, 0)
    torch.testing.assert_close(white, torch.ones_like(white))
    half = weights.from_power_spectrum(spectrum, 8, 0.5, dc=None, normalized=False, dtype=torch.float64)
    torch.testing.assert_close(half**4, spectrum, rtol=1e-12, atol=0)
    inverse = weights.from_power_spectrum(spectrum, 8, -0.5, dc=None, normalized=False, dtype=torch.float64)
    torch.testing.assert_close(half * inverse, torch.ones_like(half), rtol=1e-12, atol=0)


def test_radial_average_keeps_power_and_ring_means():
    spectrum = natural_spectrum(12, 16)
    weight = weights.from_power_spectrum(spectrum, 16, radial=True, dc=None, normalized=False, dtype=torch.float64)
    ring = (bins(12, 16) * 16).round()
    full, original = full_weight(weight, 16).square(), full_weight(spectrum, 16)
    profile = weights.radial_profile(spectrum, 16)
    assert len(profile) == ring.max() + 1
    for i, mean in enumerate(profile):
        assert mean.item() == pytest.approx(original[ring == i].mean().item(), rel=1e-12)
        torch.testing.assert_close(full[ring == i], mean.expand(int((ring == i).sum())), rtol=1e-12, atol=0)
    assert full.mean().item() == pytest.approx(original.mean().item(), rel=1e-12)


@pytest.mark.parametrize("size", [(1, 1), *SIZES])
def test_no_ring_is_empty(size):
    profile = weights.radial_profile(torch.ones(size[0], size[1] // 2 + 1), size[1])
    assert torch.equal(profile, torch.ones_like(profile))


# ---- algebra


def test_combine_is_the_calibrated_product():
    tilt, gap = weights.power_law(16, 18, -1), weights.omit_band(16, 18, 0.2, 0.3)
    both = weights.combine(tilt, gap, width=18)
    torch.testing.assert_close(both, weights.normalize(tilt * gap, 18))
    assert full_weight(both, 18).square().mean().item() == pytest.approx(1, abs=2e-7)
    assert torch.equal(both == 0, gap == 0)
    assert weights.combine(torch.ones(3, 1, 16, 10), torch.ones(2, 16, 10), width=18).shape == (3, 2, 16, 10)


@pytest.mark.parametrize("width", [8, 9])
def test_normalize_takes_the_even_part_as_the_operators_do(width):
    weight = torch.rand(6, width // 2 + 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    normal = weights.normalize(weight, width)
    full = full_weight(weight, width)
    torch.testing.assert_close(full_weight(normal, width), full / full.square().mean().sqrt())
    torch.testing.assert_close(weights.normalize(5 * normal, width), normal)
    assert not torch.equal(normal / normal[0, 0], weight / weight[0, 0])


def test_normalize_calibrates_each_plane_of_a_batch():
    weight = torch.rand(4, 3, 6, 4, generator=torch.Generator().manual_seed(3))
    normal = weights.normalize(weight, 7)
    torch.testing.assert_close(normal[2, 1], weights.normalize(weight[2, 1], 7))


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_normalize_takes_values_whose_squares_do_not_fit(factor):
    weight = torch.rand(8, 5, dtype=torch.float64)
    torch.testing.assert_close(weights.normalize(factor * weight, 8), weights.normalize(weight, 8))


def test_sizes_may_be_integers_of_numpy():
    height, width = np.array([8, 6])
    assert torch.equal(weights.power_law(height, width, -0.5, dc="keep"), weights.power_law(8, 6, -0.5, dc="keep"))
    assert torch.equal(weights.band_pass(height, width, 0.2, 0.4), weights.band_pass(8, 6, 0.2, 0.4))


@pytest.mark.parametrize("exponent", [-2, -1, -0.5, 0, 0.5, 1, 2])
def test_power_is_the_pseudo_inverse_family(exponent):
    weight = weights.combine(weights.power_law(9, 10, -1), weights.omit_band(9, 10, 0.2, 0.4), width=10)
    result = weights.power(weight, exponent)
    kept = weight > 0
    assert result.dtype == torch.float32 and torch.equal(result > 0, kept) and not kept.all()
    torch.testing.assert_close(result[kept], weight[kept] ** exponent)


def test_whitening_twice_over_projects_on_the_kept_bands():
    weight = weights.two_band(12, 12, (0, 0.2), (0.3, 1), gamma_low=0.1)
    projector = weights.power(weight, 0)
    torch.testing.assert_close(weight * weights.power(weight, -1), projector)
    assert set(projector.unique().tolist()) == {0.0, 1.0}


# ---- gradients and batches of parameters

D = torch.float64
GRADIENTS = {
    "alpha": (lambda a: weights.power_law(5, 6, a, dtype=D), -0.5),
    "alpha, paper": (lambda a: weights.power_law(5, 6, a, dc="paper", dtype=D), -0.05),
    "dc": (lambda v: weights.power_law(5, 6, -1, dc=v, dtype=D), 0.7),
    "gamma_low": (lambda g: weights.two_band(8, 6, (0, 0.2), (0.3, 1), gamma_low=g, dtype=D), 0.3),
    "gamma_high": (lambda g: weights.two_band(8, 6, (0, 0.2), (0.3, 1), gamma_high=g, dtype=D), 0.3),
    "gamma, paper": (
        lambda g: weights.two_band(8, 6, (0, 0.25), (0.25, 0.4), gamma_high=g, mixture="paper", dtype=D), 0.3
    ),
    "exponent": (lambda p: weights.from_power_spectrum(natural_spectrum(5, 6), 6, p, dtype=D), 0.8),
    "power": (lambda p: weights.power(weights.omit_band(5, 6, 0.2, 0.3, dtype=D) * 2, p), -0.8),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_in_parameters(name):
    function, value = GRADIENTS[name]
    parameter = torch.tensor(value, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(function, parameter) and torch.autograd.gradgradcheck(function, parameter)
    assert torch.autograd.functional.jacobian(function, parameter).abs().max() > 1e-3


def test_gradients_in_a_spectrum_and_in_a_weight():
    spectrum = natural_spectrum(4, 5).requires_grad_()
    for options in ({}, {"radial": True}, {"dc": None}):
        assert torch.autograd.gradcheck(lambda c: weights.from_power_spectrum(c, 5, 0.6, dtype=D, **options), spectrum)  # noqa: B023
    assert torch.autograd.gradcheck(lambda w: weights.normalize(w, 5), spectrum)
    assert torch.autograd.gradcheck(lambda w: weights.power(w, -1), spectrum)


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 2.0])
@pytest.mark.parametrize("dc", ["nearest", "keep", "zero", "paper", 1.0])
def test_the_gradient_in_alpha_is_finite_at_dc(alpha, dc):
    alpha = torch.tensor(alpha, requires_grad=True)
    weight = weights.power_law(8, 8, alpha, dc=dc)
    for bin in ((0, 0), (3, 2)):
        assert torch.autograd.grad(weight[bin], alpha, retain_graph=True)[0].isfinite()


def test_gradients_of_omitted_bins_are_zero_and_finite():
    weight = weights.omit_band(8, 8, 0.2, 0.4).requires_grad_()
    weights.power(weight, -1).sum().backward()
    assert torch.equal(weight.grad == 0, weight == 0) and weight.grad.isfinite().all()
    gammas = torch.tensor([0.0, 0.5], requires_grad=True)
    mixed = weights.two_band(8, 8, (0, 0.2), (0.2, 0.4), gamma_low=gammas[0], gamma_high=gammas[1], mixture="paper")
    mixed.sum().backward()
    assert gammas.grad.isfinite().all() and gammas.grad[0] > 0


def test_a_batch_of_parameters_gives_a_batch_of_weights():
    alphas = torch.tensor([-1.0, 0.0, 0.5])
    batch = weights.power_law(8, 6, alphas)
    assert batch.shape == (3, 8, 4)
    for weight, alpha in zip(batch, alphas.tolist(), strict=True):
        torch.testing.assert_close(weight, weights.power_law(8, 6, alpha))
    gammas = torch.tensor([[0.1], [0.9]])
    assert weights.two_band(8, 6, (0, 0.2), (0.2, 1), gamma_low=gammas).shape == (2, 1, 8, 4)
    assert weights.from_power_spectrum(batch, 6, alphas).shape == (3, 8, 4)
    assert weights.power(batch[0], alphas).shape == (3, 8, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", [name for name in WEIGHTS if name != "from_power_spectrum"])
def test_devices_agree(name):
    there = WEIGHTS[name](28, 31, device="cuda")
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), WEIGHTS[name](28, 31), rtol=1e-6, atol=0)


def test_the_device_is_the_one_asked_for_or_the_parameters_or_the_default():
    """With the meta device, which holds no values, as the default: whatever strays there fails."""
    here = torch.tensor(0.5)
    images = torch.rand(3, 4, 4)
    with torch.device("meta"):
        assert weights.radial_frequency(4, 4).is_meta
        results = [
            weights.radial_frequency(4, 4, device="cpu"),
            weights.power_law(4, 4, 0.5, device="cpu"),
            weights.power_law(4, 4, here),
            weights.band_pass(4, 4, 0, 0.3, device="cpu", dc="nearest"),
            weights.omit_band(4, 4, 0.3, 1, device="cpu"),
            weights.two_band(4, 4, (0, 0.3), (0.3, 1), device="cpu", mixture="paper"),
            weights.two_band(4, 4, (0, 0.3), (0.3, 1), gamma_low=here),
            weights.two_band(4, 4, (0, 0.3), (0.3, 1), gamma_high=here),
            weights.from_power_spectrum(weights.power_spectrum(images), 4, radial=True),
            weights.combine(here.expand(4, 3), width=4),
            weights.power(here.expand(4, 3), -1),
        ]
    assert all(result.device.type == "cpu" for result in results)


# ---- bad arguments


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weights.power_law(0, 8, 1), ValueError, "height: expected at least 1, got 0"),
        (lambda: weights.band_pass(8, -1, 0, 0.3), ValueError, "width: expected at least 1, got -1"),
        (lambda: weights.radial_frequency(8, 8.0), TypeError, "width: expected an int, got float"),
        (lambda: weights.power_law(8, 8, math.nan), ValueError, "alpha: expected finite values, got nan"),
        (lambda: weights.power_law(8, 8, torch.tensor(math.inf)), ValueError, "alpha: expected finite"),
        (lambda: weights.power_law(8, 8, "1"), TypeError, "alpha: expected a number or a tensor, got str"),
        (lambda: weights.power_law(8, 8, torch.tensor(1j)), TypeError, "alpha: expected real .* got torch.complex64"),
        (lambda: weights.power_law(8, 8, -1, dc=torch.tensor(1j)), TypeError, "dc: expected real .* torch.complex64"),
        (lambda: weights.power_law(8, 8, -900), ValueError, "weight: expected finite values"),
        (lambda: weights.power_law(8, 8, -60, normalized=False), ValueError, "weight: expected finite values"),
        (lambda: weights.power_law(8, 8, 1, dc="near"), ValueError, "dc: expected .* got 'near'"),
        (lambda: weights.power_law(8, 8, 1, dc=-1), ValueError, "dc: expected finite values >= 0"),
        (lambda: weights.power_law(8, 8, 1, dc=None), ValueError, "dc: r.alpha has no value"),
        (lambda: weights.band_pass(8, 8, 0, 0.3, dc="paper"), ValueError, "dc: expected .* got 'paper'"),
        (lambda: weights.power_law(8, 8, 1, dtype=torch.float16), ValueError, "dtype: expected .* got torch.float16"),
        (lambda: weights.band_pass(8, 8, 0.3, 0.3), ValueError, "low, high: expected .* got 0.3 and 0.3"),
        (lambda: weights.band_pass(8, 8, -0.1, 0.3), ValueError, "low, high: expected .* got -0.1"),
        (lambda: weights.band_pass(8, 8, torch.tensor(0.1), 0.3), ValueError, r"got tensor\(0.1000\) and 0.3"),
        (lambda: weights.omit_band(8, 8, 0, math.inf), ValueError, "low, high: expected .* got 0 and inf"),
        (lambda: weights.omit_band(8, 8, 0, 1), ValueError, "zero everywhere"),
        (lambda: weights.band_pass(8, 8, 0, 0.1, dc="zero"), ValueError, "zero everywhere"),
        (lambda: weights.band_pass(8, 8, 0, 0.3, unit="hz"), ValueError, "unit: expected .*'nyquist'.* got 'hz'"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.2, 1)), ValueError, "do not overlap, got .*0.3.* and .*0.2"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.8, 1)), ValueError, "high_band: no frequency"),
        (lambda: weights.two_band(8, 8, (0.4, 0.3), (0.8, 1)), ValueError, "low_band: expected"),
        (lambda: weights.two_band(8, 8, 0.3, (0.8, 1)), ValueError, "low_band: expected a pair .* got 0.3"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.4, 0.5, 1)), ValueError, "high_band: expected a pair"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.3, 1), mixture="a"), ValueError, "mixture: expected .* got 'a'"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.3, 1), gamma_low=-1), ValueError, "gamma_low: .* >= 0, got -1"),
        (lambda: weights.two_band(8, 8, (0, 0.3), (0.3, 1), gamma_low=0, gamma_high=0), ValueError, "zero every"),
        (lambda: weights.from_power_spectrum(-torch.ones(8, 5), 8), ValueError, "spectrum: expected finite values >="),
        (lambda: weights.from_power_spectrum(torch.ones(8, 8), 8), ValueError, r"spectrum: .*\[..., H, 5\].*\[8, 8\]"),
        (lambda: weights.from_power_spectrum(np.ones((8, 5)), 8), TypeError, "spectrum: .* a tensor, got ndarray"),
        (lambda: weights.power_spectrum(None), TypeError, "images: expected a tensor or an iterable .* got NoneType"),
        (lambda: weights.power_spectrum(torch.ones(8)), ValueError, r"images: .* got torch.float32 \[8\]"),
        (lambda: weights.power_spectrum(torch.ones(0, 8, 8)), ValueError, r"images: expected a non-empty"),
        (lambda: weights.power_spectrum(torch.ones(8, 8).byte()), ValueError, "images: .* floating .* torch.uint8"),
        (lambda: weights.power_spectrum([]), ValueError, "images: expected at least one batch, got none"),
        (lambda: weights.power_spectrum([{}]), ValueError, r"images: expected .* tensor \[..., H, W\], got dict"),
        (lambda: weights.power_spectrum([torch.ones(8, 8), torch.ones(8, 9)]), ValueError,
         r"images: expected planes of one size, got \[8, 9\] after \[8, 8\]"),
        (lambda: weights.radial_profile(torch.ones(8, 8), 8), ValueError, "values: expected .* for width 8"),
        (lambda: weights.combine([torch.ones(8, 5)], width=8), TypeError, "weights: expected a tensor, got list"),
        (lambda: weights.combine(width=8), ValueError, "weights: expected at least one"),
        (lambda: weights.combine(torch.ones(8, 5), torch.ones(1, 5), width=8), ValueError, r"weights: .*\[\[1, 5\]"),
        (lambda: weights.combine(torch.ones(8, 5), torch.ones(8, 4), width=8), ValueError, r"weights: .*\[8, 4\]"),
        (lambda: weights.normalize(torch.ones(8, 5), None), TypeError, "width: expected an int, got NoneType"),
        (lambda: weights.normalize(torch.ones(8, 5).half(), 8), ValueError, "weight: .* got torch.float16"),
        (lambda: weights.normalize(torch.zeros(8, 5), 8), ValueError, "weight: .* zero everywhere"),
        (lambda: weights.normalize(torch.eye(2).repeat(2, 1, 1) * torch.tensor([1, 0]).view(2, 1, 1), 2),
         ValueError, "weight: .* zero everywhere"),
        (lambda: weights.normalize(torch.full((8, 5), math.nan), 8), ValueError, "weight: .* got nan"),
        (lambda: weights.power(np.ones((8, 5)), 1), TypeError, "weight: expected a tensor, got ndarray"),
        (lambda: weights.power(torch.ones(8, 5).int(), 1), ValueError, "weight: .* got torch.int32"),
        (lambda: weights.power(torch.tensor([[-1.0]]), -1), ValueError, "weight: expected finite values >= 0, got -1"),
        (lambda: weights.power(torch.full((8, 5), 1e-30), -2), ValueError, "weight.exponent: .* got inf"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
