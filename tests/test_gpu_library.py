"""The stand-in has CuPy's names and arguments. Runs where CuPy can be imported, for which no GPU is needed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest

from bench._memory import PinnedPool, Pool
from bench._stand_in import Array, Device, Pointer, StandIn, ignore
from bench._streams import Event, Graph, Stream

LIBRARY = StandIn(ignore)
# What device.py and gpu_recordings.py call, and where CuPy has it.
USED: tuple[tuple[Callable[..., Any], str], ...] = (
    (Array.copy, "ndarray.copy"),
    (Device.use, "cuda.Device.use"),
    (Event.__init__, "cuda.Event.__init__"),
    (Event.synchronize, "cuda.Event.synchronize"),
    (Graph.launch, "cuda.Graph.launch"),
    (LIBRARY.RawModule(code="", options=(), backend="nvrtc").get_function, "RawModule.get_function"),
    (LIBRARY.cuda.runtime.getDeviceCount, "cuda.runtime.getDeviceCount"),
    (LIBRARY._stream, "cuda.Stream"),
    (LIBRARY._using_allocator, "cuda.using_allocator"),
    (LIBRARY.empty, "empty"),
    (PinnedPool.malloc, "cuda.PinnedMemoryPool.malloc"),
    (PinnedPool.malloc, "cuda.alloc_pinned_memory"),
    (Pointer.copy_from_host_async, "cuda.MemoryPointer.copy_from_host_async"),
    (Pointer.copy_to_host_async, "cuda.MemoryPointer.copy_to_host_async"),
    (Pool.free_all_blocks, "cuda.MemoryPool.free_all_blocks"),
    (Pool.malloc, "cuda.MemoryPool.malloc"),
    (Pool.total_bytes, "cuda.MemoryPool.total_bytes"),
    (Stream.begin_capture, "cuda.Stream.begin_capture"),
    (Stream.end_capture, "cuda.Stream.end_capture"),
    (Stream.is_capturing, "cuda.Stream.is_capturing"),
    (Stream.record, "cuda.Stream.record"),
    (Stream.synchronize, "cuda.Stream.synchronize"),
    (Stream.use, "cuda.Stream.use"),
    (Stream.wait_event, "cuda.Stream.wait_event"),
)


def arguments(function: Any) -> list[str]:
    """The names of a function's arguments, of a compiled one from its first line of documentation."""
    try:
        names = list(inspect.signature(function).parameters)
    except ValueError:
        text = re.match(r"[\w.]*\(([^)]*)\)", function.__doc__)
        assert text is not None, function
        names = [part.split("=")[0].split()[-1] for part in text.group(1).split(",") if part.strip()]
    return [name for name in names if name != "self"]


def test_the_stand_in_is_like_cupy() -> None:
    cupy: Any = pytest.importorskip("cupy", reason="NOT COMPARED WITH CUPY: it is not installed")
    for ours, name in USED:
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)
        real, mine = arguments(found), arguments(ours)
        # In the same order; CuPy may have more of them, which have defaults.
        assert [argument for argument in real if argument in mine] == mine, name
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert issubclass(cupy.cuda.runtime.CUDARuntimeError, RuntimeError)  # what a failed capture raises
    for owner, name in (
        (cupy.cuda.Event, "done"),
        (cupy.cuda.Device, "mem_info"),
        (cupy.cuda.MemoryPointer, "__add__"),
        (cupy, "get_default_memory_pool"),
    ):
        assert hasattr(owner, name)
