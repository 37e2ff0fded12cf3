"""Runs GPU kernels on the CPU: PTX from nvcc or Triton, executed with NumPy, checked, counted and costed.

No GPU, driver or CUDA toolkit is needed; ptxas and nvdisasm, where an installed Triton or nvcc brings them, add
registers and machine instructions. It answers three questions about a kernel:

1. Is it right? Its outputs, and what else goes wrong on the way: accesses out of bounds or misaligned, uninitialised
   shared memory (NaN), races in shared memory and between blocks, barriers that not all threads reach, shuffles with
   missing lanes, cp.async data used before its wait.
2. What does it do? Counters like a profiler's: sectors, bank conflicts, instructions by class, barriers.
3. How fast could it be at best? A speed-of-light estimate. It never measures time.

errors.py          what is reported
ptx.py             PTX text to a kernel
machine.py         blocks, warps, divergence, barriers; `launch`
memory.py          device memory
memory_unit.py     loads and stores of the lanes
races.py           the race detectors
instructions/      what each instruction does
counters.py        what is counted, and by which rule
toolchain.py       ptxas and nvdisasm
sass.py            machine instructions
devices.py         public limits of a few GPUs
estimate.py        occupancy and speed-of-light bounds
triton.py          Triton kernels on CPU tensors: emulated, interpreted or only compiled
cuda.py            the library's CUDA kernels on CPU tensors, with its own host code: emulated or only compiled

Not modelled, and said so by `Unsupported`: wgmma, tcgen05, TMA and mbarriers, work between the arrival at a cluster's
barrier and its wait, fp8, calls of functions, activemask, directed rounding. Not seen: missing fences, the order of
blocks, latencies. Each module says what it leaves out.
"""

if __name__ != "tests.emulation":  # a second copy would not know what mode the first is in
    raise ImportError(f"import it as tests.emulation, not as {__name__}")

from .counters import Counters
from .errors import EmulationError, Race, Unsupported
from .machine import Launch, launch
from .memory import Pointer, Struct
from .ptx import Kernel, entries

__all__ = [
    "Counters", "EmulationError", "Kernel", "Launch", "Pointer", "Race", "Struct", "Unsupported", "entries", "launch",
]  # fmt: skip
