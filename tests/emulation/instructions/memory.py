"""Loads, stores, atomics and address conversion."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmulationError, Unsupported
from ..memory import as_words
from ..memory_unit import LOCAL_BASE, PEER_BYTES, SHARED_BASE, WINDOWS
from ..ptx import SIGNED, UNSIGNED, Instr, elements, kind_and_bits, numpy_type
from .arithmetic import PACKED
from .operands import address, reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

ATOMIC = {
    "add": lambda old, value, _: old + value,
    "min": lambda old, value, _: min(old, value),
    "max": lambda old, value, _: max(old, value),
    "and": lambda old, value, _: old & value,
    "or": lambda old, value, _: old | value,
    "xor": lambda old, value, _: old ^ value,
    "exch": lambda old, value, _: value,
    "cas": lambda old, compare, value: value if old == compare else old,
}


@instruction("ld", "ldu")
def load(m: "Machine", instr: Instr) -> Step:
    kind, bits = kind_and_bits(instr.types[-1])
    nbytes, view = bits // 8, SIGNED[bits] if kind == "s" else UNSIGNED[bits]
    writers, where = [writer(m, target) for target in elements(instr.args[0])], address(m, instr.args[1])
    if isinstance(where, int):
        end = where + len(writers) * nbytes
        params = m.param_bytes[where:end].copy().view(view)

        def load_params(ix):
            for write, value in zip(writers, params, strict=True):
                write(ix, value)

        return load_params

    def step(ix):
        words = m.memory.load(instr.space, where(ix), nbytes, ix, len(writers))
        for write, word in zip(writers, words, strict=True):
            write(ix, word.view(view))

    return step


@instruction("st")
def store(m: "Machine", instr: Instr) -> Step:
    if "async" in instr.mods or "bulk" in instr.mods:
        raise Unsupported("st.async")
    kind, bits = kind_and_bits(instr.types[-1])
    type_ = instr.types[-1] if kind == "f" else f"u{bits}"
    readers, where = [reader(m, source, type_) for source in elements(instr.args[1])], address(m, instr.args[0])

    def step(ix):
        values = [np.asarray(read(ix)).view(UNSIGNED[bits]) for read in readers]
        m.memory.store(instr.space, where(ix), values, bits // 8, ix)

    return step


@instruction("atom", "red")
def atomic(m: "Machine", instr: Instr) -> Step:
    """One lane after the other; `red` returns nothing."""
    type_ = instr.types[-1]
    if type_ in PACKED or "async" in instr.mods:
        raise Unsupported("packed or asynchronous atomic")
    nbytes, dtype = kind_and_bits(type_)[1] // 8, numpy_type(type_)
    write = writer(m, instr.args[0]) if instr.op == "atom" else None
    target, *values = instr.args[1:] if instr.op == "atom" else instr.args
    where, read_value, read_last = address(m, target), reader(m, values[0], type_), reader(m, values[-1], type_)
    function = next(ATOMIC[mod] for mod in instr.mods if mod in ATOMIC)

    def step(ix):
        at = m.spread(where(ix), ix)
        space, pieces = m.memory.locate(instr.space, at, nbytes, ix)
        values, lasts = m.spread(read_value(ix), ix), m.spread(read_last(ix), ix)
        old = np.empty(len(at), dtype)
        for piece in pieces:
            data = as_words(piece.buffer, nbytes).view(dtype)
            for i, word in enumerate(piece.index // nbytes):
                lane = i if piece.lanes is None else piece.lanes[i]
                old[lane] = data[word]
                data[word] = function(data[word], values[lane], lasts[lane])
        m.memory.account(space, instr.space, pieces, at, nbytes, ix, "atomic", True)
        if write:
            write(ix, old)

    return step


@instruction("cvta")
def convert_address(m: "Machine", instr: Instr) -> Step:
    """Between generic addresses and those of a state space."""
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1], "u64")
    base = WINDOWS.get(instr.space, 0)
    distance = np.uint64((-base if "to" in instr.mods else base) & (2**64 - 1))
    return lambda ix: write(ix, read(ix) + distance)


@instruction("mapa")
def map_to_cluster(m: "Machine", instr: Instr) -> Step:
    """The address that one of this block's shared memory has in another block of the cluster."""
    if instr.space != "cluster" or instr.types[-1] != "u32":
        raise Unsupported("mapa of a generic address")
    write, read, read_rank = writer(m, instr.args[0]), *(reader(m, arg, "u32") for arg in instr.args[1:3])

    def step(ix):
        rank = read_rank(ix)
        if (rank >= m.cluster).any():
            raise EmulationError(f"mapa to block {int(rank.max())} of a cluster of {m.cluster}")
        write(ix, read(ix) + (rank + np.uint32(1)) * np.uint32(PEER_BYTES))

    return step


@instruction("isspacep")
def is_in_space(m: "Machine", instr: Instr) -> Step:
    ranges = {"shared": (SHARED_BASE, LOCAL_BASE), "local": (LOCAL_BASE, 2 * LOCAL_BASE), "global": (0, SHARED_BASE)}
    if instr.space not in ranges:
        raise Unsupported(f"isspacep.{instr.space}")
    low, high = ranges[instr.space]
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1], "u64")
    return lambda ix: write(ix, (read(ix) >= np.uint64(low)) & (read(ix) < np.uint64(high)))
