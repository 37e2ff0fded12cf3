"""What defines a run: the options that a checkpoint stores and that a resumed run must agree with."""

from dataclasses import dataclass, fields

import torch


class RunError(Exception):
    """Something the user can put right: a wrong option, missing data, a damaged checkpoint: shown as one line."""


def fastest_precision() -> str:
    """bfloat16 where the CPU multiplies it in hardware (it trains about 1.5 times faster there), otherwise float32."""
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
    ema: float = 0.995
    seed: int = 0
    precision: str = "float32"

    def contradictions(self, given: dict) -> list[str]:
        """One line for each option in `given` that differs from this run's, in the words of the command line.

        `data` may differ: a folder that has moved is still the same data.
        """
        return [
            f"{option(name)}: the checkpoint has {getattr(self, name)}, got {given[name]}"
            for name in (field.name for field in fields(self))
            if name in given and name != "data" and given[name] != getattr(self, name)
        ]


def option(name: str) -> str:
    """The command-line spelling of a field's name."""
    return "--" + name.replace("_", "-")
