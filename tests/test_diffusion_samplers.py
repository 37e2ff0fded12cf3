"""Given the exact model of Gaussian data, every sampler reaches the data's spectrum, on noise of the operators."""

import warnings
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

import sagd_kernels as sagd
from sagd_kernels import reference, weights
from sagd_kernels.diffusion import (
    DDPMSchedule,
    DiffusionProcess,
    EDMSchedule,
    FlowSchedule,
    GaussianOracle,
    ddim,
    ddpm,
    edm_heun,
    flow_euler,
    probability_flow_ode,
    reverse_sde,
    sampled_spectrum,
    spectrum_error,
)

D = torch.float64
DDPM = DDPMSchedule.linear()
STEPS = (10, 20, 40, 80)


class _Lively(FlowSchedule):
    """Flow matching from where some signal is left, as the reverse SDE needs it."""

    def times(self, steps):
        return super().times(steps) * 0.98


# sampler, schedule, and the order of its error in the number of steps
SAMPLERS = {
    "ddpm": (ddpm, DDPM, 1),
    "ddim": (ddim, DDPM, 1),
    "ddim eta 0.5": (partial(ddim, eta=0.5), DDPM, 1),
    "ddim, flow": (ddim, FlowSchedule(), 1),
    "edm heun": (edm_heun, EDMSchedule(), 2),
    "edm heun, churn": (partial(edm_heun, churn=4.0, churn_range=(0.01, 50.0), churn_noise=1.0), EDMSchedule(), 2),
    "flow euler": (flow_euler, FlowSchedule(), 1),
    "probability flow": (probability_flow_ode, DDPM, 2),
    "probability flow, flow": (probability_flow_ode, FlowSchedule(), 2),
    "reverse sde": (reverse_sde, EDMSchedule(), 1),
    "reverse sde, ddpm": (reverse_sde, DDPMSchedule.linear(5000, 2e-5, 4e-3), 1),
    "reverse sde, flow": (reverse_sde, _Lively(), 1),
}
DETERMINISTIC = ["ddim", "ddim, flow", "edm heun", "flow euler", "probability flow", "probability flow, flow"]


def images_spectrum(height, width):
    """C ~ f^-2, DC as its neighbours, mean power 1/4."""
    return weights.power_law(height, width, -1, dtype=D).square() / 4


def build(name, weight, width, **options):
    sampler, schedule, order = SAMPLERS[name]
    return sampler, DiffusionProcess(schedule, weight, width, prediction="x0", **options), order


def model_of(process, height, width):
    return GaussianOracle(process, images_spectrum(height, width))


# ---- the spectrum of samples


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_converge_to_the_spectrum_of_the_data(name):
    sampler, process, order = build(name, weights.power_law(8, 7, -0.5, dtype=D), 7)
    expected = images_spectrum(8, 7)
    errors = []
    for steps in STEPS:
        spectrum = sampled_spectrum(process, expected, process.schedule.times(steps), sampler)
        errors.append(spectrum_error(spectrum, expected, 7))
    assert errors[-1] < {1: 0.2, 2: 0.02}[order]
    # the error falls with the order of the method: 2^-order at best from each number of steps to its double
    assert all(fine < {1: 0.75, 2: 0.4}[order] * coarse for coarse, fine in pairwise(errors[1:]))


def test_printed_errors_of_ten_ddim_steps():
    """DDPM's linear schedule, T = 1000, data C ~ f^-2 of pixel variance 1/4 on 32 x 32, timesteps spaced "linspace"."""
    spectrum = images_spectrum(32, 32)

    def error(alpha, steps):
        process = DiffusionProcess(DDPM, weights.power_law(32, 32, alpha, dtype=D), 32)
        return spectrum_error(sampled_spectrum(process, spectrum, DDPM.times(steps, "linspace")), spectrum, 32)

    assert [round(error(alpha, 10), 3) for alpha in (0.0, -0.5, -1.0)] == [1.117, 0.950, 0.648]
    assert round(error(-0.5, 250), 3) == 0.034


def test_white_start_of_a_shaped_model_is_wrong():
    spectrum, weight = images_spectrum(32, 32), weights.power_law(32, 32, -0.5, dtype=D)
    process = DiffusionProcess(DDPM, weight, 32)
    impulse = torch.zeros(1, 32, 32, dtype=D)
    impulse[0, 0, 0] = 32  # |F|^2 = 1 in every bin, as white noise has on average
    errors = []
    for start in (impulse, sagd.spectral_filter(impulse, weight)):
        times = DDPM.times(250, "linspace")
        x = ddim(process, model_of(process, 32, 32), (1, 32, 32), times, sagd.key(0), start=start)
        errors.append(spectrum_error(torch.fft.rfft2(x[0], norm="ortho").abs().square(), spectrum, 32))
    assert [round(error, 3) for error in errors] == [0.518, 0.034]


