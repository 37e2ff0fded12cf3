"""What defines a run: the options that a checkpoint stores and that a resumed run must agree with; and presets."""

from dataclasses import dataclass, fields

import torch

DATASETS = ("mnist", "fashion-mnist", "folder", "huggingface")


class RunError(Exception):
    """Something the user can put right: a wrong option, missing data, a damaged checkpoint: shown as one line."""


class ImageError(RunError):
    """An image that cannot be read, perhaps found after hours: the run is saved before it ends."""


def fastest_precision() -> str:
    """bfloat16 where the GPU, or the CPU without one, multiplies it in hardware; otherwise float32."""
    if torch.cuda.is_available():
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch.cpu.get_capabilities, the public form, is newer than torch 2.10
        hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bfloat16" if hardware else "float32"


@dataclass(frozen=True)
class Config:
    """One field for each option of the command line that changes the trained network; `--help` explains them."""

    dataset: str = "mnist"
    data: str | None = None
    image_size: int | None = None
    channels: int | None = None
    weight: str = "power:-0.5"
    model: str = "small"
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    grad_clip: float = 1.0
    ema: float = 0.995
    seed: int = 0
    precision: str = "float32"

    def contradictions(self, given: dict) -> list[str]:
        """One line for each option in `given` that differs from this run's, in the words of the command line.

        `data` may differ: a folder that has moved is still the same data. `steps` may be more: a run can be extended.
        """
        allowed = {"data"} | ({"steps"} if given.get("steps", 0) > self.steps else set())
        return [
            f"{option(name)}: the checkpoint has {getattr(self, name)}, got {given[name]}"
            + (" (a run can be extended, not shortened)" if name == "steps" else "")
            for name in (field.name for field in fields(self))
            if name in given and name not in allowed and given[name] != getattr(self, name)
        ]


# What --preset sets of a Config. "tiny" trains the default network, which 2 cores can, for a third of the steps; the
# network of --model tiny draws no digits in as many. "paper" is the U-Net of arXiv 2510.09660 with a power law of its
# experiments; it does not say how it optimises, so that is as for CIFAR-10 in "Denoising diffusion probabilistic
# models" (arXiv 2006.11239), for fewer steps.
PRESETS = {
    "tiny": dict(steps=1000),
    "paper": dict(model="paper", weight="power:-0.04", steps=100_000, batch=128, lr=2e-4, warmup=5000, ema=0.9999),
}


@dataclass(frozen=True)
class Execution:
    """How a run is carried out. It may change at every resume; the noise, the order of the data, and up to rounding
    the result, do not depend on it.

    stop_at: the step to stop at, with a checkpoint; None for `Config.steps`.
    checkpoint_every, preview_every: steps between checkpoints, and between grids of samples (0: none).
    accumulate: backward passes for each step, each over its share of the batch.
    workers: processes that read images ahead, for each process that trains.
    tensorboard: write curves and previews for tensorboard.
    """

    stop_at: int | None = None
    checkpoint_every: int = 500
    preview_every: int = 0
    accumulate: int = 1
    workers: int = 0
    tensorboard: bool = False


def option(name: str) -> str:
    """The command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")
