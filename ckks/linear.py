"""Matrix times encrypted vector by generalised diagonals: double-hoisted baby steps and giant steps.

Source: Bossuat, Mouchet, Troncoso-Pastoriza and Hubaux 2021 (IACR ePrint 2020/1203), section 4. The input is
decomposed once for all baby steps; baby rotations, products and giant rotations stay modulo Q*P, and one division
by P ends the transform. Everything modulo Q*P stands for P times the value of interest.
"""

from __future__ import annotations

import numpy as np

from ckks.backends import Backend
from ckks.circuit import Hops, rotation_path
from ckks.encoded import EncodedWeights
from ckks.errors import EvaluationError
from ckks.types import Ciphertext, EvaluationKeys, Residues

Terms = tuple[tuple[int, int], ...]


def linear_transform(
    backend: Backend,
    keys: EvaluationKeys,
    weights: EncodedWeights,
    a: Ciphertext,
    weight: str,
    weight_scale: float,
    terms: Terms,
    baby_hops: Hops = (),
    giant_hops: Hops = (),
) -> Ciphertext:
    """y[t] = sum_k diagonal_k[t] * x[t + giant_k + baby_k] for the slots x of `a` (two polynomials).

    Hops (ckks.circuit.Instruction) stand in for keys: a baby is then rotated from another baby, and what giants share of their way is
    rotated once, for the sum of them.
    The result has a's level and scale a.scale * weight_scale. Raises EvaluationError, MissingKeyError.
    """
    level, slots = a.level, backend.parameters.slots
    if not terms:
        raise EvaluationError("a linear transform needs at least one diagonal")
    rows = backend.parameters.extended_rows(level)
    steps = [(giant % slots, baby % slots) for giant, baby in terms]
    diagonals = weights.diagonals(weight, level, weight_scale, tuple(giant for giant, _ in steps))
    paths = rotation_path({baby for _, baby in steps}, baby_hops, slots)
    hoisted = {step for step, parent, _ in paths if parent == 0}
    babies = rotations_times_p(backend, keys, a, hoisted | ({0} & {baby for _, baby in steps}))
    for step, parent, key in paths:
        if parent:
            babies[step] = _rotate(backend, keys, babies[parent], level, key)

    sums: dict[int, Residues] = {}

    def collect(giant: int, x: Residues) -> None:
        sums[giant] = backend.add(sums[giant], x, rows) if giant in sums else x

    def inner(giant: int) -> None:
        chosen = [i for i, step in enumerate(steps) if step[0] == giant]
        if chosen:
            rotated = [babies[steps[i][1]] for i in chosen]
            collect(giant, backend.multiply_sum(rotated, [diagonals[i] for i in chosen], rows))

    # Children before parents: what has met at a step goes on together.
    for giant, parent, key in reversed(rotation_path({giant for giant, _ in steps}, giant_hops, slots)):
        inner(giant)
        collect(parent, _rotate(backend, keys, sums.pop(giant), level, key))
    inner(0)
    return Ciphertext(backend.mod_down(sums[0], level), level, a.scale * weight_scale)


def rotations_times_p(
    backend: Backend, keys: EvaluationKeys, a: Ciphertext, steps: set[int]
) -> dict[int, Residues]:
    """P times the rotations of `a` by each of `steps` (0..slots-1), [2][level+1+K][N] modulo Q*P each.

    One decomposition serves all (hoisting: Halevi and Shoup 2018, section 5).
    """
    p, level = backend.parameters, a.level
    rotations = {}
    if 0 in steps:
        data = p.data_rows(level)
        factors = np.array([p.special_product % p.moduli[r] for r in data], dtype=np.uint64)
        specials = np.zeros((2, len(p.special_primes), p.degree), dtype=np.uint64)  # P*c is 0 modulo them
        rotations[0] = np.concatenate([backend.multiply_scalars(a.polys, factors, data), specials], axis=1)
    if others := sorted(steps - {0}):
        digits = backend.decompose(a.polys[1], level)
        for step in others:
            # An automorphism maps coefficients to plus or minus coefficients, and digits are centred in a
            # symmetric range: it commutes with decomposition.
            key, element = keys.rotation(step, level), p.galois_element(step)
            rotations[step] = backend.key_product(digits, key, level, element, a.polys[:1])
    return rotations


def _rotate(backend: Backend, keys: EvaluationKeys, x: Residues, level: int, step: int) -> Residues:
    """Rotate [2][level+1+K][N] modulo Q*P: only the half that meets the secret key is divided by P on the way."""
    digits = backend.decompose(backend.mod_down(x[1], level), level)
    element = backend.parameters.galois_element(step)
    return backend.key_product(digits, keys.rotation(step, level), level, element, x[:1])
