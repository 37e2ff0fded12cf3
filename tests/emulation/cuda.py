"""The library's CUDA kernels on CPU tensors: emulated or only compiled. Needs nvcc and a C++ compiler, and no GPU.

    with emulated(80, [input, weight]) as launches:
        filtered = shim_operators()._cuda_spectral_filter(input, weight)
    launches[-1].counters

The host code is the library's own, compiled for the CPU (tests/cuda_shim) and told of a GPU of that compute capability:
it chooses the grid and fills in the kernel's parameters. Where it would launch, nvcc's PTX of that kernel runs.
"""

import ctypes
import hashlib
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from tests.cuda_shim.build import ROOT, build_library

from .devices import DEVICES, Device
from .estimate import occupancy
from .machine import Launch, launch
from .memory import Pointer, Struct
from .ptx import Kernel
from .toolchain import assemble, compile_cuda

CSRC, CACHE = ROOT / "csrc", ROOT / "build" / "ptx"
INCLUDES = "".join(f'#include "cuda/{name}.h"\n' for name in ("kernels", "large_rows", "large_columns", "shapes"))
FLAGS = ("-O3", "--expt-relaxed-constexpr", f"-I{CSRC}")
SYMBOL, SIZE = ctypes.c_char_p, ctypes.c_size_t
BLOCKS, DATA = ctypes.c_uint, ctypes.POINTER(ctypes.c_char)
RESIDENT = ctypes.CFUNCTYPE(ctypes.c_int, SYMBOL, ctypes.c_int, SIZE)
CLUSTERS = ctypes.CFUNCTYPE(ctypes.c_int, SYMBOL, BLOCKS, ctypes.c_int, SIZE)
LAUNCH = ctypes.CFUNCTYPE(None, SYMBOL, BLOCKS, BLOCKS, BLOCKS, SIZE, DATA, SIZE, ctypes.POINTER(SIZE), SIZE)
FIRST_WITH_CLUSTERS = 90


def device(capability: int) -> Device:
    """A GPU of that compute capability. What bounds occupancy is the same for 12.0 as for 8.9."""
    known = {each.arch: each for each in DEVICES.values()}
    return known.get(f"sm_{capability}") or replace(known["sm_89"], arch=f"sm_{capability}")


@contextmanager
def emulated(
    capability: int, tensors: Iterable[torch.Tensor], *, races: bool = True, sample: int | None = None
) -> Iterator[list[Launch]]:
    """Within it every launch of the shim's operators runs in the emulator; yields the launches so far.

    Args:
        tensors: the operands. What the operators allocate themselves need not be named.
        races: see `launch`.
        sample: run only so many blocks of each launch, or clusters of blocks, the first ones. Each takes all the planes
            that it would on the GPU, every gridDim-th bundle: the blocks fill the GPU once. Of launches that are alike
            in kernel and grid, as those for the chunks of a batch, the first one runs and stands for all.
    """
    with _enter(_Host(capability, list(tensors), {"races": races}, sample)) as launches:
        yield launches


@contextmanager
def compiled(capability: int) -> Iterator[list[Launch]]:
    """Within it every launch is compiled and recorded, but nothing runs: outputs stay as they were."""
    with _enter(_Host(capability, [], None)) as launches:
        yield launches


