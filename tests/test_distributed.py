"""The operators on DTensors: the result of one process, to the bit, without communication."""

import pytest
import torch
import torch.distributed as dist
from children import launch
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode

import sagd_kernels as sagd
from sagd_kernels import distributed, weights

SIZE = (4, 6, 8, 9)
WEIGHT = weights.power_law(8, 9, -0.5)


def seeded(*size: int) -> torch.Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(sum(size)))


def shard(tensor: torch.Tensor, mesh, placement=None) -> DTensor:
    return distribute_tensor(tensor, mesh, [placement or Shard(0)], src_data_rank=None)


def check_filter(mesh):
    """Whatever dimension of the batch is sharded, weights and scales follow; a plane is never split."""
    input, weight, scale = seeded(*SIZE) - 0.5, seeded(6, 8, 5) + 0.5, seeded(4)
    for dim, (weight_place, scale_place) in enumerate([(Replicate(), Shard(0)), (Shard(0), Replicate())]):
        arguments = shard(input, mesh, Shard(dim)), shard(weight, mesh, weight_place), shard(scale, mesh, scale_place)
        with CommDebugMode() as communication:
            result = sagd.spectral_filter(*arguments)
        assert communication.get_total_counts() == 0
        assert result.placements == (Shard(dim),)
        assert torch.equal(result.full_tensor(), sagd.spectral_filter(input, weight, scale))
    rows = sagd.spectral_filter(shard(input, mesh, Shard(2)), shard(WEIGHT, mesh, Replicate()))
    assert torch.equal(rows.full_tensor(), sagd.spectral_filter(input, WEIGHT))


def check_noise(mesh):
    key, scale = sagd.fold_in(sagd.key(1), 2), seeded(5)
    for size in (SIZE, (5, *SIZE[1:]), (1, *SIZE[1:])):  # the last two in uneven shards, one of them empty
        input, levels = seeded(*size), scale[: size[0]]
        with CommDebugMode() as communication:
            noise = distributed.shaped_noise(key, size, WEIGHT, device_mesh=mesh, placements=[Shard(0)])
            both = distributed.add_noise(shard(input, mesh), key, WEIGHT, levels, 2.0)
        assert communication.get_total_counts() == 0
        assert torch.equal(noise.full_tensor(), sagd.shaped_noise(key, size, WEIGHT))
        expected = sagd.add_noise(input, key, WEIGHT, levels, 2.0)
        assert all(torch.equal(part.full_tensor(), whole) for part, whole in zip(both, expected, strict=True))
    with pytest.raises(ValueError, match=r"placements: expected Shard\(0\) or Replicate\(\)"):
        distributed.shaped_noise(key, SIZE, WEIGHT, device_mesh=mesh, placements=[Shard(1)])
    with pytest.raises(TypeError, match="input: expected a DTensor, got Tensor"):
        distributed.add_noise(seeded(*SIZE), key, WEIGHT, 0.5, 0.5)
    with pytest.raises(NotImplementedError, match=r"sagd\.add_noise"):  # the same planes in every shard would be wrong
        replicated = [shard(tensor, mesh, Replicate()) for tensor in (key, WEIGHT, scale[0], scale[0])]
        sagd.add_noise(shard(seeded(*SIZE), mesh), *replicated)
    with pytest.raises(TypeError, match=r"got a DTensor; sagd_kernels\.distributed\.shaped_noise"):
        sagd.ShapedNoise(WEIGHT)(shard(seeded(*SIZE), mesh))


def check_loss(mesh):
    """A training step: the loss is a mean yet to be reduced, and gradients stay in their shards."""
    key, weight = sagd.key(3), shard(WEIGHT, mesh, Replicate())
    for samples in (4, 5):  # shards of unequal size cannot be averaged: these are gathered, and right
        whole = seeded(samples, *SIZE[1:]).requires_grad_()
        input = shard(whole.detach(), mesh).requires_grad_()
        with CommDebugMode() as communication:
            noisy, noise = distributed.add_noise(input, key, WEIGHT, torch.tensor(0.5), torch.tensor(0.8))
            loss = sagd.whitened_mse(sagd.spectral_filter(noisy, weight), noise, weight)
        assert (communication.get_total_counts() == 0) == (samples == 4)
        noisy, noise = sagd.add_noise(whole, key, WEIGHT, torch.tensor(0.5), torch.tensor(0.8))
        expected = sagd.whitened_mse(sagd.spectral_filter(noisy, WEIGHT), noise, WEIGHT)
        torch.testing.assert_close(loss.full_tensor(), expected)
        loss.backward()
        expected.backward()
        assert input.grad.placements == (Shard(0),)
        torch.testing.assert_close(input.grad.full_tensor(), whole.grad)


def run_checks():
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for check in (check_filter, check_noise, check_loss):
        check(mesh)


def test_operators_shard_over_the_batch_without_communication():
    """One group of processes for all checks: starting it takes longer than they do."""
    launch(run_checks)
