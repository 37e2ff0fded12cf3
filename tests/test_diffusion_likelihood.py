"""The log-likelihood along the probability flow, against Gaussians whose density is known."""

import pytest
import torch

import sagd_kernels as sagd
from sagd_kernels import weights
from sagd_kernels.diffusion import (
    DDPMSchedule,
    DiffusionProcess,
    FlowSchedule,
    GaussianOracle,
    SpectralNormal,
    log_likelihood,
)

D = torch.float64
START = 0.05


def build(weight, width):
    """A process, the oracle of data C ~ f^-2, the log density of x at time START, [N] of [N, C, H, W], and its law."""
    process = DiffusionProcess(FlowSchedule(), weight, width, prediction="flow")
    spectrum = weights.power_law(weight.shape[-2], width, -1, dtype=D).square() / 4
    kept = weights.power(weight, 0)
    law = SpectralNormal((kept * (1 - START) ** 2 * spectrum + START**2 * weight.square()).sqrt(), width)
    return process, GaussianOracle(process, spectrum), lambda x: law.log_prob(x).sum(-1), law


def times(steps):
    return torch.linspace(START, 1, steps + 1, dtype=D)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_it_converges_to_the_density_by_the_exact_trace(size):
    process, model, exact, law = build(weights.power_law(*size, -0.5, dtype=D), size[1])
    x = law.sample((3, 1), key=sagd.key(0))
    errors = [
        (log_likelihood(process, model, x, times(steps), probes=None) - exact(x)).abs().max().item()
        for steps in (25, 50, 100)
    ]
    assert errors[-1] < 2e-3 * exact(x).abs().max() and errors[2] < 0.3 * errors[1] < 0.09 * errors[0]


def test_singular_weights_have_a_density_on_their_kept_bands():
    weight = weights.omit_band(5, 4, 0.2, 0.4, dtype=D)
    process, model, exact, law = build(weight, 4)
    x = law.sample((3, 1), key=sagd.key(0))
    value = log_likelihood(process, model, x, times(50), probes=None)
    torch.testing.assert_close(value, exact(x), rtol=1e-2, atol=0)
    elsewhere = x + sagd.spectral_filter(torch.randn_like(x), (weight == 0).double())
    torch.testing.assert_close(log_likelihood(process, model, elsewhere, times(50), probes=None), value)


def test_hutchinsons_estimate_is_unbiased_and_of_the_key():
    process, linear, _, law = build(weights.power_law(4, 4, -0.5, dtype=D), 4)

    def model(x, t):  # no more diagonal in frequency, where signs would give the trace exactly
        return linear(x, t) + 0.3 * torch.sin(3 * x.roll(1, -1)) * x

    x = law.sample((1, 1), key=sagd.key(0)).expand(400, 1, 4, 4)
    exact = log_likelihood(process, model, x[:1], times(10), probes=None)
    estimates = log_likelihood(process, model, x, times(10), sagd.key(1))
    assert estimates.std() > 0.05
    assert (estimates.mean() - exact).abs().item() < 4 * estimates.std().item() / 20
    assert torch.equal(estimates, log_likelihood(process, model, x, times(10), sagd.key(1)))
    assert not torch.equal(estimates, log_likelihood(process, model, x, times(10), sagd.key(2)))
    assert log_likelihood(process, model, x, times(10), sagd.key(1), probes=8).std() < 0.6 * estimates.std()


def test_one_weight_per_timestep_on_a_table():
    schedule, spectrum = DDPMSchedule.linear(), weights.power_law(4, 4, -1, dtype=D).square() / 4
    drifting = weights.power_law(4, 4, torch.linspace(-1, 0, 1000, dtype=D), dtype=D)
    process = DiffusionProcess(schedule, drifting, 4, per_timestep=True)
    x = torch.zeros(1, 1, 4, 4, dtype=D)
    (signal, noise), weight = process.levels(10, x), process.weight_at(10, x)
    exact = SpectralNormal((signal.square() * spectrum + (noise * weight).square()).sqrt()[0, 0], 4)
    x = exact.sample((3, 1), key=sagd.key(0))
    path = torch.cat([torch.arange(10, 60, 5), torch.arange(60, 1000, 20), torch.tensor([999])])
    value = log_likelihood(process, GaussianOracle(process, spectrum), x, path, probes=None)
    torch.testing.assert_close(value, exact.log_prob(x).sum(1), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("images", "weight"), [(torch.float32, D), (D, torch.float32)], ids=str)
def test_images_need_not_have_the_dtype_of_the_weight(images, weight):
    process, model, _, law = build(weights.power_law(4, 4, -0.5, dtype=D), 4)
    x = law.sample((3, 1), key=sagd.key(0))
    expected = log_likelihood(process, model, x, times(10), sagd.key(1))
    process, model, _, _ = build(weights.power_law(4, 4, -0.5, dtype=weight), 4)
    value = log_likelihood(process, model, x.to(images), times(10), sagd.key(1))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_differentiates_where_gradients_are_off(mode):
    process, model, _, law = build(weights.power_law(4, 4, -0.5, dtype=D), 4)
    expected = log_likelihood(process, model, law.sample((2, 1), key=sagd.key(0)), times(5), sagd.key(1))
    with mode():
        value = log_likelihood(process, model, law.sample((2, 1), key=sagd.key(0)), times(5), sagd.key(1))
    assert torch.equal(value, expected)


def test_the_result_carries_no_gradients():
    weight = weights.power_law(4, 4, -0.5).requires_grad_()
    process = DiffusionProcess(FlowSchedule(), weight, 4, prediction="flow")
    value = log_likelihood(process, lambda x, t: 0.1 * x, torch.randn(2, 1, 4, 4), times(2), sagd.key(0))
    assert not value.requires_grad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(times=(0.5, 0.1)), "times: expected two or more in ascending order"),
        (dict(times=(0.0, 1.0)), "times: expected none at 0.0, the time of x_0, got 0.0"),
        (dict(times=(0.1, 1.0), probes=0), "probes: expected a positive number and a key, or None, got 0"),
        (dict(times=(0.1, 1.0), probes=2), "probes: expected a positive number and a key, or None, got 2 and key None"),
    ],
)
def test_errors(arguments, message):
    process, model, _, law = build(weights.power_law(4, 4, -0.5, dtype=D), 4)
    with pytest.raises(ValueError, match=message):
        log_likelihood(process, model, law.sample((1,)), **arguments)
