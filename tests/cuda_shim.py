"""CUDA sources on the CPU: built with the system's C++ compiler around tests/cuda/shim.h, cached under build/."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

from bench._stand_in import Grid, Launch
from ckks.backends.device import kernel_names

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "tests" / "cuda" / "shim.h"
ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
_RESULTS = {1: "no such kernel", 2: "threads of a block met different barriers", 3: "no memory for stacks"}
_ENTRY = """
static const shim::Entry entries[] = {%s};
extern "C" int shim_launch(const char* name, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned order, const uint64_t* words) {
    for (const shim::Entry& e : entries)
        if (!strcmp(e.name, name)) return shim::launch(e.kernel, words, {x, y, z}, threads, static_cast<shim::Order>(order));
    return shim::kUnknownKernel;
}
"""


def compile_source(source: str, level: str = "-O2") -> Path:
    """A shared library with all kernels of `source`."""
    table = ", ".join(f'{{"{name}", shim::Call<{name}>::run}}' for name in kernel_names(source))
    text = f'#include "{SHIM.name}"\n{source}{_ENTRY % table}'
    digest = hashlib.sha256((SHIM.read_text() + level + text).encode()).hexdigest()[:24]
    folder = ROOT / "build" / "shim"
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"{digest}.so"
    if not library.exists():
        partial = folder / f"{digest}.{os.getpid()}.part"
        command = [os.environ.get("CXX", "c++"), "-std=c++17", "-shared", "-fPIC", level, "-w"]
        command += ["-ffp-contract=off", "-march=native"]  # native: an instruction for fma, not a call
        command += ["-I", str(SHIM.parent), "-x", "c++", "-", "-o", str(partial)]
        done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=120)
        if done.returncode:  # no AssertionError: nothing has been judged
            raise RuntimeError(done.stderr)
        partial.replace(library)
    return library


class Shim:
    """A StandIn's `build`: runs kernels in a chosen order of the threads of a block."""

    def __init__(self, order: str = "forward", level: str = "-O2") -> None:
        self.order, self._level = order, level

    def __call__(self, source: str) -> Launch:
        function = ctypes.CDLL(str(compile_source(source, self._level))).shim_launch

        def launch(kernel: str, grid: Grid, threads: int, words: list[int]) -> None:
            arguments = (ctypes.c_uint64 * len(words))(*words)
            order = ORDERS[self.order]
            result = function(kernel.encode(), *grid, threads, order, arguments)
            assert result == 0, f"{kernel}: {_RESULTS[result]}"

        return launch
