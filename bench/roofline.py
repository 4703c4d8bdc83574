"""Operations on one thread beside what the machine allows: `python -m bench.roofline --json FILE`.

Counted are the multiplications (multiply-adds) that an operation cannot do without, the bytes that it reads and writes at least
once, and those of them that no cache holds: keys and encoded diagonals. The bound is the longer of two times, that of the multiplications
at the peak that `bench._floor` measures and that of the bytes that no cache holds at the rate at which one thread reads memory.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import cycle
from time import process_time

import numpy as np

from bench import _common as common
from bench import _floor
from ckks.backends import make_backend
from ckks.kernels._cpu import instruction_sets
from ckks.packed import pack
from ckks.parameters import Parameters
from ckks.primes import ntt_primes
from ckks.types import KeySwitchKey, Residues

DEGREE, LIMBS, FIRST_BITS, SCALE_BITS = 1 << 14, 8, 42, 36  # as bench.ops has beside OpenFHE: dnum 3
SPECIAL_BITS, DIGIT = 40, 3
PRODUCT = 2  # multiply-adds of an exact product that is added to a sum
KEYS, TERMS, SUMS = 8, 16, 8  # more keys, and more plaintexts, than caches hold
LEAST_S, LEAST_CALLS = 1.0, 20


@dataclass(frozen=True)
class Machine:
    """One thread: multiply-adds a second, on all lanes, in the mix of a butterfly; those of one butterfly; bytes a second from memory."""

    multiplications_per_s: float
    butterfly: int
    bytes_per_s: float

    @staticmethod
    def measure() -> Machine | None:
        """None without a C++ compiler."""
        floor = _floor.Floor.build(DEGREE, instruction_sets()[0] == "avx512ifma")
        if floor is None:
            return None
        butterfly = _floor.WHOLE_MULTIPLICATIONS if floor.whole else _floor.MULTIPLICATIONS
        return Machine(
            butterfly / floor.butterfly_ns(2000) * 1e9, butterfly, _floor.read_gbytes_per_s() * 1e9
        )


@dataclass(frozen=True)
class Operation:
    """What is timed, the multiplications and bytes that it needs, and how many of these come from memory."""

    name: str
    call: Callable[[], object]
    multiplications: int
    bytes: int
    streamed_bytes: int = 0


def parameters() -> Parameters:
    first = ntt_primes(DEGREE, FIRST_BITS, 1)
    data = first + ntt_primes(DEGREE, SCALE_BITS, LIMBS - 1, first)
    return Parameters(DEGREE, data, ntt_primes(DEGREE, SPECIAL_BITS, 3, data), DIGIT)


def operations(p: Parameters, butterfly: int) -> list[Operation]:
    """All at the top level, on random residues. butterfly: multiply-adds of one."""
    backend, n, level = make_backend(p), p.degree, p.max_level
    data, rows = p.data_rows(level), p.extended_rows(level)
    special, digits = len(rows) - len(data), p.digits(level)
    rng = np.random.default_rng(1)

    def residues(which: tuple[int, ...], *leading: int) -> Residues:
        q = np.array([p.moduli[r] for r in which], dtype=np.uint64)[:, None]
        return rng.integers(0, q, size=(*leading, len(which), n), dtype=np.uint64)

    transform, row_bytes = n // 2 * (n.bit_length() - 1) * butterfly, 8 * n

    def conversion(sources: int) -> int:
        """To one row, and its transform; a single source needs no products."""
        return transform + (n * (sources + 1) * PRODUCT if sources > 1 else 0)

    digit_rows = [(stop - start, len(rows) - (stop - start)) for start, stop in digits]
    decomposed = len(data) * transform + sum(count * conversion(sources) for sources, count in digit_rows)
    product = len(digits) * len(rows) * 2 * n * PRODUCT
    wide_bytes, digit_bytes = 2 * len(rows) * row_bytes, len(digits) * len(rows) * row_bytes
    x, wide, decomposition = residues(data), residues(rows, 2), backend.decompose(residues(data), level)
    keys = [KeySwitchKey.from_residues(p, residues(rows, len(digits), 2), level) for _ in range(KEYS)]
    key_bytes, next_key = keys[0].digits.data.nbytes, cycle(keys)
    terms = [residues(rows, 2) for _ in range(TERMS)]
    plains = pack(residues(rows, TERMS * SUMS), tuple(p.moduli[r] for r in rows))
    sums = [[(i, s * TERMS + i) for i in range(TERMS)] for s in range(SUMS)]
    pair = residues(data, 2)
    division = n * butterfly
    one = x[:1].copy()
    return [
        Operation("forward NTT, one limb", lambda: backend.forward(one, (0,)), transform, 2 * row_bytes),
        Operation("inverse NTT, one limb", lambda: backend.inverse(one, (0,)), transform, 2 * row_bytes),
        Operation(
            "key switch, with mod-up",
            lambda: backend.key_switch(x, next(next_key), level),
            decomposed + product,
            key_bytes + len(data) * row_bytes + wide_bytes,
            key_bytes,
        ),
        Operation(
            "key product, of a hoisted rotation",
            lambda: backend.key_product(decomposition, next(next_key), level, 3),
            product,
            key_bytes + digit_bytes + wide_bytes,
            key_bytes,
        ),
        Operation(
            "mod-down, two polynomials",
            lambda: backend.mod_down(wide, level),
            2 * (special * transform + len(data) * (conversion(special) + division)),
            wide_bytes + 2 * len(data) * row_bytes,
        ),
        Operation(
            "rescale, two polynomials",
            lambda: backend.rescale(pair, level),
            2 * (transform + (len(data) - 1) * (transform + division)),
            2 * (2 * len(data) - 1) * row_bytes,
        ),
        Operation(
            f"linear transform, {TERMS} x {SUMS} diagonals",
            lambda: backend.multiply_sums(terms, plains, sums, rows),
            TERMS * SUMS * len(rows) * 2 * n * PRODUCT,
            plains.data.nbytes + (TERMS + SUMS) * wide_bytes,
            plains.data.nbytes,
        ),
    ]


def measure(operation: Operation, machine: Machine, p: Parameters, least_s: float = LEAST_S) -> common.Row:
    """The row of one operation; ratio is the part of the bound's rate that it reaches."""
    operation.call()
    times: list[float] = []
    while sum(times) < least_s or len(times) < LEAST_CALLS:
        start = process_time()
        operation.call()
        times.append(process_time() - start)
    arithmetic = operation.multiplications / machine.multiplications_per_s
    memory = operation.streamed_bytes / machine.bytes_per_s
    bound, median = max(arithmetic, memory), statistics.median(times)
    return common.Row(
        name=operation.name,
        parameters=str(p),
        ours_s=median,
        ours_version=version("he-serve"),
        other="memory" if memory > arithmetic else "arithmetic",
        other_version="1",
        other_s=bound,
        ratio=bound / median,
        ratio_min=bound / max(times),
        ratio_max=bound / min(times),
        ours_error=0.0,
        other_error=0.0,
        more={
            "threads": 1,
            "multiplications": operation.multiplications,
            "bytes": operation.bytes,
            "streamed_bytes": operation.streamed_bytes,
            "multiplications_per_byte": operation.multiplications / operation.bytes,
            "part_of_peak": arithmetic / median,
            "part_of_bandwidth": memory / median,
            "peak_multiplications_per_s": machine.multiplications_per_s,
            "read_bytes_per_s": machine.bytes_per_s,
            "instructions": instruction_sets()[0],
        },
    )


