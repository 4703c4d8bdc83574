"""The verifier: a circuit that passes runs to its end on conformant inputs and keys, with the levels and scales it states."""

from __future__ import annotations

import math

import numpy as np

from ckks.bundle import MAX_MEMBERS, Bundle
from ckks.circuit import ARITY, Circuit, Hops, Instruction, Op, Weights, rotation_path
from ckks.errors import CircuitError
from ckks.parameters import Parameters
from ckks.types import Slots, same_scale

MAX_INSTRUCTIONS = 100_000
_WEIGHTED = (Op.ADD_PLAIN, Op.MULTIPLY_PLAIN, Op.LINEAR_TRANSFORM, Op.MATRIX)


def verify(circuit: Circuit, bundle: Bundle, weights: Weights) -> None:
    """Check every rule of ckks/circuit.py and that bundle and weights fit the circuit. Raises CircuitError naming the instruction."""
    parameters = bundle.checked_parameters()
    if circuit.slots != parameters.slots or not 0 < len(circuit.instructions) <= MAX_INSTRUCTIONS:
        raise CircuitError(
            f"circuit: {circuit.slots} slots do not fit N={parameters.degree}, or it is empty or too long"
        )
    three = set[int]()  # values of three polynomials
    members: list[int] = []  # by value: the size of its stack
    for i, ins in enumerate(circuit.instructions):
        try:
            operands = _operands(circuit, i, ins)
            _check_sizes(ins, three)
            _check_result(ins, operands, parameters)
            _check_attributes(ins, circuit.slots, weights, [members[o] for o in ins.operands])
        except CircuitError as error:
            raise CircuitError(f"instruction %{i} ({ins.op.value}): {error}") from None
        if ins.op is Op.MULTIPLY or (ins.op in (Op.MATRIX, Op.ADD) and ins.operands[0] in three):
            three.add(i)
        members.append(ins.members if ins.op in (Op.INPUT, Op.MATRIX) else members[ins.operands[0]])
    _check_interface(circuit, bundle, weights)


def check_scales(circuit: Circuit, parameters: Parameters) -> None:
    """Check what depends on the primes, for a circuit that was verified on others. Raises CircuitError."""
    for ins in circuit.instructions:
        _check_result(ins, [circuit.instructions[o] for o in ins.operands], parameters)
        _check_weight_scale(ins)


def _operands(circuit: Circuit, i: int, ins: Instruction) -> list[Instruction]:
    stacks = ins.op is Op.MATRIX and len(ins.operands) > 0
    if not stacks and len(ins.operands) != ARITY.get(ins.op, 1):
        raise CircuitError(f"takes {ARITY.get(ins.op, 1)} operands, has {len(ins.operands)}")
    for o in ins.operands:
        if not 0 <= o < i or circuit.instructions[o].op is Op.OUTPUT:
            raise CircuitError(f"operand %{o} is not an earlier value")
    return [circuit.instructions[o] for o in ins.operands]


def _check_sizes(ins: Instruction, three: set[int]) -> None:
    found = {o in three for o in ins.operands}
    summed = ins.op in (Op.MATRIX, Op.ADD) and len(found) == 1  # linear: one relinearisation may follow
    if not summed and found - {ins.op is Op.RELINEARISE}:
        raise CircuitError("products must be relinearised before any use but sums, and nothing else may be")


def _check_result(ins: Instruction, operands: list[Instruction], parameters: Parameters) -> None:
    if not 0 <= ins.level <= parameters.max_level or not math.isfinite(ins.scale) or ins.scale <= 1:
        raise CircuitError(f"level {ins.level} or scale {ins.scale} is out of range")
    if ins.scale >= math.prod(parameters.data_primes[: ins.level + 1]):
        raise CircuitError(
            f"scale 2^{math.log2(ins.scale):.1f} does not fit the modulus of level {ins.level}"
        )
    if ins.op is Op.INPUT:
        return
    a, level, scale = operands[0], operands[0].level, operands[0].scale
    if ins.op in (Op.ADD, Op.SUBTRACT, Op.MULTIPLY):
        b = operands[1]
        if b.level != level or (ins.op is not Op.MULTIPLY and not same_scale(scale, b.scale)):
            raise CircuitError(
                f"operands differ in level ({a.level}, {b.level}) or scale ({a.scale:.6g}, {b.scale:.6g})"
            )
        scale = scale * b.scale if ins.op is Op.MULTIPLY else scale
    elif ins.op in (Op.MULTIPLY_PLAIN, Op.LINEAR_TRANSFORM, Op.MATRIX):
        if any(b.level != level or not same_scale(scale, b.scale) for b in operands[1:]):
            raise CircuitError("the stacks differ in level or scale")
        scale *= ins.weight_scale
    elif ins.op is Op.RESCALE:
        if level == 0:
            raise CircuitError("nothing can be rescaled at level 0")
        level, scale = level - 1, scale / parameters.data_primes[level]
    elif ins.op is Op.DROP_LEVEL:
        level = min(level - 1, ins.level)
    if ins.level != level or not same_scale(scale, ins.scale):
        raise CircuitError(
            f"states level {ins.level} and scale {ins.scale:.6g}, its operands give {level} and {scale:.6g}"
        )


