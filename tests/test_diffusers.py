"""Schedulers and pipelines of diffusers with shaped noise: every draw is shaped, nothing else changes, all is saved."""

import inspect
import json
import re
import warnings
from importlib.util import find_spec

import pytest
import torch
from gaussian_data import SIZE, SPECTRUM, assert_spectrum, filtered, log_spectrum_error, posterior_means

from sagd_kernels import spectral_filter, weights

pytest.importorskip("diffusers", reason="needs diffusers")
import diffusers

from sagd_kernels.integrations import diffusers as shaped
from sagd_kernels.integrations import intercept

WEIGHT = weights.power_law(SIZE, SIZE, -1.0)
OMITTED = weights.omit_band(SIZE, SIZE, 0.2, 0.3)
FLAT = torch.ones_like(WEIGHT)

SCHEDULERS = {
    "DDPM": ("DDPMScheduler", {"clip_sample": False}, {}),
    "DDPM, large variance": ("DDPMScheduler", {"clip_sample": False, "variance_type": "fixed_large"}, {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {}),
    "DDIM, eta 1": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}, {"eta": 1.0}),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, {}),
    "DPM-Solver++ 3": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    "SDE-DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "Euler ancestral": ("EulerAncestralDiscreteScheduler", {}, {}),
    "EDM Euler": ("EDMEulerScheduler", {}, {}),
    "EDM Euler, churn": ("EDMEulerScheduler", {}, {"s_churn": 10.0}),
    "flow matching": ("FlowMatchEulerDiscreteScheduler", {}, {}),
    "flow matching, stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, {}),
}
STOCHASTIC = {case for case in SCHEDULERS if re.search("DDPM|eta|SDE|ancestral|churn|stochastic", case)}
CLASSES = sorted({name for name, _, _ in SCHEDULERS.values()})


def build(case, weight=None):
    """The scheduler of a case and the arguments of its steps: diffusers' own unless a weight is given."""
    name, config, step_arguments = SCHEDULERS[case]
    if weight is None:
        return getattr(diffusers, name)(**config), step_arguments
    return getattr(shaped, f"Shaped{name}")(**config, weight=weight), step_arguments


def gaussian_model(scheduler, x, t, weight, spectrum):
    """What a perfectly trained network of the scheduler's kind outputs at state x for data of this spectrum."""
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        sigma = scheduler.sigmas[scheduler.step_index or 0]
        x_0, noise = posterior_means(x, weight, 1 - sigma, sigma, spectrum)
        return noise - x_0
    if isinstance(scheduler, diffusers.EDMEulerScheduler):
        sigma = scheduler.sigmas[scheduler.step_index]
        zero, one = (scheduler.precondition_outputs(x, torch.full_like(x, f), sigma) for f in (0.0, 1.0))
        return (posterior_means(x, weight, 1.0, sigma, spectrum)[0] - zero) / (one - zero)
    if isinstance(scheduler, diffusers.EulerAncestralDiscreteScheduler):
        return posterior_means(x, weight, 1.0, scheduler.sigmas[scheduler.step_index], spectrum)[1]
    signal = scheduler.alphas_cumprod[int(t)]
    return posterior_means(x, weight, signal.sqrt(), (1 - signal).sqrt(), spectrum)[1]


def sample(scheduler, step_arguments, x_T, steps, model):
    torch.manual_seed(1)
    scheduler.set_timesteps(steps)
    x = x_T * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        x = scheduler.step(model(scheduler, x, t), t, x, **step_arguments).prev_sample
    return x


def perfect_model(weight, spectrum=SPECTRUM):
    return lambda scheduler, x, t: gaussian_model(scheduler, x, t, weight, spectrum)


# ---- sampling


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_run_is_diffusers_own_run_on_whitened_data_coloured(case):
    """Shaping commutes with every update, so x = T_w y with y the run of diffusers' own scheduler from the same white
    draws on data of spectrum C / w^2. One unshaped draw, or one changed coefficient, would show."""
    white = torch.randn(4, 2, SIZE, SIZE)
    whitened = sample(*build(case), white, 7, perfect_model(FLAT, SPECTRUM / WEIGHT.square()))
    x_T = spectral_filter(white, WEIGHT)
    coloured = sample(*build(case, WEIGHT), x_T, 7, perfect_model(WEIGHT))
    torch.testing.assert_close(coloured, spectral_filter(whitened, WEIGHT), rtol=1e-4, atol=1e-4)
    unshaped_draws = sample(*build(case), x_T, 7, perfect_model(WEIGHT))
    stochastic = (unshaped_draws - coloured).norm() > 0.05 * coloured.norm()
    assert stochastic == (case in STOCHASTIC)


