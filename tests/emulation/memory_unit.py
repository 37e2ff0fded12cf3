"""Accesses to memory: state spaces, bounds, alignment, counting, race detection.

Shared and local memory start with all bits set, which is a NaN in every floating type: a value that was never written
poisons what is computed from it.
"""

from typing import TYPE_CHECKING

import numpy as np

from .errors import EmulationError, Race, Unsupported
from .memory import Piece, as_words
from .ptx import UNSIGNED, kind_and_bits
from .races import BlockRaces, RaceDetector

if TYPE_CHECKING:
    from .machine import Machine

# Generic addresses of the windows of shared and local memory and of the parameters.
SHARED_BASE, LOCAL_BASE, PARAM_BASE = 1 << 60, 1 << 61, 1 << 62
WINDOWS = {"param": PARAM_BASE, "local": LOCAL_BASE, "shared": SHARED_BASE, "global": 0}
PEER_BYTES = 1 << 24  # from block to block in the addresses of shared::cluster; at 0 the own one, which has two


class MemoryUnit:
    """Loads and stores of a machine's lanes."""

    def __init__(self, machine: "Machine", count: bool) -> None:
        self._m, self.counting = machine, count
        self._global = machine.global_memory
        self.narrowest_access = self._narrowest_access()
        self._between_blocks = BlockRaces(self._global.regions, self.narrowest_access) if machine.races else None

    def start_batch(self) -> None:
        self.races = RaceDetector(self._m, self.narrowest_access) if self._m.races else None
        self._shared = np.full(self._m.batch_size * self._m.shared_bytes, 0xFF, np.uint8)
        self._local = np.full(self._m.size * self._m.kernel.local_size, 0xFF, np.uint8)
        self.async_copies: list = []  # outstanding; see instructions/async_copy.py
        self.async_group = np.zeros(self._m.size, np.int64)

    def _narrowest_access(self) -> int:
        """Bytes; the granularity at which races must be looked for."""
        widths = [4]
        for instr in self._m.kernel.code:
            if instr.op in ("ldmatrix", "stmatrix"):
                widths.append(2)
            elif instr.op in ("ld", "st", "atom", "red") and instr.space in ("global", "shared", "cluster", "generic"):
                widths.append(max(1, kind_and_bits(instr.types[-1])[1] // 8))
        return min(widths)

    # -- accesses; address is uint64 for each active lane, or one for all

    def load(self, space: str, address, nbytes: int, ix, count: int = 1, counted: bool = True) -> list[np.ndarray]:
        """`count` consecutive unsigned words of `nbytes` for each lane."""
        resolved, pieces = self.locate(space, address, nbytes * count, ix)
        words = [np.empty(self._m.lane_count(ix), UNSIGNED[8 * nbytes]) for _ in range(count)]
        for piece in pieces:
            data, at = as_words(piece.buffer, nbytes), piece.index // nbytes
            for i in range(count):
                if piece.lanes is None:
                    words[i] = data[at + i if i else at]
                else:
                    words[i][piece.lanes] = data[at + i]
        self.account(resolved, space, pieces, address, nbytes * count, ix, "load", counted)
        return words

    def store(self, space: str, address, values: list, nbytes: int, ix, counted: bool = True) -> None:
        """Consecutive unsigned words of `nbytes` for each lane."""
        width = nbytes * len(values)
        resolved, pieces = self.locate(space, address, width, ix)
        for piece in pieces:
            data, at = as_words(piece.buffer, nbytes), piece.index // nbytes
            for i, value in enumerate(values):
                value = self._m.spread(value, ix)
                value = value if piece.lanes is None else value[piece.lanes]
                data[at + i if i else at] = value
                if resolved in ("shared", "cluster") and self.races and (data[at + i] != value).any():
                    raise Race("two threads store different values at one shared address in one instruction")
        self.account(resolved, space, pieces, address, width, ix, "store", counted)

    def locate(self, space: str, address, width: int, ix) -> tuple[str, list[Piece]]:
        """Check an access; the state space that it really falls into, and where."""
        address = self._m.spread(address, ix)
        misaligned = (address & np.uint64(width - 1)) != 0
        if misaligned.any():
            raise EmulationError(f"misaligned {width}-byte access at {hex(int(address[misaligned][0]))}")
        if not len(address):
            return space, []
        if space == "generic":
            space, address = self._resolve(address)
        if space == "global":
            return space, self._global.locate(address, width)
        lanes, offset = self._m.lanes(ix), address.view(np.int64)
        if space == "cluster":
            return space, [Piece(None, self._shared, self._peer_index(offset, lanes, width))]
        kernel = self._m.kernel
        size = {"shared": self._m.shared_bytes, "local": kernel.local_size, "param": kernel.param_size}[space]
        high = int(address.max()) + width
        if high > size:
            raise EmulationError(f"{space} access out of bounds: up to byte {high} of {size}")
        if space == "shared":
            return space, [Piece(None, self._shared, offset + self._m.lane_block[lanes] * size)]
        if space == "param":
            return space, [Piece(None, self._m.param_bytes, offset)]
        return space, [Piece(None, self._local, offset + lanes * size)]

    def _peer_index(self, offset: np.ndarray, lanes, width: int) -> np.ndarray:
        """Of addresses of shared::cluster in the batch's shared memory."""
        peer, offset = offset // PEER_BYTES - 1, offset % PEER_BYTES
        own, size = self._m.lane_block[lanes], self._m.shared_bytes
        block = np.where(peer < 0, own, own - own % self._m.cluster + peer)
        if int(peer.max()) >= self._m.cluster or int(offset.max()) + width > size:
            raise EmulationError(
                f"shared::cluster access out of bounds: up to byte {int(offset.max()) + width} of {size}"
            )
        if not np.bincount(self._m.lane_block[self._m.live], minlength=self._m.batch_size)[block].all():
            raise EmulationError("shared::cluster access to a block that has returned")
        return offset + block * size

    @staticmethod
    def _resolve(address: np.ndarray) -> tuple[str, np.ndarray]:
        low, high = int(address.min()), int(address.max())
        space = next(name for name, base in WINDOWS.items() if high >= base)
        if low < WINDOWS[space]:
            raise Unsupported("one generic access to several state spaces")
        return space, address - np.uint64(WINDOWS[space])

    def account(self, space: str, named: str, pieces: list[Piece], address, width: int, ix, what, counted) -> None:
        """Race check and counters of an access that named the state space `named` and fell into `space`."""
        counted = counted and self.counting
        if not pieces or "param" in (space, named) or named == "const":
            return
        address = self._m.spread(address, ix)
        if space == "shared":
            in_block = address - np.uint64(SHARED_BASE) if named == "generic" else address
            self._account_shared(pieces[0].index, in_block, width, ix, what, counted)
        elif space == "cluster":
            if self.races:
                self.races.access(pieces[0].index, width, self._m.lanes(ix), what, None)
            if counted:
                self._m.counters.sector_access(self._m.pc, "cluster", what, self._m.rows(address, ix), width)
        elif space == "local":
            if counted:
                self._m.counters.local_access(self._m.pc, what, self._m.rows(address, ix), width)
        else:
            self._account_global(pieces, address, width, ix, what, counted)

    def _account_global(self, pieces: list[Piece], address, width: int, ix, what: str, counted: bool) -> None:
        if self._between_blocks and what != "atomic":
            block = self._m.block_number[self._m.lanes(ix)]
            for piece in pieces:
                owner = block if piece.lanes is None else block[piece.lanes]
                self._between_blocks.access(piece, width, owner, what)
        if counted:
            rows = self._m.rows(address, ix)
            self._m.counters.sector_access(self._m.pc, "global", what, rows, width, pieces[0].region.number)
            for piece in pieces:
                piece.region.touch(piece.index, what)

    def _account_shared(self, index, in_block, width: int, ix, what: str, counted: bool) -> None:
        same = self._same_in_all_blocks(in_block, ix)
        if self.races:
            common = None if same is None else (same[0].view(np.int64), same[1])
            self.races.access(index, width, self._m.lanes(ix), what, common)
        if not counted:
            return
        counters, blocks = self._m.counters, self._m.batch_size
        if same is None:
            counters.shared_access(self._m.pc, what, self._m.rows(in_block, ix), width)
        else:
            rows = self._m.rows(same[0], None if blocks == 1 and ix is None else same[1])
            counters.shared_access(self._m.pc, what, rows, width, blocks)

    def _same_in_all_blocks(self, address: np.ndarray, ix):
        """(in-block addresses, lanes) of the first block if every block of the batch does the same, else None."""
        blocks, lanes, threads = self._m.batch_size, self._m.lanes(ix), self._m.threads_per_block
        if len(lanes) % blocks:
            return None
        share = len(lanes) // blocks
        if blocks > 1:
            rows = address.reshape(blocks, share)
            if (rows[1:] != rows[0]).any():
                return None
            if ix is not None:
                lane_rows = lanes.reshape(blocks, share)
                if (lane_rows != lane_rows[0] + threads * np.arange(blocks)[:, None]).any():
                    return None
        if share and lanes[share - 1] >= threads:
            return None
        return address[:share], lanes[:share]
