"""Matrix times encrypted vector by generalised diagonals: double-hoisted baby steps and giant steps.

Source: Bossuat, Mouchet, Troncoso-Pastoriza and Hubaux 2021 (IACR ePrint 2020/1203), section 4. The input is
decomposed once for all baby steps; baby rotations, products and giant rotations stay modulo Q*P, and one division
by P ends the transform. Everything modulo Q*P stands for P times the value of interest.
"""

from __future__ import annotations

from ckks.backends import Backend
from ckks.circuit import Hops, rotation_path
from ckks.encoded import EncodedWeights
from ckks.errors import EvaluationError
from ckks.types import Ciphertext, EvaluationKeys, Residues

GIANTS_AT_ONCE = 16  # giant steps share each read of the baby steps; their sums are in memory together

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
    place = {baby: i for i, baby in enumerate(babies)}
    used = {giant for giant, _ in steps}
    totals: dict[int, Residues] = {}

    def collect(giant: int, x: Residues) -> None:
        totals[giant] = backend.add(totals[giant], x, rows) if giant in totals else x

    # Children before parents: what has met at a step goes on together. Step 0, where all paths end, comes last.
    order = [*reversed(rotation_path(used, giant_hops, slots)), (0, 0, 0)]
    for first in range(0, len(order), GIANTS_AT_ONCE):
        some = order[first : first + GIANTS_AT_ONCE]
        wanted = [giant for giant, _, _ in some if giant in used]
        sums = [[(place[baby], i) for i, (giant, baby) in enumerate(steps) if giant == g] for g in wanted]
        inner = list(backend.multiply_sums([*babies.values()], diagonals, sums, rows)) if sums else []
        found = dict(zip(wanted, inner, strict=True))
        for giant, parent, key in some:
            if giant in found:
                collect(giant, found.pop(giant))
            if giant:
                collect(parent, _rotate(backend, keys, totals.pop(giant), level, key))
    return Ciphertext(backend.mod_down(totals[0], level), level, a.scale * weight_scale)


def rotations_times_p(
    backend: Backend, keys: EvaluationKeys, a: Ciphertext, steps: set[int]
) -> dict[int, Residues]:
    """P times the rotations of `a` by each of `steps` (0..slots-1), [2][level+1+K][N] modulo Q*P each.

    One decomposition serves all (hoisting: Halevi and Shoup 2018, section 5).
    """
    p, level = backend.parameters, a.level
    rotations = {}
    if 0 in steps:
        rotations[0] = backend.times_p(a.polys, level)
    others, moved = sorted(steps - {0}), a.polys[..., :1, :, :]
    digits = backend.decompose(a.polys[..., 1, :, :], level) if len(others) > 1 else None
    for step in others:
        key, element = keys.rotation(step, level), p.galois_element(step)
        # An automorphism maps coefficients to plus or minus coefficients, and digits are centred in a
        # symmetric range: it commutes with decomposition.
        if digits is None:
            rotations[step] = backend.key_switch(a.polys[..., 1, :, :], key, level, element, moved)
        else:
            rotations[step] = backend.key_product(digits, key, level, element, moved)
    return rotations


def _rotate(backend: Backend, keys: EvaluationKeys, x: Residues, level: int, step: int) -> Residues:
    """Rotate [2][level+1+K][N] modulo Q*P: only the half that meets the secret key is divided by P on the way."""
    element = backend.parameters.galois_element(step)
    divided = backend.mod_down(x[..., 1, :, :], level)
    return backend.key_switch(divided, keys.rotation(step, level), level, element, x[..., :1, :, :])
