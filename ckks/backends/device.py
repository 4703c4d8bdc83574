"""One GPU through CuPy or a stand-in with its interface: memory, kernels, and counters of what they do. Imports no CuPy itself."""

from __future__ import annotations

import contextlib
import ctypes
import re
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

import numpy as np

from ckks.backends import Fetched
from ckks.backends.device_cache import DeviceCache
from ckks.errors import DeviceMemoryError
from ckks.types import Residues

T = TypeVar("T")

SOURCES = ("modular.cuh", "doubles.cuh", "packed.cuh", "ntt.cuh", "ntt.cu", "elementwise.cu", "keyswitch.cu")
OPTIONS = ("--std=c++17",)
THREADS = 256  # of a block, in every kernel
TILE = 2048  # values of a row that a block of a transform takes
_PIECE = 4 << 20  # bytes that are copied to the device together
_PINNED = 32 << 20  # bytes of pinned memory that a stream has under way

_current = threading.local()  # .device: whose stream is CuPy's current one in this thread


@dataclass
class Work:
    """What the launches of one kernel came to. words: 64-bit words read from and written to global memory; what the threads of
    a block share, and what all blocks share, is counted once or not at all.

    products: multiplications modulo a prime by a fixed factor (a butterfly has one). sums: products that are added up before they are
    reduced. reductions: of such sums. double_..: the same on doubles.
    """

    launches: int = 0
    words: int = 0
    products: int = 0
    sums: int = 0
    reductions: int = 0
    double_products: int = 0
    double_sums: int = 0
    double_reductions: int = 0


def kernel_source(doubles: bool, files: tuple[str, ...] = SOURCES) -> str:
    """All kernels as one translation unit. doubles: with those on doubles, for primes that they can do."""
    return f"#define DOUBLES {int(doubles)}\n" + "".join(source_file(name) for name in files)


def source_file(name: str) -> str:
    """One of SOURCES, without the includes that editors need: the order of SOURCES takes their place."""
    text = (resources.files("ckks.kernels") / name).read_text(encoding="utf-8")
    return re.sub(r'^#(include ".*"|pragma once)$', "", text, flags=re.MULTILINE)


def kernel_names(source: str) -> list[str]:
    """The kernels that a source defines."""
    return re.findall(r'extern "C" __global__ void __launch_bounds__\([^)]*\)\s*(\w+)\(', source)


class NotRecordableError(Exception):
    """What cannot be part of a graph now: a copy of a key or a matrix that the cache does not hold."""


@dataclass
class Taken:
    """What a recording relies on. uses: entries of the cache; arrays: all that has to stay where it is."""

    uses: set[Hashable] = field(default_factory=set)
    arrays: list[Any] = field(default_factory=list)


