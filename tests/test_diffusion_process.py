"""The process is one joint Gaussian: its marginals, posterior, predictions and losses follow from that, per bin."""

import re
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import random_weight

import sagd_kernels as sagd
from sagd_kernels import reference, weights
from sagd_kernels.diffusion import (
    DDPMSchedule,
    DiffusionProcess,
    EDMSchedule,
    FlowSchedule,
    GaussianOracle,
    SpectralNormal,
)

D = torch.float64
PREDICTIONS = ["eps", "x0", "v", "flow", "score"]
SHORT = DDPMSchedule.linear(20, 0.01, 0.3)


def drifting_weights(height, width, *, channels=(), timesteps=20):
    """One weight for each timestep, [T, *channels, H, W//2+1], of changing slope."""
    alphas = torch.linspace(-1, 1, timesteps, dtype=D)
    drifting = weights.power_law(height, width, alphas, dtype=D)
    return drifting.reshape(timesteps, *[1] * len(channels), *drifting.shape[1:]).expand(
        timesteps, *channels, *drifting.shape[1:]
    )


PROCESSES = {
    "one weight": lambda **o: DiffusionProcess(SHORT, random_weight(6, 5, dtype=D), 5, **o),
    "per channel": lambda **o: DiffusionProcess(SHORT, random_weight(3, 6, 5, dtype=D), 5, **o),
    "per timestep": lambda **o: DiffusionProcess(SHORT, drifting_weights(6, 5), 5, per_timestep=True, **o),
    "per timestep and channel": lambda **o: DiffusionProcess(
        SHORT, drifting_weights(6, 5, channels=(3,)), 5, per_timestep=True, **o
    ),
    "singular": lambda **o: DiffusionProcess(SHORT, weights.omit_band(6, 5, 0.2, 0.4, dtype=D), 5, **o),
    "flow": lambda **o: DiffusionProcess(FlowSchedule(), random_weight(6, 5, dtype=D), 5, **o),
    "edm": lambda **o: DiffusionProcess(EDMSchedule(), random_weight(6, 5, dtype=D), 5, **o),
}


def times(process, *, samples=4, seed=0):
    """Two times s < t for each sample, neither clean."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(process.schedule, DDPMSchedule):
        s = torch.randint(0, 10, (samples,), generator=generator)
        return s, s + torch.randint(1, 10, (samples,), generator=generator)
    s = torch.rand(samples, generator=generator, dtype=D) * 0.5 + 0.1
    return s, s + 0.3


def data(*shape, seed=0):
    return torch.randn(shape or (4, 3, 6, 5), dtype=D, generator=torch.Generator().manual_seed(seed))


def variance(process, t, x):
    """The noise's variance in each bin of the full planes at times t, [N, ..., H, W]."""
    noise = process.levels(t, x)[1]
    return noise.square() * reference.full_weight(process.weight_at(t, x), x.shape[-1]).square()


def gain(process, planes, per_bin):
    """Planes filtered by a full-plane gain, by the definition."""
    return torch.fft.ifft2(per_bin * torch.fft.fft2(planes)).real


# ---- schedules


def test_levels_of_ddpm_flow_and_edm():
    schedule = DDPMSchedule.linear()
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=D)
    signal, noise = schedule.levels(torch.tensor([-1, 0, 999]))
    assert signal[0] == 1 and noise[0] == 0
    assert signal[1].square().item() == pytest.approx(1 - 1e-4) and noise[1].square().item() == pytest.approx(1e-4)
    assert signal[2].square().item() == pytest.approx((1 - betas).prod().item())
    assert [level.tolist() for level in FlowSchedule().levels(torch.tensor([0.25]))] == [[0.75], [0.25]]
    assert [level.tolist() for level in EDMSchedule().levels(torch.tensor([7.0]))] == [[1], [7]]


def test_times_are_the_published_ones():
    schedule = DDPMSchedule.linear()
    assert schedule.times(4).tolist() == [999, 749, 499, 249, -1]
    assert schedule.times(4, "leading").tolist() == [750, 500, 250, 0, -1]
    assert schedule.times(4, "linspace").tolist() == [999, 666, 333, 0, -1]
    assert schedule.times(1000).tolist() == list(range(999, -2, -1))
    assert FlowSchedule().times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]
    sigmas = EDMSchedule().times(18)
    assert sigmas[0].item() == pytest.approx(80) and sigmas[17].item() == pytest.approx(0.002) and sigmas[18] == 0
    assert sigmas[1].item() == pytest.approx(57.586, abs=1e-3)  # as the authors' code has it


# ---- the forward process


