"""How calls are timed: the only part of the measurement that depends on the device."""

import time
from collections.abc import Callable, Sequence

import torch

Call = Callable[[int], object]  # a contender's computation on the data's copy of that number


class CpuClock:
    """Wall time: a call on the CPU has finished when it returns."""

    device = torch.device("cpu")
    settle = 0.002  # seconds without work before a contender's turn, in which the last one's idle threads go to sleep

    def time(self, call: Call, copies: Sequence[int]) -> float:
        """Seconds per call, over one call for each number in `copies`."""
        start = time.perf_counter_ns()
        for i in copies:
            call(i)
        return (time.perf_counter_ns() - start) / len(copies) * 1e-9


class CudaClock:
    """Time between two events around the calls, on the GPU's own clock.

    A call that is not timed goes first and is not waited for: while it runs, the next ones are launched. So the first
    launch does not count, and launches do where they take longer than the work, as in a program that waits for nothing.
    """

    settle = 0.0

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise ValueError("device: expected 'cpu', as torch.cuda.is_available() is False, got 'cuda'")
        self.device = torch.device("cuda", torch.cuda.current_device())

    def time(self, call: Call, copies: Sequence[int]) -> float:
        """Seconds per call, over one call for each number in `copies`."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        call(copies[0])
        start.record()
        for i in copies:
            call(i)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / len(copies) * 1e-3


Clock = CpuClock | CudaClock


def clock_of(device: str) -> Clock:
    return CudaClock() if device == "cuda" else CpuClock()
