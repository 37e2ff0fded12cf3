"""The operators on `torch.distributed.tensor.DTensor`: sharded over batch dimensions, without communication.

Planes are independent, so whatever holds whole planes can compute alone. Importing this module teaches DTensor that
for `spectral_filter` and `whitened_mse`. Noise belongs to a plane's number in the whole batch, which a rule for local
arguments cannot express: `shaped_noise` and `add_noise` of this module draw each process's share of the noise that one
process would draw, to the bit. The operators' own versions refuse DTensors.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.experimental import register_sharding

from . import ops


def shaped_noise(
    key: Tensor,
    size: Sequence[int],
    weight: Tensor,
    *,
    device_mesh: DeviceMesh,
    placements: Sequence[Placement],
    dtype: torch.dtype | None = None,
) -> DTensor:
    """`sagd_kernels.shaped_noise` as a DTensor of the given placements, `Shard(0)` or `Replicate()`.

    `key` [2] and `weight` [H, W//2+1] are plain tensors, the same in every process; not differentiable.
    """
    samples = _local_samples(size, device_mesh, placements)
    offset = _first_plane(samples, size)
    local = ops.shaped_noise(key, (len(samples), *size[1:]), weight, plane_offset=offset, dtype=dtype)
    return _assemble(local, size, device_mesh, placements)


def add_noise(
    input: DTensor, key: Tensor, weight: Tensor, signal_scale: Tensor | float, noise_scale: Tensor | float
) -> tuple[DTensor, DTensor]:
    """`sagd_kernels.add_noise` of a DTensor [N, ..., H, W], sharded in its first dimension or replicated.

    `key` [2], `weight` [H, W//2+1] and the scales, numbers or of N or 1 samples, are plain tensors, the same in every
    process. Differentiable in `input`.
    """
    if not isinstance(input, DTensor):
        raise TypeError(f"input: expected a DTensor, got {type(input).__name__}")
    mesh, placements = input.device_mesh, input.placements
    samples = _local_samples(input.shape, mesh, placements)
    scales = [_of_samples(scale, samples) for scale in (signal_scale, noise_scale)]
    offset = _first_plane(samples, input.shape)
    parts = ops.add_noise(input.to_local(), key, weight, *scales, plane_offset=offset)
    noisy, noise = (_assemble(part, input.shape, mesh, placements) for part in parts)
    return noisy, noise


def _local_samples(size: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """The numbers of the samples, consecutive, that this process holds."""
    if len(size) < 3 or not all(placement in (Shard(0), Replicate()) for placement in placements):
        raise ValueError(f"placements: expected Shard(0) or Replicate() of [N, ..., H, W], got {tuple(placements)}")
    numbers = torch.arange(size[0], device=mesh.device_type)
    return distribute_tensor(numbers, mesh, placements, src_data_rank=None).to_local()


def _of_samples(scale: Tensor | float, samples: Tensor) -> Tensor | float:
    return scale[samples] if isinstance(scale, Tensor) and scale.ndim and len(scale) > 1 else scale


def _first_plane(samples: Tensor, size: Sequence[int]) -> int:
    return samples[0].item() * torch.Size(size[1:-2]).numel() if len(samples) else 0


def _assemble(local: Tensor, size: Sequence[int], mesh: DeviceMesh, placements: Sequence[Placement]) -> DTensor:
    strides = torch.empty(size, device="meta").stride()
    return DTensor.from_local(local, mesh, placements, shape=torch.Size(size), stride=strides)


# The rules see the arguments' global shapes as a DTensorSpec, and list, for one dimension of the mesh, the placements
# of outputs and inputs that need no communication.


@register_sharding(torch.ops.sagd.spectral_filter.default)
def _shard_spectral_filter(input, weight, scale=None):
    rules = [([Replicate()], [Replicate(), Replicate(), None if scale is None else Replicate()])]
    for dim in range(input.ndim - 2):
        scale_shard = None if scale is None else _scale_placement(scale, dim)
        rules.append(([Shard(dim)], [Shard(dim), _weight_placement(weight, dim, input.ndim), scale_shard]))
    return rules


@register_sharding(torch.ops.sagd._whitened_mse.default)
def _shard_whitened_mse(input, target, weight, with_residual):
    rules = [([Replicate(), Replicate()], [Replicate(), Replicate(), Replicate(), None])]
    for dim in range(input.ndim - 2):
        if input.shape[dim] % input.mesh.size() == 0:  # else the mean of the shards' means is not the mean
            residual = Shard(dim) if with_residual else Replicate()
            inputs = [Shard(dim), Shard(dim), _weight_placement(weight, dim, input.ndim), None]
            rules.append(([Partial("avg"), residual], inputs))
    return rules


def _weight_placement(weight, dim: int, ndim: int) -> Placement:
    """Weights broadcast from the right: `dim` counts from the left of `ndim` dimensions."""
    own = dim - (ndim - weight.ndim)
    return Shard(own) if own >= 0 and weight.shape[own] > 1 else Replicate()


def _scale_placement(scale, dim: int) -> Placement:
    """Scales broadcast from the left."""
    return Shard(dim) if dim < scale.ndim and scale.shape[dim] > 1 else Replicate()
