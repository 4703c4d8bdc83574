"""A thin stand-in for CuPy on the CPU: what ckks/backends/device.py and gpu_recordings.py use, over host memory.

What a launch does is up to the caller: run the kernels on the CPU (tests), or nothing at all (counting). As in CuPy, an array does not turn
into a NumPy array unasked, so host code that forgets where an array lies fails here too. As on a device, launches and copies run later
(bench/_streams.py), and memory that is let go serves the next array of its stream at once, whoever still works on it (bench/_memory.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench._memory import Holder, OutOfMemoryError, PinnedPool, Pool, Raw
from bench._streams import Event, Graph, Schedule, Stream

Grid = tuple[int, int, int]
Launch = Callable[
    [str, Grid, int, list[int]], None
]  # kernel, grid, threads of a block, one 64-bit word per argument


class Pointer:
    """As cupy.cuda.MemoryPointer."""

    def __init__(self, library: StandIn, ptr: int, raw: Raw) -> None:
        self._library, self.ptr, self._raw = library, ptr, raw

    def __add__(self, offset: int) -> Pointer:
        return Pointer(self._library, self.ptr + offset, self._raw)

    def copy_from_host_async(self, mem: ctypes.c_void_p, size: int, stream: Stream) -> None:
        self._copy(self.ptr, self._host(mem, size), size, stream, "H2D")
        self._library.uploaded += size

    def copy_to_host_async(self, mem: ctypes.c_void_p, size: int, stream: Stream) -> None:
        self._copy(self._host(mem, size), self.ptr, size, stream, "D2H")

    def _host(self, mem: ctypes.c_void_p, size: int) -> int:
        address = mem.value
        assert address is not None and self._library.pinned.holds(address, size), (
            "not pinned: not asynchronous"
        )
        return address

    def _copy(self, to: int, source: int, size: int, stream: Stream, kind: str) -> None:
        if stream.is_capturing():
            raise RuntimeError(f"the current stream is capturing, so {kind} transfers are disallowed")
        raw = self._raw

        def work() -> None:
            assert raw.words.nbytes >= size
            ctypes.memmove(to, source, size)

        stream.submit(work)


class Array:
    """As cupy.ndarray, as far as it is used here. What is queued knows addresses only: it does not keep an array alive."""

    def __init__(self, library: StandIn, host: np.ndarray, holder: Holder) -> None:
        self._library, self._host, self._holder = library, host, holder

    @property
    def data(self) -> Pointer:
        return Pointer(self._library, self._host.__array_interface__["data"][0], self._holder.raw)

    @property
    def raw(self) -> Raw:
        return self._holder.raw

    def get(self) -> np.ndarray:
        self._library.schedule.stream().synchronize()
        return self._host.copy()

    def copy(self) -> Array:
        out = self._library.empty(self._host.shape, self._host.dtype)
        out[...] = self
        return out

    def __getitem__(self, index: Any) -> Array:
        return Array(self._library, self._host[index], self._holder)

    def __setitem__(self, index: Any, value: Array) -> None:
        to, source = self._host[index], value._host
        self._library.schedule.stream().submit(lambda: np.copyto(to, source))

    def __iter__(self) -> Iterator[Array]:
        return (self[i] for i in range(len(self._host)))

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "size", "ndim", "nbytes", "flags", "strides"):
            raise AttributeError(name)
        return getattr(self._host, name)

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("implicit conversion to a NumPy array is not allowed")


class Device:
    """As cupy.cuda.Device."""

    def __init__(self, library: StandIn, device: int) -> None:
        self._library, self.id = library, device

    def use(self) -> Device:
        self._library.schedule.device = self.id
        return self

    @property
    def mem_info(self) -> tuple[int, int]:
        memory = self._library.memory
        return memory - self._library.used_on(self.id), memory


class StandIn:
    """The module: StandIn(...).empty and so on. build makes the launcher of a source; memory: bytes of each pretended device.

    ahead: streams that run early, see bench/_streams.py; graphs: whether this CuPy can record them.
    """

    ndarray = Array

    def __init__(
        self,
        build: Callable[[str], Launch],
        memory: int = 1 << 62,
        guarded: bool = True,
        ahead: Mapping[int, float] | None = None,
        devices: int = 1,
        graphs: bool = True,
    ) -> None:
        self._build, self.guarded, self.memory = build, guarded, memory
        self.schedule, self.pinned = Schedule(ahead or {}), PinnedPool()
        self.schedule.nulls += [Stream(self.schedule, device=i) for i in range(1, devices)]
        self.uploaded = 0  # bytes that came from the host
        self.pools: list[Pool] = []
        self._default = Pool(self)
        self._allocate = self._default.malloc
        self.cuda = SimpleNamespace(
            memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            runtime=SimpleNamespace(
                getDeviceCount=lambda: devices,
                getDeviceProperties=lambda _: {"name": b"stand-in"},
                deviceGetAttribute=lambda attribute, device: 2,
            ),
            Device=lambda device: Device(self, device),
            Stream=self._stream if graphs else self._old_stream,
            Event=Event,
            Graph=Graph,
            MemoryPool=lambda: Pool(self),
            using_allocator=self._using_allocator,
            alloc_pinned_memory=self.pinned.malloc,
        )

    @property
    def used(self) -> int:
        """Bytes of the arrays on the current device."""
        return self.used_on(self.schedule.device)

    def used_on(self, device: int) -> int:
        return sum(pool.used.get(device, 0) for pool in self.pools)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Filled with what no result is, unless unguarded: in the order of the stream, since the memory may still be worked on."""
        size = int(np.prod(shape))
        holder: Holder = self._allocate(size * np.dtype(dtype).itemsize)
        words = holder.raw.words
        if self.guarded:
            self.schedule.stream().submit(lambda: words.fill(Raw.PATTERN))
        return Array(self, words.view(dtype)[:size].reshape(shape), holder)

    def get_default_memory_pool(self) -> Pool:
        return self._default

    def RawModule(self, code: str, options: tuple[str, ...], backend: str) -> Any:  # noqa: N802
        launch = self._build(code)
        return SimpleNamespace(
            get_function=lambda name: _function(self.schedule, name, signature(code, name), launch)
        )

    def _stream(self, null: bool = False, non_blocking: bool = False) -> Stream:
        assert non_blocking and not null, "the null stream waits for others, and others for it"
        return Stream(self.schedule, self.schedule.device)

    def _old_stream(self, null: bool = False, non_blocking: bool = False) -> Any:
        stream = self._stream(null, non_blocking)
        stream.begin_capture = _no_capture  # type: ignore[method-assign]
        return stream

    @contextlib.contextmanager
    def _using_allocator(self, allocator: Callable[[int], Holder]) -> Iterator[None]:
        before, self._allocate = self._allocate, allocator
        try:
            yield
        finally:
            self._allocate = before


