"""Which implementation of the operators runs where: kernels where there are some, else the composite of torch.fft.

On the CPU there is one, registered by the native library. On CUDA devices a call runs the first in its `order` that is
able to; the order follows what was measured on an H100 (docs/tuning_gpu.md). `SAGD_BACKEND` in the environment names
one for all calls. With `sagd_kernels.benchmark = True` the first call of each kind times those that are able, and the
fastest is kept for the process.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral

import torch

BACKENDS = ("cuda", "triton", "composite")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
OPERATORS = ("spectral_filter", "shaped_noise", "add_noise", "whitened_mse")
TRITON_PROGRAM = 128  # triton.LARGEST, where Triton is not there to import
TITLES = {"cuda": "CUDA kernels", "triton": "Triton kernels", "composite": "composite of torch.fft"}

_fastest: dict[tuple, str] = {}  # by operator, size, dtype and device: what `sagd_kernels.benchmark` found


@functools.cache
def _backend(name: str):
    """The backend's module, imported at its first use; None for Triton's where Triton is not installed."""
    if name == "triton" and importlib.util.find_spec("triton") is None:
        return None
    return importlib.import_module(f".{name}", __name__)


def order(operator: str, height: int, width: int) -> tuple[str, ...]:
    """The backends, the preferred one first. Triton's filter goes last where planes take it several launches."""
    slow = operator in ("spectral_filter", "whitened_mse") and max(height, width) > TRITON_PROGRAM
    return ("cuda", "composite", "triton") if slow else BACKENDS


@functools.cache
def unable(name: str, height: int, width: int, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a backend cannot compute planes of this size and dtype on a CUDA device, if it cannot."""
    backend = _backend(name)
    return "Triton is not installed" if backend is None else backend.unable(height, width, dtype, device)


def _candidates(operator: str, size: Sequence[int], dtype: torch.dtype, device: torch.device) -> list[str]:
    """The backends that a call may run, the preferred one first."""
    forced = os.environ.get("SAGD_BACKEND")
    if forced is None:
        return [name for name in order(operator, *size[-2:]) if unable(name, *size[-2:], dtype, device) is None]
    if forced not in BACKENDS:
        raise RuntimeError(f"SAGD_BACKEND: expected one of {', '.join(BACKENDS)}, got {forced!r}")
    if why := unable(forced, *size[-2:], dtype, device):
        raise RuntimeError(f"SAGD_BACKEND: expected a backend for this call, got {forced!r}; {why}")
    return [forced]


def on_cuda(operator: str) -> Callable:
    """The operator's implementation on CUDA tensors: that of the backend for its planes."""
    function = operator.lstrip("_")

    def run(*args, **kwargs):
        if operator == "shaped_noise":
            size, dtype = args[1], kwargs.get("dtype") or args[2].dtype
        else:
            size, dtype = args[0].shape, args[0].dtype
        device = args[0].device
        with torch.cuda.device_of(args[0]):  # where kernels are launched
            names = _candidates(function, size, dtype, device)
            calls = {name: functools.partial(getattr(_backend(name), function), *args, **kwargs) for name in names}
            try:
                return calls[_choice(calls, (operator, tuple(size), dtype, device))]()
            except RuntimeError as error:
                if "out of memory" not in str(error) or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise torch.OutOfMemoryError(str(error)) from None  # torch's stable ABI loses the type of errors

    return run


def _choice(calls: dict[str, Callable], kind: tuple) -> str:
    """The name of the call to make: the first, or the fastest that was measured for calls of this kind."""
    first = next(iter(calls))
    if kind not in _fastest:
        if not sys.modules["sagd_kernels"].benchmark or len(calls) == 1 or torch.cuda.is_current_stream_capturing():
            return first
        _fastest[kind] = min(calls, key=lambda name: _milliseconds(calls[name]))
    return _fastest[kind] if _fastest[kind] in calls else first


def _milliseconds(call: Callable, calls: int = 10, rounds: int = 3) -> float:
    """The time of a call on the current CUDA stream: the best of some rounds of some calls, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / calls)
    return min(times[1:])


def explain(
    size: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    operator: str = "spectral_filter",
) -> str:
    """What a call of an operator on planes [..., H, W] of this dtype and device runs, and why, in a sentence or two.

    On a machine without a GPU, a CUDA device is taken for a recent one.
    """
    if operator not in OPERATORS:
        raise ValueError(f"operator: expected one of {', '.join(OPERATORS)}, got {operator!r}")
    if not isinstance(size, Iterable):
        raise TypeError(f"size: expected ints [..., H, W], got {type(size).__name__}")
    size = list(size)
    if len(size) < 2 or not all(isinstance(n, Integral) and n >= 1 for n in size[-2:]):
        raise ValueError(f"size: expected [..., H, W] with planes of at least 1 x 1, got {size}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected float32, float64, bfloat16 or float16, got {dtype!r}")
    device, (height, width) = torch.device(device), size[-2:]
    if device.type == "cuda":
        if device.index is None and torch.cuda.is_available():
            device = torch.device("cuda", torch.cuda.current_device())
        chosen = _candidates(operator, size, dtype, device)[0]
        names = order(operator, height, width)
        passed_over = names[: names.index(chosen)]
        why = [unable(name, height, width, dtype, device) for name in passed_over]
        plan = _backend(chosen).describe(height, width, dtype, device)
        return "; ".join([f"{TITLES[chosen]}{plan and ': '}{plan}", *filter(None, why)])
    if device.type != "cpu":
        return f"{TITLES['composite']}: there are no kernels for {device.type}"
    compute = "float64" if dtype == torch.float64 else "float32"
    columns, rows = torch.ops.sagd._cpu_plan(height), torch.ops.sagd._cpu_plan(width)
    return (
        f"CPU kernels ({torch.ops.sagd._cpu_isa()}), computing in {compute}: "
        f"{height} x {width} planes, columns as {columns}, rows as {rows} points"
    )
