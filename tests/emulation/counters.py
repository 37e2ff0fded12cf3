"""What a hardware profiler would count, gathered while the emulator executes.

Everything here is a fact about the streams of instructions and addresses and depends on no particular GPU:

- global memory: distinct 32-byte sectors of each warp request; ideal is what the distinct bytes would fill if packed;
- DRAM: distinct sectors over the whole launch, as with a cold cache that is never too small;
- shared memory of a cluster's blocks, the own one's included, by addresses that `mapa` made: sectors, as global memory;
- shared memory: 32 banks of 4 bytes, 8-byte accesses in two half-warp phases, 16-byte ones in four quarter-warp phases;
  a phase takes as many wavefronts as the most distinct words that fall into one bank. NVIDIA documents no more than
  this, and hardware may merge broadcasts of 8 and 16 bytes that are counted here once for each phase;
- instructions: PTX warp instructions, once for each divergent path.
"""

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from .ptx import Instr, Kernel, kind_and_bits

SECTOR_BYTES = 32

FLOAT_OPS = {"add": "fp32_add", "sub": "fp32_add", "mul": "fp32_mul", "fma": "fp32_fma", "mad": "fp32_fma"}
SPECIAL_FUNCTIONS = ("sin", "cos", "ex2", "lg2", "sqrt", "rsqrt", "rcp", "tanh")


@dataclass(frozen=True)
class Kind:
    """Static facts about one PTX instruction.

    Attributes:
        slots: machine instructions that it is estimated to become, for where no disassembler is at hand.
        flops: float32 operations per thread.
        mma, mma_flops: operand type of a matrix instruction, and its operations per warp.
    """

    name: str
    slots: float = 1.0
    flops: int = 0
    mma: str = ""
    mma_flops: int = 0


def classify(instr: Instr) -> Kind:
    """The class of an instruction by the unit that executes it."""
    op, mods, types = instr.op, instr.mods, instr.types
    type_ = types[-1] if types else "b32"
    kind, bits = kind_and_bits(type_)
    words = 2.0 if bits == 64 else 1.0
    if op in ("bra", "ret", "exit"):
        return Kind("control")
    if op in ("bar", "barrier", "fence", "membar", "nanosleep", "griddepcontrol"):
        return Kind("barrier")
    if op == "mma":
        shape = next(re.fullmatch(r"m(\d+)n(\d+)k(\d+)", mod) for mod in mods if mod[0] == "m" and "n" in mod)
        return Kind("mma", mma=types[1], mma_flops=2 * int(np.prod([int(n) for n in shape.groups()])))
    if op in ("shfl", "redux"):
        return Kind("shuffle")
    if op in ("ld", "ldu", "st", "atom", "red", "cp", "ldmatrix", "stmatrix", "prefetch"):
        return _memory_kind(instr)
    if op in ("mov", "cvta", "isspacep", "createpolicy"):
        return Kind("move", 0.0)
    if op in ("setp", "selp", "slct", "set"):
        return Kind("select", 1.0 if kind == "f" else words)
    if op == "cvt":
        between_integers = kind_and_bits(types[0])[0] in "usb" and kind in "usb"
        return Kind("int_alu", 0.5) if between_integers else Kind("convert")  # widening is mostly free
    if type_ == "f64":
        return Kind("fp64", 8.0 if op in ("div", "sqrt", "rcp") else 1.0)
    if op in SPECIAL_FUNCTIONS or (op == "div" and kind == "f"):
        return Kind("mufu", _special_function_slots(op, mods))
    if type_ in ("f16", "bf16", "f16x2", "bf16x2"):
        return Kind("half")
    if kind in ("f", "f32x2"):
        lanes = 2 if type_ == "f32x2" else 1
        if op in FLOAT_OPS:
            return Kind(FLOAT_OPS[op], flops=lanes * (2 if op in ("fma", "mad") else 1))
        return Kind("select")  # min, max, abs, neg, copysign, testp
    if op in ("mul", "mad"):
        wide_product = {("lo", 64): 4.0, ("hi", 64): 8.0}
        return Kind("int_mul", 1.0 if "wide" in mods else wide_product.get(("hi" if "hi" in mods else "lo", bits), 1.0))
    if op in ("div", "rem"):
        return Kind("int_mul", 20.0 if bits <= 32 else 70.0)
    if op in ("popc", "clz", "bfind", "brev"):
        return Kind("convert", words)
    return Kind("int_alu", words)


def _memory_kind(instr: Instr) -> Kind:
    if instr.op == "cp":
        return Kind("mem_global") if any("shared" in mod for mod in instr.mods) else Kind("barrier")
    if instr.space in ("param", "const"):
        return Kind("param", 0.0)
    return Kind("mem_" + {"generic": "global", "cluster": "shared"}.get(instr.space, instr.space))


