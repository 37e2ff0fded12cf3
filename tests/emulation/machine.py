"""The SIMT machine: batches of blocks and clusters of blocks, divergence, barriers.

All threads of a batch of blocks run each instruction as one NumPy operation. Divergence is a work list {pc: lanes} of
which the lowest pc always advances, so that lanes meet again at the join. Throughout, `ix` is the sorted array of
active lanes, or None where all lanes of the batch are active; a lane is a thread, numbered through the batch.

Blocks run in order, batch by batch: a kernel whose blocks wait for each other may hang on a GPU and not here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .counters import Counters
from .errors import EmulationError, Unsupported
from .instructions import compile_instruction
from .memory import GlobalMemory, Pointer, Struct
from .memory_unit import MemoryUnit
from .ptx import UNSIGNED, Instr, Kernel, kind_and_bits, numpy_type

CONTROL = ("bra", "ret", "exit", "bar", "barrier")
LANES_PER_BATCH = 1 << 14
NOWHERE = 1 << 60
CLUSTER = "cluster"  # its barrier, among those of a block, which have numbers

Argument = np.ndarray | Pointer | Struct | bytes | int | float | np.generic


class Machine:
    """Runs one launch; see `launch` for the arguments.

    Attributes, of the batch that is running:
        batch_size: its blocks; `size` its lanes.
        lane_block, thread, warp: block in the batch, thread in the block and warp in the batch of each lane.
        block_number: block in the grid of each lane.
        block_epoch, warp_epoch: barriers passed by each block, and `bar.warp.sync` by each warp.
        cluster_epoch: barriers of its cluster passed by each block; they count as the block's, too.
        live: the lanes that have not returned.
        carry: the condition code of each lane.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Argument],
        dynamic_shared: int,
        races: bool,
        count: bool,
        blocks: Iterable[int] | None,
        approximate: bool,
        batch_lanes: int,
        cluster: int,
    ) -> None:
        self.kernel, self.grid, self.block, self.cluster = kernel, grid, block, cluster
        self.threads_per_block = block[0] * block[1] * block[2]
        self.warps_per_block = -(-self.threads_per_block // 32)
        self.shared_bytes = -(-(kernel.dynamic_offset + dynamic_shared) // 16) * 16
        self.races, self.approximate = races, approximate
        total = grid[0] * grid[1] * grid[2]
        todo = np.arange(total) if blocks is None else np.asarray(list(blocks), int)
        whole = (todo[::cluster, None] // cluster * cluster + np.arange(cluster)).reshape(-1)
        if not np.array_equal(todo, whole):
            raise ValueError(f"blocks: expected whole clusters of {cluster} blocks, got {todo.tolist()}")
        self.counters = Counters(kernel, total, len(todo), self.threads_per_block)
        pointers = [each for arg in args for each in (arg.pointers.values() if isinstance(arg, Struct) else [arg])]
        arrays = [each.array if isinstance(each, Pointer) else each for each in pointers]
        arrays = [array for array in arrays if isinstance(array, np.ndarray)] + list(kernel.variables.values())
        distinct = {(array.__array_interface__["data"][0], array.nbytes): array for array in arrays}
        self.global_memory = GlobalMemory(list(distinct.values()))
        self.memory = MemoryUnit(self, count)
        self._set_params(args)
        self._code: list[Callable | None] = [
            None if instr.op in CONTROL else compile_instruction(self, instr) for instr in kernel.code
        ]
        self._run(todo, max(1, batch_lanes // (self.threads_per_block * cluster)) * cluster)

    def _run(self, todo: np.ndarray, step: int) -> None:
        """All blocks, in two halves: what the second one adds in DRAM traffic is what more blocks would add."""
        memory, half = self.global_memory, (len(todo) // self.cluster + 1) // 2 * self.cluster
        self.counters.first_half, self.counters.array_bytes = half, [region.data.nbytes for region in memory.regions]
        for start in range(0, half, step):
            self._run_batch(todo[start : min(start + step, half)])
        first = memory.touched()
        for start in range(half, len(todo), step):
            self._run_batch(todo[start : start + step])
        self.counters.dram = list(zip(first, memory.touched(), strict=True))

    def _set_params(self, args: Sequence[Argument]) -> None:
        kernel = self.kernel
        self.param_bytes = np.zeros(max(kernel.param_size, 8), np.uint8)
        self.param_offset = {name: offset for name, _, offset, _ in kernel.params}
        padded = [*args, *[0] * (len(kernel.params) - len(args))]  # Triton appends scratch pointers
        for (_, type_, offset, size), value in zip(kernel.params, padded, strict=True):
            if isinstance(value, np.ndarray):
                value = self.global_memory.address(value)
            elif isinstance(value, Pointer):
                value = self.global_memory.address(value.array, value.offset)
            elif isinstance(value, Struct):
                value = self._struct_bytes(value)
            if not isinstance(value, bytes):
                value = np.array(value).astype(numpy_type(type_)).tobytes()
            self.param_bytes[offset : offset + size] = np.frombuffer(value, np.uint8)

    def _struct_bytes(self, struct: Struct) -> bytes:
        data = bytearray(struct.data)
        for at, pointer in struct.pointers.items():
            data[at : at + 8] = self.global_memory.address(pointer.array, pointer.offset).to_bytes(8, "little")
        return bytes(data)

    # -- one batch of blocks

    def _run_batch(self, blocks: np.ndarray) -> None:
        self.batch_size, threads = len(blocks), self.threads_per_block
        self.size = self.batch_size * threads
        self.all_lanes = np.arange(self.size)
        self.lane_block, self.thread = self.all_lanes // threads, self.all_lanes % threads
        self.warp = self.lane_block * self.warps_per_block + self.thread // 32
        self.warp_count = self.batch_size * self.warps_per_block
        self.block_number = blocks[self.lane_block]
        self._set_special_registers(self.block_number)
        self._registers: dict[str, np.ndarray] = {}
        self.carry = np.zeros(self.size, bool)
        self.block_epoch, self.cluster_epoch, self.warp_epoch = (
            np.zeros(count, np.int32) for count in (self.batch_size, self.batch_size, self.warp_count)
        )
        self.memory.start_batch()
        self.live, self._waiting = np.ones(self.size, bool), {}
        self._todo: dict[int, np.ndarray | None] = {0: None}
        while self._todo or self._waiting:
            if self._todo:
                self._advance()
            else:
                self._release_barriers()

    def _set_special_registers(self, block: np.ndarray) -> None:
        (bx, by, _), (gx, gy, _), thread = self.block, self.grid, self.thread
        lane = thread % 32
        below = (1 << lane) - 1
        values = {
            "%tid.x": thread % bx, "%tid.y": thread // bx % by, "%tid.z": thread // (bx * by),
            "%ctaid.x": block % gx, "%ctaid.y": block // gx % gy, "%ctaid.z": block // (gx * gy),
            "%laneid": lane, "%warpid": thread // 32, "%lanemask_eq": 1 << lane, "%lanemask_lt": below,
            "%lanemask_le": below | (1 << lane), "%lanemask_ge": ~below, "%lanemask_gt": ~(below | (1 << lane)),
        }  # fmt: skip
        for axis, name in enumerate("xyz"):
            values[f"%ntid.{name}"] = np.full(self.size, self.block[axis])
            values[f"%nctaid.{name}"] = np.full(self.size, self.grid[axis])
        values |= {"%cluster_ctarank": block % self.cluster, "%cluster_nctarank": np.full(self.size, self.cluster)}
        self.special_registers = {name: value.astype(np.uint32) for name, value in values.items()}

    def _advance(self) -> None:
        """Run the lanes with the lowest pc until they branch, wait, or meet others."""
        code, counters = self.kernel.code, self.counters
        pc = min(self._todo)
        ix = self._todo.pop(pc)
        meeting = min(self._todo, default=NOWHERE)
        warps, lanes = self.warp_count if ix is None else self._count_warps(ix), self.lane_count(ix)
        while pc != meeting:
            instr = code[pc]
            counters.warps[pc] += warps
            counters.lanes[pc] += lanes
            self.pc = pc
            if instr.op in CONTROL:
                self._control(instr, ix)
                return
            self._execute(instr, ix)
            pc += 1
        self._schedule(pc, ix)

    def _execute(self, instr: Instr, ix) -> None:
        try:
            if instr.pred is None:
                self._code[instr.pc](ix)
                return
            taken = self._predicate(instr, ix)
            if taken.all():
                self._code[instr.pc](ix)
            elif taken.any():
                self._code[instr.pc](self.lanes(ix)[taken])
        except EmulationError as error:
            raise type(error)(f"{error}  [{self.kernel.name}, instruction {instr.pc}: {instr.text}]") from None

    def _predicate(self, instr: Instr, ix) -> np.ndarray:
        value = self.register(instr.pred)
        value = value if ix is None else value[ix]
        return ~value if instr.negated else value

    def _control(self, instr: Instr, ix) -> None:
        taken = self.lanes(ix)
        rest = taken[:0]
        if instr.pred is not None:
            predicate = self._predicate(instr, ix)
            taken, rest = taken[predicate], taken[~predicate]
        following = instr.pc + 1
        if instr.op == "bra":
            self._schedule(self.kernel.labels[instr.args[-1]], taken)
        elif instr.op in ("ret", "exit"):
            self.live[taken] = False
        elif "warp" in instr.mods:
            self.warp_epoch[np.unique(self.warp[taken])] += 1
            self._schedule(following, taken)
        elif "cluster" in instr.mods:
            self._cluster_barrier(instr, taken)
        elif not {"red", "arrive"}.isdisjoint(instr.mods) or (instr.args and instr.args[0].startswith("%")):
            raise Unsupported(instr.text)
        else:
            barrier, count = (*(int(arg, 0) for arg in instr.args), 0, 0)[:2]
            self._waiting.setdefault((barrier, count), []).append((following, taken))
        self._schedule(following, rest)

    def _schedule(self, pc: int, lanes) -> None:
        if lanes is not None and not len(lanes):
            return
        if pc in self._todo and lanes is not None:
            others = self._todo[pc]
            lanes = None if others is None else np.union1d(others, lanes)
        self._todo[pc] = None if lanes is None or len(lanes) == self.size else lanes

    def _cluster_barrier(self, instr: Instr, taken) -> None:
        """Arrival and wait as one: nothing may stand between them."""
        code, following = self.kernel.code, instr.pc + 1
        arrives = "arrive" in instr.mods
        if "relaxed" in instr.mods or (arrives and code[following].mods[:2] != ["cluster", "wait"]):
            raise Unsupported(instr.text)
        if arrives:
            self._schedule(following, taken)
        else:
            self._waiting.setdefault((CLUSTER, 0), []).append((following, taken))

    def _release_barriers(self) -> None:
        """Let go the blocks or clusters of which every live thread (or the number that the barrier names) has come."""

        def threads(lanes, barrier) -> np.ndarray:
            """Of each block, or of its whole cluster."""
            by_block = np.bincount(self.lane_block[lanes], minlength=self.batch_size)
            if barrier != CLUSTER:
                return by_block
            return np.repeat(by_block.reshape(-1, self.cluster).sum(1), self.cluster)

        still_waiting, progress = {}, False
        for (barrier, count), arrivals in self._waiting.items():
            here = sum(threads(lanes, barrier) for _, lanes in arrivals)
            complete = (here == count) if count else (here == threads(self.live, barrier)) & (here > 0)
            progress |= bool(complete.any())
            self.block_epoch[complete] += 1
            self.cluster_epoch[complete] += barrier == CLUSTER
            self.counters.barriers += int(complete.sum())
            for pc, lanes in arrivals:
                go = complete[self.lane_block[lanes]]
                self._schedule(pc, lanes[go])
                if not go.all():
                    still_waiting.setdefault((barrier, count), []).append((pc, lanes[~go]))
        if not progress:
            raise EmulationError("deadlock: not all threads of a block, or of a cluster, reach the barrier")
        self._waiting = still_waiting

    # -- lanes and registers, for the instructions

    def lanes(self, ix) -> np.ndarray:
        return self.all_lanes if ix is None else ix

    def lane_count(self, ix) -> int:
        return self.size if ix is None else len(ix)

    def spread(self, value, ix) -> np.ndarray:
        """`value` as an array with one element for each active lane."""
        return np.broadcast_to(value, (self.lane_count(ix),))

    def register(self, name: str) -> np.ndarray:
        """A register of all lanes, as a predicate or as unsigned bits."""
        found = self._registers.get(name)
        if found is None:
            type_ = self.kernel.register_type(name)
            if type_ is None:
                raise Unsupported(f"register {name}")
            bits = np.bool_ if type_ == "pred" else UNSIGNED[kind_and_bits(type_)[1]]
            found = self._registers[name] = np.zeros(self.size, bits)
        return found

    def full_warps(self, ix, what: str) -> np.ndarray:
        """The active lanes, which must be whole warps."""
        lanes = self.lanes(ix)
        if ix is None and self.threads_per_block % 32 == 0:
            return lanes
        warps = lanes.reshape(-1, 32) if len(lanes) % 32 == 0 else None
        if warps is None or (self.thread[warps[:, 0]] % 32).any() or (np.diff(warps, axis=1) != 1).any():
            raise EmulationError(f"{what} with a partial warp")
        return lanes

    def rows(self, address: np.ndarray, ix) -> np.ndarray:
        """Addresses of the active lanes as int64 [warps, 32], -1 for the other lanes."""
        address = np.ascontiguousarray(address).view(np.int64)
        if ix is None and self.threads_per_block % 32 == 0:
            return address.reshape(-1, 32)
        lanes = self.lanes(ix)
        warp = self.warp[lanes]
        row = np.concatenate(([0], np.cumsum(warp[1:] != warp[:-1])))
        rows = np.full((row[-1] + 1, 32), -1, np.int64)
        rows[row, self.thread[lanes] % 32] = address
        return rows

    def _count_warps(self, ix) -> int:
        warp = self.warp[ix]
        return 1 + int(np.count_nonzero(warp[1:] != warp[:-1])) if len(warp) else 0


@dataclass
class Launch:
    """What was launched; once it has been run, the arrays that were passed to the kernel hold its results.

    Attributes:
        dynamic_shared: bytes of dynamic shared memory per block.
        cluster: blocks of a cluster.
        counters: None if the kernel was only compiled.
        constants: what the kernel was specialised for, where its source is a template.
    """

    kernel: Kernel
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    dynamic_shared: int = 0
    cluster: int = 1
    counters: Counters | None = None
    constants: dict[str, object] = field(default_factory=dict)

    @property
    def threads(self) -> int:
        """Per block."""
        return self.block[0] * self.block[1] * self.block[2]


def launch(
    kernel: Kernel | str,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Argument],
    *,
    dynamic_shared: int = 0,
    races: bool = True,
    count: bool = True,
    blocks: Iterable[int] | None = None,
    approximate: bool = True,
    batch_lanes: int = LANES_PER_BATCH,
    cluster: int = 1,
) -> Launch:
    """Run a kernel.

    Args:
        kernel: or PTX text, of which the first entry is taken.
        grid, block: up to three numbers each.
        args: arrays or Pointers for device pointers, read and written in place; numbers; a Struct, or bytes if there
            are no pointers in it, for one passed by value. Missing trailing ones are 0.
        dynamic_shared: bytes of dynamic shared memory.
        races: look for races.
        count: count memory traffic.
        blocks: linear indices of the blocks to run, all by default. Of clusters, all blocks in order or none.
        approximate: let .approx functions be as inexact as they may be, and tensor cores truncate their sums. False
            is more exact than a GPU: it tells what these two cost in accuracy.
        batch_lanes: about how many threads run at a time.
        cluster: so many blocks in a row are a cluster.

    Raises:
        EmulationError: the kernel did something illegal; Race and Unsupported are two kinds of it.
    """
    kernel = Kernel(kernel) if isinstance(kernel, str) else kernel
    grid, block = ((*(int(n) for n in shape), 1, 1)[:3] for shape in (grid, block))
    with np.errstate(all="ignore"):
        machine = Machine(
            kernel, grid, block, args, dynamic_shared, races, count, blocks, approximate, batch_lanes, cluster
        )
    return Launch(kernel, grid, block, dynamic_shared, cluster, machine.counters)
