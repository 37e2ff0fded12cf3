"""Exchange within a warp. Lanes that a mask names and that are not there are an error, as they hang on hardware."""

from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmulationError, Unsupported
from ..ptx import Instr, kind_and_bits
from .bits import population
from .operands import reader, writer
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine

ALL_LANES = np.uint32(0xFFFFFFFF)


@instruction("shfl")
def shuffle(m: "Machine", instr: Instr) -> Step:
    mode = next(mod for mod in instr.mods if mod in ("up", "down", "bfly", "idx"))
    write, *write_in_range = (writer(m, target) for target in instr.args[0].split("|"))
    read_value, read_distance, read_limits, read_mask = (reader(m, arg, "u32") for arg in instr.args[1:5])

    def step(ix):
        lanes = m.lanes(ix)
        value, mask = m.spread(read_value(ix), ix), m.spread(read_mask(ix), ix)
        lane = m.thread[lanes] % 32
        whole = ix is None and m.threads_per_block % 32 == 0
        if not (whole and (mask == ALL_LANES).all()):
            _require_named_lanes(m, lanes, lane, mask)
        source, in_range = _source_lane(mode, lane, read_distance(ix), read_limits(ix))
        if whole:
            position = lanes - lane + source
        else:
            position_of = np.full(m.size + 32, -1, np.int64)
            position_of[lanes] = np.arange(len(lanes))
            position = position_of[lanes - lane + source]
            if (position < 0).any():
                raise EmulationError("shfl.sync reads an inactive lane")
        write(ix, value[position])
        for write_predicate in write_in_range:
            write_predicate(ix, in_range)

    return step


def _require_named_lanes(m: "Machine", lanes, lane, mask) -> None:
    here = np.bincount(m.warp[lanes], minlength=m.warp_count)[m.warp[lanes]]
    warp_size = np.minimum(32, m.threads_per_block - (m.thread[lanes] - lane))
    partial = (np.uint32(1) << np.minimum(warp_size, 31).astype(np.uint32)) - np.uint32(1)
    named = np.where(warp_size == 32, mask, mask & partial)
    if (population(named) != here).any():
        raise EmulationError("shfl.sync: lanes named in the mask are missing (divergent shuffle)")


def _source_lane(mode: str, lane, distance, limits):
    """The lane each lane reads from, itself where that is out of range, and whether it is in range."""
    limits, distance = limits.astype(np.int64), distance.astype(np.int64) & 31
    segment, clamp = (limits >> 8) & 31, limits & 31
    first = lane & segment
    last = first | (clamp & ~segment & 31)
    if mode == "up":
        source = lane - distance
        in_range = source >= last
    else:
        if mode == "down":
            source = lane + distance
        elif mode == "bfly":
            source = lane ^ distance
        else:
            source = first | (distance & ~segment & 31)
        in_range = source <= last
    return np.where(in_range, source, lane), in_range


@instruction("vote")
def vote(m: "Machine", instr: Instr) -> Step:
    mode = next(mod for mod in instr.mods if mod in ("all", "any", "uni", "ballot"))
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1].lstrip("!"), "pred")
    negated = instr.args[1].startswith("!")

    def step(ix):
        lanes = m.lanes(ix)
        value = m.spread(read(ix), ix)
        value = ~value if negated else value
        ballot, warp = np.zeros(m.warp_count, np.uint64), m.warp[lanes]
        np.add.at(ballot, warp, value.astype(np.uint64) << (m.thread[lanes] % 32).astype(np.uint64))
        votes, voters = population(ballot), np.bincount(warp, minlength=m.warp_count)
        outcome = {
            "ballot": ballot.astype(np.uint32),
            "any": votes > 0,
            "all": votes == voters,
            "uni": (votes == voters) | (votes == 0),
        }[mode]
        write(ix, outcome[warp])

    return step


@instruction("redux")
def reduce_warp(m: "Machine", instr: Instr) -> Step:
    if "abs" in instr.mods or "NaN" in instr.mods:
        raise Unsupported("redux.abs or redux.NaN")
    is_float = kind_and_bits(instr.types[-1])[0] == "f"
    functions = {
        "add": np.add, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        "min": np.fmin if is_float else np.minimum, "max": np.fmax if is_float else np.maximum,
    }  # fmt: skip
    function = next(functions[mod] for mod in instr.mods if mod in functions)
    write, read = writer(m, instr.args[0]), reader(m, instr.args[1], instr.types[-1])

    def step(ix):
        m.full_warps(ix, "redux")
        values = m.spread(read(ix), ix).reshape(-1, 32)
        write(ix, np.repeat(function.reduce(values, axis=1).astype(values.dtype), 32))

    return step


@instruction("elect")
def elect(m: "Machine", instr: Instr) -> Step:
    """Hardware elects any lane; here it is lane 0."""
    write_leader, write_elected = (writer(m, target) for target in instr.args[0].split("|"))

    def step(ix):
        lanes = m.full_warps(ix, "elect")
        write_leader(ix, np.zeros(len(lanes), np.uint32))
        write_elected(ix, m.thread[lanes] % 32 == 0)

    return step