@pytest.mark.parametrize("name", ["ddpm", "edm heun, churn", "reverse sde"])
def test_samples_have_the_spectrum_that_is_computed_for_them(name):
    sampler, process, _ = build(name, weights.power_law(8, 7, -0.5, dtype=D), 7)
    times, count = process.schedule.times(12), 600
    x = sampler(process, model_of(process, 8, 7), (count, 8, 7), times, sagd.key(6))
    expected = reference.full_weight(sampled_spectrum(process, images_spectrum(8, 7), times, sampler), 7)
    power = torch.fft.fft2(x, norm="ortho").abs().square().mean(0)
    # chi-square with 2 degrees of freedom a sample, 1 at DC and at Nyquist: bounds of 4.5 standard errors
    error = (power / expected - 1) * (count / 2) ** 0.5
    assert error.abs().max() < 4.5 and error.square().mean() > 0.1


@pytest.mark.parametrize("name", ["ddim eta 0.5", "probability flow"])
def test_one_weight_per_timestep(name):
    """From bands of the data's slope at first to white noise at the end: DDIM and the flow follow each bin."""
    drifting = weights.power_law(8, 8, torch.linspace(-1, 0, 1000, dtype=D), dtype=D)
    sampler, process, order = build(name, drifting, 8, per_timestep=True)
    expected = images_spectrum(8, 8)
    errors = []
    for steps in (20, 40, 80):
        spectrum = sampled_spectrum(process, expected, DDPM.times(steps), sampler)
        errors.append(spectrum_error(spectrum, expected, 8))
    float32 = DiffusionProcess(DDPM, drifting.float(), 8, prediction="x0", per_timestep=True)
    samples = [sampler(p, model_of(p, 8, 8), (2, 3, 8, 8), DDPM.times(10), sagd.key(0)) for p in (float32, process)]
    assert samples[0].dtype == torch.float32
    torch.testing.assert_close(samples[0].double(), samples[1], rtol=1e-3, atol=1e-4)
    assert errors[-1] < 0.15 and all(fine < {1: 0.75, 2: 0.4}[order] * coarse for coarse, fine in pairwise(errors))


def test_churn_is_noise_of_its_range_and_factor():
    process = DiffusionProcess(EDMSchedule(), weights.power_law(6, 5, -0.5), 5, prediction="x0")
    start = process.noise(sagd.key(0), (2, 1, 6, 5), 80.0)

    def sample(key, **churn):
        times = process.schedule.times(6)
        return edm_heun(process, model_of(process, 6, 5), start.shape, times, sagd.key(key), start=start, **churn)

    plain = sample(1)
    assert torch.equal(plain, sample(2)) and torch.equal(plain, sample(1, churn=3.0, churn_range=(90.0, 100.0)))
    assert not torch.equal(sample(1, churn=3.0), sample(2, churn=3.0))
    silent = sample(1, churn=3.0, churn_noise=0.0)
    assert torch.equal(silent, sample(2, churn=3.0, churn_noise=0.0)) and not torch.equal(silent, plain)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "score"])