@pytest.mark.parametrize("case", [case for case in SCHEDULERS if case != "flow matching, stochastic"])
def test_the_perfect_model_reaches_the_spectrum_of_the_data(case):
    """Stochastic flow matching, left out, adds noise to the posterior mean: that loses variance at any step count."""
    steps = 30 if case in ("DPM-Solver++", "DPM-Solver++ 3", "SDE-DPM-Solver++") else 150
    scheduler, step_arguments = build(case, WEIGHT)
    x_T = scheduler.randn((256, 1, SIZE, SIZE))
    error = log_spectrum_error(sample(scheduler, step_arguments, x_T, steps, perfect_model(WEIGHT)))
    plain, step_arguments = build(case)
    white_error = log_spectrum_error(sample(plain, step_arguments, torch.randn_like(x_T), steps, perfect_model(WEIGHT)))
    assert error < 0.2 and white_error > 1, f"{error:.3f} shaped, {white_error:.3f} white"


# ---- a weight with an omitted band


@pytest.mark.parametrize("case", SCHEDULERS)
def test_what_the_network_leaks_into_an_omitted_band_is_dropped(case):
    leak = 0.03 * torch.randn(8, 1, SIZE, SIZE)
    support = torch.where(OMITTED > 0, OMITTED, 1)

    def leaking_model(scheduler, x, t):
        return gaussian_model(scheduler, x, t, support, SPECTRUM) + leak

    scheduler, step_arguments = build(case, OMITTED)
    x_T = scheduler.randn(leak.shape)
    projected = sample(scheduler, step_arguments, x_T, 10, leaking_model)
    with shaped.Interception(shaped.PlacedWeight(OMITTED)):  # the same noise, without the projection
        leaked = sample(*build(case), x_T, 10, leaking_model)
    omitted = (OMITTED == 0).float()
    assert filtered(projected, omitted).std() < 1e-5
    assert filtered(leaked, omitted).std() > 1e-3
    assert filtered(projected, 1 - omitted).std() > 0.1


def test_the_state_is_projected_too():
    x, nothing = torch.randn(2, 1, SIZE, SIZE), torch.zeros(2, 1, SIZE, SIZE)
    results = []
    for state, weight in ((x, OMITTED), (spectral_filter(x, weights.power(OMITTED, 0)), None)):
        scheduler, _ = build("DDIM", weight)
        scheduler.set_timesteps(10)
        results.append(scheduler.step(nothing, scheduler.timesteps[3], state).prev_sample)
    assert torch.equal(*results)


def test_a_learned_variance_is_left_alone():
    arguments = {"variance_type": "learned_range", "clip_sample": False}
    scheduler, plain = shaped.ShapedDDPMScheduler(weight=OMITTED, **arguments), diffusers.DDPMScheduler(**arguments)
    x, predicted, variance = torch.randn(3, 2, 1, SIZE, SIZE)
    torch.manual_seed(2)
    result = scheduler.step(torch.cat([predicted, variance], 1), 500, x).prev_sample
    x, predicted = (spectral_filter(planes, weights.power(OMITTED, 0)) for planes in (x, predicted))
    torch.manual_seed(2)
    with intercept(OMITTED):
        expected = plain.step(torch.cat([predicted, variance], 1), 500, x).prev_sample
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("config", [{"clip_sample": True}, {"clip_sample": False, "thresholding": True}])
def test_clipping_warns_where_a_band_is_omitted(config):
    with pytest.warns(UserWarning, match="clip_sample, thresholding: expected False"):
        shaped.ShapedDDIMScheduler(weight=OMITTED, **config)


def test_clipping_does_not_warn_where_none_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shaped.ShapedDDIMScheduler(weight=WEIGHT, clip_sample=True)


# ---- draws


@pytest.mark.parametrize("name", CLASSES)
def test_training_noise_has_the_spectrum_of_the_weight(name):
    scheduler = getattr(shaped, f"Shaped{name}")(weight=WEIGHT)
    assert_spectrum(scheduler.randn_like(torch.empty(2000, 1, SIZE, SIZE)), WEIGHT)


