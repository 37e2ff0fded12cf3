"""Processes with a stated number of threads, pinned before any numerical library is loaded.

Nothing here may import one: OpenMP, MKL and XLA read the environment and the affinity once, when they load.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Idle OpenMP workers spin before they sleep: 200 ms for Intel's runtime, some 7 ms for GNU's. In one process that would
# take the cores from the next contender, so both are kept to a millisecond or less: longer than any gap within a call.
_SHORT_SPINS = {"KMP_BLOCKTIME": "1", "GOMP_SPINCOUNT": "30000"}


def physical_cores() -> list[int]:
    """One logical processor for each physical core among those that this process may use."""
    siblings_of = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(siblings_of.format(cpu))
        cores.setdefault(siblings.read_text() if siblings.exists() else cpu, cpu)
    return list(cores.values())


def pin(threads: int) -> None:
    """Restrict this process, and the libraries that it loads from now on, to `threads` physical cores.

    The process as a whole is pinned, not each thread: a bound main thread would hand its one core down to the threads
    of every library that makes its own.
    """
    cores = physical_cores()
    if not 1 <= threads <= len(cores):
        raise ValueError(f"threads: expected 1 to {len(cores)}, the physical cores of this process, got {threads}")
    os.sched_setaffinity(0, cores[:threads])
    numbers = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    os.environ.update({**numbers, **_SHORT_SPINS, "JAX_PLATFORMS": "cpu"})


def keep_freed_memory() -> None:
    """Have malloc keep what is freed, so that no call waits for the kernel to clear the pages of its result.

    Otherwise results of some MB come from fresh pages or from used ones, as the calls before happened to leave the
    heap, and take twice as long or not. A program in its steady state has seen its memory before.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
    libc = ctypes.CDLL(None)
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)


def in_child(threads: int, function: Callable[..., T], *args) -> T:
    """function(*args) in a fresh process pinned to `threads` cores; its exceptions are raised here."""
    with _pool(1, threads) as pool:
        return pool.submit(function, *args).result()


def in_children(number: int, function: Callable[..., T], *args) -> list[T]:
    """function(*args, n) for n = 0 .. number - 1, at the same time, each in a fresh process on as many cores."""
    with _pool(number, number) as pool:
        tasks = [pool.submit(function, *args, n) for n in range(number)]
        return [task.result() for task in tasks]


@contextmanager
def _pool(processes: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    spawn = get_context("spawn")
    with _pinned(threads), ProcessPoolExecutor(processes, mp_context=spawn, initializer=keep_freed_memory) as pool:
        yield pool


def core_seconds() -> tuple[float, float]:
    """Seconds of work, so far: of the cores that this process may use, by anyone, and of this process alone.

    The difference is what other processes and, on a virtual machine, other machines took.
    """
    cores = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


@contextmanager
def _pinned(threads: int) -> Iterator[None]:
    environment, affinity = dict(os.environ), os.sched_getaffinity(0)
    try:
        pin(threads)
        yield
    finally:
        os.sched_setaffinity(0, affinity)
        os.environ.clear()
        os.environ.update(environment)
