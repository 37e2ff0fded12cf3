"""Shaped noise for code that one cannot edit: what torch draws is filtered as it is drawn.

torch draws white noise as ever, then T_w = F^-1 diag(w) F is applied to it in place. So the draw keeps everything that
torch promises about it (generator, dtype, device, memory format, out=), and the state of every generator, and with it
all other random numbers of a run, are those of the same run with white noise.
"""

import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..backends import DTYPES
from ..ops import spectral_filter
from .placed_weight import PlacedWeight

# The random functions, and where their mean is among the arguments. torch shows nn.init.normal_ as a call of its own.
_MEAN_ARGUMENT = {
    torch.randn: None,
    torch.randn_like: None,
    torch.normal: 0,
    torch.Tensor.normal_: 1,
    nn.init.normal_: 1,
}
_thread = threading.local()  # .innermost: the interception that acts in this thread


class Draw(NamedTuple):
    """What a random function was asked for: function is "randn", "randn_like", "normal" or "normal_"."""

    function: str
    size: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def __str__(self) -> str:
        return f"{self.function} {list(self.size)} {self.dtype} {self.device}"


@dataclass
class Draws:
    """The draws that an interception saw: how often each was shaped, and how often each was passed by, and why."""

    shaped: Counter[Draw] = field(default_factory=Counter)
    passed_by: Counter[tuple[Draw, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"shaped {self.shaped.total()} draws, passed by {self.passed_by.total()}"]
        lines += [f"  shaped {count}: {draw}" for draw, count in self.shaped.items()]
        lines += [f"  passed by {count} ({why}): {draw}" for (draw, why), count in self.passed_by.items()]
        return "\n".join(lines)


@contextmanager
def intercept(
    weight: Tensor, *, min_batch_dims: int = 2, where: Callable[[Draw], bool] | None = None
) -> Iterator[Draws]:
    """Within the block, normal draws of torch that match the weight are noise of that weight.

    Seen are `torch.randn`, `torch.randn_like`, `torch.normal` and `Tensor.normal_`, under whatever name they were
    imported, and what is built on them, as diffusers' `randn_tensor` is. A draw of mean m and standard deviation s
    becomes m + s T_w xi. Not seen are draws in the backward pass, in TorchScript and in code that `torch.compile` has
    compiled, which torch hides; draws within `torch.utils.checkpoint`, which the backward pass repeats, are passed by.

    Only the thread that entered the block is concerned, and only its process: data loader workers draw white noise
    however they were started. Blocks nest: the innermost that matches shapes a draw.

    Args:
        weight: [..., H, W//2+1], see `sagd_kernels.weights`. It matches draws [..., H, W] of float32, float64,
            bfloat16 or float16 whose batch dimensions its own broadcast against, except of `nn.Parameter`s.
        min_batch_dims: how many dimensions before the plane a draw must have to match. The default, [N, C, H, W],
            spares matrices that happen to be H x W.
        where: further condition, called with the `Draw`.

    Yields:
        The `Draws` so far: counts of what was shaped and what was passed by, with reasons; `print` shows them.

    Raises:
        TypeError, ValueError: no such weight (`PlacedWeight`).

    Warns:
        UserWarning: the block ends and nothing was shaped.
    """
    interception = Interception(PlacedWeight(weight), min_batch_dims=min_batch_dims, where=where)
    with interception:
        yield interception.draws
    if not interception.draws.shaped:
        warnings.warn(
            f"intercept: no draw was shaped; the weight is for {interception.weight.expected_size()} with at least "
            f"{min_batch_dims} batch dimensions; {interception.draws}",
            stacklevel=3,
        )


class Interception(TorchFunctionMode):
    """What `intercept` enters: one object for each block, so that it belongs to one thread."""

    def __init__(
        self, weight: PlacedWeight, *, min_batch_dims: int = 0, where: Callable[[Draw], bool] | None = None
    ) -> None:
        super().__init__()
        self.weight, self.min_batch_dims, self.where = weight, min_batch_dims, where
        self.draws = Draws()
        self._process = os.getpid()
        self._enclosing: Interception | None = None
        self._covered = False  # while a block within this one decides

    def __enter__(self):
        self._enclosing = getattr(_thread, "innermost", None)
        if self._enclosing is not None:
            self._enclosing._covered = True
        _thread.innermost = self
        return super().__enter__()

    def __exit__(self, *exception):
        super().__exit__(*exception)
        if self._enclosing is not None:
            self._enclosing._covered = False
        _thread.innermost = self._enclosing

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        seen = function in _MEAN_ARGUMENT and not torch.compiler.is_compiling()
        if seen and not self._covered and os.getpid() == self._process:
            self._offer(function, args, kwargs, result)
        return result

    def _offer(self, function, args: tuple, kwargs: dict[str, Any], result: Tensor) -> None:
        """Lets the innermost interception that matches shape the result of a random function."""
        draw = Draw(function.__name__, tuple(result.shape), result.dtype, result.device)
        mean, constant = _mean(function, args, kwargs)
        interception = self
        while interception is not None and not interception._take(draw, result, mean, constant):
            interception = interception._enclosing

    def _take(self, draw: Draw, result: Tensor, mean: float, constant: bool) -> bool:
        why = self._mismatch(draw, result, constant)
        if why is not None:
            self.draws.passed_by[draw, why] += 1
            return False
        self.draws.shaped[draw] += 1
        with torch.no_grad():
            weight = self.weight.like(result)
            result.copy_(spectral_filter(result - mean, weight) + mean if mean else spectral_filter(result, weight))
        return True

    def _mismatch(self, draw: Draw, result: Tensor, constant: bool) -> str | None:
        """Why this interception passes the draw by, if it does."""
        if draw.dtype not in DTYPES:
            return "dtype"
        if isinstance(result, nn.Parameter):
            return "parameter"
        if len(draw.size) < 2 + self.min_batch_dims or not self.weight.fits(draw.size):
            return "size"
        if not constant:
            return "mean or std is a tensor"
        if _in_checkpoint():
            return "checkpoint"
        if self.where is not None and not self.where(draw):
            return "where"
        return None


def _in_checkpoint() -> bool:
    """Whether `torch.utils.checkpoint` runs: the backward pass repeats its draws, hidden from modes, and must get the
    same noise."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_filename != torch.utils.checkpoint.__file__:
        frame = frame.f_back
    return frame is not None


def _mean(function, args: tuple, kwargs: dict[str, Any]) -> tuple[float, bool]:
    """The mean of a draw, and whether mean and standard deviation are numbers, the same for all pixels."""
    position = _MEAN_ARGUMENT[function]
    if position is None:
        return 0.0, True
    mean = kwargs.get("mean", args[position] if len(args) > position else 0.0)
    std = kwargs.get("std", args[position + 1] if len(args) > position + 1 else 1.0)
    return (0.0, False) if isinstance(mean, Tensor) or isinstance(std, Tensor) else (mean, True)
