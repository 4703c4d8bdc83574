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
# the rounding constant and its subtraction, r = fma(-c, q, h), r + l; then u + r and u - r. The reductions that keep values small, loads,
# stores and the change from and to integers come on top: they make no part of the floor.
MULTIPLICATIONS, ADDITIONS = 4, 4
FORMULA = "N/2 * log2(N) butterflies of 4 multiplications or FMAs and 4 additions, one lane each, at the measured peak of that mix"


@dataclass(frozen=True, eq=False)
class Floor:
    """The measured loop, for one limb of `degree` coefficients on one thread."""

    degree: int
    pair_ns: Any

    @staticmethod
    def build(degree: int) -> Floor | None:
        """Compile the loop; None where there is no C++ compiler. Raises CalledProcessError."""
        compiler = shutil.which("c++")
        if compiler is None:
            return None
        source = Path(__file__).with_name("_floor.cpp")
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder, "floor.so")
            options = ["-std=c++20", "-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
            subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
            pair_ns = ctypes.CDLL(str(library)).pair_ns
        pair_ns.restype, pair_ns.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
        return Floor(degree, pair_ns)

    def peak_gflops(self) -> float:
        """The rate of that mix, an FMA counted as two."""
        return 3 / float(self.pair_ns(2000, (ctypes.c_double * 16)()))

    def seconds(self, least_s: float) -> float:
        """The floor, from the best of as many measurements as fill about `least_s` seconds."""
        repeats = max(1, int(least_s / 50e-6))  # one takes some 40 to 100 microseconds
        butterflies = self.degree // 2 * (self.degree.bit_length() - 1)
        return float(butterflies * MULTIPLICATIONS * self.pair_ns(repeats, (ctypes.c_double * 16)()) * 1e-9)


def read_gbytes_per_s() -> float:
    """What one thread reads from memory, from the best of ten sums over an array that fits no cache."""
    array = np.ones(1 << 25, dtype=np.uint64)
    times = []
    for _ in range(10):
        start = perf_counter()
        array.sum()
        times.append(perf_counter() - start)
    return float(array.nbytes / min(times) / 1e9)
