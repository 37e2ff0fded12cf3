"""From counters to a speed-of-light estimate. Nothing here is a measurement.

Each bound is a lower bound of the time that one resource of a GPU needs for the counted work; the largest is the
estimate. The real time is longer, by a factor that this cannot know: it sees no latency nor how well occupancy hides
it, no waiting at barriers, no launch overhead, no L2 cache (hits, misses for want of capacity, bandwidth), no DRAM
inefficiency, no misses of the instruction cache, no register bank conflicts. The exception: data that already is in L2
makes the DRAM bound too high. `mma.sync` may stay well below the tensor peak on H100 and B200, which are built for
wgmma and tcgen05; 32 x 32 -> 64 bit integer products are charged like 32-bit ones. What blocks of a cluster read and
write of each other is charged to shared memory: the limits of the network between SMs are not public.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from .devices import (
    L1_BYTES_PER_CLOCK,
    REGISTER_UNIT,
    REGISTERS,
    RESERVED_SHARED,
    SCHEDULERS,
    SHARED_BYTES_PER_CLOCK,
    SHARED_UNIT,
    Device,
)
from .machine import Launch
from .ptx import align
from .sass import machine_mix
from .toolchain import Resources, assemble, has


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that an SM holds at a time, and what limits them."""

    blocks: int
    warps: int
    limited_by: str


def occupancy(device: Device, threads: int, registers: int, shared: int) -> Occupancy:
    """Of blocks of `threads` with `registers` each and `shared` bytes of static and dynamic shared memory."""
    warps = -(-threads // 32)
    limits = {"blocks": device.max_blocks, "warps": device.max_warps // warps}
    if registers:
        per_warp = align(registers * 32, REGISTER_UNIT)
        limits["registers"] = REGISTERS // SCHEDULERS // per_warp * SCHEDULERS // warps
    per_block = align(shared + RESERVED_SHARED, SHARED_UNIT)
    limits["shared memory"] = 0 if shared > device.shared_per_block else device.shared // per_block
    blocks = min(limits.values())
    return Occupancy(blocks, blocks * warps, min(limits, key=limits.get))


@dataclass(frozen=True)
class Estimate:
    """Of one launch on one GPU.

    Attributes:
        bounds: seconds at least, by resource.
        instructions: warp instructions of the whole grid by class; machine instructions where nvdisasm is at hand,
            else PTX instructions expanded by a fixed table.
        traced: whether they are machine instructions.
        waves: blocks of the grid over blocks that the GPU holds at a time.
    """

    bounds: dict[str, float]
    instructions: dict[str, float]
    traced: bool
    resources: Resources
    occupancy: Occupancy
    waves: float

    @property
    def seconds(self) -> float:
        return max(self.bounds.values())

    @property
    def limiter(self) -> str:
        return max(self.bounds, key=self.bounds.get)


def estimate(launch: Launch, device: Device) -> Estimate:
    """Needs ptxas. ToolError if that is missing or the kernel does not run on the device's architecture."""
    counters = launch.counters
    resources, cubin = assemble(launch.kernel, device.arch)
    traced = has("nvdisasm")
    mix = machine_mix(counters, cubin).by_class if traced else counters.expanded_instructions()
    instructions = {name: count * counters.scale for name, count in mix.items()}
    shared = resources.static_shared + launch.dynamic_shared
    resident = occupancy(device, launch.threads, resources.registers, shared)
    times = bounds(
        device,
        instructions,
        blocks=counters.blocks_total,
        dram_bytes=sum(counters.dram_bytes),
        shared_wavefronts=counters.traffic("shared").wavefronts * counters.scale,
        cluster_sectors=counters.traffic("cluster").sectors * counters.scale,
        global_sectors=counters.traffic("global").sectors * counters.scale,
        mma_flops={type_: flops * counters.scale for type_, flops in counters.mma_flops.items()},
    )
    waves = counters.blocks_total / (device.sms * resident.blocks) if resident.blocks else float("inf")
    return Estimate(times, instructions, traced, resources, resident, waves)


def bounds(
    device: Device,
    instructions: Mapping[str, float],
    *,
    blocks: int,
    dram_bytes: float,
    shared_wavefronts: float = 0,
    cluster_sectors: float = 0,
    global_sectors: float = 0,
    mma_flops: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Seconds that each resource needs at least. Work goes to the SMs in whole blocks: small grids leave some idle."""
    busiest = -(-blocks // device.sms) / blocks  # its share of all work
    clocks_per_second = device.clock_ghz * 1e9

    def count(*classes: str) -> float:
        return sum(instructions.get(name, 0) for name in classes)

    def seconds(clocks: float) -> float:
        return clocks * busiest / clocks_per_second

    def at_lanes(warp_instructions: float, lanes: int) -> float:
        return seconds(warp_instructions * 32 / lanes)

    integer_products = count("int_mul")
    float_lanes = count("fp32_fma", "fp32_add", "fp32_mul", "half") + 2 * count("fp32x2") + integer_products
    tensor = sum(flops / (device.tensor_tflops[type_] * 1e12) for type_, flops in (mma_flops or {}).items())
    return {
        "dram": dram_bytes / (device.dram_gb_s * 1e9),
        "shared": seconds(
            ((shared_wavefronts + count("shuffle")) * 128 + cluster_sectors * 32) / SHARED_BYTES_PER_CLOCK
        ),
        "l1": seconds((global_sectors * 32 + count("mem_local") * 128) / L1_BYTES_PER_CLOCK),
        "issue": seconds(sum(instructions.values()) / SCHEDULERS),
        "fma": max(at_lanes(float_lanes, device.fp32_lanes), at_lanes(integer_products, device.imad_lanes)),
        "alu": at_lanes(count("int_alu", "select"), device.alu_lanes),
        "special": at_lanes(count("mufu", "convert"), device.special_lanes),
        "fp64": at_lanes(count("fp64"), device.fp64_lanes),
        "tensor": tensor * busiest * device.sms,
    }
