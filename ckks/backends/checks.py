"""Arguments of backend functions, looked at before a kernel sees them: what the CPU and the GPU backend refuse alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ckks.backends import Rows
from ckks.errors import EvaluationError
from ckks.packed import Packed, packed_bytes
from ckks.parameters import Parameters
from ckks.types import Residues


def require_rows(p: Parameters, rows: Rows) -> None:
    """Raise EvaluationError unless rows name primes of `p`, one at least."""
    count = len(p.moduli)
    for row in rows or (-1,):
        if not 0 <= row < count:
            raise EvaluationError(f"rows must name primes 0..{count - 1}, got {rows}")


def require_scalars(p: Parameters, scalars: Residues, rows: Rows) -> None:
    """Raise EvaluationError unless scalars [row] are residues modulo the primes of their rows."""
    if any(int(w) >= p.moduli[r] for w, r in zip(scalars, rows, strict=True)):
        raise EvaluationError("a scalar is not reduced modulo the prime of its row")


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


def require_matrix(
    p: Parameters,
    stacks: Sequence[tuple[int, ...]],
    terms: Residues,
    factors: Residues,
    outputs: int,
    rows: Rows,
) -> None:
    """Raise EvaluationError unless terms and factors (see Backend.matrix) belong to stacks of these shapes and so many outputs."""
    member = stacks[0][1:] if stacks else ()
    if len(member) != 3 or any(shape[1:] != member for shape in stacks) or outputs < 1:
        raise EvaluationError(f"a matrix maps stacks of ciphertexts to one, got {stacks} to {outputs}")
    count = np.shape(terms)[-1:]
    if np.shape(terms) != (2, *count) or np.shape(factors) != (len(rows), *count):
        raise EvaluationError(
            f"a matrix has terms [2][term] and factors [row][term], got {np.shape(terms)} and {np.shape(factors)}"
        )
    limits = np.array([[outputs], [sum(shape[0] for shape in stacks)]], dtype=np.uint64)
    if (terms >= limits).any() or (terms[0, :-1] > terms[0, 1:]).any():
        raise EvaluationError("the terms of a matrix must lie in it, in the order of its outputs")
    moduli = np.array([p.moduli[r] for r in rows], dtype=np.uint64)
    if (factors >= moduli[:, None]).any():
        raise EvaluationError("a factor is not reduced modulo the prime of its row")
