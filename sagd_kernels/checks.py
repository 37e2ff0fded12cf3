"""What the operators accept: errors that name the argument, what came and what was expected.

The kernels have checks of their own (csrc/arguments.h, csrc/operators.h), which say the same of shapes, dtypes and
devices. Those here are for the tensors that the kernels never see: fake ones, and those of other devices.
"""

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from .backends import DTYPES
from .random import check_is_tensor
from .spectral import weight_dtype

# ---- types: the dispatcher refuses wrong ones with its schema and all values ----------------------------------------

_TYPES = {  # of the arguments that are not tensors alone
    "size": (Iterable, "ints [..., H, W]"),
    "scale": (Tensor | None, "a tensor or a number"),
    "signal_scale": (Tensor, "a tensor or a number"),
    "noise_scale": (Tensor, "a tensor or a number"),
    "plane_offset": (SupportsIndex, "an int"),
    "dtype": (torch.dtype | None, "a torch.dtype"),
    "with_residual": (bool, "a bool"),
}


def _expected(name: str) -> tuple:
    """The type of an argument, and that in words."""
    return _TYPES.get(name, (Tensor, "a tensor"))


def types(operator, args, kwargs) -> None:
    """TypeError for an argument of an operator's call whose type is wrong. Only a call that failed is looked at."""
    names = (argument.name for argument in operator._schema.arguments)
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        kind, expected = _expected(name)
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}") from None
        if name == "size" and not all(isinstance(n, SupportsIndex) for n in value):
            raise TypeError(f"{name}: expected {expected}, got {value!r}") from None


def forgotten(**arguments) -> TypeError:
    """The error for the None among the arguments, which the dispatcher takes for a tensor that is not defined."""
    name = next(name for name, value in arguments.items() if value is None)
    return TypeError(f"{name}: expected {_expected(name)[1]}, got NoneType")


def stream(key: Tensor, plane_offset: int) -> None:
    """What the dispatcher would refuse without saying why."""
    check_is_tensor(key)
    if type(plane_offset) is int and plane_offset >= 2**63:
        raise RuntimeError(f"plane_offset: expected less than 2^63, got {plane_offset}")


# ---- shapes, dtypes and devices --------------------------------------------------------------------------------------


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def _check_size(name: str, size: Sequence[int]) -> None:
    _check(len(size) >= 2, f"{name}: expected at least 2 dimensions [..., H, W], got {list(size)}")
    for n in size:
        _check(n >= 0, f"{name}: expected no negative size, got {list(size)}")
    _check(size[-2] > 0 and size[-1] > 0, f"{name}: expected planes of at least 1 x 1, got {list(size)}")


def floating(name: str, dtype: torch.dtype) -> None:
    """RuntimeError unless the operators compute with the dtype."""
    _check(dtype in DTYPES, f"{name}: expected float32, float64, bfloat16 or float16, got {dtype}")


def _check_kind(name: str, tensor: Tensor, device: torch.device) -> None:
    _check(tensor.layout == torch.strided, f"{name}: expected a dense tensor, got layout {tensor.layout}")
    _check(
        tensor.device == device,
        f"{name}: expected a tensor on {device}, the device of the other arguments, got {tensor.device}",
    )


def _check_weight(weight: Tensor, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
    _check_kind("weight", weight, device)
    expected = weight_dtype(dtype)
    _check(weight.dtype == expected, f"weight: expected {expected}, got {weight.dtype}")
    batch, height, columns = list(size[:-2]), size[-2], size[-1] // 2 + 1
    fits = 2 <= weight.ndim <= len(size) and weight.shape[-2] == height and weight.shape[-1] == columns
    if fits and weight.ndim > 2:
        fits = all(g == 1 or g == n for g, n in zip(weight.shape[:-2], batch[2 - weight.ndim :], strict=True))
    _check(
        fits,
        f"weight: expected [..., {height}, {columns}] with leading dimensions that broadcast against the batch "
        f"{batch}, got {list(weight.shape)}",
    )


def _check_scale(name: str, scale: Tensor, size: Sequence[int], device: torch.device) -> None:
    _check_kind(name, scale, device)
    floating(name, scale.dtype)
    batch = list(size[:-2])
    fits = scale.ndim <= len(size)
    fits = fits and all(g == 1 or g == n for g, n in zip(scale.shape, [*batch, 1, 1], strict=False))
    _check(
        fits,
        f"{name}: expected dimensions that broadcast from the left against the batch {batch}, got {list(scale.shape)}",
    )


def _check_key(key: Tensor, size: Sequence[int], plane_offset: int, device: torch.device) -> None:
    _check_kind("key", key, device)
    _check(
        key.dtype == torch.uint64 and key.ndim > 0 and key.shape[-1] == 2,
        f"key: expected a uint64 tensor [..., 2], got {key.dtype} {list(key.shape)}",
    )
    lead = list(key.shape[:-1])
    _check(
        len(lead) <= len(size) - 2 and all(g == n for g, n in zip(lead, size, strict=False)),
        f"key: expected [2] or one key for each index of the first batch dimensions, of size {list(size)}, "
        f"got {list(key.shape)}",
    )
    _check(plane_offset >= 0, f"plane_offset: expected at least 0, got {plane_offset}")


def spectral_filter(input, weight, scale=None) -> None:
    _check_kind("input", input, input.device)
    _check_size("input", input.shape)
    floating("input", input.dtype)
    _check_weight(weight, input.shape, input.dtype, input.device)
    if scale is not None:
        _check_scale("scale", scale, input.shape, input.device)


def shaped_noise(key, size, weight, scale=None, *, plane_offset=0, dtype=None) -> None:
    _check_size("size", size)
    dtype = dtype or weight.dtype
    floating("dtype", dtype)
    _check_weight(weight, size, dtype, weight.device)
    _check_key(key, size, plane_offset, weight.device)
    if scale is not None:
        _check_scale("scale", scale, size, weight.device)


def add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0) -> None:
    spectral_filter(input, weight)
    _check_key(key, input.shape, plane_offset, input.device)
    _check_scale("signal_scale", signal_scale, input.shape, input.device)
    _check_scale("noise_scale", noise_scale, input.shape, input.device)


def whitened_mse(input, target, weight, with_residual) -> None:
    _check_kind("input", input, input.device)
    _check_size("input", input.shape)
    _check_kind("target", target, input.device)
    shape = list(input.shape)
    _check(target.shape == input.shape, f"target: expected the shape of input {shape}, got {list(target.shape)}")
    _check(target.dtype == input.dtype, f"target: expected the dtype of input {input.dtype}, got {target.dtype}")
    spectral_filter(input, weight)