def test_draws_follow_their_arguments():
    scheduler = shaped.ShapedDDPMScheduler(weight=WEIGHT)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    white = torch.cat([torch.randn(1, 2, SIZE, SIZE, generator=g, dtype=torch.float64) for g in generators])
    again = [g.manual_seed(i) for i, g in enumerate(generators)]
    noise = scheduler.randn((3, 2, SIZE, SIZE), again, device="cpu", dtype=torch.float64)
    torch.testing.assert_close(noise, spectral_filter(white, WEIGHT.double()))
    x = torch.empty(2, 1, SIZE, SIZE, dtype=torch.bfloat16)
    first, second = (scheduler.randn_like(x, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.bfloat16
    assert not torch.equal(first, scheduler.randn_like(x))


def test_channels_may_have_weights_of_their_own():
    weight = torch.stack([WEIGHT, FLAT])
    scheduler = shaped.ShapedDDPMScheduler(weight=weight)
    noise = scheduler.randn((2000, 2, SIZE, SIZE), [torch.Generator().manual_seed(i) for i in range(2000)])
    assert_spectrum(noise[:, :1], WEIGHT)
    assert_spectrum(noise[:, 1:], FLAT)


def test_the_frames_of_a_video_are_not_taken_for_channels():
    size = (1, 2, 2, SIZE, SIZE)  # [N, C, T, H, W]
    assert shaped.ShapedDDPMScheduler(weight=WEIGHT).randn(size).shape == size
    per_channel = shaped.ShapedDDPMScheduler(weight=torch.stack([WEIGHT, FLAT]))
    with pytest.raises(ValueError, match=r"size: expected \[N, C, H, W\] for a weight for each channel, got \[1, 2, 2"):
        per_channel.randn(size)
    with pytest.raises(ValueError, match="sample: expected"):
        per_channel.step(torch.zeros(size), per_channel.timesteps[0], torch.zeros(size))


def test_a_run_from_white_noise_warns():
    scheduler, _ = build("DDIM", WEIGHT)
    with pytest.warns(UserWarning, match="x_T: expected noise of the scheduler's weight"):
        sample(scheduler, {}, torch.randn(1, 1, SIZE, SIZE), 3, perfect_model(WEIGHT))


@pytest.mark.parametrize("weight", [WEIGHT, OMITTED, weights.power_law(SIZE, SIZE, -4.0)])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_from_shaped_noise_does_not_warn(name, weight, dtype):
    arguments = {"clip_sample": False} if name == "DDIMScheduler" else {}
    scheduler = getattr(shaped, f"Shaped{name}")(weight=weight, **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in (1, 100):
            x_T = scheduler.randn((n, 1, SIZE, SIZE), dtype=dtype)
            sample(scheduler, {}, x_T, 2, lambda scheduler, x, t: torch.zeros_like(x))


# ---- the spacing of DDIM's steps


def test_linspace_spacing_is_replaced_with_a_warning():
    scheduler = shaped.ShapedDDIMScheduler(weight=WEIGHT, timestep_spacing="linspace")
    with pytest.warns(UserWarning, match="timestep_spacing: DDIM's steps do not fit 'linspace'"):
        scheduler.set_timesteps(10)
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler.timesteps.tolist() == list(range(999, 0, -100))


# ---- what a pipeline reads, and what is saved


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_are_those_of_diffusers(name):
    """Pipelines look at the parameters of `step` and `set_timesteps` to see what they may pass."""
    own, ours = getattr(diffusers, name), getattr(shaped, f"Shaped{name}")
    assert inspect.signature(ours.step) == inspect.signature(own.step)
    assert list(inspect.signature(ours.set_timesteps).parameters) == list(
        inspect.signature(own.set_timesteps).parameters
    )
    assert [*inspect.signature(own.__init__).parameters, "weight"] == list(inspect.signature(ours.__init__).parameters)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("weight", [WEIGHT, torch.stack([WEIGHT, FLAT]).double()], ids=["one", "per channel"])
def test_save_and_load(name, weight, tmp_path):
    scheduler = getattr(shaped, f"Shaped{name}")(weight=weight, num_train_timesteps=500)
    scheduler.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["scheduler_config.json"]
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert torch.equal(loaded.weight, weight) and loaded.weight.dtype == weight.dtype
    assert loaded.config.num_train_timesteps == 500
    assert json.loads(loaded.to_json_string()) == json.loads(scheduler.to_json_string())


def test_a_scheduler_of_another_class_takes_the_weight_over():
    scheduler = shaped.ShapedDDPMScheduler(weight=WEIGHT, num_train_timesteps=500)
    ddim = shaped.ShapedDDIMScheduler.from_config(scheduler.config)
    assert torch.equal(ddim.weight, WEIGHT) and ddim.config.num_train_timesteps == 500
    through_plain = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert torch.equal(shaped.ShapedDDIMScheduler.from_config(through_plain.config).weight, WEIGHT)


def test_the_folder_of_a_plain_scheduler_takes_a_weight(tmp_path):
    diffusers.DDPMScheduler(num_train_timesteps=500).save_pretrained(tmp_path)
    scheduler = shaped.ShapedDDPMScheduler.from_pretrained(tmp_path, weight=WEIGHT)
    assert torch.equal(scheduler.weight, WEIGHT) and scheduler.config.num_train_timesteps == 500
    with pytest.raises(TypeError, match=r"weight: expected .*\.from_pretrained\(folder, weight=\.\.\.\), got none"):
        shaped.ShapedDDPMScheduler.from_pretrained(tmp_path)


def test_the_printed_form_abbreviates_the_weight():
    scheduler = shaped.ShapedDDPMScheduler(weight=WEIGHT)
    text = str(scheduler)
    assert '"weight": "torch.float32 [16, 9]"' in text and len(text) < 1000
    # as diffusers logs the config when a plain scheduler is made from it
    logged = f"{dict(scheduler.config)}"
    assert "'weight': <weight in 864 characters>" in logged and len(logged) < 1000


# ---- any other scheduler of diffusers


def own_schedulers():
    """The names of diffusers' schedulers that need no arguments and have all packages they need."""
    for name in dir(diffusers):
        if name.endswith("Scheduler") and name not in ("CogVideoXDPMScheduler", "ScoreSdeVeScheduler"):  # no such step
            try:
                getattr(diffusers, name)().step  # noqa: B018, an attribute that placeholders lack
            except (AttributeError, ImportError, TypeError):
                continue
            yield name


def derive(name):
    return type(f"Shaped{name}", (shaped.ShapedScheduler, getattr(diffusers, name)), {})


@pytest.mark.parametrize("name", list(own_schedulers()))
def test_any_scheduler_is_shaped_by_inheritance(name, tmp_path):
    """On a linear network x = T_w y again, with y the run of diffusers' own scheduler from the same white draws."""
    plain, build_shaped = getattr(diffusers, name), derive(name)
    build_shaped(weight=WEIGHT).save_pretrained(tmp_path)
    assert torch.equal(build_shaped.from_pretrained(tmp_path).weight, WEIGHT)

    def run(scheduler, x_T):
        return sample(scheduler, {}, x_T, 4, lambda scheduler, x, t: 0.3 * x)

    clipping = inspect.signature(plain).parameters.keys() & {"clip_sample", "clip_denoised", "thresholding"}
    config, white = dict.fromkeys(clipping, False), torch.randn(2, 2, SIZE, SIZE)
    try:
        whitened = run(plain(**config), white)
    except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        pytest.skip(f"diffusers' own does not sample images so: {error}")
    coloured = run(build_shaped(weight=WEIGHT, **config), spectral_filter(white, WEIGHT))
    expected = spectral_filter(whitened, WEIGHT)
    assert (coloured - expected).norm() < 1e-4 * expected.norm()


def test_the_schedulers_that_people_use_are_among_those_tested():
    names = ["DDIMInverse", "DEISMultistep", "EulerDiscrete", "HeunDiscrete", "LCM", "PNDM", "TCD", "UniPCMultistep"]
    assert {f"{name}Scheduler" for name in names} <= set(own_schedulers())


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "CogVideoXDPMScheduler", "SchedulerMixin"])
def test_a_scheduler_without_the_usual_step_is_refused(name):
    with pytest.raises(TypeError, match=f"Shaped{name}: expected a scheduler whose step takes .*'sample'\\], got"):
        derive(name)


@pytest.mark.skipif(find_spec("torchsde") is not None, reason="needs a package that is missing")
def test_a_scheduler_whose_package_is_missing_says_which():
    with pytest.raises(ImportError, match="pip install torchsde"):
        derive("DPMSolverSDEScheduler")


# ---- pipelines


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(3)
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [8]}
    unet = diffusers.UNet2DModel(SIZE, 1, 1, layers_per_block=1, norm_num_groups=4, **blocks)
    for parameter in unet.conv_out.parameters():
        parameter.data.zero_()
    return unet