def _check_attributes(ins: Instruction, slots: int, weights: Weights, members: list[int]) -> None:
    """members: of the operands."""
    if not 0 <= ins.members <= MAX_MEMBERS or (len(set(members)) > 1 and ins.op is not Op.MATRIX):
        raise CircuitError(f"stacks must be of equal size, and have at most {MAX_MEMBERS} members")
    if ins.op in (Op.ROTATE, Op.LINEAR_TRANSFORM) and members[0]:
        raise CircuitError("takes a single ciphertext, not a stack")
    if ins.op is Op.ROTATE and not 0 < ins.steps < slots:
        raise CircuitError(f"rotation by {ins.steps} is not in 1..{slots - 1}")
    _check_weight_scale(ins)
    if ins.op not in _WEIGHTED:
        return
    if ins.weight not in weights:
        raise CircuitError(f"there is no weight called {ins.weight!r}")
    w = weights[ins.weight]
    if ins.op is Op.MATRIX and 0 in members:
        raise CircuitError("takes stacks, not single ciphertexts")
    if ins.op is Op.MATRIX or members[0]:
        _check_stack_weight(ins, w, sum(members))
        return
    period = w.shape[-1] if w.ndim else 0
    if (
        w.dtype != np.float64
        or period < 1
        or period & (period - 1)
        or period > slots
        or not np.isfinite(w).all()
    ):
        raise CircuitError(
            f"weight {ins.weight!r} must be finite float64 with a power-of-two period up to {slots}"
        )
    if ins.op is Op.LINEAR_TRANSFORM:
        if not ins.terms or w.shape != (len(ins.terms), period) or len(set(ins.terms)) != len(ins.terms):
            raise CircuitError(
                f"weight {ins.weight!r} must hold one diagonal for each of the {len(ins.terms)} distinct terms"
            )
        if any(not 0 <= step < slots for term in ins.terms for step in term):
            raise CircuitError(f"a term is outside 0..{slots - 1}")
        _check_hops({b for _, b in ins.terms}, ins.baby_hops, slots)
        _check_hops({g for g, _ in ins.terms}, ins.giant_hops, slots)
    elif w.ndim != 1:
        raise CircuitError(f"weight {ins.weight!r} must be a vector")


def _check_weight_scale(ins: Instruction) -> None:
    scaled = ins.op in (Op.MULTIPLY_PLAIN, Op.LINEAR_TRANSFORM, Op.MATRIX)
    if scaled and not 1 <= ins.weight_scale < 2.0**120:
        raise CircuitError(f"weight scale {ins.weight_scale} is out of range")


def _check_stack_weight(ins: Instruction, w: Slots, members: int) -> None:
    shape = (ins.members, members) if ins.op is Op.MATRIX else (members,)
    if w.dtype != np.float64 or not w.size or w.shape != shape or not np.isfinite(w).all():
        raise CircuitError(f"weight {ins.weight!r} must be finite float64 {list(shape)}, got {list(w.shape)}")
    if ins.op is Op.MATRIX and ins.products != np.count_nonzero(w):
        raise CircuitError(f"states {ins.products} products, its matrix has {np.count_nonzero(w)}")


def _check_hops(steps: set[int], hops: Hops, slots: int) -> None:
    if any(not 0 < n < slots for hop in hops for n in hop):
        raise CircuitError(f"a hop is outside 1..{slots - 1}")
    used = {step for step, _, _ in rotation_path(steps, hops, slots)}
    if len(dict(hops)) != len(hops) or not used.issuperset(dict(hops)):
        raise CircuitError("a hop is stated twice or never used")


def _check_interface(circuit: Circuit, bundle: Bundle, weights: Weights) -> None:
    inputs = [ins for ins in circuit.instructions if ins.op is Op.INPUT]
    outputs = [ins for ins in circuit.instructions if ins.op is Op.OUTPUT]
    for kind, found, expected in (
        ("inputs", inputs, bundle.input_ciphertexts),
        ("outputs", outputs, bundle.output_ciphertexts),
    ):
        if len(found) != len(expected) or {f.name: (f.level, f.scale) for f in found} != expected:
            raise CircuitError(
                f"the circuit's {kind} are not the bundle's {', '.join(map(repr, expected))} at their levels and scales"
            )
    announced_members = {Op.INPUT: bundle.input_members, Op.OUTPUT: bundle.output_members}
    for ins, members in zip(circuit.instructions, circuit.members(), strict=True):
        if members != announced_members.get(ins.op, members):
            raise CircuitError("the bundle announces other stacks than the circuit has")
    used = {o for ins in circuit.instructions for o in ins.operands}
    # A part of an input that no weight meets is sent all the same: what is sent does not depend on the weights.
    ends = (Op.INPUT, Op.OUTPUT)
    unused = [i for i, ins in enumerate(circuit.instructions) if i not in used and ins.op not in ends]
    if unused:
        raise CircuitError(f"values {unused[:5]} are never used")
    if extra := set(weights) - {ins.weight for ins in circuit.instructions}:
        raise CircuitError(f"weights {sorted(extra)[:5]} are never used")
    needs, announced = circuit.key_needs(), bundle.key_needs()
    if needs.relinearisation != announced.relinearisation or dict(needs.rotations) != dict(
        announced.rotations
    ):
        raise CircuitError("the bundle announces other evaluation keys than the circuit uses")
