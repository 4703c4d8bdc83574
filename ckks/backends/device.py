"""One GPU through CuPy or a stand-in with its interface: memory, kernels, and counters of what they do. Imports no CuPy itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import numpy as np

from ckks.backends.device_cache import DeviceCache
from ckks.errors import DeviceMemoryError
from ckks.types import Residues

T = TypeVar("T")

SOURCES = ("modular.cuh", "doubles.cuh", "packed.cuh", "ntt.cuh", "ntt.cu", "elementwise.cu", "keyswitch.cu")
OPTIONS = ("--std=c++17",)
THREADS = 256  # of a block, in every kernel
TILE = 2048  # values of a row that a block of a transform takes


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


class Device:
    """Memory and kernels of one GPU. All work is in the order of CuPy's current stream."""

    def __init__(
        self, library: Any, name: str, cache_bytes: int, source: str | None = None, doubles: bool = False
    ) -> None:
        """library: the module cupy, or a stand-in. cache_bytes: device memory for copies of keys and weights.

        doubles: whether it is fast at doubles; the kernels for primes below 2^49 then compute on them.
        """
        self.library, self.name, self.doubles = library, name, doubles
        self.cache = DeviceCache(cache_bytes)
        self.work: dict[str, Work] = {}
        source = kernel_source(doubles) if source is None else source
        module = library.RawModule(code=source, options=OPTIONS, backend="nvrtc")
        self._kernels = {kernel: module.get_function(kernel) for kernel in kernel_names(source)}

    def empty(self, shape: tuple[int, ...]) -> Any:
        """An uninitialised uint64 array on the device. Raises DeviceMemoryError."""
        return self._allocate(lambda: self.library.empty(shape, dtype=np.uint64), 8 * int(np.prod(shape)))

    def upload(self, x: Any) -> Any:
        """`x` on the device, C-contiguous. Raises DeviceMemoryError."""
        if isinstance(x, self.library.ndarray):
            return x if x.flags.c_contiguous else self._allocate(lambda: x.copy(), x.nbytes)
        host = np.ascontiguousarray(x)
        return self._allocate(lambda: self.library.asarray(host), host.nbytes)

    def keep(self, x: Any) -> Any:
        """As `upload`, for a host array that nobody writes to any more: the copy stays for the next time while there is room."""
        return self.upload(x) if isinstance(x, self.library.ndarray) else self.cache.get(x, self.upload)

    def download(self, x: Any) -> Residues:
        """`x` on the host."""
        return x.get() if isinstance(x, self.library.ndarray) else x  # type: ignore[no-any-return]

    def launch(self, kernel: str, grid: tuple[int, ...], arguments: tuple[Any, ...], **counts: int) -> None:
        """Start a kernel. Arguments: device arrays, and integers, which become `unsigned`. counts: for the counters (see Work)."""
        done = self.work.setdefault(kernel, Work())
        for name, count in (counts | {"launches": 1}).items():
            setattr(done, name, getattr(done, name) + count)
        converted = tuple(np.uint32(a) if isinstance(a, int) else a for a in arguments)
        self._kernels[kernel](grid, (THREADS,), converted)

    def _allocate(self, make: Callable[[], T], size: int) -> T:
        """make(), after letting go of the cache if memory is short. size: bytes wanted, for the message."""
        full = self.library.cuda.memory.OutOfMemoryError
        try:
            return make()
        except full:
            self.cache.clear()
            self.library.get_default_memory_pool().free_all_blocks()
        try:
            return make()
        except full:
            raise DeviceMemoryError(
                f"{self.name}: no room for {size / 1e6:.0f} MB more, with nothing cached; "
                "run fewer workers or models on this device, or use --device cpu"
            ) from None