def run(pipeline, n=4, **arguments):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(6)
    images = pipeline(batch_size=n, generator=generator, output_type="np", num_inference_steps=4, **arguments).images
    return torch.from_numpy(images)


@pytest.fixture
def drawn(monkeypatch):
    """What the U-Net is given at the first step: x_T."""
    seen = []
    forward = diffusers.UNet2DModel.forward

    def recording(self, x, *args, **kwargs):
        seen.append(x)
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(diffusers.UNet2DModel, "forward", recording)
    return seen


@pytest.mark.parametrize(
    ("pipeline", "scheduler", "arguments"),
    [
        ("DDPMPipeline", "DDPMScheduler", {}),
        ("DDIMPipeline", "DDIMScheduler", {"eta": 1.0}),
        ("DDIMPipeline", "DDPMScheduler", {}),
        ("DDPMPipeline", "DDIMScheduler", {}),
    ],
)
def test_pipelines_draw_and_keep_shaped_noise(pipeline, scheduler, arguments, unet, drawn, tmp_path):
    build_pipeline = getattr(shaped, f"Shaped{pipeline}")
    scheduler = getattr(shaped, f"Shaped{scheduler}")(weight=WEIGHT, clip_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = run(build_pipeline(unet, scheduler), **arguments)
    generator = torch.Generator().manual_seed(6)
    expected = scheduler.randn((4, 1, SIZE, SIZE), generator)
    assert torch.equal(drawn[0], expected)
    build_pipeline(unet, scheduler).save_pretrained(tmp_path)
    loaded = build_pipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.scheduler, shaped.ShapedScheduler) and torch.equal(loaded.scheduler.weight, WEIGHT)
    assert torch.equal(run(loaded, **arguments), images)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".pickle")]


