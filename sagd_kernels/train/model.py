"""The network: diffusers' U-Net, in the sizes of `--model`."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from .noise import Purpose, run_generator

# The U-Nets of `--model`, on planes unshuffled by `patch`. All attend in the middle; `attention`: at every lower level.
SIZES = {
    "tiny": dict(patch=2, channels=(16, 32), layers=1, attention=False),
    "small": dict(patch=2, channels=(32, 64, 64), layers=1, attention=False),
    "medium": dict(patch=2, channels=(64, 128, 128), layers=2, attention=False),
    "paper": dict(patch=1, channels=(32, 64, 128, 256), layers=2, attention=True),  # of arXiv 2510.09660
}


class Denoiser(nn.Module):
    """Predicts the noise in images of any size: the U-Net on `pixel_unshuffle(x, patch)`.

    The U-Net halves the plane at every level, so the plane is padded to a multiple of its stride on the way in and
    cropped on the way out; the noise, and its weight, live on the plane of the image itself.
    """

    def __init__(self, size: str, channels: int):
        super().__init__()
        options = SIZES[size]
        lower_levels = len(options["channels"]) - 1
        kind = "Attn" if options["attention"] else ""
        self.patch = options["patch"]
        self.stride = self.patch * 2**lower_levels
        self.unet = UNet2DModel(
            in_channels=channels * self.patch**2,
            out_channels=channels * self.patch**2,
            block_out_channels=options["channels"],
            layers_per_block=options["layers"],
            down_block_types=("DownBlock2D", *[f"{kind}DownBlock2D"] * lower_levels),
            up_block_types=(*[f"{kind}UpBlock2D"] * lower_levels, "UpBlock2D"),
            norm_num_groups=8,
        )

    def forward(self, noisy: Tensor, timestep: Tensor) -> Tensor:
        """The noise in `noisy` [N, C, H, W] at integer timesteps [N] or a single one, in the same shape."""
        height, width = noisy.shape[-2:]
        padded = F.pad(noisy, (0, -width % self.stride, 0, -height % self.stride))
        predicted = self.unet(F.pixel_unshuffle(padded, self.patch), timestep).sample
        return F.pixel_shuffle(predicted, self.patch)[..., :height, :width]


def build_model(size: str, channels: int, seed: int) -> Denoiser:
    """A freshly initialised network; the same seed gives the same parameters, and the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(run_generator(seed, Purpose.MODEL).get_state())
        return Denoiser(size, channels)