@dataclass
class _Host:
    """What the host code's CUDA functions are told and do. Errors wait until the host code has returned."""

    capability: int
    tensors: list[torch.Tensor]
    options: dict[str, bool] | None
    sample: int | None = None
    launches: list[Launch] = field(default_factory=list)
    error: BaseException | None = None

    def resident(self, symbol: bytes, threads: int, shared: int) -> int:
        try:
            gpu = device(self.capability)
            resources, _ = assemble(kernel(symbol.decode(), self.capability), gpu.arch)
            return occupancy(gpu, threads, resources.registers, shared + resources.static_shared).blocks
        except Exception as error:
            self.error = self.error or error
            return 0

    def clusters(self, symbol: bytes, ranks: int, threads: int, shared: int) -> int:
        """As if any blocks of the GPU could be a cluster: how multiprocessors are grouped is not public."""
        return device(self.capability).sms * self.resident(symbol, threads, shared) // ranks

    def launch(self, symbol, blocks, ranks, threads, shared, parameters, size, pointers, pointer_count) -> None:
        try:
            code, grid, block = kernel(symbol.decode(), self.capability), (blocks, 1, 1), (threads, 1, 1)
            if self.options is None:
                self.launches.append(Launch(code, grid, block, shared, ranks))
                return
            alike = [each for each in self.launches if each.kernel is code and each.grid == grid]
            if self.sample is not None and alike:
                self.launches.append(alike[0])
                return
            data, places = ctypes.string_at(parameters, size), pointers[:pointer_count]
            args = [self._struct(data, offset, nbytes, places) for _, _, offset, nbytes in code.params]
            todo = None if self.sample is None else range(min(self.sample * ranks, blocks))
            shape = {"dynamic_shared": shared, "cluster": ranks}
            self.launches.append(launch(code, grid, block, args, blocks=todo, **shape, **self.options))
        except Exception as error:
            self.error = self.error or error

    def _struct(self, data: bytes, offset: int, size: int, places: list[int]) -> Struct:
        """The parameter of `size` bytes at `offset` of all parameters, with the pointers in it."""
        values = {at: int.from_bytes(data[at : at + 8], "little") for at in places if offset <= at < offset + size}
        pointers = {at - offset: self._pointer(value) for at, value in values.items() if value}
        return Struct(data[offset : offset + size], pointers)

    def _pointer(self, address: int) -> Pointer:
        """Into a tensor's storage, or to the start of what the operator has allocated."""
        for tensor in self.tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() <= address < storage.data_ptr() + storage.nbytes():
                return Pointer(_memory(storage.data_ptr(), storage.nbytes()), address - storage.data_ptr())
        usable = ctypes.CDLL(None).malloc_usable_size
        usable.argtypes, usable.restype = [ctypes.c_void_p], SIZE
        return Pointer(_memory(address, usable(address)))


def _memory(address: int, nbytes: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(address), np.uint8)


class _Device(ctypes.Structure):
    """shim::Device."""

    _fields_ = [
        ("number", ctypes.c_int),
        ("shared_bytes_per_block", ctypes.c_int),
        ("multiprocessors", ctypes.c_int),
        ("l2_bytes", ctypes.c_int),
        ("code", ctypes.c_int),
        ("resident", RESIDENT),
        ("clusters", CLUSTERS),
        ("launch", LAUNCH),
    ]


@contextmanager
def _enter(host: _Host) -> Iterator[list[Launch]]:
    use_device, gpu = _shim().shim_use_device, device(host.capability)
    clusters = CLUSTERS(host.clusters) if host.capability >= FIRST_WITH_CLUSTERS else CLUSTERS()
    callbacks = RESIDENT(host.resident), clusters, LAUNCH(host.launch)
    known = host.capability, gpu.shared_per_block, gpu.sms, gpu.l2, host.capability
    use_device(ctypes.byref(_Device(*known, *callbacks)))
    try:
        yield host.launches
    except RuntimeError:
        if host.error is None:
            raise
    finally:
        use_device(None)
    if host.error is not None:
        raise host.error


@lru_cache(None)
def _shim() -> ctypes.CDLL:
    path = str(build_library())
    torch.ops.load_library(path)
    return ctypes.CDLL(path)


def shim_operators():
    """The CUDA backend's operators, `_cuda_spectral_filter` and so on, for CPU tensors."""
    _shim()
    return torch.ops.sagd_shim


@lru_cache(None)
def kernel(symbol: str, capability: int) -> Kernel:
    """By its mangled name, from nvcc. The PTX is kept in build/ptx until a source changes."""
    path = CACHE / _sources() / f"sm_{capability}" / f"{hashlib.sha256(symbol.encode()).hexdigest()[:16]}.ptx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        demangled = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout.strip()
        name = demangled.removeprefix("void ").rpartition("(")[0]
        source = path.with_suffix(".cu")
        source.write_text(f"{INCLUDES}auto* kernel = &{name};\n")
        path.write_text(compile_cuda(source, f"sm_{capability}", *FLAGS))
    return Kernel(path.read_text(), symbol)


@lru_cache(None)
def _sources() -> str:
    """A digest of the kernels' sources."""
    digest = hashlib.sha256()
    for source in sorted(path for folder in ("cuda", "sagd") for path in Path(CSRC, folder).glob("*.h")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]
