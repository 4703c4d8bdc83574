"""A thin stand-in for CuPy on the CPU: the few functions that ckks/backends/device.py uses, over host memory.

What a launch does is up to the caller: run the kernels on the CPU (tests), or nothing at all (counting). As in CuPy, an array does not turn
into a NumPy array unasked, so host code that forgets where an array lies fails here too.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

Grid = tuple[int, int, int]
Launch = Callable[
    [str, Grid, int, list[int]], None
]  # kernel, grid, threads of a block, one 64-bit word per argument

_GUARD = 512  # words of a known value on either side of every array: a kernel that writes there is found out
_PATTERN = np.uint64(0xDEADBEEFDEADBEEF)


class Array:
    """As cupy.ndarray, as far as it is used here."""

    def __init__(self, host: np.ndarray, guards: tuple[np.ndarray, ...] = ()) -> None:
        self._host, self._guards = host, guards

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self._host.__array_interface__["data"][0])

    def get(self) -> np.ndarray:
        return self._host.copy()

    def copy(self) -> Array:
        return Array(self._host.copy())

    def unharmed(self) -> bool:
        """Whether nobody wrote around this array."""
        return all((guard == _PATTERN).all() for guard in self._guards)

    def __getitem__(self, index: Any) -> Array:
        return Array(self._host[index], self._guards)

    def __setitem__(self, index: Any, value: Array) -> None:
        self._host[index] = value._host

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self._host)))

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "size", "ndim", "nbytes", "flags", "strides"):
            raise AttributeError(name)
        return getattr(self._host, name)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


class StandIn:
    """The module: StandIn(...).empty and so on. build makes the launcher of a source; memory: bytes of the pretended device."""

    ndarray = Array

    def __init__(self, build: Callable[[str], Launch], memory: int = 1 << 62, guarded: bool = True) -> None:
        self._build, self._guarded = build, guarded
        self.memory, self.used = memory, 0
        self.uploaded = 0  # bytes that came from NumPy arrays
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                getDeviceCount=lambda: 1,
                getDeviceProperties=lambda _: {"name": b"stand-in"},
                deviceGetAttribute=lambda attribute, device: 2,
            ),
            Device=lambda _: SimpleNamespace(mem_info=(self.memory - self.used, self.memory)),
        )

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Filled with what no result is, unless unguarded."""
        size = int(np.prod(shape))
        count = size * np.dtype(dtype).itemsize
        if self.used + count > self.memory:
            raise OutOfMemoryError(count)
        self.used += count
        guard = _GUARD if self._guarded else 0
        whole = np.empty(2 * guard + (count + 7) // 8, dtype=np.uint64)
        if guard:
            whole.fill(_PATTERN)
        middle = whole[guard : len(whole) - guard].view(dtype)[:size].reshape(shape)
        array = Array(middle, (whole[:guard], whole[len(whole) - guard :]))
        weakref.finalize(whole, self._free, count)
        return array

    def _free(self, count: int) -> None:
        self.used -= count

    def asarray(self, host: np.ndarray) -> Array:
        array = self.empty(host.shape, host.dtype)
        array._host[...] = host
        self.uploaded += host.nbytes
        return array

    def get_default_memory_pool(self) -> Any:
        return SimpleNamespace(free_all_blocks=lambda: None)

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:  # noqa: N802
        launch = self._build(code)
        return SimpleNamespace(get_function=lambda name: _function(name, signature(code, name), launch))


def signature(code: str, kernel: str) -> list[str]:
    """The types of a kernel's parameters."""
    found = re.search(rf"\b{kernel}\(([^)]*)\)", code)
    assert found is not None, kernel
    return [re.sub(r"\s*\w+$", "", " ".join(part.split())) for part in found.group(1).split(",")]


def _function(name: str, types: list[str], launch: Launch) -> Callable[..., None]:
    """As a RawKernel: (grid, block, arguments)."""

    def call(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        assert len(arguments) == len(types), (name, len(arguments), types)
        words = []
        for kind, argument in zip(types, arguments, strict=True):
            if kind.endswith("*"):
                assert isinstance(argument, Array) and argument.flags.c_contiguous, (name, kind, argument)
                words.append(argument.data.ptr)
            else:
                assert kind == "unsigned" and isinstance(argument, np.uint32), (name, kind, argument)
                words.append(int(argument))
        x, y, z = (*grid, 1, 1)[:3]
        assert 0 < y <= 65535 and 0 < z <= 65535 and len(block) == 1, (grid, block)
        launch(name, (x, y, z), block[0], words)
        assert all(a.unharmed() for a in arguments if isinstance(a, Array)), f"{name} wrote outside an array"

    return call


def ignore(_: str) -> Launch:
    """A build whose launches do nothing."""
    return lambda kernel, grid, threads, words: None