@pytest.mark.parametrize("name", PROCESSES)
def test_forward_process_is_the_operator(name):
    process, x0, key = PROCESSES[name](), data(), sagd.key(4)
    _, t = times(process)
    x, eps = process.add_noise(x0, t, key)
    signal, noise = process.schedule.levels(t)
    expected = reference.add_noise(x0, key, process.weight_at(t, x0), signal, noise)
    torch.testing.assert_close((x, eps), expected, rtol=1e-12, atol=1e-12)
    marginal = process.marginal(x0, t)
    torch.testing.assert_close(marginal.mean, signal.reshape(4, 1, 1, 1) * x0)
    pixels = variance(process, t, x0).mean((-2, -1), keepdim=True).expand_as(x0)
    torch.testing.assert_close(marginal.variance, pixels)
    assert torch.equal(process.prior(t, x0).variance, marginal.variance) and not process.prior(t, x0).mean.any()


def test_one_weight_per_timestep_gives_the_published_marginal():
    process, x = PROCESSES["per timestep"](), data(1, 1, 6, 5)
    abar = torch.cat([torch.ones(1, dtype=D), SHORT.alphas_cumprod])
    alphas, powers = abar[1:] / abar[:-1], reference.full_weight(drifting_weights(6, 5), 5).square()
    for t in (0, 7, 19):
        expected = sum((1 - alphas[s]) * alphas[s + 1 : t + 1].prod() * powers[s] for s in range(t + 1))
        torch.testing.assert_close(variance(process, t, x)[0, 0], expected, rtol=1e-12, atol=0)


def test_equal_weights_for_all_timesteps_are_one_weight():
    weight, x0 = weights.power_law(6, 5, -0.5, dtype=D), data()
    one = DiffusionProcess(SHORT, weight, 5)
    many = DiffusionProcess(SHORT, weight.expand(20, 6, 3), 5, per_timestep=True)
    s, t = times(one)
    x, eps = one.add_noise(x0, t, sagd.key(0))
    torch.testing.assert_close(many.add_noise(x0, t, sagd.key(0)), (x, eps))
    for eta in (0.0, 0.5, 1.0):
        steps = (process.step(x0, eps, t, s, eta=eta, key=sagd.key(1)) for process in (one, many))
        torch.testing.assert_close(*steps)
    torch.testing.assert_close(*(p.posterior(x, x0, t, s).log_prob(x0) for p in (one, many)))
    torch.testing.assert_close(*(p.flow_increment(x0, eps, s, t, s) for p in (one, many)))


# ---- reverse steps


@pytest.mark.parametrize("name", PROCESSES)
def test_posterior_is_the_conditional_of_the_joint_gaussian(name):
    process, x0 = PROCESSES[name](), data()
    s, t = times(process)
    x, _ = process.add_noise(x0, t, sagd.key(0))
    ratio = process.levels(t, x)[0] / process.levels(s, x)[0]
    before, now = variance(process, s, x), variance(process, t, x)
    kept = now > 0
    regression = torch.where(kept, ratio * before / torch.where(kept, now, 1), 0)  # Cov(x_s, x_t) / Var(x_t)
    mean = process.levels(s, x)[0] * x0 + gain(process, x - process.levels(t, x)[0] * x0, regression)
    spread = before - regression * ratio * before
    posterior = process.posterior(x, x0, t, s)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-11, atol=1e-11)
    weight = posterior.weight * posterior.scale[..., None, None]
    expected = spread.expand_as(x0)
    torch.testing.assert_close(reference.full_weight(weight, 5).square().expand_as(x0), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", PROCESSES)
def test_steps_keep_the_marginals_whatever_eta(name, eta):
    process, x0 = PROCESSES[name](), torch.zeros(4, 3, 6, 5, dtype=D)
    s, t = times(process)
    impulse = torch.zeros_like(x0)
    impulse[..., 0, 0] = 30**0.5  # |F|^2 = 1 in every bin
    eps = sagd.spectral_filter(impulse, process.weight_at(t, x0))
    carried = process.step(x0, eps, t, s, eta=eta)
    process.draw = lambda key, size, weight, scale, dtype: sagd.spectral_filter(impulse, weight, scale)
    both = process.step(x0, eps, t, s, eta=eta, key=sagd.key(0))
    power = sum(torch.fft.fft2(part, norm="ortho").abs().square() for part in (carried, both - carried))
    torch.testing.assert_close(power, variance(process, s, x0).expand_as(power), rtol=1e-10, atol=1e-12)
    assert (both != carried).any() == (eta > 0)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_last_step_gives_x0(name):
    process, x0 = PROCESSES[name](), data()
    clean = torch.full((4,), process.schedule.clean)
    _, t = times(process)
    for eta in (0.0, 1.0):
        torch.testing.assert_close(process.step(x0, data(seed=1), t, clean, eta=eta, key=sagd.key(0)), x0)


# ---- predictions


@pytest.mark.parametrize("name", PROCESSES)
def test_predictions_convert_into_one_another(name):
    process, x0 = PROCESSES[name](), data()
    _, t = times(process)
    x, eps = process.add_noise(x0, t, sagd.key(2))
    signal, noise = process.levels(t, x)
    exact = {"eps": eps, "x0": x0, "v": signal * eps - noise * x0, "flow": eps - x0}
    exact["score"] = process.marginal(x0, t).score(x)
    for source, value in exact.items():
        for target, expected in exact.items():
            converted = process.convert(value, x, t, source, target)
            torch.testing.assert_close(converted, expected, rtol=1e-8, atol=1e-8, msg=lambda m: f"{source}: {m}")  # noqa: B023


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_losses(name, prediction):
    process, x0, key = PROCESSES[name](prediction=prediction), data(), sagd.key(3)
    _, t = times(process)
    _, eps = process.add_noise(x0, t, key)
    target = process.target(x0, eps, t)
    wrong = target + 0.1 * data(seed=9)
    if prediction == "score":  # compared as eps
        errors = -process.levels(t, x0)[1] * sagd.spectral_filter(wrong - target, process.weight_at(t, x0).square())
    else:
        errors = wrong - target
    losses = {False: errors.square().mean(), True: reference.whitened_mse(errors, 0 * errors, process.weight_at(t, x0))}
    for whitened, expected in losses.items():
        assert process.loss(lambda x, t: target, x0, t, key, whitened=whitened).item() < 1e-20
        loss = process.loss(lambda x, t: wrong, x0, t, key, whitened=whitened)
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)


