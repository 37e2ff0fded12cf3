"""Noise samplers of k-diffusion's protocol: shaped, independent or the increments of one Brownian path."""

import itertools
import math

import numpy as np
import pytest
import torch
from gaussian_data import SIZE, assert_spectrum, filtered, log_spectrum_error, posterior_means

from sagd_kernels import ShapedNoise, weights
from sagd_kernels.integrations import intercept
from sagd_kernels.integrations.k_diffusion import BrownianTreeNoiseSampler, noise_sampler, on_kept_bands

WEIGHT = weights.power_law(SIZE, SIZE, -1.0)
OMITTED = weights.omit_band(SIZE, SIZE, 0.2, 0.3)
X = torch.zeros(2, 3, SIZE, SIZE)
LOW, HIGH = 1 / 64, 20.0  # as all times below: exact in float32


def brownian(x=X, **arguments):
    return BrownianTreeNoiseSampler(x, LOW, HIGH, **{"seed": 3, "weight": WEIGHT, **arguments})


def increment(sampler, t, t_next):
    """W(t_next) - W(t)."""
    return sampler(t, t_next) * math.sqrt(abs(t_next - t))


# ---- independent noise


def test_each_call_draws_shaped_noise_from_the_generator():
    sampler = noise_sampler(X, WEIGHT, torch.Generator().manual_seed(4))
    expected = ShapedNoise(WEIGHT, torch.Generator().manual_seed(4))
    first, second = sampler(2.0, 1.0), sampler(2.0, 1.0)
    assert torch.equal(first, expected(X)) and torch.equal(second, expected(X))
    assert not torch.equal(first, second)


def test_the_default_generator_governs_the_rest():
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        drawn.append(noise_sampler(X, WEIGHT)(2.0, 1.0) + brownian(seed=None)(2.0, 1.0))
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], noise_sampler(X, WEIGHT)(2.0, 1.0) + brownian(seed=None)(2.0, 1.0))


# ---- one Brownian path

TIMES = [LOW, 1 / 32, 0.5, 1.0, 2.0, 7.75, 10.125, 13.25, HIGH]


@pytest.mark.parametrize(
    "interval", [(HIGH, 13.25), (10.125, 7.75), (1.0, 2.0), (1 / 32, LOW), (LOW + 6e-7, LOW + 3e-6)], ids=str
)
def test_every_interval_has_noise_of_the_weight(interval):
    assert_spectrum(brownian(torch.zeros(3000, 1, SIZE, SIZE))(*interval), WEIGHT)


def test_increments_add_up():
    sampler = brownian(X.double())
    for a, b, c in itertools.permutations(TIMES[2:6], 3):
        whole, parts = increment(sampler, a, c), increment(sampler, a, b) + increment(sampler, b, c)
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-12)
    assert torch.equal(sampler(2.0, 1.0), -sampler(1.0, 2.0))


def test_the_order_of_queries_does_not_matter():
    intervals = [*itertools.pairwise(TIMES), (HIGH, LOW), (1.0, 13.25), (7.75, 0.5)]
    forward, backward = brownian(), brownian()
    noise = {interval: forward(*interval) for interval in intervals}
    for interval in reversed(intervals):
        assert torch.equal(backward(*interval), noise[interval])


@pytest.mark.parametrize(
    ("first", "second"), [((10.0, 4.0), (8.0, 1.0)), ((10.0, 4.0), (4.0, 1.0)), ((2.0, 1.0), (19.0, 0.5))], ids=str
)
def test_intervals_are_correlated_by_their_overlap(first, second):
    """Covariance overlap / sqrt(product of lengths); its standard error is below sqrt(2 / n), n = 256,000 products."""
    sampler = brownian(torch.zeros(1000, 1, SIZE, SIZE), weight=torch.ones_like(WEIGHT))
    product = (sampler(*first) * sampler(*second)).mean().item()
    overlap = max(0, min(first[0], second[0]) - max(first[1], second[1]))
    expected = overlap / math.sqrt((first[0] - first[1]) * (second[0] - second[1]))
    assert abs(product - expected) < 5 * math.sqrt(2 / 256_000)


def test_times_are_transformed():
    sampler = brownian(transform=lambda sigma: -sigma.log())
    reference = BrownianTreeNoiseSampler(X, -math.log(HIGH), -math.log(LOW), seed=3, weight=WEIGHT)
    torch.testing.assert_close(sampler(5.0, 2.0), reference(-math.log(5.0), -math.log(2.0)), rtol=0, atol=1e-3)
    sampler(HIGH, 5.0), sampler(5.0, LOW)
    sampler(torch.tensor(LOW) * (1 - 2e-7), 1.0)  # as back from a transform in float32


def test_a_seed_for_each_sample_makes_paths_independent_of_the_batch():
    both = brownian(seed=[5, 6])(5.0, 2.0)
    for i, seed in enumerate([5, 6]):
        alone = brownian(X[:1], seed=[seed])(5.0, 2.0)
        assert torch.equal(both[i : i + 1], alone)
    assert not torch.equal(brownian(seed=5)(5.0, 2.0), brownian(seed=6)(5.0, 2.0))


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_seeds_may_be_integers_of_numpy_or_torch(convert):
    assert torch.equal(brownian(seed=convert(5))(5.0, 2.0), brownian(seed=5)(5.0, 2.0))
    assert torch.equal(brownian(seed=convert([5, 6]))(5.0, 2.0), brownian(seed=[5, 6])(5.0, 2.0))


