"""Matrix times encrypted vector by generalised diagonals: double-hoisted baby steps and giant steps.

Source: Bossuat, Mouchet, Troncoso-Pastoriza and Hubaux 2021 (IACR ePrint 2020/1203), section 4. The input is
decomposed once for all baby steps; baby rotations, products and giant rotations stay modulo Q*P, and one division
by P ends the transform. Everything modulo Q*P stands for P times the value of interest.
"""

from __future__ import annotations

from dataclasses import dataclass

from ckks.backends import Backend
from ckks.circuit import Hops, rotation_path
from ckks.encoded import EncodedWeights
from ckks.errors import EvaluationError
from ckks.packed import Packed
from ckks.types import Ciphertext, EvaluationKeys, KeySwitchKey, Residues

# Giant steps share each read of the baby steps. Their sums are in memory together: more of them only in place of baby steps.
GIANTS_AT_ONCE = 16

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
    used = {giant for giant, _ in steps}
    # Children before parents: what has met at a step goes on together. Step 0, where all paths end, comes last.
    order = [*reversed(rotation_path(used, giant_hops, slots)), (0, 0, 0)]
    wanted_babies = {baby for _, baby in steps}
    together = len(order) if len(order) <= max(GIANTS_AT_ONCE, len(wanted_babies)) else GIANTS_AT_ONCE
    babies = _baby_steps(backend, keys, a, wanted_babies, baby_hops, together == len(order))
    totals: dict[int, Residues] = {}

    def collect(giant: int, x: Residues) -> None:
        totals[giant] = backend.add(totals[giant], x, rows) if giant in totals else x

    for first in range(0, len(order), together):
        some = order[first : first + together]
        wanted = [giant for giant, _, _ in some if giant in used]
        sums = [
            [(babies.place[baby], i) for i, (giant, baby) in enumerate(steps) if giant == g] for g in wanted
        ]
        inner = list(babies.sums(backend, diagonals, sums, level)) if sums else []
        found = dict(zip(wanted, inner, strict=True))
        for giant, parent, key in some:
            if giant in found:
                collect(giant, found.pop(giant))
            if giant:
                collect(parent, _rotate(backend, keys, totals.pop(giant), level, key))
    return Ciphertext(backend.mod_down(totals[0], level), level, a.scale * weight_scale)


@dataclass(frozen=True, eq=False)
class _BabySteps:
    """The terms of a transform's sums: products that are made within the sums, then arrays. place: of each step among them."""

    digits: Residues | None
    moved: Residues
    products: list[tuple[KeySwitchKey, int]]
    arrays: list[Residues]
    place: dict[int, int]

    def sums(
        self, backend: Backend, diagonals: Packed, sums: list[list[tuple[int, int]]], level: int
    ) -> Residues:
        """[sum][2][level+1+K][N]."""
        if self.digits is None:
            return backend.multiply_sums(
                self.arrays, diagonals, sums, backend.parameters.extended_rows(level)
            )
        return backend.multiply_product_sums(
            self.digits, self.products, self.moved, self.arrays, diagonals, sums, level
        )


def _baby_steps(
    backend: Backend, keys: EvaluationKeys, a: Ciphertext, steps: set[int], hops: Hops, once: bool
) -> _BabySteps:
    """once: the sums are made in one call. Steps that only they need are then never whole in memory."""
    p, level, moved = backend.parameters, a.level, a.polys[..., :1, :, :]
    paths = rotation_path(steps, hops, p.slots)
    turns = {s: (keys.rotation(s, level), p.galois_element(s)) for s, parent, _ in paths if parent == 0}
    digits = backend.decompose(a.polys[..., 1, :, :], level) if turns else None
    products = {s: turn for s, turn in turns.items() if once and s not in {parent for _, parent, _ in paths}}
    arrays = {0: backend.times_p(a.polys, level)} if 0 in steps else {}
    for step, parent, key in paths:
        if parent:
            arrays[step] = _rotate(backend, keys, arrays[parent], level, key)
        elif step not in products and digits is not None:
            switch_key, element = turns[step]
            arrays[step] = backend.key_product(digits, switch_key, level, element, moved)
    place = {step: i for i, step in enumerate([*products, *arrays])}
    return _BabySteps(digits, moved, [*products.values()], [*arrays.values()], place)


def rotations_times_p(
    backend: Backend, keys: EvaluationKeys, a: Ciphertext, steps: set[int]
) -> dict[int, Residues]:
    """P times the rotations of `a` by each of `steps` (0..slots-1), [2][level+1+K][N] modulo Q*P each.

    One decomposition serves all (hoisting: Halevi and Shoup 2018, section 5).
    """
    zero = {0: backend.times_p(a.polys, a.level)} if 0 in steps else {}
    return zero | rotations(backend, keys, a, steps - {0})


def rotations(
    backend: Backend, keys: EvaluationKeys, a: Ciphertext, steps: set[int], divided: bool = False
) -> dict[int, Residues]:
    """As `rotations_times_p`, by steps other than 0; divided: the rotations themselves, [2][level+1][N] each."""
    p, level = backend.parameters, a.level
    moved = a.polys[..., :1, :, :]
    digits = backend.decompose(a.polys[..., 1, :, :], level) if len(steps) > 1 else None
    rotated = {}
    for step in sorted(steps):
        key, element = keys.rotation(step, level), p.galois_element(step)
        # An automorphism maps coefficients to plus or minus coefficients, and digits are centred in a
        # symmetric range: it commutes with decomposition.
        if digits is None:
            rotated[step] = backend.key_switch(a.polys[..., 1, :, :], key, level, element, moved, divided)
        else:
            rotated[step] = backend.key_product(digits, key, level, element, moved, divided)
    return rotated


def _rotate(backend: Backend, keys: EvaluationKeys, x: Residues, level: int, step: int) -> Residues:
    """Rotate [2][level+1+K][N] modulo Q*P: only the half that meets the secret key is divided by P on the way."""
    element = backend.parameters.galois_element(step)
    divided = backend.mod_down(x[..., 1, :, :], level)
    return backend.key_switch(divided, keys.rotation(step, level), level, element, x[..., :1, :, :])
