"""The processes of a run: one, or as many as torchrun or accelerate launch started."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from .config import RunError


def start_processes() -> Accelerator:
    """Joins the processes of this run, each with its device; the first call does, later ones say the same."""
    accelerator = Accelerator(
        mixed_precision="no",  # autocast is Config.precision's, whatever the launcher's settings
        cpu=not torch.accelerator.is_available(),  # else accelerate sees one process where torchrun started many
    )
    expected = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if accelerator.distributed_type not in expected:
        kind = accelerator.distributed_type.value
        raise RunError(f"accelerate launch: expected one process or data parallelism (DDP), got {kind}")
    return accelerator
