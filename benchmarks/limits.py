"""What the machine allows, and what a case asks of it.

Two limits, each measured in the run that it is quoted in, on the same threads:

- copy bandwidth: `Tensor.copy_` between buffers several times larger than the cache, bytes read plus bytes written.
  A case's one-pass bytes count each tensor that it must read or write once, and the weight once. Results that stay in
  the cache can exceed it.
- peak arithmetic: a float32 matrix product, the one computation that is known to reach the multiply-add peak of a
  processor. A case's transforms count 2.5 N log2 N operations for each real transform of N = H W pixels, half of the
  customary 5 N log2 N of a complex one (https://www.fftw.org/speed/method.html). No algorithm reaches this limit: a
  Fourier transform has more additions than multiplications, and random numbers are not counted at all.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from .cases import WITH_BACKWARD, Case
from .clocks import Clock


@dataclass(frozen=True)
class Limits:
    """Of a device on the threads in use, in 1/s."""

    bytes_per_second: float
    flops_per_second: float


def measure(clock: Clock) -> Limits:
    """The best of several tries, about a second in all."""
    device = clock.device
    source = torch.ones(max(64 << 20, 4 * cache_bytes(device)), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copy_time = _best(clock, lambda i: target.copy_(source), 8)
    flops = 0.0
    for n in (512, 1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=device)
        b, c = torch.randn_like(a), torch.empty_like(a)
        flops = max(flops, 2 * n**3 / _best(clock, lambda i, a=a, b=b, c=c: torch.mm(a, b, out=c), max(2, 4096 // n)))
    return Limits(2 * source.numel() / copy_time, flops)


def _best(clock: Clock, call, tries: int) -> float:
    call(0)
    return min(clock.time(call, [0]) for _ in range(tries))


def one_pass_bytes(case: Case) -> int:
    """Bytes that must cross memory: every input read once, every result written once, the weight read once."""
    forward_reads, height, width = case.tensors_read, *case.shape[-2:]
    results = {"spectral_filter": 1, "shaped_noise": 1, "add_noise": 2, "whitened_mse": 0}[case.operator]
    tensors = forward_reads + results
    if case.direction == WITH_BACKWARD:
        # the filter reads a gradient and writes one; the loss finds its gradient in the pass that finds its value
        tensors += {"spectral_filter": 2, "whitened_mse": 1}[case.operator]
    planes_of_weight = case.shape[1] if case.weight == "per_channel" else 1
    return tensors * case.pixels * case.dtype.itemsize + 4 * planes_of_weight * height * (width // 2 + 1)


def transform_flops(case: Case) -> float:
    """2.5 N log2 N for each real transform of a plane of N pixels that the case cannot do without."""
    transforms = {"spectral_filter": 2, "shaped_noise": 1, "add_noise": 1, "whitened_mse": 1}[case.operator]
    if case.direction == WITH_BACKWARD:
        transforms += {"spectral_filter": 2, "whitened_mse": 1}[case.operator]
    plane = math.prod(case.shape[-2:])
    return transforms * 2.5 * case.pixels * math.log2(plane)


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    # where the kernel does not say, more than most processors have
    return max((int(size[:-1]) * units[size[-1]] for size in sizes), default=64 << 20)
