"""Which implementation of the operators runs where: kernels where there are some, else the composite of torch.fft."""

from collections.abc import Sequence

import torch


def explain(size: Sequence[int], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> str:
    """What an operator call on planes [..., H, W] of this dtype and device runs, and why, in a sentence or two."""
    device = torch.device(device)
    if device.type != "cpu":
        return f"composite of torch.fft: there are no kernels for {device.type}"
    height, width = size[-2:]
    compute = "float64" if dtype == torch.float64 else "float32"
    columns, rows = torch.ops.sagd._cpu_plan(height), torch.ops.sagd._cpu_plan(width)
    return (
        f"CPU kernels ({torch.ops.sagd._cpu_isa()}), computing in {compute}: "
        f"{height} x {width} planes, columns as {columns}, rows as {rows} points"
    )
