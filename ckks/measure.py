"""The micro-benchmark behind the cost model: every backend function that circuits spend time in, on a few shapes.

Keys and weights come from a mapped file larger than caches, as they do on a server; everything else was written by the call before.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckks.backends import Backend, make_backend
from ckks.counting import (
    Call,
    decompose_call,
    key_product_call,
    key_switch_call,
    mod_down_call,
    rescale_call,
    sums_call,
)
from ckks.kernels._cpu import instruction_sets
from ckks.machine import Machine, Sample, work
from ckks.mapped import map_arrays, write_arrays
from ckks.packed import Bytes, Packed, packed_bytes
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.rehearsal import random_residues
from ckks.types import KeySwitchKey

REPEATS = 7  # of each call; the median counts, as evaluations meet typical times
MEMORY = 128 << 20  # bytes of the mapped file
SUMS = ((4, 4, 16), (8, 8, 1), (8, 8, 16), (18, 8, 1), (32, 4, 1))  # baby steps, sums, values a row shares


@dataclass(frozen=True)
class Shape:
    """A parameter set to measure, and at which levels."""

    log_degree: int
    bits: int
    limbs: int
    special_bits: int
    specials: int
    digit_limbs: int
    levels: tuple[int, ...]

    def parameters(self) -> Parameters:
        """Primes as the compiler would choose them."""
        n = 1 << self.log_degree
        data = ntt_primes(n, self.bits, self.limbs)
        special = ntt_primes(n, self.special_bits, self.specials, exclude=data)
        return Parameters(n, data, special, self.digit_limbs)


SHAPES = (
    Shape(12, 26, 2, 30, 1, 1, (0, 1)),
    Shape(13, 26, 5, 30, 1, 1, (1, 3, 4)),
    Shape(13, 26, 4, 46, 2, 3, (1, 3)),
    Shape(14, 27, 8, 46, 2, 3, (1, 3, 5, 7)),
    Shape(14, 40, 8, 46, 1, 1, (3, 7)),
    Shape(15, 30, 12, 46, 2, 3, (3, 11)),
)
WIDE = (Shape(14, 50, 4, 51, 1, 1, (3,)), Shape(13, 50, 2, 51, 1, 1, (1,)))
STEPS = sum(len(s.levels) for s in SHAPES + WIDE) + 1  # of progress, for one number of threads


def measure_machine(
    threads: tuple[int, ...], description: str, source: str, progress: Callable[[int, int], None]
) -> Machine:
    """Measure this machine with each number of threads; some ten seconds each. progress(done, all)."""
    done = 0
    samples: dict[int, tuple[Sample, ...]] = {}
    bandwidth: dict[int, float] = {}
    with tempfile.TemporaryDirectory(prefix="he-serve-measure-") as folder:
        stored = _mapped(Path(folder) / "residues")
        for count in threads:
            found: list[Sample] = []
            for shape in SHAPES + WIDE:
                for few in measure_shape(shape, count, stored):
                    found += few
                    progress(done := done + 1, STEPS * len(threads))
            samples[count] = tuple(found)
            bandwidth[count] = memory_bandwidth(count)
            progress(done := done + 1, STEPS * len(threads))
    return Machine(
        kind="he-serve machine",
        version=1,
        description=description,
        instructions=instruction_sets()[0],
        source=source,
        bandwidth=bandwidth,
        threads=samples,
    )


def _mapped(path: Path) -> Bytes:
    """MEMORY bytes of zeros, which are residues of every prime however they are packed, mapped from a file."""
    write_arrays(path, {}, {"x": (MEMORY,)}, lambda name: [np.zeros(MEMORY, dtype=np.uint8)])
    return map_arrays(path)[1]["x"]


def measure_shape(shape: Shape, threads: int, stored: Bytes) -> Iterator[list[Sample]]:
    """The samples of one parameter set, level by level. stored: where keys and weights are read from."""
    p = shape.parameters()
    backend = make_backend(p, "cpu", threads)
    for level in shape.levels:
        yield [
            Sample(
                function=call.function,
                primes="wide" if shape in WIDE else "fast",
                log_degree=shape.log_degree,
                rows=len(p.extended_rows(level)),
                width=call.width,
                work=round(work(p.degree, call)),
                seconds=float(f"{seconds:.4g}"),
            )
            for call, seconds in _calls(backend, level, stored)
        ]


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that additions far larger than caches move, reads and writes together."""
    p = SHAPES[1].parameters()
    backend = make_backend(p, "cpu", threads)
    x = np.ones((MEMORY // 8 // p.degree, 1, p.degree), dtype=np.uint64)
    return 3 * x.nbytes / _typical(backend.add, x, x, (0,))


def _calls(backend: Backend, level: int, stored: Bytes) -> Iterator[tuple[Call, float]]:
    """Each function's call at `level` and its time."""
    p = backend.parameters
    data, extended, element = p.data_rows(level), p.extended_rows(level), p.galois_element(1)

    moduli = tuple(p.moduli[r] for r in extended)
    rng = np.random.default_rng(0)

    def take(i: int, length: int, *shape: int) -> Packed:
        """Array i of this shape in the file, begun again where it ends: packed [*shape][row][length]."""
        shape = (*shape, packed_bytes(moduli, length))
        size = math.prod(shape)
        start = i * size % max(len(stored) - size, 1) // 64 * 64
        return Packed(stored[start : start + size].reshape(shape), moduli, length)

    pair, wide = (random_residues(p, rows, rng, 2) for rows in (data, extended))
    one, moved = pair[0], pair[:1]
    digits = backend.decompose(one, level)
    key_bytes = 2 * len(digits) * packed_bytes(moduli, p.degree)
    count = min(max(MEMORY // key_bytes, 2), 32)
    keys = [KeySwitchKey(take(i, p.degree, len(digits), 2), level) for i in range(count)]
    decompose, product = decompose_call(p, level), key_product_call(p, level)
    yield decompose, _typical(backend.decompose, one, level)
    yield (
        product,
        _typical_of(lambda i: backend.key_product(digits, keys[i % count], level, element, moved), count),
    )
    yield (
        key_switch_call(decompose, product),
        _typical_of(lambda i: backend.key_switch(one, keys[i % count], level, element, moved), count),
    )
    for x in (wide[:1], wide):
        yield mod_down_call(p, level, len(x)), _typical(backend.mod_down, x, level)
    if level:
        yield rescale_call(level), _typical(backend.rescale, pair, level)
    add = Call("element_wise", level, 1, 0, 2 * len(extended))
    yield add, _typical(backend.add, wide, wide, extended)
    terms = [backend.add(wide, wide, extended) for _ in range(max(babies for babies, _, _ in SUMS))]
    for babies, sums, repeats in SUMS:
        most = MEMORY // packed_bytes(moduli, p.degree // repeats)
        plains = take(0, p.degree // repeats, min(babies * sums, most))
        chosen = [[(b, (g * babies + b) % most) for b in range(babies)] for g in range(sums)]
        call = sums_call(p, level, babies * sums, babies, sums, 1 / repeats)
        yield call, _typical(backend.multiply_sums, terms[:babies], plains, chosen, extended)


def _typical(function: Callable[..., object], *arguments: object) -> float:
    """The median time of REPEATS calls."""
    return float(np.median(_times(lambda i: function(*arguments), REPEATS)))


def _typical_of(call: Callable[[int], object], count: int) -> float:
    """The median time over `count` or more different keys, each from memory."""
    return float(np.median(_times(call, max(count, REPEATS))))


def _times(call: Callable[[int], object], count: int) -> list[float]:
    """Seconds of each of `count` calls, after one that warms up."""
    call(0)
    found = []
    for i in range(count):
        start = time.perf_counter()
        call(i + 1)
        found.append(time.perf_counter() - start)
    return found