def test_diffusers_own_pipeline_keeps_the_scheduler_and_warns_of_white_x_t(unet, tmp_path):
    scheduler = shaped.ShapedDDPMScheduler(weight=WEIGHT, clip_sample=False)
    images = run(shaped.ShapedDDPMPipeline(unet, scheduler))
    shaped.ShapedDDPMPipeline(unet, scheduler).save_pretrained(tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert torch.equal(pipeline.scheduler.weight, WEIGHT)
    with pytest.warns(UserWarning, match="x_T: expected noise of the scheduler's weight"):
        white_start = run(pipeline)
    with intercept(WEIGHT):
        assert torch.equal(run(pipeline), images)
    assert not torch.equal(white_start, images)


def test_a_shaped_pipeline_needs_a_shaped_scheduler(unet):
    pipeline = shaped.ShapedDDPMPipeline(unet, diffusers.DDPMScheduler())
    with pytest.raises(TypeError, match="scheduler: expected a ShapedScheduler, got DDPMScheduler"):
        run(pipeline)


# ---- errors


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(2, 1, 8, 5), r"weight: expected \[H, W//2\+1\] or \[C, H, W//2\+1\], got \[2, 1, 8, 5\]"),
        (WEIGHT.half(), "weight: expected float32 or float64"),
        ("not a weight", "weight: expected a tensor or the text of one from a config, got 'not a weight'"),
        ("AAAA", "weight: expected a tensor or the text of one from a config, got 'AAAA'"),
    ],
)
def test_no_such_weight(weight, message):
    with pytest.raises(ValueError, match=message):
        shaped.ShapedDDPMScheduler(weight=weight)


def test_a_weight_that_is_not_given_by_its_name():
    with pytest.raises(TypeError, match=r"weight: expected ShapedDDPMScheduler\(weight=\.\.\.\)"):
        shaped.ShapedDDPMScheduler()
    with pytest.raises(TypeError, match=r"weight: expected by its name, ShapedDDPMScheduler\(weight=\.\.\.\), got"):
        shaped.ShapedDDPMScheduler(WEIGHT)


def test_planes_that_the_weight_does_not_fit():
    scheduler = shaped.ShapedDDIMScheduler(weight=WEIGHT)
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 8, 8)
    expected = r"expected \[\.\.\., 16, 16 or 17\] for this weight, got \[1, 1, 8, 8\]"
    for name, call in {
        "size": lambda: scheduler.randn(x.shape),
        "sample": lambda: scheduler.step(x, scheduler.timesteps[0], x),
    }.items():
        with pytest.raises(ValueError, match=f"{name}: {expected}"):
            call()
