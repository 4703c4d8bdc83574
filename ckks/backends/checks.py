"""Arguments of backend functions, looked at before a kernel sees them: what the CPU and the GPU backend refuse alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckks.backends import Rows
from ckks.errors import EvaluationError
from ckks.packed import Packed, packed_bytes
from ckks.parameters import Parameters


def require_rows(p: Parameters, rows: Rows) -> None:
    """Raise EvaluationError unless rows name primes of `p`, one at least."""
    if not rows or min(rows) < 0 or max(rows) >= len(p.moduli):
        raise EvaluationError(f"rows must name primes 0..{len(p.moduli) - 1}, got {rows}")


def extended_rows(p: Parameters, level: int) -> Rows:
    """The data rows of a level and the special rows. Raises EvaluationError for a level that does not exist."""
    if not 0 <= level <= p.max_level:
        raise EvaluationError(f"levels go from 0 to {p.max_level}, got {level}")
    return p.extended_rows(level)


def galois_element(p: Parameters, element: int) -> int:
    """The element modulo 2N. Raises EvaluationError for an even one."""
    if element % 2 == 0:
        raise EvaluationError(f"a Galois element is odd, got {element}")
    return element % (2 * p.degree)


def require_packed(p: Parameters, x: Packed, leading: tuple[int, ...], rows: Rows) -> None:
    """Raise EvaluationError unless x holds these leading axes of polynomials over `rows`."""
    moduli = tuple(p.moduli[r] for r in rows)
    shape = (*leading, packed_bytes(moduli, x.length))
    if x.moduli != moduli or x.data.shape != shape or x.data.dtype != np.uint8:
        raise EvaluationError(
            f"packed rows of {len(x.moduli)} primes do not fit; got the shape {x.data.shape}, needed {shape} for rows {rows}"
        )


def require_sums(
    p: Parameters, terms: int, plains: Packed, sums: Sequence[Sequence[tuple[int, int]]], rows: Rows
) -> None:
    """Raise EvaluationError unless every sum has products, of terms and plaintexts that exist, over a length that divides N."""
    require_rows(p, rows)
    if not sums or not all(sums):
        raise EvaluationError("every sum needs a product")
    if any(not (0 <= i < terms and 0 <= j < len(plains.data)) for one in sums for i, j in one):
        raise EvaluationError("a product names a term or a plaintext that does not exist")
    if plains.length < 1 or p.degree % plains.length:
        raise EvaluationError(f"a plaintext holds a divisor of {p.degree} values a row, got {plains.length}")


def require_moved(shape: tuple[int, ...], level: int, rows: int) -> None:
    """Raise EvaluationError unless what moves with a key product is one or two polynomials over the data rows or all."""
    if len(shape) != 3 or shape[0] > 2 or shape[1] not in (level + 1, rows):
        raise EvaluationError(f"what moves with a key product cannot have the shape {shape}")
