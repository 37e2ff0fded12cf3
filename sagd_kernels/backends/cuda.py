"""The operators by the CUDA C++ kernels (csrc/cuda), where the library was built with them."""

import torch
from torch import Tensor

from .._build import build_info

_RECENT = 232448  # bytes of shared memory for a block of compute capability 9.0, where there is no device to ask
_ops = torch.ops.sagd


def unable(height: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why these kernels cannot compute planes of this size and dtype on a CUDA device, if they cannot."""
    if not build_info()["cuda"]:
        return "the library was built without CUDA kernels"
    if dtype == torch.float64:
        return "the CUDA kernels compute in float32"
    if not describe(height, width, dtype, device):
        return f"the CUDA kernels take no planes of {height} x {width} on this device"
    return None


def describe(height: int, width: int, dtype: torch.dtype, device: torch.device) -> str:
    """How the kernels transform planes of this size, for people to read; empty where they do not."""
    if not torch.cuda.is_available():
        return _ops._cuda_plan(height, width, _RECENT)
    with torch.cuda.device(device):  # the library's copy of CUDA's runtime has a current device of its own
        return _ops._cuda_plan(height, width, device=torch.cuda.current_device())


def spectral_filter(input: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    return _ops._cuda_spectral_filter(input, weight, scale)


def shaped_noise(key, size, weight, scale=None, *, plane_offset=0, dtype=None) -> Tensor:
    return _ops._cuda_shaped_noise(key, size, weight, scale, plane_offset=plane_offset, dtype=dtype)


def add_noise(input, key, weight, signal_scale, noise_scale, *, plane_offset=0) -> tuple[Tensor, Tensor]:
    return _ops._cuda_add_noise(input, key, weight, signal_scale, noise_scale, plane_offset=plane_offset)


def whitened_mse(input: Tensor, target: Tensor, weight: Tensor, with_residual: bool) -> tuple[Tensor, Tensor]:
    return _ops._cuda_whitened_mse(input, target, weight, with_residual)
