"""cp.async: global to shared memory. The data lands when the thread waits for it, as late as hardware may let it.

A shared access to bytes that may still be written is reported as a race.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import EmulationError, Unsupported
from ..ptx import Instr
from .operands import address, reader
from .registry import Step, instruction

if TYPE_CHECKING:
    from ..machine import Machine


@dataclass
class Copy:
    """Outstanding: for each lane its group, its target byte in the block's shared memory and 4-byte words of data."""

    lanes: np.ndarray
    group: np.ndarray
    target: np.ndarray
    words: list[np.ndarray]

    def __getitem__(self, chosen: np.ndarray) -> "Copy":
        return Copy(self.lanes[chosen], self.group[chosen], self.target[chosen], [word[chosen] for word in self.words])


@instruction("cp")
def copy_async(m: "Machine", instr: Instr) -> Step:
    mods = instr.mods
    if "async" not in mods or "bulk" in mods or "mbarrier" in mods:
        raise Unsupported("cp." + ".".join(mods))
    if "commit_group" in mods:
        return lambda ix: _commit(m, ix)
    if "wait_group" in mods:
        kept = int(instr.args[0], 0)
        return lambda ix: _wait(m, ix, kept)
    if "wait_all" in mods:
        return lambda ix: _wait(m, ix, -1)
    return _issue(m, instr)


def _commit(m: "Machine", ix) -> None:
    m.memory.async_group[m.lanes(ix)] += 1


def _issue(m: "Machine", instr: Instr) -> Step:
    """Copies 4, 8 or 16 bytes, of which those beyond an optional source size are zero."""
    read_target, read_source, nbytes = address(m, instr.args[0]), address(m, instr.args[1]), int(instr.args[2], 0)
    read_size = reader(m, instr.args[3], "u32") if len(instr.args) > 3 else lambda ix: nbytes

    def step(ix):
        lanes = m.lanes(ix).copy()
        target, source, size = (m.spread(read(ix), ix) for read in (read_target, read_source, read_size))
        if (target % np.uint64(nbytes)).any() or (source[size > 0] % np.uint64(nbytes)).any():
            raise EmulationError("misaligned cp.async")
        words = []
        for offset in range(0, nbytes, 4):
            on, word = size > offset, np.zeros(len(lanes), np.uint32)
            if on.any():
                word[on] = m.memory.load("global", source[on] + np.uint64(offset), 4, lanes[on], counted=False)[0]
            words.append(word)
        on = size > 0
        if m.memory.counting:
            if on.any():
                _count_source(m, source[on], nbytes, lanes[on])
            m.counters.shared_access(m.pc, "store", m.rows(target, lanes), nbytes)
        _, pieces = m.memory.locate("shared", target, nbytes, lanes)
        target = target.astype(np.int64)
        if m.memory.races and pieces:
            m.memory.races.access(pieces[0].index, nbytes, lanes, "store", None)  # it may land at once
            m.memory.races.outstanding(target, lanes, nbytes, 1)
        m.memory.async_copies.append(Copy(lanes, m.memory.async_group[lanes].copy(), target, words))

    return step


def _count_source(m: "Machine", source, nbytes: int, lanes) -> None:
    _, pieces = m.memory.locate("global", source, nbytes, lanes)
    m.counters.sector_access(m.pc, "global", "load", m.rows(source, lanes), nbytes, pieces[0].region.number)
    for piece in pieces:
        piece.region.touch(piece.index, "load")


def _wait(m: "Machine", ix, kept: int) -> None:
    """Until at most `kept` of a thread's latest groups are outstanding; -1 waits for uncommitted copies, too."""
    waiting, rest = np.zeros(m.size, bool), []
    waiting[m.lanes(ix)] = True
    for copy in m.memory.async_copies:  # in the order of issue
        landed = waiting[copy.lanes] & (copy.group < m.memory.async_group[copy.lanes] - kept)
        if landed.any():
            _land(m, copy[landed])
        if not landed.all():
            rest.append(copy[~landed])
    m.memory.async_copies = rest


def _land(m: "Machine", copy: Copy) -> None:
    if m.memory.races:
        m.memory.races.outstanding(copy.target, copy.lanes, 4 * len(copy.words), -1)
    for i, word in enumerate(copy.words):
        m.memory.store("shared", (copy.target + 4 * i).astype(np.uint64), [word], 4, copy.lanes, counted=False)
