"""Copies of host arrays on a device, within a budget of bytes: the least recently used go first."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ckks.types import Residues

_Key = tuple[int, tuple[int, ...], tuple[int, ...], str]


@dataclass(frozen=True, eq=False)
class _Entry:
    array: Any
    source: weakref.ref[Residues]  # the array that owns the host memory: the entry goes when it does


class DeviceCache:
    """For host arrays that nobody writes to any more: evaluation keys and encoded weights. Safe to use from several threads."""

    def __init__(self, budget: int) -> None:
        """budget: bytes of device memory. A single array above it is never kept."""
        self.budget = budget
        self._entries: OrderedDict[_Key, _Entry] = OrderedDict()
        self._lock = threading.RLock()  # a source may be collected, and so come back here, while it is held

    @property
    def nbytes(self) -> int:
        """Device bytes in use."""
        with self._lock:
            return sum(entry.array.nbytes for entry in self._entries.values())

    def get(self, host: Residues, upload: Callable[[Residues], Any]) -> Any:
        """The copy of `host` (any view of a longer-lived array) on the device, made by `upload` if it is not there."""
        key = (host.__array_interface__["data"][0], host.shape, host.strides, host.dtype.str)
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key].array
        array = upload(host)  # outside the lock: it may have to call clear()
        if array.nbytes > self.budget:
            return array
        with self._lock:
            self._make_room(self.budget - array.nbytes)
            self._entries[key] = _Entry(array, weakref.ref(_owner(host), lambda _: self._drop(key)))
        return array

    def clear(self) -> None:
        """Let all copies go."""
        with self._lock:
            self._make_room(0)

    def _make_room(self, limit: int) -> None:
        used = self.nbytes
        while self._entries and used > limit:
            used -= self._entries.popitem(last=False)[1].array.nbytes

    def _drop(self, key: _Key) -> None:
        with self._lock:
            self._entries.pop(key, None)


def _owner(array: Residues) -> Residues:
    """The array at the end of a chain of views: it lives as long as any of them."""
    while isinstance(array.base, type(array)) or hasattr(array.base, "__array_interface__"):
        array = array.base  # type: ignore[assignment]
    return array