def test_planes_of_another_width_than_the_process_are_an_error():
    process = PROCESSES["one weight"]()
    with pytest.raises(
        ValueError, match=r"planes: expected \[..., H, 5\], the width of the process, got \[2, 3, 6, 4\]"
    ):
        process.add_noise(torch.randn(2, 3, 6, 4), torch.tensor([3, 7]), sagd.key(0))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (2, 3)], ids=str)
def test_times_are_one_for_each_sample(shape):
    process, x0 = PROCESSES["one weight"](), torch.randn(2, 3, 6, 5)
    expected = rf"t: expected a number or \[2\], one for each sample, got {re.escape(str(list(shape)))}"
    with pytest.raises(ValueError, match=expected):
        process.add_noise(x0, torch.ones(shape, dtype=torch.int64), sagd.key(0))


@pytest.mark.parametrize("returned", [lambda x: x[:, :1], lambda x: (x,)], ids=["another shape", "no tensor"])
def test_a_model_must_return_a_tensor_of_its_input(returned):
    process, x0 = PROCESSES["one weight"](), torch.randn(2, 3, 6, 5)
    expected = r"model: expected to return a tensor of the shape of its input \[2, 3, 6, 5\]"
    with pytest.raises(ValueError, match=expected):
        process.loss(lambda x, t: returned(x), x0, torch.tensor([3, 7]), sagd.key(0))
    with pytest.raises(ValueError, match=expected):
        process.denoise(lambda x, t: returned(x), x0, 3)


def test_plain_loss_is_the_mean_squared_error():
    process = PROCESSES["one weight"]()
    _, t = times(process)
    _, eps = process.add_noise(data(), t, sagd.key(0))
    loss = process.loss(lambda x, t: torch.zeros_like(x), data(), t, sagd.key(0))
    torch.testing.assert_close(loss, F.mse_loss(torch.zeros_like(eps), eps))


def test_the_flow_velocity_is_the_derivative_of_the_path():
    process, x0, key = PROCESSES["flow"](prediction="flow"), data(), sagd.key(1)
    (x, eps), (later, _) = (process.add_noise(x0, t * torch.ones(4, dtype=D), key) for t in (0.4, 0.4001))
    torch.testing.assert_close(process.target(x0, eps, 0.4), (later - x) / 0.0001, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5])
