"""SpectralNormal is the Gaussian that it says it is: against dense covariance matrices, singular weights included."""

import math

import pytest
import torch
from conftest import random_weight
from torch.distributions import Distribution, Independent, MultivariateNormal, kl_divergence

import sagd_kernels as sagd
from sagd_kernels import reference, weights
from sagd_kernels.diffusion import SpectralNormal

D = torch.float64
SIZES = [(1, 1), (1, 6), (5, 1), (2, 2), (4, 4), (3, 5), (4, 3), (5, 4)]


@pytest.fixture(autouse=True)
def validated():
    """Distributions check their arguments, as torch has it until the first `torch.compile` of a process ends that."""
    Distribution.set_default_validate_args(True)


def covariance(weight, width):
    """Sigma_w as a dense matrix [..., H W, H W], from the definition."""
    height = weight.shape[-2]
    units = torch.eye(height * width, dtype=D).reshape(-1, height, width)
    power = reference.full_weight(weight, width).square()
    power = power.reshape(*power.shape[:-2], 1, height, width)
    return torch.fft.ifft2(power * torch.fft.fft2(units)).real.flatten(-2)


def planes(*shape, seed=0):
    return torch.randn(shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def omitting(height, width):
    """An uneven weight [H, W//2+1] of which two frequencies, and their negatives, are 0."""
    weight = random_weight(height, width, dtype=D)
    weight[0, 0] = weight[1, 0] = weight[-1, 0] = 0
    weight[2, -1] = weight[-2, -1] = 0
    return weight


def on_the_kept_bands(weight, width, loc, value):
    """The density in an orthonormal basis of the support: what `MultivariateNormal` can compute."""
    spread, basis = torch.linalg.eigh(covariance(weight, width))
    kept = spread > 1e-12
    coordinates = (value - loc).flatten(-2) @ basis[:, kept]
    return MultivariateNormal(torch.zeros(int(kept.sum()), dtype=D), torch.diag(spread[kept])), coordinates


@pytest.mark.parametrize("size", SIZES)
def test_density_entropy_and_score_are_those_of_the_dense_gaussian(size):
    weight, loc, value = random_weight(*size, dtype=D), planes(*size, seed=1), planes(7, *size, seed=2)
    ours = SpectralNormal(weight, size[1], loc, 1.7)
    dense = MultivariateNormal(loc.flatten(), 1.7**2 * covariance(weight, size[1]))
    torch.testing.assert_close(ours.log_prob(value), dense.log_prob(value.flatten(-2)), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(ours.entropy(), dense.entropy(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.variance.flatten(), dense.variance, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.mean, loc)
    value.requires_grad_()
    (gradient,) = torch.autograd.grad(dense.log_prob(value.flatten(-2)).sum(), value)
    torch.testing.assert_close(ours.score(value), gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", SIZES)
def test_divergence_is_that_of_the_dense_gaussians(size):
    arguments = [(random_weight(*size, dtype=D, seed=s), planes(*size, seed=s), 0.5 + s) for s in (1, 2)]
    ours = [SpectralNormal(weight, size[1], loc, scale) for weight, loc, scale in arguments]
    dense = [MultivariateNormal(m.flatten(), s**2 * covariance(w, size[1])) for w, m, s in arguments]
    torch.testing.assert_close(kl_divergence(*ours), kl_divergence(*dense), rtol=1e-10, atol=1e-12)
    assert kl_divergence(ours[0], ours[0]).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.parametrize("size", [(6, 6), (7, 5), (5, 8)])
def test_singular_weights_live_on_their_kept_bands(size):
    weight, loc = omitting(*size), planes(*size, seed=1)
    ours = SpectralNormal(weight, size[1], loc)
    value = ours.sample((9,), key=sagd.key(3))
    dense, coordinates = on_the_kept_bands(weight, size[1], loc, value)
    assert ours.rank == dense.event_shape[0] < size[0] * size[1]
    torch.testing.assert_close(ours.log_prob(value), dense.log_prob(coordinates), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.entropy(), dense.entropy(), rtol=1e-11, atol=1e-11)
    inverse = torch.linalg.pinv(covariance(weight, size[1]), hermitian=True)
    expected = -((value - loc).flatten(-2) @ inverse).reshape(value.shape)
    torch.testing.assert_close(ours.score(value), expected, rtol=1e-9, atol=1e-9)


def test_off_the_kept_bands_the_density_is_zero():
    weight, inside = omitting(6, 6), SpectralNormal(omitting(6, 6), 6).sample(key=sagd.key(0))
    outside = inside + 1e-6  # DC is omitted
    ours = SpectralNormal(weight, 6)
    assert ours.support.check(torch.stack([inside, outside])).tolist() == [True, False]
    with pytest.raises(ValueError, match="within the support"):
        ours.log_prob(outside)
    both = SpectralNormal(weight, 6, validate_args=False).log_prob(torch.stack([inside, outside]))
    assert both[0] == ours.log_prob(inside) and both[1] == -math.inf


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_does_not_leave_the_support(dtype):
    ours = SpectralNormal(weights.omit_band(32, 31, 0.1, 0.4), 31, 100.0)
    assert ours.support.check(ours.sample((50,)).to(dtype)).all()


def test_divergence_is_infinite_between_different_supports():
    full, singular = SpectralNormal(random_weight(6, 6, dtype=D), 6), SpectralNormal(omitting(6, 6), 6)
    elsewhere = SpectralNormal(omitting(6, 6), 6, 0.5)
    for p, q in ((full, singular), (singular, full), (elsewhere, singular)):
        assert kl_divergence(p, q) == math.inf
    p, q = SpectralNormal(omitting(6, 6), 6, scale=2.0), singular
    expected = float(q.rank) / 2 * (4 - 1 - math.log(4))
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-12)


def test_samples_are_the_operators_and_have_the_covariance():
    weight, loc = random_weight(3, 4, dtype=D), planes(3, 4)
    ours, key = SpectralNormal(weight, 4, loc, 0.5), sagd.key(11)
    draws = ours.sample((40000,), key=key)
    assert torch.equal(draws, loc + sagd.shaped_noise(key, (40000, 3, 4), weight, torch.full((40000,), 0.5, dtype=D)))
    assert not draws.requires_grad
    expected = 0.25 * covariance(weight, 4)
    error = torch.cov(draws.flatten(-2).T) - expected
    scale = (expected.diagonal()[:, None] * expected.diagonal() + expected.square()).div(40000).sqrt()
    assert (error / scale).abs().max() < 4.5  # 78 correlated entries: a false alarm in about 2,000 seeds
    torch.testing.assert_close(draws.mean(0), loc, rtol=0, atol=0.02)


def test_a_generator_governs_samples_as_manual_seed_does():
    ours = SpectralNormal(weights.power_law(8, 8, -0.5), 8)
    first = ours.sample((2,), generator=torch.Generator().manual_seed(5))
    assert torch.equal(first, ours.sample((2,), generator=torch.Generator().manual_seed(5)))
    torch.manual_seed(1)
    implicit = ours.sample((2,))
    torch.manual_seed(1)
    assert torch.equal(implicit, ours.sample((2,))) and not torch.equal(implicit, ours.sample((2,)))
    with pytest.raises(ValueError, match="key, generator: expected one"):
        ours.sample(key=sagd.key(0), generator=torch.Generator())


def test_batch_shape_is_what_weight_loc_and_scale_broadcast_to():
    weight = random_weight(3, 6, 5, dtype=D)  # per channel
    ours = SpectralNormal(weight, 5, planes(4, 1, 6, 5), torch.tensor([1.0, 2.0, 3.0], dtype=D))
    assert ours.batch_shape == (4, 3) and ours.event_shape == (6, 5)
    value = ours.sample((2,))
    assert value.shape == (2, 4, 3, 6, 5)
    for property in (ours.log_prob(value)[1], ours.entropy(), ours.rank):
        assert property.shape == (4, 3)
    assert ours.mean.shape == ours.variance.shape == (4, 3, 6, 5)
    one = SpectralNormal(weight[2], 5, ours.loc[1, 0], 3.0)
    torch.testing.assert_close(ours.log_prob(value)[:, 1, 2], one.log_prob(value[:, 1, 2]))
    torch.testing.assert_close(ours.score(value)[:, 1, 2], one.score(value[:, 1, 2]))
    torch.testing.assert_close(ours.entropy()[1, 2], one.entropy())
    assert ours.log_prob(value[0, 0, 0]).shape == (4, 3)  # one plane, under every member of the batch


def test_expanded_and_independent_distributions():
    per_channel = SpectralNormal(random_weight(3, 6, 6), 6)
    expanded = per_channel.expand((4, 3))
    value = expanded.sample(key=sagd.key(0))
    assert value.shape == (4, 3, 6, 6)
    torch.testing.assert_close(expanded.log_prob(value), per_channel.log_prob(value))
    images = Independent(expanded, 1)
    torch.testing.assert_close(images.log_prob(value), per_channel.log_prob(value).sum(1))
    other = Independent(SpectralNormal(random_weight(3, 6, 6, seed=1), 6).expand((4, 3)), 1)
    assert kl_divergence(images, other).shape == (4,)


@pytest.mark.parametrize("function", ["log_prob", "entropy", "rsample", "kl"])
def test_gradients(function):
    other = SpectralNormal(random_weight(4, 3, dtype=D, seed=1), 3)

    def evaluate(weight, loc, scale):
        ours = SpectralNormal(weight, 3, loc, scale, validate_args=False)
        if function == "log_prob":
            return ours.log_prob(planes(2, 4, 3, seed=5))
        if function == "rsample":
            return ours.rsample((2,), key=sagd.key(0))
        return ours.entropy() if function == "entropy" else kl_divergence(ours, other)

    arguments = random_weight(4, 3, dtype=D), planes(4, 3), torch.tensor(1.5, dtype=D)
    assert torch.autograd.gradcheck(evaluate, [a.requires_grad_() for a in arguments])


def test_float32_and_float64_meet():
    ours, value = SpectralNormal(weights.power_law(8, 8, -0.5), 8), planes(8, 8)
    assert ours.log_prob(value).dtype == ours.score(value).dtype == D
    assert ours.log_prob(value.float()).dtype == torch.float32
    torch.testing.assert_close(ours.log_prob(value.float()).double(), ours.log_prob(value), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SpectralNormal(torch.ones(8, 8), 8), r"weight: .*\[..., H, 5\] for width 8.*\[8, 8\]"),
        (lambda: SpectralNormal(torch.ones(8, 5).half(), 8), "weight: expected float32 or float64 .* torch.float16"),
        (lambda: SpectralNormal(torch.zeros(8, 5), 8), "weight: expected a positive value .* zero everywhere"),
        (lambda: SpectralNormal(-torch.ones(8, 5), 8), "parameter weight .*GreaterThanEq"),
        (lambda: SpectralNormal(torch.full((8, 5), math.inf), 8), "weight: expected finite values"),
        (lambda: SpectralNormal(torch.ones(8, 5), 8, torch.ones(8, 7)), r"loc: .*\[..., 8, 8\], got \[8, 7\]"),
        (lambda: SpectralNormal(torch.ones(8, 5), 8, scale=-1.0), "parameter scale .*GreaterThan"),
        (lambda: SpectralNormal(torch.ones(8, 5), 8).log_prob(torch.ones(8, 9)), "right-most size of value"),
        (
            lambda: kl_divergence(SpectralNormal(torch.ones(8, 5), 8), SpectralNormal(torch.ones(8, 5), 9)),
            r"planes of one size, got \[8, 8\] and \[8, 9\]",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