def _special_function_slots(op: str, mods: list[str]) -> float:
    approximate = "approx" in mods or "full" in mods
    if op == "div":
        return 2.0 if approximate else 10.0
    if not approximate:
        return 8.0
    return 2.0 if op in ("sin", "cos") else 1.0 if "ftz" in mods or op == "rcp" else 4.0


@dataclass
class Traffic:
    """Requests (warp instructions with an active lane) of one instruction or of several.

    Attributes:
        bytes: what the lanes asked for.
        sectors, ideal_sectors: global memory, see the module.
        wavefronts, ideal_wavefronts: shared memory, after and without bank conflicts.
    """

    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0

    def add(self, other: "Traffic", times: int = 1) -> None:
        self.requests += times * other.requests
        self.bytes += times * other.bytes
        self.sectors += times * other.sectors
        self.ideal_sectors += times * other.ideal_sectors
        self.wavefronts += times * other.wavefronts
        self.ideal_wavefronts += times * other.ideal_wavefronts

    @property
    def sector_efficiency(self) -> float | None:
        return self.ideal_sectors / self.sectors if self.sectors else None

    @property
    def conflict_degree(self) -> float | None:
        return self.wavefronts / self.ideal_wavefronts if self.ideal_wavefronts else None


def bank_wavefronts(rows: np.ndarray, width: int, atomic: bool = False) -> tuple[int, int]:
    """(wavefronts, ideal wavefronts) of requests [n, 32] of byte addresses, -1 where a lane is inactive.

    Lanes of an atomic that meet in one bank are serialised even at one address.
    """
    words_per_lane = max(1, width // 4)
    word = rows >> 2
    if words_per_lane > 1:
        word = np.where(rows[:, :, None] < 0, -1, word[:, :, None] + np.arange(words_per_lane))
    word = word.reshape(-1, 32)  # one row is one phase
    active = (word >= 0).any(1)
    word = word[active]
    bank_shift = 40
    key = np.sort(np.where(word < 0, -1, ((word & 31) << bank_shift) | (word >> 5)), axis=1)
    counted = key >= 0
    if not atomic:
        counted[:, 1:] &= key[:, 1:] != key[:, :-1]
    row, column = np.nonzero(counted)
    per_bank = np.bincount(row * 32 + (key[row, column] >> bank_shift), minlength=len(key) * 32).reshape(-1, 32)
    return int(per_bank.max(1).sum()), int(active.sum())


def sector_count(rows: np.ndarray, width: int) -> tuple[int, int]:
    """(sectors, ideal sectors) of requests as in `bank_wavefronts`."""
    if (rows[:, 1:] < rows[:, :-1]).any():
        rows = np.sort(rows, axis=1)
    first = rows[:, :1] >= 0
    sector = rows // SECTOR_BYTES
    sectors = int((sector[:, 1:] != sector[:, :-1]).sum() + first.sum())
    distinct = (rows[:, 1:] != rows[:, :-1]).sum(1) + first[:, 0]
    return sectors, int((-(-distinct * width // SECTOR_BYTES)).sum())


class Counters:
    """Counts of one launch, kept for each PTX instruction.

    Attributes:
        blocks_run, blocks_total: blocks that were emulated, and blocks of the grid.
        warps, lanes: warp instructions issued and lanes active in them, for each instruction, of the blocks run.
        barriers: barriers passed, those of clusters included, summed over the blocks run.
        first_half: blocks that `dram` calls half of them.
        array_bytes: sizes of the arrays in device memory.
        dram: for each of them [read, written] sectors after half of the blocks, and after all.
    """

    def __init__(self, kernel: Kernel, blocks_total: int, blocks_run: int, threads_per_block: int) -> None:
        self.kernel = kernel
        self.blocks_total, self.blocks_run, self.threads_per_block = blocks_total, blocks_run, threads_per_block
        self.warps = [0] * len(kernel.code)
        self.lanes = [0] * len(kernel.code)
        self.barriers = 0
        self.first_half = (blocks_run + 1) // 2
        self.array_bytes: list[int] = []
        self.dram: list[tuple[list[int], list[int]]] = []
        self._traffic: dict[tuple[int, str, str, int], Traffic] = {}  # by pc, space, what and array
        self._bank_cache: dict[tuple, tuple[int, int, int]] = {}
        self._kinds = [classify(instr) for instr in kernel.code]

    # -- called by the machine; `what` is "load", "store" or "atomic"

    def shared_access(self, pc: int, what: str, rows: np.ndarray, width: int, times: int = 1) -> None:
        key = (width, what, rows.tobytes())
        if key not in self._bank_cache:
            if len(self._bank_cache) > 4096:
                self._bank_cache.clear()
            self._bank_cache[key] = (*bank_wavefronts(rows, width, what == "atomic"), int((rows >= 0).sum()))
        wavefronts, ideal, lanes = self._bank_cache[key]
        self._add(pc, "shared", what, Traffic(len(rows), lanes * width, 0, 0, wavefronts, ideal), times)

    def sector_access(self, pc: int, space: str, what: str, rows: np.ndarray, width: int, array: int = -1) -> None:
        """Of the global space or a cluster's. An access that reaches several arrays counts for the first of them."""
        traffic = Traffic(len(rows), int((rows >= 0).sum()) * width, *sector_count(rows, width))
        self._add(pc, space, what, traffic, array=array)

    def local_access(self, pc: int, what: str, rows: np.ndarray, width: int) -> None:
        self._add(pc, "local", what, Traffic(len(rows), int((rows >= 0).sum()) * width))

    def _add(self, pc: int, space: str, what: str, traffic: Traffic, times: int = 1, array: int = -1) -> None:
        self._traffic.setdefault((pc, space, what, array), Traffic()).add(traffic, times)

    # -- results, of the blocks that were run unless said otherwise

    @property
    def scale(self) -> float:
        """Blocks of the grid over blocks that were run."""
        return self.blocks_total / max(self.blocks_run, 1)

    def traffic(self, space: str, what: str | None = None, least_bytes: int = 0) -> Traffic:
        """Of a state space, "global", "shared", "cluster" or "local"; of the global one, to arrays of at least so many
        bytes."""
        total = Traffic()
        for (_, found, kind, array), traffic in self._traffic.items():
            large = not least_bytes or self.array_bytes[array] >= least_bytes
            if found == space and what in (None, kind) and large:
                total.add(traffic)
        return total

    def worst(self, space: str, count: int = 3) -> list[tuple[str, Traffic]]:
        """The instructions that cost most beyond the ideal, with their traffic: where to look."""
        waste = []
        for (pc, found, _, _), traffic in self._traffic.items():
            excess = traffic.wavefronts - traffic.ideal_wavefronts + traffic.sectors - traffic.ideal_sectors
            if found == space and excess > 0:
                waste.append((excess, self.kernel.code[pc].text, traffic))
        return [(text, traffic) for _, text, traffic in sorted(waste, key=lambda each: -each[0])[:count]]

    def instructions(self) -> dict[str, int]:
        """PTX warp instructions by class."""
        return self._by_class(lambda kind: 1)

    def expanded_instructions(self) -> dict[str, float]:
        """Machine instructions by class as the fixed table in `classify` guesses them."""
        return self._by_class(lambda kind: kind.slots)

    def _by_class(self, weight) -> dict:
        total = defaultdict(int)
        for kind, warps in zip(self._kinds, self.warps, strict=True):
            if warps:
                total[kind.name] += warps * weight(kind)
        return dict(total)

    @property
    def lanes_per_warp(self) -> float:
        """Active lanes per warp instruction: 32 where nothing diverges."""
        return sum(self.lanes) / max(sum(self.warps), 1)

    @property
    def fp32_flops(self) -> int:
        return sum(kind.flops * lanes for kind, lanes in zip(self._kinds, self.lanes, strict=True))

    @property
    def mma_flops(self) -> dict[str, int]:
        """By operand type: "tf32", "bf16", "f16"."""
        total = defaultdict(int)
        for kind, warps in zip(self._kinds, self.warps, strict=True):
            if kind.mma and warps:
                total[kind.mma] += kind.mma_flops * warps
        return dict(total)

    @property
    def barriers_per_block(self) -> float:
        return self.barriers / max(self.blocks_run, 1)

    @property
    def dram_bytes(self) -> tuple[float, float]:
        """(read, written) compulsory bytes of the whole grid.

        Where only some blocks were run, each region's growth in the second half of them goes on for the others, until
        all of the region has been touched.
        """
        second_half = self.blocks_run - self.first_half
        rest = (self.blocks_total - self.blocks_run) / max(second_half, 1)
        totals = [0.0, 0.0]
        for nbytes, (half, full) in zip(self.array_bytes, self.dram, strict=True):
            for way in range(2):
                grown = full[way] + (full[way] - half[way]) * rest
                totals[way] += SECTOR_BYTES * min(grown, max(nbytes // SECTOR_BYTES, full[way]))
        return totals[0], totals[1]
