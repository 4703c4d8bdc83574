"""The operation-count floor of a forward NTT: what its arithmetic alone would take at this machine's measured peak."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
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
    "at the measured peak of that mix"
)


@dataclass(frozen=True, eq=False)
class Floor:
    """The measured loop of the arithmetic in use, for one limb of `degree` coefficients on one thread."""

    degree: int
    whole: bool
    measure: Any

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
        measure = functions.whole_butterfly_ns if whole else functions.pair_ns
        measure.restype, measure.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
        return Floor(degree, whole, measure)

    @property
    def formula(self) -> str:
        if self.whole:
            return FORMULA.format(WHOLE_MULTIPLICATIONS, WHOLE_ADDITIONS)
        return FORMULA.format(MULTIPLICATIONS, ADDITIONS)

    def butterfly_ns(self, repeats: int) -> float:
        """One butterfly on one lane, from the best of `repeats` measurements."""
        ns = float(self.measure(repeats, (ctypes.c_double * 16)()))
        return ns if self.whole else ns * MULTIPLICATIONS

    def peak_gops(self) -> float:
        """The rate of that mix, a multiply-add counted as two."""
        operations = (
            2 * WHOLE_MULTIPLICATIONS + WHOLE_ADDITIONS if self.whole else 2 * MULTIPLICATIONS + ADDITIONS
        )
        return operations / self.butterfly_ns(2000)

    def seconds(self, least_s: float) -> float:
        """The floor, from the best of as many measurements as fill about `least_s` seconds."""
        repeats = max(1, int(least_s / 50e-6))  # one takes some 40 to 100 microseconds
        butterflies = self.degree // 2 * (self.degree.bit_length() - 1)
        return butterflies * self.butterfly_ns(repeats) * 1e-9


def read_gbytes_per_s() -> float:
    """What one thread reads from memory, from the best of ten sums over an array that fits no cache."""
    array = np.ones(1 << 25, dtype=np.uint64)
    times = []
    for _ in range(10):
        start = perf_counter()
        array.sum()
        times.append(perf_counter() - start)
    return float(array.nbytes / min(times) / 1e9)
