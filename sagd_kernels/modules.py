"""The operators as modules."""

import torch
from torch import Tensor, nn

from .ops import shaped_noise
from .random import next_key
from .spectral import weight_dtype


class ShapedNoise(nn.Module):
    """Noise of a given spectrum where `torch.randn_like(x)` stood: `noise = ShapedNoise(weight)(x)`.

    Args:
        weight: [..., H, W//2+1], see `sagd_kernels.weights`. A copy of it is held as a buffer, or a `nn.Parameter`
            itself as a parameter, which the noise's gradient reaches: it moves with `.to(device)` and is saved in the
            state dict. It keeps its precision when the model is cast to a half type, as the operators compute with
            float32 weights.
        generator: where keys are drawn from; the default generator of the device of `x` unless given. `torch.compile`
            breaks its graph at one that is given, as it does for torch's own draws.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
        if weight.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"weight: expected float32 or float64, got {weight.dtype}")
        self.generator = generator
        if isinstance(weight, nn.Parameter):
            self.weight = weight
        elif weight.requires_grad:
            raise ValueError("weight: expected a nn.Parameter, or a tensor without gradient; weight.detach() is one")
        else:
            self.register_buffer("weight", weight.clone())

    def forward(self, x: Tensor) -> Tensor:
        """A draw of the shape, dtype and device of `x`, [..., H, W]; variance 1 where mean w^2 = 1."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor, got {type(x).__name__}")
        if hasattr(x, "placements"):
            raise TypeError(
                "x: expected a torch.Tensor, got a DTensor; sagd_kernels.distributed.shaped_noise draws those"
            )
        weight = self.weight.to(weight_dtype(x.dtype))
        return shaped_noise(next_key(self.generator, x.device), x.shape, weight, dtype=x.dtype)

    def extra_repr(self) -> str:
        return f"weight={list(self.weight.shape)}"

    def _apply(self, fn, recurse=True):
        weight = self.weight.detach()
        super()._apply(fn, recurse)
        if self.weight.dtype != weight.dtype:
            self.weight.data = weight.to(self.weight.device)
        return self
