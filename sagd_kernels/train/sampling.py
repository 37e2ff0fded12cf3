"""Sampling: diffusers' DDIM step, with every source of noise shaped."""

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sagd_kernels import shaped_noise, spectral_filter, weights

from .model import build_scheduler
from .noise import Purpose, run_key

SAMPLERS = ("ddim", "ddpm")


def is_singular(weight: Tensor) -> bool:
    """Whether some band carries no noise at all."""
    return bool((weight == 0).any())


@torch.no_grad()
def sample(
    model: nn.Module,
    weight: Tensor,
    shape: tuple[int, int, int],
    count: int,
    seed: int,
    *,
    sampler: str = "ddpm",
    steps: int = 100,
    clip: bool = False,
    batch: int = 64,
) -> Tensor:
    """`count` images [count, *shape] from a network that predicts shaped noise in images from -1 to 1.

    Shaping cancels in the deterministic update, so DDIM's step is the usual one; what changes is x_T ~ N(0, Sigma_w)
    and, for "ddpm" (DDIM with eta = 1), the noise injected at each step. `clip` clamps every prediction of x_0 to
    [-1, 1] and takes the noise that goes with it. Image number i is the same for every `batch`.

    Where the weight is singular, the network's output and the state are projected on the bands that carry noise at
    every step: a network leaks a few per cent into a band that it never saw noised, and 1 / sqrt(abar_T) makes that as
    large as the image.
    """
    scheduler = build_scheduler(clip_sample=clip)
    scheduler.set_timesteps(steps)
    kept_bands = weights.power(weight, 0) if is_singular(weight) else None
    eta = 1.0 if sampler == "ddpm" else 0.0
    finished = []
    with tqdm(total=steps * count, desc="sampling", unit="image-step") as progress:
        for start in range(0, count, batch):
            size = (min(batch, count - start), *shape)
            place = dict(size=size, weight=weight, plane_offset=start * shape[0])
            images = shaped_noise(run_key(seed, Purpose.INITIAL_NOISE), **place)
            for timestep in scheduler.timesteps:
                predicted = model(images, timestep)
                if kept_bands is not None:
                    predicted, images = spectral_filter(predicted, kept_bands), spectral_filter(images, kept_bands)
                injected = None
                if eta > 0:
                    injected = shaped_noise(run_key(seed, Purpose.INJECTED_NOISE, int(timestep)), **place)
                images = scheduler.step(
                    predicted, timestep, images, eta=eta, use_clipped_model_output=clip, variance_noise=injected
                ).prev_sample
                progress.update(size[0])
            finished.append(images)
    return torch.cat(finished)
