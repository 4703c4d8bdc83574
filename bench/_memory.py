"""Memory of the stand-in, by the rules of CuPy's pools (cupy/cuda/memory.pyx): a block that is let go serves the next array of the stream
that was current when the block was made, at once, whether or not queued work still uses it.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class Raw:
    """Device memory with words of a known value on either side: a kernel that writes there is found out."""

    GUARD = 512
    PATTERN = np.uint64(0xDEADBEEFDEADBEEF)

    def __init__(self, words: int, device: int, guarded: bool) -> None:
        guard = self.GUARD if guarded else 0
        self.whole = np.empty(2 * guard + words, dtype=np.uint64)
        self.words = self.whole[guard : guard + words]
        self.guards = (self.whole[:guard], self.whole[guard + words :])
        for side in self.guards:
            side.fill(self.PATTERN)
        self.device = device

    def unharmed(self) -> bool:
        return all((side == self.PATTERN).all() for side in self.guards)


class Holder:
    """What keeps a block in use: all arrays over it."""

    def __init__(self, raw: Raw) -> None:
        self.raw = raw


class Pool:
    """As cupy.cuda.MemoryPool."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.used: dict[int, int] = {}
        self._free: dict[tuple[int, int], list[Raw]] = {}  # by number of the stream and size
        library.pools.append(self)

    def malloc(self, size: int) -> Holder:
        library, words = self._library, -(-size // 512) * 64
        stream = library.schedule.stream()
        device, count = stream.device_id, 8 * words
        free = self._free.setdefault((stream.number, words), [])
        if library.used_on(device) + count > library.memory:  # free blocks would make way
            raise OutOfMemoryError(size)
        raw = free.pop() if free else Raw(words, device, library.guarded)
        self.used[device] = self.used.get(device, 0) + count
        holder = Holder(raw)
        weakref.finalize(holder, self._let_go, free, raw, count)
        return holder

    def total_bytes(self) -> int:
        return sum(self.used.values()) + 8 * sum(
            raw.words.size for free in self._free.values() for raw in free
        )

    def free_all_blocks(self) -> None:
        """As cudaFree: after all that was launched."""
        self._library.schedule.drain()
        for free in self._free.values():
            free.clear()

    def _let_go(self, free: list[Raw], raw: Raw, count: int) -> None:
        self.used[raw.device] -= count
        free.append(raw)


class PinnedPool:
    """As cupy.cuda.PinnedMemoryPool: sizes are rounded up to powers of two, and what is let go serves the next of its size at once."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}
        self._all: list[np.ndarray] = []

    @property
    def nbytes(self) -> int:
        """Bytes that were ever allocated: the pool keeps them."""
        return sum(one.nbytes for one in self._all)

    def malloc(self, size: int) -> Any:
        """As cupy.cuda.PinnedMemoryPointer: a buffer with an address, `ptr`."""
        rounded = max(512, 1 << (size - 1).bit_length())
        free = self._free.setdefault(rounded, [])
        if not free:
            free.append(np.empty(rounded, dtype=np.uint8))
            self._all.append(free[-1])
        memory = free.pop()
        pinned = (ctypes.c_ubyte * rounded).from_buffer(memory)
        pinned.ptr = ctypes.addressof(pinned)
        weakref.finalize(pinned, free.append, memory)
        return pinned

    def holds(self, address: int, size: int) -> bool:
        """Whether this is memory of the pool."""
        starts = ((one.__array_interface__["data"][0], one.nbytes) for one in self._all)
        return any(start <= address and address + size <= start + length for start, length in starts)
