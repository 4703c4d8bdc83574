"""Copies of host arrays on a device, and what relies on them, within a budget of bytes: the least recently used go first."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from ckks.types import Residues


@dataclass(frozen=True, eq=False)
class _Entry:
    value: Any
    nbytes: int
    source: weakref.ref[Any]  # whose end is the entry's: of a copy, the array that owns the host memory
    uses: frozenset[Hashable] = frozenset()  # entries that it cannot do without


class DeviceCache:
    """For host arrays that nobody writes to any more: evaluation keys and encoded weights. Safe to use from several threads.

    Arrays may be let go while work that reads them is queued: see ckks.backends.device.Device. Other values are put into `retired` when
    they go, for the device to hold until its work is done.
    """

    def __init__(self, budget: int) -> None:
        """budget: bytes of device memory. A single array above it is never kept."""
        self.budget = budget
        self.retired: deque[Any] = deque()
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()
        self._lock = threading.RLock()  # a source may be collected, and so come back here, while it is held

    @property
    def nbytes(self) -> int:
        """Device bytes in use."""
        with self._lock:
            return sum(entry.nbytes for entry in self._entries.values())

    def get(self, host: Residues, upload: Callable[[Residues], Any]) -> Any:
        """The copy of `host` (any view of a longer-lived array) on the device, made by `upload` if it is not there."""
        name, array = self.find(host)
        if array is None:
            array = upload(host)  # outside the lock: it may have to call clear()
            self._put(name, array, array.nbytes, _owner(host))
        return array

    def find(self, host: Residues) -> tuple[Hashable, Any]:
        """The name of the entry for `host`, and the copy if it is there."""
        name = (host.__array_interface__["data"][0], host.shape, host.strides, host.dtype.str)
        return name, self.named(name)

    def named(self, name: Hashable) -> Any:
        """The value of an entry, None where there is none. It and what it uses are now the most recently used."""
        with self._lock:
            entry = self._entries.get(name)
            if entry is None:
                return None
            for used in (*entry.uses, name):
                self._entries.move_to_end(used)
            return entry.value

    def put(
        self, name: Hashable, value: Any, nbytes: int, source: Any, uses: frozenset[Hashable] = frozenset()
    ) -> bool:
        """Keep `value` while `source` lives and every entry that it uses is here. Whether it is kept: it may not fit beside those."""
        with self._lock:
            if not all(used in self._entries for used in uses):
                return False
            if nbytes + sum(self._entries[used].nbytes for used in uses) > self.budget:
                return False
            for used in uses:
                self._entries.move_to_end(used)
            return self._put(name, value, nbytes, source, uses)

    def clear(self) -> None:
        """Let all go."""
        with self._lock:
            self._make_room(0)

    def _put(
        self, name: Hashable, value: Any, nbytes: int, source: Any, uses: frozenset[Hashable] = frozenset()
    ) -> bool:
        if nbytes > self.budget:
            return False
        with self._lock:
            self._make_room(self.budget - nbytes)
            self._entries[name] = _Entry(value, nbytes, weakref.ref(source, lambda _: self._drop(name)), uses)
        return True

    def _make_room(self, limit: int) -> None:
        while self._entries and self.nbytes > limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: Hashable) -> None:
        """Let go of an entry, and of those that use it."""
        with self._lock:
            entry = self._entries.pop(name, None)
            if entry is None:
                return
            if entry.uses:
                self.retired.append(entry.value)
            for other in [n for n, e in self._entries.items() if name in e.uses]:
                self._drop(other)


def _owner(array: Residues) -> Residues:
    """The array at the end of a chain of views: it lives as long as any of them."""
    while isinstance(array.base, type(array)) or hasattr(array.base, "__array_interface__"):
        array = array.base  # type: ignore[assignment]
    return array