def test_samples_do_not_depend_on_what_the_model_predicts(prediction):
    weight = weights.power_law(6, 5, -0.5, dtype=D)
    samples = []
    for form in ("eps", prediction):
        process = DiffusionProcess(DDPM, weight, 5, prediction=form)
        samples.append(ddpm(process, model_of(process, 6, 5), (2, 3, 6, 5), DDPM.times(10), sagd.key(0)))
    torch.testing.assert_close(*samples, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", SAMPLERS)
def test_weights_per_channel(name):
    sampler, process, _ = build(name, weights.power_law(6, 5, torch.tensor([-1.0, 0.0, 0.5]), dtype=D), 5)
    _, single, _ = build(name, weights.power_law(6, 5, 0.0, dtype=D), 5)
    times = process.schedule.times(4)
    spectrum, alone = (sampled_spectrum(p, images_spectrum(6, 5), times, sampler) for p in (process, single))
    assert spectrum.shape == (3, 6, 3) and not torch.allclose(spectrum[0], spectrum[1])
    torch.testing.assert_close(spectrum[1], alone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_float32_and_float64_draw_the_same(name):
    samples = []
    for dtype in (torch.float32, D):
        sampler, process, _ = build(name, weights.power_law(9, 8, -0.5, dtype=dtype), 8)
        shape, times = (2, 3, 9, 8), process.schedule.times(10)
        samples.append(sampler(process, model_of(process, 9, 8), shape, times, sagd.key(0)))
    assert samples[0].dtype == torch.float32 and samples[1].dtype == D
    torch.testing.assert_close(samples[0].double(), samples[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_everything_is_on_the_device_of_the_weight(name):
    """With the meta device, which holds no values, as the default: whatever strays there fails."""
    sampler, process, _ = build(name, weights.omit_band(6, 5, 0.2, 0.3), 5)
    model, times, key = model_of(process, 6, 5), process.schedule.times(4), sagd.key(0)
    expected = sampler(process, model, (2, 3, 6, 5), times, key)
    with torch.device("meta"):
        assert torch.equal(sampler(process, model, (2, 3, 6, 5), times, key), expected)
        process.loss(model, expected, times[:2], key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", SAMPLERS)
def test_devices_agree(name):
    samples = []
    for device in ("cpu", "cuda"):
        sampler, process, _ = build(name, weights.power_law(9, 8, -0.5, device=device), 8)
        model, times = GaussianOracle(process, images_spectrum(9, 8).to(device)), process.schedule.times(10)
        samples.append(sampler(process, model, (2, 3, 9, 8), times.to(device), sagd.key(0, device)))
    assert samples[1].is_cuda
    torch.testing.assert_close(samples[1].cpu(), samples[0], rtol=1e-3, atol=1e-4)


# ---- noise


def test_ddpm_draws_from_the_posterior():
    process = DiffusionProcess(DDPM, weights.power_law(6, 5, -0.5, dtype=D), 5)
    model, key, times = model_of(process, 6, 5), sagd.key(5), DDPM.times(5).tolist()
    x = process.prior(times[0], torch.zeros(2, 6, 5, dtype=D)).sample(key=sagd.fold_in(key, 0))
    for i, (t, s) in enumerate(pairwise(times[:-1]), 1):
        x0, _ = process.denoise(model, x, t)
        x = process.posterior(x, x0, t, s).sample(key=sagd.fold_in(key, i))
    x0, _ = process.denoise(model, x, times[-2])
    torch.testing.assert_close(ddpm(process, model, (2, 6, 5), times, key), x0)


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddim_takes_the_steps_of_diffusers(eta):
    diffusers = pytest.importorskip("diffusers")
    peer = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    weight, key, shape = weights.power_law(6, 5, -0.5), sagd.key(0), (2, 1, 6, 5)
    schedule = DDPMSchedule(peer.alphas_cumprod)
    process = DiffusionProcess(schedule, weight, 5, prediction="v")
    model = model_of(process, 6, 5)
    for steps in (16, 7, 8):
        peer.set_timesteps(steps)
        assert schedule.times(steps)[:-1].tolist() == peer.timesteps.tolist()
    x = process.noise(sagd.fold_in(key, 0), shape, 999)
    for i, t in enumerate(peer.timesteps, 1):
        noise = sagd.shaped_noise(sagd.fold_in(key, i), shape, weight)
        x = peer.step(model(x, t.expand(2)), t, x, eta=eta, variance_noise=noise if eta else None).prev_sample
    torch.testing.assert_close(ddim(process, model, shape, schedule.times(8), key, eta=eta), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_is_the_operators_and_of_the_key_alone(name, monkeypatch):
    sampler, process, _ = build(name, weights.power_law(6, 6, -0.5), 6)
    keys, draw = [], process.draw

    def recorded(key, *args, **kwargs):
        keys.append(tuple(key.tolist()))
        return draw(key, *args, **kwargs)

    process.draw = recorded
    for function in ("randn", "randn_like", "rand", "normal"):
        monkeypatch.setattr(torch, function, None)
    arguments = process, model_of(process, 6, 6), (3, 1, 6, 6), process.schedule.times(5)
    x = sampler(*arguments, sagd.key(1))
    assert len(keys) == len(set(keys)) == (1 if name in DETERMINISTIC else len(keys))
    assert name in DETERMINISTIC or len(keys) > 3
    process.draw = draw
    assert torch.equal(x, sampler(*arguments, sagd.key(1))) and not torch.equal(x, sampler(*arguments, sagd.key(2)))
    assert x.dtype == torch.float32


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_with_its_own_key_does_not_depend_on_the_batch(name):
    sampler, process, _ = build(name, weights.power_law(6, 6, -0.5), 6)
    model, times = model_of(process, 6, 6), process.schedule.times(5)
    keys = sagd.split(sagd.key(3), 4)
    together = sampler(process, model, (4, 2, 6, 6), times, keys)
    apart = [sampler(process, model, (2, 2, 6, 6), times, half) for half in keys.split(2)]
    assert torch.equal(together, torch.cat(apart))


# ---- singular weights


class _Leaky(nn.Module):
    """A network that leaks a few per cent of its input into every frequency, and is not linear."""

    def forward(self, x, t):
        return 0.9 * x + 0.03 * x.roll(1, -1) * x.sign()


STARTING_AT_PURE_NOISE = ["ddim, flow", "flow euler", "probability flow, flow"]  # where eps does not give x_0


@pytest.mark.parametrize(
    ("name", "prediction"),
    [(n, p) for n in SAMPLERS for p in ("eps", "v", "x0") if p != "eps" or n not in STARTING_AT_PURE_NOISE],
)
def test_singular_weights_keep_samples_on_the_kept_bands(name, prediction):
    sampler, schedule, _ = SAMPLERS[name]
    weight = weights.omit_band(16, 16, 0.15, 0.3)
    process = DiffusionProcess(schedule, weight, 16, prediction=prediction)
    seen = []

    class Spy(_Leaky):
        def forward(self, x, t):
            seen.append(x)
            return super().forward(x, t)

    start = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))  # not of the prior
    x = sampler(process, Spy(), start.shape, schedule.times(6), sagd.key(0), start=start)
    omitted = (weight == 0).float()
    for state in (*seen, x):
        leak = sagd.spectral_filter(state, omitted).norm() / state.norm()
        assert leak < 1e-5, f"{leak:.1e} of the state in the omitted band"
    assert (sagd.spectral_filter(_Leaky()(x, None), omitted).norm() / x.norm()) > 0.01


def test_clipping_clamps_x0_and_warns_where_it_mixes_bands():
    key, shape, times = sagd.key(0), (2, 1, 16, 16), DDPM.times(5)
    full = DiffusionProcess(DDPM, weights.power_law(16, 16, -0.5), 16, prediction="x0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = ddim(full, lambda x, t: 5 * x, shape, times, key, clip=0.7)
    assert x.abs().max() <= 0.7 + 1e-6 and (x.abs() > 0.69).any()
    weight = weights.omit_band(16, 16, 0.15, 0.3)
    singular = DiffusionProcess(DDPM, weight, 16, prediction="x0")
    with pytest.warns(UserWarning, match="clip: clamping pixels mixes frequencies"):
        x = ddim(singular, lambda x, t: 5 * x, shape, times, key, clip=0.7)
    assert sagd.spectral_filter(x, (weight == 0).float()).norm() < 1e-5 * x.norm()


# ---- errors

WEIGHT, KEY, SHAPE = torch.ones(4, 3), sagd.key(0), (1, 4, 4)


def attempt(sampler=ddim, schedule=DDPM, shape=SHAPE, times=(9, 4, -1), prediction="x0", **options):
    process = DiffusionProcess(schedule, WEIGHT, 4, prediction=prediction)
    return sampler(process, lambda x, t: x, shape, times, KEY, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(times=(4, 9)), r"times: expected two or more in descending order, got \[4, 9\]"),
        (dict(times=9), r"times: expected two or more in descending order, got 9"),
        (dict(times=(9,)), r"times: expected two or more in descending order, got \[9\]"),
        (dict(times=[[9, 4]]), r"times: expected two or more in descending order, got \[\[9, 4\]\]"),
        (dict(times=(9, -2)), "times: expected none before -1, the time of x_0, got -2"),
        (dict(times=(1000, -1)), "t: expected timesteps -1 to 999, got 1000"),
        (dict(times=(9.5, -1.0)), "t: expected integer timesteps, got torch.float32"),
        (dict(eta=1.5), "eta: expected 0 to 1, got 1.5"),
        (dict(start=torch.ones(2, 4, 4)), r"start: expected the shape \[1, 4, 4\], got \[2, 4, 4\]"),
        (dict(schedule=FlowSchedule(), times=(1.0, 0.0), prediction="eps"), "times: x_0 cannot be told .*'eps' at 1.0"),
        (dict(sampler=reverse_sde, schedule=FlowSchedule(), times=(1.0, 0.0)), "times: the drift is infinite .* 1.0"),
        (dict(sampler=edm_heun), "process: edm_heun expects the schedule EDMSchedule, got DDPMSchedule"),
        (dict(sampler=flow_euler), "process: flow_euler expects the schedule FlowSchedule, got DDPMSchedule"),
        (dict(sampler=edm_heun, schedule=EDMSchedule(), times=(2.0, 0.0), churn=-1.0), "churn, .* got -1.0"),
    ],
)  # fmt: skip
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        attempt(**options)


def test_a_weight_of_other_planes_is_an_error():
    with pytest.raises(ValueError, match=r"planes: expected \[..., H, 4\], the width of the process, got \[1, 8, 8\]"):
        attempt(shape=(1, 8, 8))
