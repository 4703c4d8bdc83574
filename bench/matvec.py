"""An encrypted 1024 x 1024 matrix-vector product beside OpenFHE: `python -m bench.matvec --json FILE`.

Both sides run the same two circuits on equal parameters and threads, each as its own primitives do it best. It needs a Python 3.10,
named by HE_SERVE_PYTHON310. Every result is decrypted and checked in every slot that holds one.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console

from bench import _common as common
from bench import _openfhe as openfhe
from bench._cases import Case, Pair, compare_cases, print_rows, promised_error
from bench._ours import Ours
from ckks.linear import Terms
from ckks.packed import pack
from ckks.types import Ciphertext, Slots

SIZE, SETTING, TARGET = 1024, openfhe.Setting(1 << 14, 8, 42, 36), 7.0
PAIRS, LEAST_S, BUDGET_S = 7, 0.5, 40.0
FULL, PACKED = "1024 diagonals", "128 diagonals, 8 blocks"


@dataclass(frozen=True, eq=False)
class Transform:
    """y = sum of diagonals times rotations of x, rescaled; then y plus its rotations by all of `folds`.

    x: float64 [period], the vector as it is encrypted. diagonals: float64 [k][period]; diagonal i goes with the rotation by the sum of
    terms[i] = (giant, baby). clear: float64 [period], what the slots then hold; NaN where a slot holds nothing of use.
    """

    x: Slots
    diagonals: Slots
    terms: Terms
    folds: tuple[int, ...]
    clear: Slots

    @property
    def steps(self) -> set[int]:
        """All rotations."""
        return ({step for term in self.terms for step in term} | set(self.folds)) - {0}


def full_transform(matrix: Slots, vector: Slots, babies: int) -> Transform:
    """All diagonals of a square matrix; the vector fills the slots periodically. Halevi and Shoup 2014, section 4.3."""
    size, i = len(vector), np.arange(len(vector))
    diagonals = np.stack([matrix[i, (i + k) % size] for k in range(size)])
    terms = tuple((k - k % babies, k % babies) for k in range(size))
    return Transform(vector, diagonals, terms, (), matrix @ vector)


def packed_transform(matrix: Slots, vector: Slots, slots: int, babies: int) -> Transform:
    """size * size / slots diagonals: slot i * blocks + b works on row i and the b-th block of columns; folds add the blocks.

    The client encrypts x in this layout: block b is the vector rotated by b * size / blocks.
    """
    size = len(vector)
    blocks, s = slots // size, np.arange(slots)
    count, i, b = size // blocks, s // blocks, s % blocks
    diagonals = np.stack([matrix[i, (i + k + count * b) % size] for k in range(count)])
    terms = tuple((blocks * (k - k % babies), blocks * (k % babies)) for k in range(count))
    clear = np.where(b == 0, (matrix @ vector)[i], np.nan)
    return Transform(vector[(i + count * b) % size], diagonals, terms, tuple(range(1, blocks)), clear)


def run_ours(ours: Ours, transform: Transform, name: str, x: Ciphertext) -> Ciphertext:
    """Our composition: one call for the transform (double-hoisted), a rescale, and the folds one level down: times one, summed in QP."""
    evaluator, backend, p = ours.evaluator, ours.evaluator.backend, ours.parameters
    result = evaluator.linear_transform(x, name, float(p.data_primes[x.level]), transform.terms)
    result = evaluator.rescale(result)
    if not transform.folds:
        return result
    level, polys = result.level, result.polys
    keys = [(evaluator.keys.rotation(step, level), p.galois_element(step)) for step in transform.folds]
    one = pack(
        np.ones((1, len(p.extended_rows(level)), 1), np.uint64),
        tuple(p.moduli[r] for r in p.extended_rows(level)),
    )
    total = backend.multiply_product_sums(
        backend.decompose(polys[1], level),
        keys,
        polys[:1],
        [backend.times_p(polys, level)],
        one,
        [[(i, 0) for i in range(len(keys) + 1)]],
        level,
    )[0]
    return Ciphertext(backend.mod_down(total, level), level, result.scale)


def ours_error(ours: Ours, transform: Transform, result: Ciphertext) -> float:
    """Largest absolute error over the slots that hold a result."""
    clear = np.tile(transform.clear, ours.parameters.slots // len(transform.clear))
    return float(np.nanmax(np.abs(ours.key.decrypt(result) - clear)))


def measure(python: Path, threads: int, refused: list[str], say: Callable[[str], None]) -> list[common.Row]:
    """A row per layout. Raises OpenFheError, UnfairComparisonError."""
    rng, slots = np.random.default_rng(7), SETTING.degree // 2
    matrix, vector = rng.uniform(-1, 1, (SIZE, SIZE)) / SIZE**0.5, rng.uniform(-1, 1, SIZE)
    # Ours; OpenFHE's with as many baby steps as it is fastest with, and whether its products are in QP, likewise.
    layouts = {
        PACKED: (packed_transform(matrix, vector, slots, 32), packed_transform(matrix, vector, slots, 32), True),
        FULL: (full_transform(matrix, vector, 32), full_transform(matrix, vector, 32), False),
    }  # fmt: skip
    say(f"{threads} threads: making keys")
    rows = []
    with openfhe.OpenFheSide.start(python, SETTING, threads) as other:
        ours = Ours(
            other.parameters,
            threads,
            set().union(*(mine.steps for mine, *_ in layouts.values())),
            {name: mine.diagonals for name, (mine, *_) in layouts.items()},
        )
        scale = 2.0**SETTING.scale_bits
        pair = Pair(
            other.parameters,
            openfhe.NAME,
            openfhe.VERSION,
            (threads, threads),
            promised_error(SETTING.degree, scale),
            other.log_qp,
        )
        for name, (mine, theirs, extended) in layouts.items():
            say(f"{threads} threads: OpenFHE encodes {name}")
            with tempfile.TemporaryDirectory(prefix="he-serve-bench-") as folder:
                file = Path(folder, "transform.npz")
                np.savez(file, **vars(theirs))
                other.ask("matvec", name=name, file=str(file), extended=extended)
            run = partial(run_ours, ours, mine, name, ours.encrypt(mine.x, scale))
            case = Case(
                name,
                partial(common.repeat, run),
                lambda run=run, mine=mine: ours_error(ours, mine, run()),
                partial(other.time, name),
                partial(other.error, name),
                TARGET,
                {"shape": f"2^{SETTING.degree.bit_length() - 1}, {SETTING.limbs}"},
            )
            found = compare_cases(pair, [case], refused, say, pairs=PAIRS, least_s=LEAST_S, budget_s=BUDGET_S)
            for row in found:
                row.more["ours_peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                row.more["other_peak_rss_bytes"] = other.peak()
            rows += found
            other.ask("forget", name=name)
    return rows


def main() -> int:
    """Run the suite with one thread and with T; 1 if a comparison was refused."""
    arguments = common.parse(__doc__, "bench.matvec")
    refused: list[str] = []
    rows: list[common.Row] = []
    try:
        python = openfhe.find_python()
        if python is None:
            print(f"no comparison with OpenFHE: {openfhe.INTERPRETER} names no Python 3.10", file=sys.stderr)
            return 0
        with Console(stderr=True).status("starting") as status:
            for threads in sorted({1, arguments.threads}):
                rows += measure(python, threads, refused, status.update)
    except (common.UnfairComparisonError, openfhe.OpenFheError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    common.write_report(arguments.json, common.report(rows, arguments.threads))
    print_rows(f"Encrypted {SIZE} x {SIZE} matrix times vector", rows)
    for text in refused:
        print(f"refused: {text}", file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