class Device:
    """Memory, streams and kernels of one GPU.

    The rule that keeps memory safe without a wait: whatever callers hold is allocated, written, read and let go in the order of one stream,
    the computation's. CuPy's pool gives a block that is let go to the next array made on the same stream, which is later in that order, so
    nothing here waits before it lets go. The two streams that copy beside it touch only memory that this class holds until an event says
    that they are done (`_hold`): pinned memory, what `send` copies from, what `fetch` copies to the host.

    For several threads, one at a time: each thread's first call makes the stream its own current one.
    """

    def __init__(
        self,
        library: Any,
        name: str,
        cache_bytes: int,
        source: str | None = None,
        doubles: bool = False,
        index: int = 0,
    ) -> None:
        """library: the module cupy, or a stand-in. cache_bytes: device memory for copies of keys and weights, and for graphs.

        doubles: whether it is fast at doubles; the kernels for primes below 2^49 then compute on them. index: as the library counts.
        """
        self.library, self.name, self.doubles, self.index = library, name, doubles, index
        library.cuda.Device(index).use()
        # Non-blocking: the null stream neither waits for them nor they for it.
        self.stream, self._uploads, self._downloads = (
            library.cuda.Stream(non_blocking=True) for _ in range(3)
        )
        self._flights: dict[Any, deque[tuple[Any, Any, int]]] = {
            stream: deque() for stream in (self.stream, self._uploads, self._downloads)
        }
        self._taken: Taken | None = None  # while a graph is recorded
        self._enter()
        self.cache = DeviceCache(cache_bytes)
        self.work: dict[str, Work] = {}
        source = kernel_source(doubles) if source is None else source
        module = library.RawModule(code=source, options=OPTIONS, backend="nvrtc")
        self._kernels = {kernel: module.get_function(kernel) for kernel in kernel_names(source)}

    def empty(self, shape: tuple[int, ...]) -> Any:
        """An uninitialised uint64 array on the device. Raises DeviceMemoryError."""
        self._enter()
        return self._empty(shape, np.uint64)

    def upload(self, x: Any) -> Any:
        """`x` on the device, C-contiguous. Raises DeviceMemoryError."""
        self._enter()
        if isinstance(x, self.library.ndarray):
            return x if x.flags.c_contiguous else self.copy(x)
        host = np.ascontiguousarray(x)
        if self._taken is None:
            array = self._empty(host.shape, host.dtype)
            self._stage(host, array, self.stream)
            return array
        # A graph cannot copy from the host. What it needs is there before it first runs, in memory that none of its kernels ever had.
        with self._uploading():
            array = self._empty(host.shape, host.dtype)
            self._stage(host, array, self._uploads)
        self._taken.arrays.append(array)
        return array

    def send(self, x: Residues) -> Any:
        """As `upload`; the copy from the host runs beside the computation of what was launched before."""
        self._enter()
        if isinstance(x, self.library.ndarray):
            return self.upload(x)
        while self.cache.retired:
            self._hold(self.cache.retired.popleft(), self.stream)
        host = np.ascontiguousarray(x)
        with self._uploading():
            staged = self._empty(host.shape, host.dtype)
            self._stage(host, staged, self._uploads)
        self._after(self.stream, self._uploads)
        array = self.copy(staged)  # memory of the computation's stream: see the rule above
        self._hold(staged, self.stream)
        return array

    def keep(self, x: Any) -> Any:
        """As `upload`, for a host array that nobody writes to any more: the copy stays for the next time while there is room."""
        if isinstance(x, self.library.ndarray):
            return self.upload(x)
        if self._taken is None:
            return self.cache.get(x, self.upload)
        name, array = self.cache.find(x)
        if array is None:
            raise NotRecordableError("a key or a matrix that is not on the device")
        self._taken.uses.add(name)
        self._taken.arrays.append(array)
        return array

    def copy(self, x: Any) -> Any:
        """A copy of a device array, C-contiguous. Raises DeviceMemoryError."""
        self._enter()
        return self._allocate(lambda: x.copy(), x.nbytes)

    def fetch(self, x: Any) -> Fetched[Residues]:
        """Starts to copy `x` to the host, beside what is launched later.

        The array lies in pinned memory, which serves others when it goes.
        """
        if not isinstance(x, self.library.ndarray):
            return Fetched(lambda: x)
        source = self.upload(x)
        self._after(self._downloads, self.stream)
        pinned = self.library.cuda.alloc_pinned_memory(source.nbytes)
        host = np.frombuffer(pinned, source.dtype, source.size).reshape(source.shape)
        source.data.copy_to_host_async(ctypes.c_void_p(pinned.ptr), source.nbytes, self._downloads)
        done = self._hold((source, pinned), self._downloads)

        def wait() -> Residues:
            done.synchronize()
            return host

        return Fetched(wait, lambda: bool(done.done))

    def download(self, x: Any) -> Residues:
        """`x` on the host."""
        return self.fetch(x).wait()

    def record(self, work: Callable[[], T]) -> tuple[T, Any, Taken]:
        """What work() launches, as a graph instead of doing it: its result, the graph, and what has to stay for it.

        Raises what `work` raises, NotRecordableError, and RuntimeError where CUDA or CuPy cannot record it.
        """
        self._enter()
        self.stream.begin_capture()
        self._taken = taken = Taken()
        try:
            result = work()
        except BaseException:
            with contextlib.suppress(RuntimeError):  # a capture has to be ended, even one that CUDA gave up
                self.stream.end_capture()
            raise
        finally:
            self._taken = None
        graph = self.stream.end_capture()
        self._after(self.stream, self._uploads)
        return result, graph, taken

    @property
    def recording(self) -> bool:
        """Whether launches go to a graph."""
        return self._taken is not None

    def launch(self, kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...], **counts: int) -> None:
        """Launch a kernel. Arguments: device arrays, and integers, which become `unsigned`. counts: for the counters (see Work)."""
        done = self.work.setdefault(kernel, Work())
        for name, count in (counts | {"launches": 1}).items():
            setattr(done, name, getattr(done, name) + count)
        self._enter()
        converted = tuple(np.uint32(a) if isinstance(a, int) else a for a in arguments)
        self._kernels[kernel](grid, (THREADS,), converted)

    def _enter(self) -> None:
        """Make the device and its stream CuPy's current ones in this thread."""
        if getattr(_current, "device", None) is not self:
            self.library.cuda.Device(self.index).use()
            self.stream.use()
            _current.device = self

    @contextlib.contextmanager
    def _uploading(self) -> Iterator[None]:
        """New arrays lie in memory of the stream that copies to the device."""
        # Not `with stream`: that ends with the stream before the last `with`, not with the one in `use`.
        self._uploads.use()
        try:
            yield
        finally:
            self.stream.use()

    def _after(self, later: Any, earlier: Any) -> None:
        """What is queued in one stream from now on runs after what is queued in another by now."""
        later.wait_event(earlier.record(self.library.cuda.Event(disable_timing=True)))

    def _stage(self, host: Any, array: Any, stream: Any) -> None:
        """Queue a copy of a host array, by way of pinned memory: the caller may change or let go of `host` at once."""
        data = host.reshape(-1).view(np.uint8)
        for start in range(0, data.size, _PIECE):
            piece = data[start : start + _PIECE]
            self._reap(stream, _PINNED - piece.size)
            pinned = self.library.cuda.alloc_pinned_memory(piece.size)
            np.frombuffer(pinned, np.uint8, piece.size)[:] = piece
            (array.data + start).copy_from_host_async(ctypes.c_void_p(pinned.ptr), piece.size, stream)
            self._hold(pinned, stream, piece.size)

    def _hold(self, what: Any, stream: Any, pinned: int = 0) -> Any:
        """Keep `what` until the work queued in `stream` so far is done; the event that says so. pinned: bytes that count."""
        self._reap(stream, _PINNED)
        # Blocking: who waits for it sleeps, and leaves the processor to others.
        event = stream.record(self.library.cuda.Event(block=True, disable_timing=True))
        self._flights[stream].append((event, what, pinned))
        return event

    def _reap(self, stream: Any, room: int) -> None:
        """Let go of what is done in `stream`, and wait until no more than `room` bytes of pinned memory are under way there."""
        flights = self._flights[stream]
        pinned = sum(size for _, _, size in flights)
        while flights and (pinned > room or flights[0][0].done):
            event, _, size = flights.popleft()
            event.synchronize()
            pinned -= size

    def _empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        size = np.dtype(dtype).itemsize * int(np.prod(shape))
        return self._allocate(lambda: self.library.empty(shape, dtype=dtype), size)

    def _allocate(self, make: Callable[[], T], size: int) -> T:
        """make(), after letting go of the cache if memory is short. size: bytes wanted, for the message."""
        full = self.library.cuda.memory.OutOfMemoryError
        with contextlib.suppress(full):
            return make()
        if not self.recording:  # a graph is then not recorded, and its work done without one
            self.cache.clear()
            for flights in self._flights.values():
                for event, _, _ in flights:
                    event.synchronize()
                flights.clear()
            self.cache.retired.clear()
            self.library.get_default_memory_pool().free_all_blocks()
            with contextlib.suppress(full):
                return make()
        raise DeviceMemoryError(
            f"{self.name}: no room for {size / 1e6:.0f} MB more, with nothing cached; "
            "run fewer workers or models on this device, or use --device cpu"
        )
