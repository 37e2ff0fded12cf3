"""A contender's launches for a case as rows, one for each device: what was counted and what follows at best."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.cases import Case
from benchmarks.limits import one_pass_bytes
from tests.emulation.counters import Traffic
from tests.emulation.devices import DEVICES, Device
from tests.emulation.estimate import Estimate, estimate
from tests.emulation.machine import Launch

from . import eager
from .contenders import Contender, label, plane


@dataclass
class Row:
    """One line of the CSV: an estimate for one call on one device.

    Attributes:
        what, plane, dtype: the case; `samples` is the batch that its planes come in.
        launches, kernels: how many, and the names of the different ones.
        compulsory_bytes: what one pass must move: inputs and results once, the weight once.
        dram_read_bytes, dram_written_bytes: distinct sectors that the launches touch, summed over launches.
        traffic: DRAM bytes over the compulsory ones.
        load_efficiency, store_efficiency: sectors that requests would need over those that they touch, in arrays as
            large as the planes (constants, which stay in the caches, are not counted).
        conflict_degree: wavefronts over those without bank conflicts, shared memory.
        instructions, fp32_flops, tensor_flops: per pixel; thread instructions of the machine code.
        registers, spills: per thread, the largest of the kernels'; spills in bytes.
        warps: that an SM holds at a time, the fewest of the kernels'.
        bound_us: the estimated time at best, summed over launches; by `limiter`.
        compulsory_us: the DRAM time of the compulsory bytes; `ratio` is bound_us over it.
        next_limiter, next_ratio: the resource that would limit next, and its time over compulsory_us.
        eager_launches, eager_bytes, eager_us: torch's eager pipeline by the rule in eager.py, at the DRAM's bandwidth.
        traced: whether instructions are those of the machine code, or guessed from PTX for want of a disassembler.
        toolchain: what compiled the kernels.
    """

    contender: str
    what: str
    plane: str
    dtype: str
    samples: int
    device: str
    launches: int
    kernels: str
    compulsory_bytes: int
    dram_read_bytes: float
    dram_written_bytes: float
    traffic: float
    load_efficiency: float | None
    store_efficiency: float | None
    conflict_degree: float | None
    instructions: float
    fp32_flops: float
    tensor_flops: float
    registers: int
    spills: int
    warps: int
    bound_us: float
    compulsory_us: float
    ratio: float
    limiter: str
    next_limiter: str
    next_ratio: float
    eager_launches: int
    eager_bytes: float
    eager_us: float
    traced: int
    toolchain: str

    @property
    def case(self) -> str:
        return f"{self.what} {self.plane} {self.dtype}"


def cost(contender: Contender, case: Case, sample: int) -> list[Row]:
    """Rows of the devices that the kernels run on. Runs `sample` blocks of each launch; needs ptxas."""
    rows = []
    for name, device in DEVICES.items():
        launches = contender.launches(case, int(device.arch.removeprefix("sm_")), sample)
        if launches:
            rows.append(_row(contender, case, name, device, launches, [estimate(each, device) for each in launches]))
    if not rows:
        raise ValueError(f"{contender.name}: no launch for {label(case)}")
    return rows


def _row(
    contender: Contender,
    case: Case,
    name: str,
    device: Device,
    launches: Sequence[Launch],
    estimates: Sequence[Estimate],
) -> Row:
    compulsory, planes = one_pass_bytes(case), case.pixels * case.dtype.itemsize
    compulsory_us = compulsory / device.dram_gb_s / 1e3
    read, written = (sum(way) for way in zip(*(each.counters.dram_bytes for each in launches), strict=True))
    by_limiter, by_resource = Counter(), Counter()
    for each in estimates:
        by_limiter[each.limiter] += each.seconds * 1e6
        by_resource.update({resource: seconds * 1e6 for resource, seconds in each.bounds.items()})
    bound_us, limiter = sum(by_limiter.values()), by_limiter.most_common(1)[0][0]
    del by_resource[limiter]
    next_limiter, next_us = by_resource.most_common(1)[0]
    steps = eager.pipeline(case)
    return Row(
        contender=contender.name,
        what=case.what,
        plane=plane(case),
        dtype=case.dtype_name,
        samples=case.shape[0],
        device=name,
        launches=len(launches),
        kernels=" ".join(dict.fromkeys(each.kernel.name for each in launches)),
        compulsory_bytes=compulsory,
        dram_read_bytes=read,
        dram_written_bytes=written,
        traffic=(read + written) / compulsory,
        load_efficiency=_traffic(launches, "global", "load", planes).sector_efficiency,
        store_efficiency=_traffic(launches, "global", "store", planes).sector_efficiency,
        conflict_degree=_traffic(launches, "shared").conflict_degree,
        instructions=sum(sum(each.instructions.values()) for each in estimates) * 32 / case.pixels,
        fp32_flops=sum(_scaled(launches, lambda counters: counters.fp32_flops)) / case.pixels,
        tensor_flops=sum(_scaled(launches, lambda counters: sum(counters.mma_flops.values()))) / case.pixels,
        registers=max(each.resources.registers for each in estimates),
        spills=max(each.resources.spill_stores + each.resources.spill_loads for each in estimates),
        warps=min(each.occupancy.warps for each in estimates),
        bound_us=bound_us,
        compulsory_us=compulsory_us,
        ratio=bound_us / compulsory_us,
        limiter=limiter,
        next_limiter=next_limiter,
        next_ratio=next_us / compulsory_us,
        eager_launches=len(steps),
        eager_bytes=eager.total_bytes(case),
        eager_us=eager.total_bytes(case) / device.dram_gb_s / 1e3,
        traced=int(all(each.traced for each in estimates)),
        toolchain=f"{contender.toolchain()}, ptxas {estimates[0].resources.assembler}",
    )


def _traffic(launches: Sequence[Launch], space: str, what: str | None = None, least_bytes: int = 0) -> Traffic:
    """Of the whole grids: a launch of which fewer blocks were run counts for more."""
    total = Traffic()
    for each in launches:
        total.add(each.counters.traffic(space, what, least_bytes), each.counters.scale)
    return total


def _scaled(launches: Sequence[Launch], count) -> Iterator[float]:
    return (count(each.counters) * each.counters.scale for each in launches)
