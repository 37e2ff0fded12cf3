"""Peak memory of a call beyond its results.

On the CPU the kernel's own count is read, because not every contender allocates through torch: freed memory is given
back, the process's high-water mark (VmHWM) is reset, and the call's peak over the resident size before it, less its
results, is what it took. A call on a batch of one sample comes first, so that neither code that is loaded on first use
nor scratch of a size that does not depend on the batch counts: the number says what grows with the data. It is good
to about 0.1 MB. It takes a fresh process: what a library keeps for later use would hide in the calls of the next. On a
GPU it is the peak of torch's allocator, which counts exactly.
"""

import ctypes
import re
from pathlib import Path

import torch

from .cases import Case, Problem, with_batch
from .checks import as_tensors
from .clocks import clock_of
from .contenders import CONTENDERS, OURS
from .process import in_child
from .rows import Row

PLANE = (128, 128)
CONTENDERS_MEASURED = (OURS, "torch.fft")  # those that need no plans and allocate in the call alone


def fill(rows: list[Row], cases: list[Case], device: str, threads: int) -> None:
    """Measure the targets of one size and write the result into their rows."""
    apart = in_child if device == "cpu" else lambda threads, function, *args: function(*args)
    measured = {(row.case, row.contender): row for row in rows if row.threads == threads}
    for case in cases:
        for name in CONTENDERS_MEASURED:
            if case.group == "targets" and case.shape[-2:] == PLANE and (case.name, name) in measured:
                measured[case.name, name].extra_bytes = apart(threads, extra_bytes, case, name, device, threads)


def extra_bytes(case: Case, contender: str, device: str, threads: int) -> int:
    """Peak bytes of one call of the contender on the case, beyond its results."""
    torch.set_num_threads(threads)
    torch_device = clock_of(device).device
    prepare = CONTENDERS[contender].prepare
    small, problem = (Problem(c, torch_device, threads, cache_bytes=0) for c in (with_batch(case, 1), case))
    for _ in range(2):
        prepare(small)(0)
    call = prepare(problem)
    before = _reset(torch_device)
    results = call(0)
    peak = _peak(torch_device) - before
    return peak - sum(t.numel() * t.element_size() for t in as_tensors(results))


def _reset(device: torch.device) -> int:
    """Start a new high-water mark; returns the bytes in use."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # "reset the peak resident set size", proc(5)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])