def main() -> int:
    """1 without a C++ compiler."""
    arguments = common.parse(__doc__, "bench.roofline")
    machine = Machine.measure()
    if machine is None:
        print("there is no C++ compiler to measure this machine's peak with", file=sys.stderr)
        return 1
    p = parameters()
    rows = [measure(operation, machine, p) for operation in operations(p, machine.butterfly)]
    common.write_report(arguments.json, common.report(rows, 1))
    lines = [
        [
            r.name,
            f"{r.more['multiplications'] / 1e6:.1f} M",
            common.size(r.more["bytes"]),
            common.size(r.more["streamed_bytes"]),
            common.seconds(r.ours_s),
            f"{r.more['part_of_peak']:.0%}",
            f"{r.more['part_of_bandwidth']:.0%}",
            f"{r.ratio:.0%} ({r.ratio_max:.0%})",
            r.other,
        ]
        for r in rows
    ]
    columns = [
        "operation",
        "multiplications",
        "bytes",
        "streamed",
        "time",
        "of peak",
        "of memory",
        "of bound (best)",
        "bound",
    ]
    peaks = f"{machine.multiplications_per_s / 1e9:.1f} G multiply-adds/s, {machine.bytes_per_s / 1e9:.1f} GB/s read"
    common.print_table(f"{instruction_sets()[0]}, one thread: {peaks}", columns, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
