"""Logic, shifts and bit fields."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import Unsupported
from ..ptx import UNSIGNED, Instr, kind_and_bits, numpy_type
from .operands import reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

LOGIC = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
}
XOR3 = 0x96  # lop3's table of a ^ b ^ c


@instruction(*LOGIC)
def logic(m: "Machine", instr: Instr) -> Step:
    function, write = LOGIC[instr.op], writer(m, instr.args[0])
    readers = [reader(m, arg, instr.types[-1]) for arg in instr.args[1:]]
    return lambda ix: write(ix, function(*[read(ix) for read in readers]))


@instruction("lop3")
def lookup3(m: "Machine", instr: Instr) -> Step:
    """Any function of three bits, given as its truth table."""
    if "|" in instr.args[0]:
        raise Unsupported("lop3 with a predicate")
    write, *readers = writer(m, instr.args[0]), *(reader(m, arg, "u32") for arg in instr.args[1:4])
    table = int(instr.args[4], 0)

    def step(ix):
        a, b, c = (read(ix) for read in readers)
        if table == XOR3:
            return write(ix, a ^ b ^ c)
        result = np.uint32(0)
        for i in range(8):
            if table >> i & 1:
                result = result | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
        return write(ix, result)

    return step


@instruction("shl", "shr")
def shift(m: "Machine", instr: Instr) -> Step:
    """Counts beyond the width give zero, or the sign."""
    type_ = instr.types[-1]
    (kind, bits), dtype = kind_and_bits(type_), numpy_type(type_)
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], type_)
    count = reader(m, instr.args[2], "u32")
    left = instr.op == "shl"

    def step(ix):
        n = count(ix)
        clamped = np.minimum(n, bits - 1).astype(dtype)
        result = value(ix) << clamped if left else value(ix) >> clamped
        keeps_sign = kind == "s" and not left
        write(ix, result if keeps_sign or (n < bits).all() else np.where(n >= bits, dtype(0), result))

    return step


@instruction("shf")
def funnel_shift(m: "Machine", instr: Instr) -> Step:
    write, low, high, count = writer(m, instr.args[0]), *(reader(m, arg, "u32") for arg in instr.args[1:4])

    def step(ix):
        n = count(ix).astype(np.uint64)
        n = n & np.uint64(31) if "wrap" in instr.mods else np.minimum(n, np.uint64(32))
        word = (high(ix).astype(np.uint64) << np.uint64(32)) | low(ix)
        write(ix, ((word >> (np.uint64(32) - n)) if "l" in instr.mods else (word >> n)).astype(np.uint32))

    return step


@instruction("prmt")
def permute_bytes(m: "Machine", instr: Instr) -> Step:
    if len(instr.mods) > 1:
        raise Unsupported("prmt mode")
    write, low, high, selector = writer(m, instr.args[0]), *(reader(m, arg, "u32") for arg in instr.args[1:4])

    def step(ix):
        word = (high(ix).astype(np.uint64) << np.uint64(32)) | low(ix).astype(np.uint64)
        select = selector(ix)
        result = np.zeros(np.broadcast(word, select).shape, np.uint32)
        for i in range(4):
            nibble = (select >> np.uint32(4 * i)) & np.uint32(0xF)
            distance = (nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8)
            byte = ((word >> distance) & np.uint64(0xFF)).astype(np.uint32)
            sign = np.where(byte & np.uint32(0x80), np.uint32(0xFF), np.uint32(0))
            result |= np.where(nibble & np.uint32(8), sign, byte) << np.uint32(8 * i)
        write(ix, result)

    return step


def _field(position, length, bits: int):
    """Position and length of a bit field clamped to the word, and a mask of `length` low bits."""
    word = UNSIGNED[bits]
    position = np.minimum(position & np.uint32(255), bits).astype(word)
    length = np.minimum(length & np.uint32(255), bits).astype(word)
    partial = (word(1) << np.minimum(length, bits - 1).astype(word)) - word(1)
    return position, length, np.where(length >= bits, word(2**bits - 1), partial)


@instruction("bfe")
def extract_field(m: "Machine", instr: Instr) -> Step:
    kind, bits = kind_and_bits(instr.types[-1])
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], f"u{bits}")
    read_position, read_length = (reader(m, arg, "u32") for arg in instr.args[2:4])
    word = UNSIGNED[bits]

    def step(ix):
        position, length, mask = _field(read_position(ix), read_length(ix), bits)
        source = value(ix)
        field = np.where(position >= bits, word(0), source >> np.minimum(position, bits - 1).astype(word)) & mask
        if kind == "s":
            top = np.minimum(position + np.maximum(length, 1) - word(1), word(bits - 1))
            negative = ((source >> top) & word(1) != 0) & (length > 0)
            field = np.where(negative, field | ~mask, field)
        write(ix, field)

    return step


@instruction("bfi")
def insert_field(m: "Machine", instr: Instr) -> Step:
    bits = kind_and_bits(instr.types[-1])[1]
    write, (field, target) = writer(m, instr.args[0]), (reader(m, arg, f"u{bits}") for arg in instr.args[1:3])
    read_position, read_length = (reader(m, arg, "u32") for arg in instr.args[3:5])
    word = UNSIGNED[bits]

    def step(ix):
        position, _, mask = _field(read_position(ix), read_length(ix), bits)
        distance = np.minimum(position, bits - 1).astype(word)
        mask = np.where(position >= bits, word(0), mask << distance)
        write(ix, (target(ix) & ~mask) | ((field(ix) << distance) & mask))

    return step


def population(words: np.ndarray) -> np.ndarray:
    """The number of ones in each word."""
    words = np.ascontiguousarray(np.atleast_1d(words))
    return np.unpackbits(words.view(np.uint8).reshape(len(words), -1), axis=1).sum(1)


@instruction("popc")
def count_ones(m: "Machine", instr: Instr) -> Step:
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], instr.types[-1])
    return lambda ix: write(ix, population(value(ix)).astype(np.uint32))


def _bit_length(values: np.ndarray) -> np.ndarray:
    return np.frexp(values.astype(np.longdouble))[1]


@instruction("clz")
def count_leading_zeros(m: "Machine", instr: Instr) -> Step:
    bits = kind_and_bits(instr.types[-1])[1]
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], f"u{bits}")
    return lambda ix: write(ix, (bits - _bit_length(value(ix))).astype(np.uint32))


@instruction("bfind")
def find_highest(m: "Machine", instr: Instr) -> Step:
    kind, bits = kind_and_bits(instr.types[-1])
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], instr.types[-1])

    def step(ix):
        source = value(ix)
        source = (np.where(source < 0, ~source, source) if kind == "s" else source).astype(UNSIGNED[bits])
        highest = _bit_length(source) - 1
        distance = bits - 1 - highest if "shiftamt" in instr.mods else highest
        write(ix, np.where(highest < 0, highest, distance).astype(np.int32).view(np.uint32))

    return step


@instruction("brev")
def reverse_bits(m: "Machine", instr: Instr) -> Step:
    if kind_and_bits(instr.types[-1])[1] != 32:
        raise Unsupported("brev.b64")
    write, value = writer(m, instr.args[0]), reader(m, instr.args[1], "u32")

    def step(ix):
        word = value(ix)
        for distance, mask in ((1, 0x55555555), (2, 0x33333333), (4, 0x0F0F0F0F), (8, 0x00FF00FF), (16, 0xFFFF)):
            n, keep = np.uint32(distance), np.uint32(mask)
            word = ((word >> n) & keep) | ((word & keep) << n)
        write(ix, word)

    return step
