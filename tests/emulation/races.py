"""Races: two accesses to the same memory, one of which writes, that nothing orders.

Shared memory, within a block or a cluster of blocks: it is watched in cells as wide as the kernel's narrowest access.
Each cell remembers its last writer and reader with the barrier epochs of the block, the cluster and the warp at that
time; an access by another thread in the same epoch is a race, unless a `bar.warp.sync` lies between two threads of one
warp. Between threads of two blocks the cluster's epoch counts.

Device memory, between blocks: each cell remembers the block that wrote it and the blocks that read it.

What is not seen: races in device memory within a block, missing memory fences, a barrier that only a part of the block
takes (`bar.sync` with a thread count) where it should be all. Atomics are not held against each other, in device memory
not at all. Blocks that wait for each other by atomics are reported, though they may be right.
"""

from typing import TYPE_CHECKING

import numpy as np

from .errors import Race
from .memory import Piece, Region

if TYPE_CHECKING:
    from .machine import Machine

NOBODY = -1
ONE_THREAD, ONE_WARP, SEVERAL_WARPS, SEVERAL_BLOCKS = range(4)


class RaceDetector:
    """Watches the shared memory of one batch of blocks.

    As long as all blocks of the batch do the same only the first block's cells are kept (`_first_only`), but of
    clusters all.
    """

    def __init__(self, machine: "Machine", cell: int) -> None:
        self._m, self._cell = machine, cell
        self._first_only = machine.cluster == 1
        self._outstanding = 0  # bytes of cp.async
        cells = max(1, machine.batch_size * machine.shared_bytes // cell)
        self._writer, self._reader, self._write_epoch, self._read_epoch = (
            np.full(cells, NOBODY, np.int32) for _ in range(4)
        )
        self._write_cluster_epoch, self._read_cluster_epoch = (np.full(cells, NOBODY, np.int32) for _ in range(2))
        self._write_warp_epoch, self._read_warp_epoch, self._pending = (np.zeros(cells, np.int32) for _ in range(3))
        self._readers = np.zeros(cells, np.int8)  # of this epoch: ONE_THREAD, ONE_WARP, ...

    def access(self, index, width: int, lanes, what: str, same_in_all_blocks) -> None:
        """Threads `lanes` access `width` bytes at `index` in the batch's shared memory.

        `same_in_all_blocks` is (index, lanes) of the first block if every block does the same, else None.
        """
        if self._first_only:
            if same_in_all_blocks is None or self._outstanding or self._epochs_differ():
                self._split()
            else:
                index, lanes = same_in_all_blocks
        cells, threads = index // self._cell, lanes
        per_access = max(1, width // self._cell)
        if per_access > 1:
            cells = (cells[:, None] + np.arange(per_access)).reshape(-1)
            threads = np.repeat(threads, per_access)
        if self._outstanding and self._pending[cells].any():
            byte = self._byte(cells[np.argmax(self._pending[cells])])
            raise Race(f"shared access to byte {byte} that an outstanding cp.async may be writing")
        self._check_against_writes(cells, threads, what)
        if what == "load":
            self._record_read(cells, threads)
        elif what == "store":
            self._check_against_reads(cells, threads)
            self._writer[cells] = threads
            self._write_epoch[cells], self._write_warp_epoch[cells] = self._epochs(threads)
            self._write_cluster_epoch[cells] = self._cluster_epoch(threads)

    def outstanding(self, index, lanes, nbytes: int, sign: int) -> None:
        """A cp.async of `nbytes` for each lane to in-block byte `index` was issued (+1) or has landed (-1)."""
        self._outstanding += sign * len(index)
        if self._first_only:
            self._split()
        index = index + self._m.lane_block[lanes] * self._m.shared_bytes
        for offset in range(0, nbytes, self._cell):
            np.add.at(self._pending, (index + offset) // self._cell, sign)

    # -- the rules

    def _check_against_writes(self, cells, threads, what: str) -> None:
        writer = self._writer[cells]
        block_epoch, warp_epoch = self._epochs(threads)
        clash = (self._write_epoch[cells] == block_epoch) & (writer != threads)
        if self._m.cluster > 1:
            in_epoch = self._write_cluster_epoch[cells] == self._cluster_epoch(threads)
            clash = np.where(self._one_block(writer, threads), clash, in_epoch)
        if clash.any():
            clash &= ~(self._one_warp(writer, threads) & (self._write_warp_epoch[cells] < warp_epoch))
        if clash.any():
            self._fail("read-after-write" if what == "load" else "write-write", clash, cells, writer, threads)

    def _check_against_reads(self, cells, threads) -> None:
        reader = self._reader[cells]
        block_epoch, warp_epoch = self._epochs(threads)
        clash = (self._read_epoch[cells] == block_epoch) & ((reader != threads) | (self._readers[cells] > ONE_THREAD))
        if clash.any():
            synchronised = self._one_warp(reader, threads) & (self._read_warp_epoch[cells] < warp_epoch)
            clash &= ~(synchronised & (self._readers[cells] < SEVERAL_WARPS))
        if self._m.cluster > 1:
            others = (self._readers[cells] == SEVERAL_BLOCKS) | ~self._one_block(reader, threads)
            clash = np.where(others, self._read_cluster_epoch[cells] == self._cluster_epoch(threads), clash)
        if clash.any():
            self._fail("write-after-read", clash, cells, reader, threads)

    def _record_read(self, cells, threads) -> None:
        reader = self._reader[cells]
        block_epoch, warp_epoch = self._epochs(threads)
        same_epoch = self._read_epoch[cells] == block_epoch
        # what a warp had read before it synchronised, nothing that it does now can collide with
        done = self._one_warp(reader, threads) & (self._readers[cells] < SEVERAL_WARPS)
        same_epoch &= ~(done & (self._read_warp_epoch[cells] < warp_epoch))
        another = same_epoch & (reader != threads) & (reader >= 0)
        kind = np.where(another, np.where(self._one_warp(reader, threads), ONE_WARP, SEVERAL_WARPS), ONE_THREAD)
        readers = np.where(same_epoch, np.maximum(self._readers[cells], kind), ONE_THREAD)
        if self._m.cluster > 1:
            in_epoch = self._read_cluster_epoch[cells] == self._cluster_epoch(threads)
            others = (self._readers[cells] == SEVERAL_BLOCKS) | ~self._one_block(reader, threads)
            readers = np.where(others, np.where(in_epoch, SEVERAL_BLOCKS, ONE_THREAD), readers)
            self._read_cluster_epoch[cells] = self._cluster_epoch(threads)
        self._readers[cells] = readers
        self._reader[cells], self._read_epoch[cells], self._read_warp_epoch[cells] = threads, block_epoch, warp_epoch
        last = self._reader[cells]
        together = last != threads  # several lanes read one cell in this instruction
        if together.any():
            shared, last, threads = cells[together], last[together], threads[together]
            kind = np.where(self._one_warp(last, threads), ONE_WARP, SEVERAL_WARPS)
            kind = np.where(self._one_block(last, threads), kind, SEVERAL_BLOCKS)
            np.maximum.at(self._readers, shared, kind.astype(np.int8))

    # -- what the rules ask for

    def _epochs(self, threads):
        return self._m.block_epoch[self._m.lane_block[threads]], self._m.warp_epoch[self._m.warp[threads]]

    def _cluster_epoch(self, threads):
        return self._m.cluster_epoch[self._m.lane_block[threads]]

    def _one_block(self, others, threads):
        return self._m.lane_block[np.maximum(others, 0)] == self._m.lane_block[threads]

    def _one_warp(self, others, threads):
        return self._m.warp[np.maximum(others, 0)] == self._m.warp[threads]

    def _epochs_differ(self) -> bool:
        block, warp = self._m.block_epoch, self._m.warp_epoch.reshape(self._m.batch_size, -1)
        return bool((block != block[0]).any() or (warp != warp[0]).any())

    def _split(self) -> None:
        """The blocks part ways: each gets a copy of the first block's cells."""
        self._first_only = False
        blocks, cells = self._m.batch_size, self._m.shared_bytes // self._cell
        shift = (self._m.threads_per_block * np.arange(blocks, dtype=np.int32))[:, None]
        for name in ("write_epoch", "read_epoch", "write_warp_epoch", "read_warp_epoch", "readers"):
            rows = getattr(self, "_" + name)[: cells * blocks].reshape(blocks, cells)
            rows[1:] = rows[0]
        for name in ("writer", "reader"):
            rows = getattr(self, "_" + name)[: cells * blocks].reshape(blocks, cells)
            rows[:] = np.where(rows[0] >= 0, rows[0] + shift, NOBODY)

    def _byte(self, cell) -> int:
        return int(cell) * self._cell % self._m.shared_bytes

    def _fail(self, kind: str, clash, cells, others, threads) -> None:
        first, block = int(np.argmax(clash)), self._m.threads_per_block

        def name(thread) -> str:
            of_cluster = f" of block {thread // block % self._m.cluster}" if self._m.cluster > 1 else ""
            return f"{thread % block}{of_cluster}"

        raise Race(
            f"shared {kind} race: byte {self._byte(cells[first])}, threads {name(int(others[first]))} and "
            f"{name(int(threads[first]))} since the last barrier"
        )


class BlockRaces:
    """Watches device memory during a launch."""

    SEVERAL = -1

    def __init__(self, regions: list[Region], cell: int) -> None:
        """`cell` is the narrowest access in bytes. Memory that is not touched costs nothing: zero is nobody."""
        self._cell = cell
        self._writer, self._reader = (
            {region.number: np.zeros(region.data.nbytes // cell + 1, np.int32) for region in regions} for _ in range(2)
        )

    def access(self, piece: Piece, width: int, block: np.ndarray, what: str) -> None:
        """Lanes of these blocks (their numbers in the grid) load or store `width` bytes each at `piece.index`."""
        cells, owner = piece.index // self._cell, block.astype(np.int32) + 1
        per_access = max(1, width // self._cell)
        if per_access > 1:
            cells = (cells[:, None] + np.arange(per_access)).reshape(-1)
            owner = np.repeat(owner, per_access)
        writer, reader = self._writer[piece.region.number], self._reader[piece.region.number]
        self._check(writer, cells, owner, "read-after-write" if what == "load" else "write-write")
        if what == "load":
            before = reader[cells]
            reader[cells] = owner
            several = (reader[cells] != owner) | ((before != owner) & (before != 0))
            reader[cells[several]] = self.SEVERAL
        else:
            self._check(reader, cells, owner, "write-after-read")
            writer[cells] = owner
            self._check(writer, cells, owner, "write-write")  # two blocks of the batch in this instruction

    def _check(self, seen: np.ndarray, cells: np.ndarray, owner: np.ndarray, kind: str) -> None:
        clash = (seen[cells] != owner) & (seen[cells] != 0)
        if clash.any():
            first = int(np.argmax(clash))
            other = seen[cells[first]]
            blocks = "several blocks" if other == self.SEVERAL else f"block {other - 1}"
            raise Race(
                f"{kind} race between blocks: byte {int(cells[first]) * self._cell} of an array, {blocks} and "
                f"block {int(owner[first]) - 1}"
            )
