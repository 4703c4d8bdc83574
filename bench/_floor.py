"""The operation-count floor of a forward NTT: what its arithmetic alone would take at this machine's measured peak."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np

# A butterfly of the double-precision kernels (ckks/kernels): w*x mod q as h = w*x, l = fma(w, x, -h), c = round(x * w/q) by an FMA with
# the rounding constant and its subtraction, r = fma(-c, q, h), r + l; then u + r and u - r. Of the kernels on 52-bit integers:
# c = high(x * w'), then u + low(w*x) - low(c*q) by two multiply-adds, and 2u less that. The reductions that keep values small, loads,
# stores, transposes and the change from and to integers come on top: they make no part of the floor.
MULTIPLICATIONS, ADDITIONS = 4, 4
WHOLE_MULTIPLICATIONS, WHOLE_ADDITIONS = 3, 2
FORMULA = (
    "N/2 * log2(N) butterflies of {} multiplications or multiply-adds and {} additions, one lane each, "
    "at the measured rate of that mix"
)


@dataclass(frozen=True, eq=False)
class Floor:
    """The measured loop of the arithmetic in use, for one limb of `degree` coefficients on one thread."""

    degree: int
    whole: bool
    loop: Any

    @staticmethod
    def build(degree: int, whole: bool) -> Floor | None:
        """Compile the loop; None where there is no C++ compiler. whole: for kernels on 52-bit integers. Raises CalledProcessError."""
        compiler = shutil.which("c++")
        if compiler is None:
            return None
        source = Path(__file__).with_name("_floor.cpp")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "floor.so")
            options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
            functions = ctypes.CDLL(str(library))
        loop = functions.whole_butterflies if whole else functions.pairs
        loop.restype, loop.argtypes = ctypes.c_double, [ctypes.c_long, ctypes.POINTER(ctypes.c_double)]
        return Floor(degree, whole, loop)

    @property
    def formula(self) -> str:
        if self.whole:
            return FORMULA.format(WHOLE_MULTIPLICATIONS, WHOLE_ADDITIONS)
        return FORMULA.format(MULTIPLICATIONS, ADDITIONS)

    def butterfly_ns(self, repeats: int) -> float:
        """One butterfly on one lane, the best of `repeats` measurements of some 50 microseconds: what the machine can do."""
        return 1e9 * min(self._butterfly_s(1, perf_counter) for _ in range(repeats))

    def peak_gops(self) -> float:
        """The best rate of that mix, a multiply-add counted as two."""
        operations = (
            2 * WHOLE_MULTIPLICATIONS + WHOLE_ADDITIONS if self.whole else 2 * MULTIPLICATIONS + ADDITIONS
        )
        return operations / self.butterfly_ns(2000)

    def seconds(self, least_s: float, clock: Callable[[], float] = process_time) -> float:
        """The floor, the mean over some `least_s` seconds (twice that at most) by a clock, as `_common.repeat` times a transform."""
        repeats = 1
        while True:
            start = clock()
            butterfly_s = self._butterfly_s(repeats, clock)
            if clock() - start >= least_s:
                return self.degree // 2 * (self.degree.bit_length() - 1) * butterfly_s
            repeats *= 2

    @property
    def reduced(self) -> float:
        """The floor with the one reduction to [0, q) that every result needs over that without: on integers two multiply-adds a value."""
        stages = self.degree.bit_length() - 1
        return 1 + 2 / (stages / 2 * WHOLE_MULTIPLICATIONS) if self.whole else 1.0

    def _butterfly_s(self, repeats: int, clock: Callable[[], float]) -> float:
        values = (ctypes.c_double * 16)()
        start = clock()
        count = float(self.loop(repeats, values)) / (1 if self.whole else MULTIPLICATIONS)
        return (clock() - start) / count


def read_gbytes_per_s() -> float:
    """What one thread reads from memory, from the best of ten sums over an array that fits no cache."""
    array = np.ones(1 << 25, dtype=np.uint64)
    times = []
    for _ in range(10):
        start = perf_counter()
        array.sum()
        times.append(perf_counter() - start)
    return float(array.nbytes / min(times) / 1e9)
