"""Triton kernels on CPU tensors: emulated, only compiled, or interpreted. No GPU and no driver are needed.

    with emulated(capability=80) as launches:
        kernel[grid](cpu_tensor, ...)       # also from within library code
    launches[-1].counters                   # a `Launch`, its output is in the tensors

`emulated` takes a launch through Triton's own compiler down to PTX, and the PTX through the emulator. `compiled` stops
before it is run, for the architectures whose instructions the emulator does not model and for registers and spills.
`interpreted` runs the Python source with Triton's interpreter (TRITON_INTERPRET=1): faster, and blind to all that the
compiler does. Triton's interpreter computes tf32 products in float32 and bfloat16 ones wrongly.

All three undo on exit what they changed in Triton. Works with Triton 3.6 and 3.9.
"""

import ctypes
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import triton.language
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from .errors import Unsupported
from .machine import Launch, launch
from .memory import Pointer
from .ptx import Kernel

# Shared memory that a block may ask for, in bytes (CUDA C++ Programming Guide, compute capabilities).
SHARED_LIMIT = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448, 103: 232448, 120: 101376}
FLOATS = {"fp32": np.float32, "fp64": np.float64}


@contextmanager
def emulated(
    capability: int = 80,
    *,
    races: bool = True,
    count: bool = True,
    sample: int | None = None,
    approximate: bool = True,
) -> Iterator[list[Launch]]:
    """Within it every Triton launch is compiled for the compute capability and emulated; yields the launches so far.

    Args:
        races, count, approximate: see `launch`; without the first two emulation takes about two thirds of the time.
        sample: run only so many blocks of each launch, the first ones; counters know how many there would be.
    """
    options = {"races": races, "count": count, "approximate": approximate}
    with _enter(_Mode(capability, options, sample)) as launches:
        yield launches


@contextmanager
def compiled(capability: int) -> Iterator[list[Launch]]:
    """Within it every Triton launch is compiled and recorded, but nothing runs: outputs stay as they were."""
    with _enter(_Mode(capability, None)) as launches:
        yield launches


@dataclass
class _Mode:
    """How launches are executed (options None: not at all), and those that were."""

    capability: int
    options: dict[str, bool] | None
    sample: int | None = None
    launches: list[Launch] = field(default_factory=list)
    loading: dict[str, str] = field(default_factory=dict)


_active: _Mode | None = None  # Triton keeps launchers longer than a mode lasts, so they ask for the current one


@contextmanager
def _enter(mode: _Mode) -> Iterator[list[Launch]]:
    global _active
    if mode.capability not in SHARED_LIMIT:
        raise ValueError(f"capability: expected one of {sorted(SHARED_LIMIT)}, got {mode.capability}")
    config, hooks = triton.runtime.driver, knobs.runtime.kernel_load_start_hook
    before = config._active, _active  # not config.active, which would look for a GPU
    _active = mode
    config.set_active(_Driver(mode.capability))
    hooks.add(_remember_files)
    try:
        yield mode.launches
    finally:
        config.set_active(before[0])
        _active = before[1]
        if _active is None:
            hooks.remove(_remember_files)


def _remember_files(module, function, name, files: dict[str, str], hash) -> None:
    """Triton is about to load the kernel that these files of its cache hold."""
    _active.loading = files