def _no_capture(mode: int | None = None) -> None:
    raise RuntimeError("stream capture is not supported")


def signature(code: str, kernel: str) -> list[str]:
    """The types of a kernel's parameters."""
    found = re.search(rf"\b{kernel}\(([^)]*)\)", code)
    assert found is not None, kernel
    return [re.sub(r"\s*\w+$", "", " ".join(part.split())) for part in found.group(1).split(",")]


def _function(schedule: Schedule, name: str, types: list[str], launch: Launch) -> Callable[..., None]:
    """As a RawKernel: (grid, block, arguments)."""

    def call(grid: tuple[int, ...], block: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        assert len(arguments) == len(types), (name, len(arguments), types)
        words: list[int] = []
        raws: list[Raw] = []
        for kind, argument in zip(types, arguments, strict=True):
            if kind.endswith("*"):
                assert isinstance(argument, Array) and argument.flags.c_contiguous, (name, kind, argument)
                assert argument.raw.device == schedule.device, f"{name}: an array of another device"
                words.append(argument.data.ptr)
                raws.append(argument.raw)
            else:
                assert kind == "unsigned" and isinstance(argument, np.uint32), (name, kind, argument)
                words.append(int(argument))
        x, y, z = (*grid, 1, 1)[:3]
        assert 0 < y <= 65535 and 0 < z <= 65535 and len(block) == 1, (grid, block)

        def work() -> None:
            launch(name, (x, y, z), block[0], words)
            assert all(raw.unharmed() for raw in raws), f"{name} wrote outside an array"

        schedule.stream().submit(work)

    return call


def ignore(_: str) -> Launch:
    """A build whose launches do nothing."""
    return lambda kernel, grid, threads, words: None


__all__ = ["Array", "Grid", "Launch", "StandIn", "ignore", "signature"]