def test_with_full_support_the_score_error_vanishes_as_t_falls(alpha):
    """The learned score, -Sigma_w^-1 eps* / s, tends to that of the data for every weight: w only shapes the path."""
    weight, spectrum = weights.power_law(8, 8, alpha, dtype=D), weights.power_law(8, 8, -1, dtype=D).square()
    process = DiffusionProcess(FlowSchedule(), weight, 8)
    x, oracle = data(2, 1, 8, 8), GaussianOracle(process, spectrum)
    truth = SpectralNormal(spectrum.sqrt(), 8).score(x)
    errors = []
    for t in (1e-2, 1e-3, 1e-4, 1e-5):
        score = process.convert(oracle(x, torch.full((2,), t, dtype=D)), x, t, "eps", "score")
        errors.append(((score - truth).norm() / truth.norm()).item())
    assert errors[0] > 1e-3 and all(later < 0.2 * earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 1e-4


def test_where_the_weight_is_zero_the_score_stays_wrong():
    weight, spectrum = weights.omit_band(8, 8, 0.2, 0.4, dtype=D), weights.power_law(8, 8, -1, dtype=D).square()
    process = DiffusionProcess(FlowSchedule(), weight, 8)
    x, truth = data(2, 1, 8, 8), SpectralNormal(spectrum.sqrt(), 8).score(data(2, 1, 8, 8))
    score = process.convert(
        GaussianOracle(process, spectrum)(x, torch.full((2,), 1e-5, dtype=D)), x, 1e-5, "eps", "score"
    )
    torch.testing.assert_close(score, process.project(truth), rtol=1e-3, atol=1e-3)
    assert (score - truth).norm() > 0.3 * truth.norm()


# ---- dtypes and errors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PROCESSES)
def test_results_have_the_dtype_of_the_data(name, dtype):
    process, x0 = PROCESSES[name](), data()
    s, t = times(process)
    exact, noise = process.add_noise(x0, t, sagd.key(0))
    tolerance = dict(rtol=10 * torch.finfo(dtype).eps, atol=20 * torch.finfo(dtype).eps)
    x, eps = process.add_noise(x0.to(dtype), t, sagd.key(0))
    torch.testing.assert_close((x, eps), (exact.to(dtype), noise.to(dtype)), **tolerance)
    step = process.step(x0.to(dtype), eps, t, s, eta=0.5, key=sagd.key(1))
    expected = process.step(x0, noise, t, s, eta=0.5, key=sagd.key(1))
    torch.testing.assert_close(step, expected.to(dtype), **tolerance)
    assert process.denoise(lambda x, t: x.float(), x, t)[1].dtype == dtype


W = torch.ones(8, 5)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiffusionProcess("linear", W, 8), TypeError, "schedule: expected a Schedule, got str"),
        (lambda: DiffusionProcess(SHORT, W, 8, prediction="noise"), ValueError, "prediction: .*'eps'.*got 'noise'"),
        (lambda: DiffusionProcess(SHORT, W, 10), ValueError, r"weight: .*\[..., H, 6\] for width 10.*\[8, 5\]"),
        (lambda: DiffusionProcess(SHORT, -W, 8), ValueError, "weight: expected finite values >= 0, got -1"),
        (lambda: DiffusionProcess(SHORT, 0 * W, 8), ValueError, "weight: .* zero everywhere"),
        (lambda: DiffusionProcess(FlowSchedule(), W, 8, per_timestep=True), ValueError, "per_timestep: .*FlowSchedule"),
        (lambda: DiffusionProcess(SHORT, W, 8, per_timestep=True), ValueError, r"weight: .*T = 20 .* got \[8, 5\]"),
        (
            lambda: DiffusionProcess(
                SHORT,
                torch.stack([weights.omit_band(8, 8, 0.1, 0.2 + 0.01 * i) for i in range(20)]),
                8,
                per_timestep=True,
            ),
            ValueError,
            "weight: expected all timesteps to omit the same",
        ),
        (lambda: DDPMSchedule(torch.ones(2, 3)), ValueError, r"alphas_cumprod: expected \[T\], got \[2, 3\]"),
        (lambda: DDPMSchedule(torch.tensor([0.5, 0.7])), ValueError, "alphas_cumprod: expected values that fall"),
        (lambda: DDPMSchedule(torch.tensor([0.5, -0.1])), ValueError, "alphas_cumprod: expected values that fall"),
        (lambda: SHORT.levels(torch.tensor([0.5])), ValueError, "t: expected integer timesteps, got torch.float32"),
        (lambda: SHORT.levels(torch.tensor([3, 20])), ValueError, r"t: expected timesteps -1 to 19, got \[3, 20\]"),
        (lambda: SHORT.levels(torch.tensor(-2)), ValueError, "t: expected timesteps -1 to 19, got -2"),
        (lambda: SHORT.times(21), ValueError, "steps: expected 1 to 20, .* got 21"),
        (lambda: SHORT.times(2, "even"), ValueError, "spacing: .*'trailing'.* got 'even'"),
        (lambda: FlowSchedule().times(0), ValueError, "steps: expected at least 1, got 0"),
        (lambda: EDMSchedule(1.0, 0.5), ValueError, "sigma_min, sigma_max: .* got 1.0, 0.5"),
        (
            lambda: PROCESSES["flow"]().convert(data(), data(), 0.5, "eps", "noise"),
            ValueError,
            "target: .* got 'noise'",
        ),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()