class _Utils:
    """The part of Triton's CUDA driver module that its runtime asks for."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_device_properties(self, device) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMIT[self._capability], "multiprocessor_count": 1, "warpSize": 32}

    def load_binary(self, name, cubin, shared, device):
        """(module, function, registers, spills, most threads per block); the function is a parsed kernel here."""
        path = next(path for path in _active.loading.values() if str(path).endswith(".ptx"))
        return None, Kernel(Path(path).read_text(), name), 0, 0, 1024


class _Launcher:
    """Takes the place of the host code that Triton compiles to launch a kernel."""

    def __init__(self, source, metadata) -> None:
        self._metadata, self._types = metadata, list(_flat(source.signature.values()))
        names = list(source.signature)
        self._constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}

    def __call__(self, gx, gy, gz, stream, kernel, packed_metadata, launch_metadata, enter, leave, *args) -> None:
        grid, block = (gx, gy, gz), (32 * self._metadata.num_warps, 1, 1)
        shared = self._metadata.shared
        if _active.options is None:
            done = Launch(kernel, grid, block, shared)
        else:
            typed = zip(_flat(args), self._types, strict=True)
            runtime = [(arg, type_) for arg, type_ in typed if type_ != "constexpr"]
            blocks = None if _active.sample is None else range(min(_active.sample, gx * gy * gz))
            values = [_argument(arg, type_) for arg, type_ in runtime]
            done = launch(kernel, grid, block, values, dynamic_shared=shared, blocks=blocks, **_active.options)
        done.constants = self._constants | {"num_warps": self._metadata.num_warps}
        _active.launches.append(done)


def _flat(values) -> Iterator:
    """The values with those of tuples, in order."""
    for value in values:
        yield from _flat(value) if isinstance(value, tuple) else (value,)


def _argument(value, type_: str):
    """A Triton argument of a signature's type as an argument of `launch`."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        if storage.device.type != "cpu":
            raise ValueError(f"expected tensors on the CPU, got one on {storage.device}")
        return Pointer(_storage_bytes(storage), value.data_ptr() - storage.data_ptr())
    if type_ in FLOATS:
        return FLOATS[type_](value)
    if not isinstance(value, int):
        raise Unsupported(f"argument of type {type_}")
    return np.uint64(value) if value >= 2**63 else np.int64(value)


def _storage_bytes(storage: torch.UntypedStorage) -> np.ndarray:
    """The whole storage behind a tensor: a kernel may reach all of it through a pointer."""
    if not storage.nbytes():
        return np.zeros(1, np.uint8)
    return np.frombuffer((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()), np.uint8)


class _Driver(DriverBase):
    """What Triton's runtime asks of a driver, for a GPU that is not there."""

    def __init__(self, capability: int) -> None:
        self._capability, self.utils, self.launcher_cls = capability, _Utils(capability), _Launcher

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self):
        raise Unsupported("emulated kernels cannot be timed, so they cannot be autotuned")

    def get_current_device(self) -> str:
        return f"emulated sm_{self._capability}"  # Triton keeps compiled kernels by device

    def get_current_stream(self, device=None) -> int:
        return 0

    def get_device_capability(self, device=None) -> tuple[int, int]:
        return divmod(self._capability, 10)


# -- the interpreter


@contextmanager
def interpreted(*packages: str) -> Iterator[None]:
    """Within it the kernels of these packages' modules run in Triton's interpreter.

    A switch for kernels that have been imported without TRITON_INTERPRET=1, which Triton reads when it decorates them:
    each kernel that is a global of one of the modules, or of triton.language, is replaced by its interpreted twin for
    the time. Kernels that are kept elsewhere, such as in a dictionary, are not found.

    Raises:
        ValueError: there is no kernel in the packages.
    """
    theirs = _modules(*packages)
    modules = theirs + _modules("triton.language")
    classes = [value for module in modules for value in vars(module).values() if inspect.isclass(value)]
    triton_classes = {value for value in classes if value.__module__.startswith("triton.language")}
    before = [(namespace, dict(vars(namespace))) for namespace in [*modules, *triton_classes]]
    if not any(isinstance(value, JITFunction) for module in theirs for value in vars(module).values()):
        raise ValueError(f"packages: expected some with Triton kernels that are imported, got {packages}")
    twins: dict[int, interpreter.InterpretedFunction] = {}  # one for a kernel that several modules import
    try:
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, JITFunction):
                    twin = twins.setdefault(id(value), interpreter.InterpretedFunction(value.fn))
                    setattr(module, name, twin)
        with knobs.runtime.scope():
            knobs.runtime.interpret = True
            yield
    finally:
        for namespace, attributes in before:
            _restore(namespace, attributes)
        interpreter.InterpretedFunction.rewritten_fn.clear()  # they need the globals that were just removed


def _modules(*packages: str) -> list:
    """Those that are imported, of the packages or named like them."""
    inside = tuple(f"{package}." for package in packages)
    return [module for name, module in sys.modules.items() if name in packages or name.startswith(inside)]


def _restore(namespace, attributes: dict) -> None:
    """Undo what the interpreter patched: it leaves its own globals in the kernels' modules, and triton.language's
    functions replaced when a kernel calls another one."""
    for name, value in list(vars(namespace).items()):
        if name not in attributes:
            if inspect.isclass(namespace) or vars(interpreter).get(name) is value:
                delattr(namespace, name)
        elif value is not attributes[name]:
            setattr(namespace, name, attributes[name])
