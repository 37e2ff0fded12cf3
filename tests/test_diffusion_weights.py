"""Weights from the data: spectra of data sets, their ranking by the Gaussian oracle, and weights that are learned."""

import math
from functools import partial

import pytest
import torch
from torch.distributions import kl_divergence
from torch.utils.data import DataLoader, TensorDataset

import sagd_kernels as sagd
from sagd_kernels import weights
from sagd_kernels.diffusion import (
    DDPMSchedule,
    DiffusionProcess,
    FlowSchedule,
    GaussianOracle,
    RadialWeight,
    SpectralNormal,
    ddpm,
    edm_heun,
    rank_weights,
    sampled_spectrum,
    spectrum_error,
)
from sagd_kernels.spectral import mean_square

D = torch.float64
DDPM = DDPMSchedule.linear()


def power_laws(height, width, *alphas):
    return {f"{alpha:+}": weights.power_law(height, width, alpha) for alpha in alphas}


# ---- ranking


def test_candidates_are_ranked_by_the_error_of_their_samples():
    spectrum = weights.power_law(16, 16, -1, dtype=D).square() / 4
    ranking = rank_weights(power_laws(16, 16, 0.5, -1.0, 0.0, -0.5), spectrum, 16, DDPM, DDPM.times(10))
    assert list(ranking) == ["-1.0", "-0.5", "+0.0", "+0.5"]
    for name, error in ranking.items():
        process = DiffusionProcess(DDPM, weights.power_law(16, 16, float(name)), 16, prediction="v")
        assert error == pytest.approx(spectrum_error(sampled_spectrum(process, spectrum, DDPM.times(10)), spectrum, 16))


def test_the_ranking_follows_sampler_and_schedule():
    spectrum, candidates = weights.power_law(8, 8, -1).square(), power_laws(8, 8, 0.0, -0.5)
    flow = FlowSchedule()
    few, many = (rank_weights(candidates, spectrum, 8, flow, flow.times(n)) for n in (4, 40))
    assert all(many[name] < 0.5 * few[name] for name in candidates)
    drawn = rank_weights(candidates, spectrum, 8, DDPM, DDPM.times(10), sampler=ddpm)
    plain = rank_weights(candidates, spectrum, 8, DDPM, DDPM.times(10))
    assert all(drawn[name] != pytest.approx(plain[name], rel=0.01) for name in candidates)
    with pytest.raises(ValueError, match="edm_heun expects the schedule EDMSchedule"):
        rank_weights(candidates, spectrum, 8, DDPM, DDPM.times(10), sampler=partial(edm_heun, churn=1.0))


def test_an_omitted_band_is_an_infinite_error_unless_the_data_omit_it_too():
    omitting, spectrum = weights.omit_band(16, 16, 0.2, 0.3), weights.power_law(16, 16, -1).square()
    candidates = {"omitting": omitting, **power_laws(16, 16, -0.5)}
    assert list(rank_weights(candidates, spectrum, 16, DDPM, DDPM.times(20)).items())[1] == ("omitting", math.inf)
    lacking = spectrum * (omitting > 0)
    assert rank_weights(candidates, lacking, 16, DDPM, DDPM.times(20))["omitting"] < 1


def test_the_spectrums_error_counts_every_bin_of_the_full_plane():
    expected = torch.ones(4, 3, dtype=D)
    actual = expected.clone()
    actual[1, 1] = math.e**2  # stands for two of sixteen bins
    assert spectrum_error(actual, expected, 4) == pytest.approx((2 / 16 * 2**2) ** 0.5)
    assert spectrum_error(expected, expected, 4) == 0


def test_from_a_data_set_to_a_weight_without_holding_it():
    images = SpectralNormal(weights.power_law(12, 10, -1), 10).sample((50, 3), key=sagd.key(0))
    loader = DataLoader(TensorDataset(images, torch.arange(50)), batch_size=7)
    spectrum = weights.power_spectrum(loader)
    torch.testing.assert_close(spectrum, weights.power_spectrum(images))
    candidates = power_laws(12, 10, 0.0, -1.0)
    assert next(iter(rank_weights(candidates, spectrum, 10, DDPM, DDPM.times(20)))) == "-1.0"


# ---- the oracle