def test_noise_is_like_x():
    for dtype in (torch.bfloat16, torch.float64):
        noise = brownian(X.to(dtype))(5.0, 2.0)
        assert noise.dtype == dtype and noise.shape == X.shape
    torch.testing.assert_close(noise.float(), brownian()(5.0, 2.0))


# ---- samplers


def denoiser(x, sigma):
    """The exact E[x_0 | x] for Gaussian data."""
    return posterior_means(x, WEIGHT, 1.0, sigma)[0]


def karras(steps):
    ends = HIGH ** (1 / 7), LOW ** (1 / 7)
    return ((ends[0] + torch.linspace(0, 1, steps) * (ends[1] - ends[0])) ** 7).tolist()


def euler_ancestral(denoise, x, sigmas, noise):
    for sigma, sigma_next in itertools.pairwise(sigmas):
        up = math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2)) / sigma
        down = math.sqrt(sigma_next**2 - up**2)
        x = x + (x - denoise(x, sigma)) / sigma * (down - sigma) + up * noise(sigma, sigma_next)
    return denoise(x, sigmas[-1])


def euler_maruyama(denoise, x, sigmas, noise):
    """The reverse SDE, whose noise is a Brownian motion in the time sigma^2."""
    for sigma, sigma_next in itertools.pairwise(sigmas):
        elapsed = sigma**2 - sigma_next**2
        x = x + elapsed / sigma**2 * (denoise(x, sigma) - x) + math.sqrt(elapsed) * noise(sigma, sigma_next)
    return denoise(x, sigmas[-1])


def start(n=256):
    return HIGH * ShapedNoise(WEIGHT, torch.Generator().manual_seed(8))(torch.empty(n, 1, SIZE, SIZE))


@pytest.mark.parametrize("sampler", [euler_ancestral, euler_maruyama])
@pytest.mark.parametrize("kind", ["independent", "Brownian"])
def test_samplers_reach_the_spectrum_of_the_data(sampler, kind):
    x = start()
    noise = noise_sampler(x, WEIGHT) if kind == "independent" else brownian(x)
    error = log_spectrum_error(sampler(denoiser, x, karras(120), noise))
    white_error = log_spectrum_error(sampler(denoiser, x, karras(120), noise_sampler(x, torch.ones_like(WEIGHT))))
    assert error < 0.2 and white_error > 1, f"{error:.3f} shaped, {white_error:.3f} white"


def test_samples_of_one_path_agree_between_numbers_of_steps():
    def sample(steps, seed):
        noise = brownian(x, seed=seed, transform=torch.square)
        return euler_maruyama(denoiser, x, karras(steps), noise)

    x = start(16)
    coarse, fine, other = sample(100, 1), sample(200, 1), sample(200, 2)
    assert (coarse - fine).norm() < 0.2 * (other - fine).norm()


def test_churn_is_shaped_by_interception():
    def churn(x):  # as sample_euler, sample_heun and sample_dpm_2 add it
        return torch.randn_like(x) * 2.0

    with intercept(WEIGHT):
        assert_spectrum(churn(torch.zeros(2000, 1, SIZE, SIZE)) / 2, WEIGHT)


def test_what_the_network_leaks_into_an_omitted_band_is_dropped():
    support, omitted = torch.where(OMITTED > 0, OMITTED, 1), (OMITTED == 0).float()
    leak = 0.03 * torch.randn(8, 1, SIZE, SIZE)

    def leaking(x, sigma, gain):
        return gain * posterior_means(x, support, 1.0, sigma)[0] + leak

    projected = on_kept_bands(leaking, OMITTED)
    x = leak + filtered(torch.randn_like(leak), OMITTED)
    assert filtered(leaking(x, 1.0, gain=1.0), omitted).std() > 1e-2
    assert filtered(projected(x, 1.0, gain=1.0), omitted).std() < 1e-6
    clean = filtered(leaking(filtered(x, 1 - omitted), 1.0, gain=1.0), 1 - omitted)
    torch.testing.assert_close(projected(x, 1.0, gain=1.0), clean)


# ---- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: noise_sampler(X[..., :8], WEIGHT),
            r"x: expected .* for this weight, got \[2, 3, 16, 8\]",
        ),
        (lambda: brownian(X[..., :8]), r"x: expected \[..., 16, 16 or 17\]"),
        (lambda: brownian(weight=WEIGHT.half()), "weight: expected float32 or float64"),
        (lambda: brownian(seed=[1, 2, 3]), "seed: expected one for each of the 2 samples, got 3"),
        (lambda: BrownianTreeNoiseSampler(X, 1.0, 1.0, weight=WEIGHT), "sigma_min, sigma_max: expected two different"),
        (lambda: brownian(transform=lambda sigma: sigma * math.inf), "sigma_min, sigma_max: expected .* finite times"),
        (lambda: brownian()(1.0, 1.0), "sigma_next: expected another time than that of sigma, got 1.0 for both"),
        (lambda: brownian()(21.0, 1.0), r"sigma: expected a time from 0.015625 to 20.0, got 21.0"),
        (lambda: brownian()(1.0, 0.0), r"sigma_next: expected a time from 0.015625 to 20.0, got 0.0"),
        (lambda: brownian()(math.nan, 1.0), r"sigma: expected a time from 0.015625 to 20.0, got nan"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_seed_that_is_no_integer():
    with pytest.raises(TypeError, match="seed: expected an int, got float"):
        brownian(seed=3.0)
