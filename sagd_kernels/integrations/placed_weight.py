"""A constant weight that follows the tensors it meets, and the planes it fits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spectral import check_nonnegative, weight_dtype


class PlacedWeight:
    """A weight [..., H, W//2+1], and a copy of it on each device and in each dtype that it was needed in.

    Raises:
        TypeError: not a tensor.
        ValueError: not float32 or float64 [..., H, W//2+1], a value that is negative or not finite, or a weight that
            requires a gradient, which a constant would not get.
    """

    def __init__(self, weight: Tensor) -> None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
        if weight.dtype not in (torch.float32, torch.float64) or weight.ndim < 2 or 0 in weight.shape:
            raise ValueError(
                f"weight: expected float32 or float64 [..., H, W//2+1], got {weight.dtype} {list(weight.shape)}"
            )
        if weight.requires_grad:
            raise ValueError("weight: expected a constant; pass weight.detach() if no gradient is wanted")
        self.weight = check_nonnegative("weight", weight).clone()
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def like(self, x: Tensor) -> Tensor:
        """The weight on the device of `x`, in the dtype that operators take with it."""
        place = x.device, weight_dtype(x.dtype)
        if place not in self._copies:
            self._copies[place] = self.weight.to(*place)
        return self._copies[place]

    def fits(self, size: Sequence[int]) -> bool:
        """Whether planes of this size [..., H, W] can be shaped. W and W + 1 have one W//2+1, so W may be either."""
        *batch, height, columns = self.weight.shape
        if len(size) < self.weight.ndim or size[-2] != height or size[-1] // 2 + 1 != columns:
            return False
        lead = size[:-2]
        return all(g in (1, n) for g, n in zip(batch, lead[len(lead) - len(batch) :], strict=True))

    def expected_size(self) -> str:
        """The sizes that fit, for messages."""
        height, columns = self.weight.shape[-2:]
        width = 2 * (columns - 1)
        widths = f"{width} or {width + 1}" if width else "1"
        batch = f" with dimensions before them that {list(self.weight.shape[:-2])} broadcasts against"
        return f"[..., {height}, {widths}]" + (batch if self.weight.ndim > 2 else "")
