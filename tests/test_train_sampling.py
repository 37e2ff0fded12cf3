"""Sampling in the trainer: the spectrum is the data's, an omitted band stays empty, and no sample depends on others."""

import json

import pytest
import torch

pytest.importorskip("diffusers", reason="the trainer needs the extra 'train'")

from tiny_runs import TINY

from sagd_kernels import spectral_filter, weights
from sagd_kernels.diffusion import GaussianOracle
from sagd_kernels.train.__main__ import main
from sagd_kernels.train.model import Denoiser
from sagd_kernels.train.noise import build_process, build_weight
from sagd_kernels.train.sampling import sample, tile


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (13, 22), (5, 9)])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_network_takes_any_image_size(preset, size):
    images = torch.zeros(2, 3, *size)
    assert Denoiser(preset, 3)(images, torch.tensor([0, 999])).shape == images.shape


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sampling_reaches_the_data_spectrum(sampler):
    """Every source of noise must be shaped: with a white x_T or injected noise the spectrum tilts by up to w^2."""
    data_weight = 0.5 * weights.power_law(12, 12, -1.0)
    process = build_process("power:-0.5", 12, 12)
    oracle = GaussianOracle(process, data_weight**2)
    samples = sample(oracle, process, (1, 12, 12), 512, 0, sampler=sampler, steps=250, batch=512)
    power = weights.radial_profile(weights.power_spectrum(samples), 12)
    torch.testing.assert_close(power, weights.radial_profile(data_weight**2, 12), rtol=0.15, atol=0)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_omitted_band_stays_empty(sampler):
    torch.manual_seed(0)
    model, power = Denoiser("tiny", 1), {}
    omitted = (build_weight("omit:0.2:0.35", 28, 28) == 0).float()
    for spec in ("omit:0.2:0.35", "white"):  # white noise shows what the first assertion would catch
        samples = sample(model, build_process(spec, 28, 28), (1, 28, 28), 3, 0, sampler=sampler, steps=10)
        power[spec] = spectral_filter(samples, omitted).square().mean() / samples.square().mean()
    assert power["omit:0.2:0.35"] < 1e-10
    assert power["white"] > 1e-3


def test_clipping_with_an_omitted_band_warns(tmp_path, recwarn):
    folder = tmp_path / "run"
    assert main([*TINY, "--weight", "omit:0.2:0.35", "--steps", "2", "--output", str(folder)]) == 0
    assert json.loads((folder / "metrics.json").read_text())["samples"]["clip"] is False
    with pytest.warns(UserWarning, match="clamping pixels mixes frequencies"):
        main(["--resume", str(folder), "--clip", "--samples", "4", "--sample-steps", "4"])


def test_samples_in_a_grid():
    grid = tile(torch.zeros(3, 1, 4, 6))
    assert grid.shape == (1, 2 * 6, 2 * 8)
    assert (grid[:, 6:, 8:] == 1).all()
    assert (grid == 0).sum() == 3 * 4 * 6


def test_samples_do_not_depend_on_the_batch():
    process = build_process("power:-0.5", 9, 9)
    arguments = dict(process=process, shape=(2, 9, 9), count=5, seed=3, sampler="ddpm", steps=4)
    whole = sample(lambda x, t: 0.5 * x, batch=5, **arguments)
    assert torch.equal(sample(lambda x, t: 0.5 * x, batch=2, **arguments), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 5
