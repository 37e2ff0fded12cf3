"""mma.sync, ldmatrix and stmatrix. wgmma and tcgen05 are Unsupported.

Products are rounded as tensor cores do it, which NVIDIA does not document: operands lose the bits that their type has
not; products are exact; a block of them and the accumulator are aligned to the largest exponent and truncated a few
bits behind the 24th; their sum is truncated to float32. The parameters are those of the models that F. A. Khattak and
M. Mikaitis, "Accurate models of NVIDIA tensor cores" (arXiv 2512.07004), found to be bit-exact. Sums that are truncated
instead of rounded drift: three-fold tf32 products are less accurate than their number of bits suggests. Without
`approximate` a product is summed in float64 and rounded to nearest once.
"""

import re
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmulationError, Unsupported
from ..memory_unit import SHARED_BASE
from ..ptx import Instr, elements
from .arithmetic import bfloat16_to_float
from .moves import TF32_MASK
from .operands import address, reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

LANE = np.arange(32)
GROUP, IN_GROUP = LANE >> 2, LANE & 3  # as the PTX ISA's fragment layouts name them
LOWEST = -300  # exponent that products of float32 numbers do not reach
RESULT_PLACES = [(GROUP + 8 * (i >> 1), 2 * IN_GROUP + (i & 1)) for i in range(4)]


@instruction("mma")
def multiply_matrices(m: "Machine", instr: Instr) -> Step:
    """m16n8k* with tf32, f16 or bf16 operands and a float32 accumulator."""
    shape = next(mod for mod in instr.mods if re.fullmatch(r"m\d+n\d+k\d+", mod))
    depth, operand_type = int(shape.split("k")[1]), instr.types[1]
    if not shape.startswith("m16n8") or instr.types[-1] != "f32" or operand_type not in ("tf32", "f16", "bf16"):
        raise Unsupported("mma " + ".".join(instr.mods))
    writers = [writer(m, target) for target in elements(instr.args[0])]
    a, b = ([reader(m, source, "u32") for source in elements(arg)] for arg in instr.args[1:3])
    c = [reader(m, source, "f32") for source in elements(instr.args[3])]
    a_places, b_places = _fragment_places(operand_type, len(a), len(b))

    block, extra_bits = _tensor_core(m.kernel.target, operand_type)

    def matrix(shape, readers, places, warps, ix):
        result = np.zeros((warps, *shape))
        for read, registers in zip(readers, places, strict=True):
            for values, (row, column) in zip(_decode(m.spread(read(ix), ix), operand_type), registers, strict=True):
                result[:, row, column] = values.reshape(warps, 32)
        return result

    def step(ix):
        warps = len(m.full_warps(ix, "mma")) // 32
        left, right = matrix((16, depth), a, a_places, warps, ix), matrix((depth, 8), b, b_places, warps, ix)
        result = np.zeros((warps, 16, 8))
        for read, (row, column) in zip(c, RESULT_PLACES, strict=True):
            result[:, row, column] = m.spread(read(ix), ix).reshape(warps, 32)
        if not m.approximate:
            result += left @ right
        else:
            for start in range(0, depth, block):
                part = slice(start, start + block)
                result = _accumulate(result, left[:, :, part], right[:, part], extra_bits)
        for write, (row, column) in zip(writers, RESULT_PLACES, strict=True):
            write(ix, result[:, row, column].reshape(-1).astype(np.float32))

    return step


def _tensor_core(target: str, operand_type: str) -> tuple[int, int]:
    """Products that are summed at once, and bits behind a float32's 24 that the summands keep."""
    generation = int(re.sub(r"\D", "", target))
    block, extra_bits = (16, 2) if generation >= 90 else (8, 1)
    return block // 2 if operand_type == "tf32" else block, extra_bits


def _accumulate(total: np.ndarray, left: np.ndarray, right: np.ndarray, extra_bits: int) -> np.ndarray:
    """total [n, 16, 8] + left [n, 16, k] x right [n, k, 8], as a tensor core rounds it; all float64."""
    products = left[:, :, :, None] * right[:, None]
    exponents = _exponent(left)[:, :, :, None] + _exponent(right)[:, None]
    highest = np.maximum(np.maximum(exponents.max(axis=2), _exponent(total)), LOWEST)
    unit = np.ldexp(1.0, highest - 23 - extra_bits)
    kept = (np.trunc(products / unit[:, :, None]).sum(axis=2) + np.trunc(total / unit)) * unit
    rounded = kept.astype(np.float32)
    too_large = np.abs(rounded) > np.abs(kept)
    rounded[too_large] = np.nextafter(rounded[too_large], np.float32(0))
    return rounded.astype(np.float64)