def test_the_oracle_is_the_best_linear_predictor():
    weight, spectrum = weights.power_law(6, 5, -0.5, dtype=D), weights.power_law(6, 5, -1, dtype=D).square()
    process = DiffusionProcess(DDPM, weight, 5)
    x0 = SpectralNormal(spectrum.sqrt(), 5).sample((40000,), key=sagd.key(0))
    x, eps = process.add_noise(x0, torch.tensor(300), sagd.key(1))
    error = GaussianOracle(process, spectrum)(x, torch.tensor(300)) - eps
    spectra = torch.fft.rfft2(error), torch.fft.rfft2(x)
    power = spectra[1].abs().square().mean(0) * spectra[0].abs().square().mean(0)
    correlation = (spectra[0] * spectra[1].conj()).mean(0).abs() / power.sqrt()
    assert correlation.max() < 5 / 200  # an error uncorrelated with what is seen, in every bin, is the least
    signal, noise = (level.square() for level in DDPM.levels(torch.tensor(300)))
    least = weight.square() * signal * spectrum / (signal * spectrum + noise * weight.square())
    assert error.square().mean().item() == pytest.approx(mean_square(least.sqrt(), 5).item(), rel=0.01)


def test_errors_of_the_oracle():
    process = DiffusionProcess(DDPM, torch.ones(8, 5), 8)
    with pytest.raises(ValueError, match=r"spectrum: expected .*\[..., H, 5\] for width 8, got .*\[8, 8\]"):
        GaussianOracle(process, torch.ones(8, 8))
    with pytest.raises(ValueError, match="spectrum: expected finite values >= 0"):
        GaussianOracle(process, -torch.ones(8, 5))


# ---- the learnable weight


@pytest.mark.parametrize("size", [(8, 8), (7, 12), (1, 9), (31, 5)])
def test_a_radial_weight_starts_as_a_power_law_and_is_calibrated(size):
    for alpha in (0.0, -0.5, 1.0):
        weight = RadialWeight(*size, alpha=alpha)()
        torch.testing.assert_close(weight, weights.power_law(*size, alpha), rtol=1e-5, atol=0)
    radial = RadialWeight(*size, knots=5)
    torch.nn.init.normal_(radial.log_weight)
    assert mean_square(radial(), size[1]).item() == pytest.approx(1, abs=1e-5)
    before = radial()
    with torch.no_grad():
        radial.log_weight += 3
    torch.testing.assert_close(radial(), before, rtol=1e-5, atol=0)
    before = radial()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(radial(), before)
    assert len(list(radial.parameters())) == 1 and list(radial.state_dict()) == ["log_weight"]


def test_gradients_pass_through_add_noise():
    radial = RadialWeight(6, 5, knots=4, alpha=-0.3).double()
    images, half = torch.randn(2, 1, 6, 5, dtype=D), torch.full((2,), 0.5, dtype=D)

    def noisy(parameters):
        weight = torch.func.functional_call(radial, {"log_weight": parameters})
        return sagd.add_noise(images, sagd.key(0), weight, half, half)[0]

    assert torch.autograd.gradcheck(noisy, radial.log_weight.detach().clone().requires_grad_())
    sagd.add_noise(images, sagd.key(0), radial(), half, half)[0].square().sum().backward()
    assert radial.log_weight.grad.abs().max() > 0


def test_gradients_pass_through_the_loss_of_a_process():
    radial = RadialWeight(8, 8)
    process = DiffusionProcess(DDPM, radial(), 8)
    process.loss(lambda x, t: 0.5 * x, torch.randn(2, 1, 8, 8), torch.tensor([100, 900]), sagd.key(0)).backward()
    assert radial.log_weight.grad.abs().min() > 0


def test_a_radial_weight_learns_the_spectrum_of_the_data():
    data = SpectralNormal(weights.power_law(16, 16, -0.8), 16)
    radial = RadialWeight(16, 16, knots=6)
    optimizer = torch.optim.Adam(radial.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = kl_divergence(data, SpectralNormal(radial(), 16))
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01
    torch.testing.assert_close(radial(), weights.power_law(16, 16, -0.8), rtol=0.02, atol=0)


@pytest.mark.parametrize("arguments", [(1, 1), (1, 2), (8, 8, 1)])
def test_a_radial_weight_needs_frequencies_and_knots(arguments):
    with pytest.raises(ValueError, match="knots: expected two or more on a plane of two or more"):
        RadialWeight(*arguments[:2], knots=arguments[2] if len(arguments) > 2 else 8)
