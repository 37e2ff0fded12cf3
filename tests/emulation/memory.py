"""Device memory: host arrays at checked device addresses, and which of their sectors a launch touched."""

import ctypes
from dataclasses import dataclass

import numpy as np

from .counters import SECTOR_BYTES
from .errors import EmulationError
from .ptx import UNSIGNED

FIRST_ADDRESS = 1 << 44
GUARD_BYTES = 4096  # unmapped, behind each array


@dataclass(frozen=True)
class Pointer:
    """A kernel argument: the address `offset` bytes into an array. Accesses may reach all of that array."""

    array: np.ndarray
    offset: int = 0


@dataclass(frozen=True)
class Struct:
    """A kernel argument: a struct passed by value, with what it points to at each byte offset that holds a pointer."""

    data: bytes
    pointers: dict[int, Pointer]


class Region:
    """The allocation of that number, at [base, end); remembers the sectors that were read and written."""

    def __init__(self, number: int, base: int, data: np.ndarray) -> None:
        self.number, self.base, self.end, self.data = number, base, base + data.nbytes, data
        sectors = data.nbytes // SECTOR_BYTES + 1
        self.read, self.written = np.zeros(sectors, bool), np.zeros(sectors, bool)

    def touch(self, index: np.ndarray, what: str) -> None:
        """Count an access at byte `index`; a read of what the launch itself wrote is no traffic."""
        sector = index // SECTOR_BYTES
        if what != "store":
            self.read[sector] |= ~self.written[sector]
        if what != "load":
            self.written[sector] = True

    def touched(self) -> list[int]:
        """[read, written] sectors."""
        return [int(np.count_nonzero(self.read)), int(np.count_nonzero(self.written))]


@dataclass
class Piece:
    """The part of an access that falls into one buffer: byte indices, and of which active lanes (None: of all)."""

    region: Region | None
    buffer: np.ndarray
    index: np.ndarray
    lanes: np.ndarray | None = None


class GlobalMemory:
    """Gives C-contiguous host arrays 256-byte aligned device addresses with unmapped gaps between them.

    Arrays that overlap on the host share one region, so aliasing is kept.
    """

    def __init__(self, arrays: list[np.ndarray]) -> None:
        spans = []
        for array in arrays:
            if not array.flags.c_contiguous:
                raise EmulationError("buffers must be C-contiguous")
            if array.nbytes:
                start = _host_address(array)
                spans.append((start, start + array.nbytes, array))
        self.keep_alive = [array for _, _, array in spans]
        self.regions: list[Region] = []
        self._host: list[tuple[int, int, int]] = []
        base = FIRST_ADDRESS
        for start, end, members in _merged(sorted(spans, key=lambda span: span[:2])):
            if len(members) == 1:
                data = members[0].reshape(-1).view(np.uint8)
            else:
                data = np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8)
            self.regions.append(Region(len(self.regions), base, data))
            self._host.append((start, end, base))
            base += -(-(end - start + GUARD_BYTES) // 256) * 256
        self._bases = np.array([region.base for region in self.regions], np.uint64)
        self._ends = np.array([region.end for region in self.regions], np.uint64)

    def address(self, array: np.ndarray, offset: int = 0) -> int:
        """Device address of a host array; 0 if it is empty."""
        at = _host_address(array)
        return next((base + at - start + offset for start, end, base in self._host if start <= at < end), 0)

    def locate(self, address: np.ndarray, width: int) -> list[Piece]:
        """Where accesses of `width` bytes fall. EmulationError if any is outside of all arrays."""
        low, high = int(address.min()), int(address.max())
        first = int(np.searchsorted(self._bases, np.uint64(low), "right")) - 1
        if first >= 0 and high + width <= self.regions[first].end:
            region = self.regions[first]
            return [Piece(region, region.data, (address - np.uint64(region.base)).view(np.int64))]
        owner = np.searchsorted(self._bases, address, "right") - 1
        if not self.regions or (outside := (owner < 0) | (address + np.uint64(width) > self._ends[owner])).any():
            lane = int(np.argmax(outside)) if self.regions else 0
            raise EmulationError(
                f"global access out of bounds: {width} bytes at {hex(int(address[lane]))}{self._nearest(address[lane])}"
            )
        pieces = []
        for number in np.unique(owner):
            lanes, region = np.nonzero(owner == number)[0], self.regions[number]
            pieces.append(Piece(region, region.data, (address[lanes] - np.uint64(region.base)).view(np.int64), lanes))
        return pieces

    def touched(self) -> list[list[int]]:
        return [region.touched() for region in self.regions]

    def _nearest(self, address: np.uint64) -> str:
        """Of the array below the address: how large it is, and how far behind its start the access falls."""
        below = [region for region in self.regions if region.base <= int(address)]
        if not below:
            return ""
        return f", byte {int(address) - below[-1].base} of an array of {below[-1].data.nbytes}"


def as_words(buffer: np.ndarray, nbytes: int) -> np.ndarray:
    """A byte buffer as unsigned words of `nbytes`."""
    return buffer[: buffer.nbytes // nbytes * nbytes].view(UNSIGNED[8 * nbytes])


def _host_address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def _merged(spans: list[tuple[int, int, np.ndarray]]) -> list[list]:
    """Sorted spans [start, end, array] as [start, end, arrays] that do not overlap."""
    merged: list[list] = []
    for start, end, array in spans:
        if merged and start < merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
            merged[-1][2].append(array)
        else:
            merged.append([start, end, [array]])
    return merged