def _exponent(values: np.ndarray) -> np.ndarray:
    """Of the leading bit; of zeros, so low that it never decides."""
    return np.where(values == 0, 2 * LOWEST, np.frexp(values)[1] - 1)


def _fragment_places(operand_type: str, a_registers: int, b_registers: int):
    """For each register of A and of B the (row, column) of the one or two elements that each lane holds in it."""
    if operand_type == "tf32":
        a = [[(GROUP + 8 * (i & 1), IN_GROUP + 4 * (i >> 1))] for i in range(a_registers)]
        b = [[(IN_GROUP + 4 * i, GROUP)] for i in range(b_registers)]
    else:
        a = [[(GROUP + 8 * (i & 1), 2 * IN_GROUP + h + 8 * (i >> 1)) for h in (0, 1)] for i in range(a_registers)]
        b = [[(2 * IN_GROUP + h + 8 * i, GROUP) for h in (0, 1)] for i in range(b_registers)]
    return a, b


def _decode(register: np.ndarray, operand_type: str) -> list[np.ndarray]:
    if operand_type == "tf32":
        return [(register & TF32_MASK).view(np.float32)]
    halves = [(register & np.uint32(0xFFFF)).astype(np.uint16), (register >> np.uint32(16)).astype(np.uint16)]
    if operand_type == "f16":
        return [half.view(np.float16).astype(np.float32) for half in halves]
    return [bfloat16_to_float(half) for half in halves]


@instruction("ldmatrix")
def load_matrix(m: "Machine", instr: Instr) -> Step:
    """Each register gets an 8 x 8 matrix of 16-bit elements, whose rows eight lanes point to."""
    count, transposed = _matrix_count(instr), "trans" in instr.mods
    writers, where = [writer(m, target) for target in elements(instr.args[0])], address(m, instr.args[1])

    def step(ix):
        lanes, rows = _matrix_rows(m, where(ix), count, ix, instr)
        _count_rows(m, rows, "load")
        for i, write in enumerate(writers):
            register = np.zeros(len(lanes), np.uint32)
            for half in range(2):
                at = _element_addresses(rows[:, 8 * i : 8 * i + 8], transposed, half)
                value = m.memory.load(instr.space, at, 2, ix, counted=False)[0]
                register |= value.astype(np.uint32) << np.uint32(16 * half)
            write(ix, register)

    return step


@instruction("stmatrix")
def store_matrix(m: "Machine", instr: Instr) -> Step:
    count, transposed = _matrix_count(instr), "trans" in instr.mods
    where, readers = address(m, instr.args[0]), [reader(m, source, "u32") for source in elements(instr.args[1])]

    def step(ix):
        _, rows = _matrix_rows(m, where(ix), count, ix, instr)
        _count_rows(m, rows, "store")
        for i, read in enumerate(readers):
            register = m.spread(read(ix), ix)
            for half in range(2):
                at = _element_addresses(rows[:, 8 * i : 8 * i + 8], transposed, half)
                value = (register >> np.uint32(16 * half)).astype(np.uint16)
                m.memory.store(instr.space, at, [value], 2, ix, counted=False)

    return step


def _matrix_count(instr: Instr) -> int:
    if "b16" not in instr.mods:
        raise Unsupported(instr.text)
    return int(next(mod for mod in instr.mods if mod in ("x1", "x2", "x4"))[1])


def _matrix_rows(m: "Machine", addresses, count: int, ix, instr: Instr):
    """(active lanes, row addresses [warps, 8 count])."""
    lanes = m.full_warps(ix, instr.op)
    rows = m.spread(addresses, ix).reshape(-1, 32)[:, : 8 * count]
    if (rows % np.uint64(16)).any():
        raise EmulationError(f"{instr.op} row not 16-byte aligned")
    return lanes, rows


def _element_addresses(rows: np.ndarray, transposed: bool, half: int) -> np.ndarray:
    """Of the element that each lane holds in that half of its register."""
    row, column = GROUP, 2 * IN_GROUP + half
    if transposed:
        row, column = column, row
    return (rows[:, row] + (2 * column).astype(np.uint64)).reshape(-1)


def _count_rows(m: "Machine", rows: np.ndarray, what: str) -> None:
    """One phase of eight 16-byte rows for each matrix."""
    if m.memory.counting:
        padded = np.full((len(rows), 32), -1, np.int64)
        padded[:, : rows.shape[1]] = rows.astype(np.int64) & (SHARED_BASE - 1)
        m.counters.shared_access(m.pc, what, padded, 16)
