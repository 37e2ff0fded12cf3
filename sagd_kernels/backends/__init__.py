"""Which implementation of the operators runs where: kernels where there are some, else the composite of torch.fft."""

import functools
import importlib.util
from collections.abc import Sequence

import torch

from . import composite


@functools.cache
def _triton():
    """The Triton backend; None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from . import triton

    return triton


@functools.cache
def _lack(device: torch.device) -> str | None:
    """Why Triton's kernels cannot run on a CUDA device; a machine without any is taken for one where they can."""
    if torch.version.hip:
        return "the Triton kernels are for NVIDIA's GPUs"
    if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
        return "the Triton kernels need compute capability 8.0"
    return None


def cuda_backend(size: Sequence[int], dtype: torch.dtype, device: torch.device):
    """The module whose operators run on tensors [..., H, W] of this dtype on a CUDA device, and why in a few words."""
    height, width = size[-2:]
    triton = _triton()
    if triton is None:
        return composite, "Triton is not installed"
    if lack := _lack(device):
        return composite, lack
    if dtype == torch.float64:
        return composite, "the Triton kernels compute in float32"
    if triton.plan(height, width) is None:
        return composite, f"the Triton kernels take planes of up to {triton.LARGEST} x {triton.LARGEST}"
    return triton, f"{height} x {width} planes as {triton.describe(height, width, dtype)}"


def on_cuda(operator: str):
    """The operator's implementation on CUDA tensors: that of the backend for its planes."""
    name = operator.lstrip("_")

    def run(*args, **kwargs):
        if operator == "shaped_noise":
            size, dtype = args[1], kwargs.get("dtype") or args[2].dtype
        else:
            size, dtype = args[0].shape, args[0].dtype
        with torch.cuda.device_of(args[0]):  # where kernels are launched
            return getattr(cuda_backend(size, dtype, args[0].device)[0], name)(*args, **kwargs)

    return run


def explain(size: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> str:
    """What an operator call on planes [..., H, W] of this dtype and device runs, and why, in a sentence or two."""
    device = torch.device(device)
    if device.type == "cuda":
        backend, why = cuda_backend(size, dtype, device)
        return f"composite of torch.fft: {why}" if backend is composite else f"Triton kernels: {why}"
    if device.type != "cpu":
        return f"composite of torch.fft: there are no kernels for {device.type}"
    height, width = size[-2:]
    compute = "float64" if dtype == torch.float64 else "float32"
    columns, rows = torch.ops.sagd._cpu_plan(height), torch.ops.sagd._cpu_plan(width)
    return (
        f"CPU kernels ({torch.ops.sagd._cpu_isa()}), computing in {compute}: "
        f"{height} x {width} planes, columns as {columns}, rows as {rows} points"
    )
