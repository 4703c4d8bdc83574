"""A circuit on another prime chain: the same instructions, weights and levels, with the scales that follow from the new primes.

A circuit states scales, which depend on its primes exactly; its weights do not depend on them. A client whose library chose the primes
(OpenFHE) names them, and the model is evaluated on those: nothing is compiled again.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ckks.bundle import Bundle
from ckks.circuit import Circuit, Instruction, Op, rotation_steps
from ckks.errors import CircuitError, ParameterError
from ckks.modelfile import CompiledModel, circuit_bytes, sha256
from ckks.noise import NoiseModel
from ckks.parameters import Parameters
from ckks.verify import check_scales, verify

# What a noise may grow by, and room above the values shrink by. The promised error is six times the worst that was simulated when the
# model was compiled (compiler/precision.py): this leaves almost five.
TOLERANCE = 1.25

_WEIGHTED = (Op.MULTIPLY_PLAIN, Op.LINEAR_TRANSFORM, Op.MATRIX)
_KEEPING = (Op.ADD_PLAIN, Op.RELINEARISE, Op.ROTATE, Op.DROP_LEVEL)  # the scale


def rebase(bundle: Bundle, circuit: Circuit, parameters: Parameters) -> tuple[Bundle, Circuit]:
    """The bundle and the circuit of a verified model on the primes of `parameters`: same ring, as many data primes, any digits.

    Inputs keep their scales, outputs state those that follow. Weights stay as they are. Raises ParameterError, which names the limb and the
    remedy, for primes on which the promised error would not hold.
    """
    compiled = bundle.checked_parameters()
    if parameters == compiled:
        return bundle, circuit
    if parameters.degree != compiled.degree:
        raise ParameterError(f"the model needs N={compiled.degree}, this prime set has N={parameters.degree}")
    if len(parameters.data_primes) != len(compiled.data_primes):
        raise ParameterError(
            f"the model needs {len(compiled.data_primes)} data primes (a depth of {compiled.max_level}), "
            f"this prime set has {len(parameters.data_primes)}"
        )
    rebased = _rescaled(circuit, compiled, parameters)
    _check_precision(circuit, rebased, compiled, parameters)
    try:
        check_scales(rebased, parameters)
    except CircuitError as error:
        raise ParameterError(f"this circuit cannot be moved to other primes: {error}") from None
    scales = {i.name: i.scale for i in rebased.instructions if i.op is Op.OUTPUT}
    if any(len({scales[part] for part in o.ciphertexts}) > 1 for o in bundle.outputs):
        raise ParameterError(
            "this circuit cannot be moved to other primes: parts of an output would differ in scale"
        )
    found = [scales[o.ciphertexts[0]] for o in bundle.outputs]
    return _on(bundle, parameters, found, sha256(circuit_bytes(rebased))), rebased


def _on(bundle: Bundle, parameters: Parameters, scales: list[float], circuit_digest: str) -> Bundle:
    """scales: of the outputs."""
    pairs = zip(bundle.outputs, scales, strict=True)
    outputs = [spec.model_copy(update={"scale": scale}) for spec, scale in pairs]
    changed = {"parameters": parameters.to_json(), "outputs": outputs, "circuit_digest": circuit_digest}
    return bundle.model_copy(update=changed)


def is_rebased(found: Bundle, bundle: Bundle, parameters: Parameters) -> bool:
    """Whether `found` differs from `bundle` only by what `rebase` to `parameters` changes. For clients, who do not have the circuit."""
    scales = [o.scale for o in found.outputs]
    return len(scales) == len(bundle.outputs) and found == _on(
        bundle, parameters, scales, found.circuit_digest
    )


def rebase_model(model: CompiledModel, parameters: Parameters) -> CompiledModel:
    """As `rebase`, for a whole model, verified again. Raises ParameterError or CircuitError."""
    bundle, circuit = rebase(model.bundle, model.circuit, parameters)
    verify(circuit, bundle, model.weights)
    return replace(model, bundle=bundle, circuit=circuit)


def _rescaled(circuit: Circuit, old: Parameters, new: Parameters) -> Circuit:
    """Scales computed forwards; weight scales, which are free, so that sums still meet and the rest lands on the scale it had."""
    users: list[list[int]] = [[] for _ in circuit.instructions]
    for i, ins in enumerate(circuit.instructions):
        for o in ins.operands:
            users[o].append(i)
    made: list[Instruction] = []
    for i, ins in enumerate(circuit.instructions):
        scale, weight_scale = ins.scale, ins.weight_scale
        if ins.op is not Op.INPUT:
            scale = made[ins.operands[0]].scale
        if ins.op is Op.MULTIPLY:
            scale *= made[ins.operands[1]].scale
        elif ins.op is Op.RESCALE:
            scale /= new.data_primes[ins.level + 1]
        elif ins.op in _WEIGHTED:
            weight_scale = ins.scale * _wanted(circuit, i, users, made, old, new) / scale
            scale *= weight_scale
        made.append(replace(ins, scale=scale, weight_scale=weight_scale))
    return Circuit(circuit.slots, tuple(made))


def _wanted(
    circuit: Circuit,
    i: int,
    users: list[list[int]],
    made: list[Instruction],
    old: Parameters,
    new: Parameters,
) -> float:
    """The factor on the scale of value `i`, whose weight scale is free.

    Its way is followed through what keeps or changes a scale, to the first sum with a value that is known already, which it has to meet,
    or to where scales are free again: there it shall have the scale that it had.
    """
    start, factor = i, 1.0
    while users[i]:
        user = users[i][0]
        ins = circuit.instructions[user]
        other = next((o for o in ins.operands if o != i), i)
        while circuit.instructions[other].op in _KEEPING:
            other = circuit.instructions[other].operands[0]
        met = made[other].scale / circuit.instructions[other].scale if other < start else None
        if ins.op in (Op.ADD, Op.SUBTRACT) and met is not None:
            return met / factor
        if ins.op is Op.MULTIPLY and met is not None:
            factor *= met
        elif ins.op is Op.RESCALE:
            factor *= old.data_primes[ins.level + 1] / new.data_primes[ins.level + 1]
        elif ins.op not in (*_KEEPING, Op.ADD, Op.SUBTRACT):
            break
        i = user
    return 1 / factor


def _check_precision(before: Circuit, after: Circuit, old: Parameters, new: Parameters) -> None:
    """No rounding, encoding or key switch is noisier than TOLERANCE times what was simulated, no value nearer to wrapping around.

    The formulas are those that the promise was made with (ckks/noise.py): roundings and encodings go with 1/scale.
    """
    for a, b in zip(before.instructions, after.instructions, strict=True):
        room = math.prod(new.data_primes[: b.level + 1]) / math.prod(old.data_primes[: a.level + 1])
        for was, now in ((a.scale, b.scale), (a.weight_scale, b.weight_scale)):
            if now * TOLERANCE < was:
                raise _far(f"{was / now:.2f} times the noise", b, old, new)
            if was and room * was * TOLERANCE < now:
                raise _far("values may wrap around", b, old, new)
        switches = b.op is Op.RELINEARISE or rotation_steps(b, after.slots)
        if switches and (times := switching_noise(old, new, b.level)) > TOLERANCE:
            raise ParameterError(
                f"key switching at level {b.level} would have {times:.1f} times the noise that the promised error allows for: special "
                f"primes of {math.log2(new.special_product):.1f} bits in all are too small for digits of {new.digit_limbs} limbs; add "
                "a special prime, or make more and smaller digits (OpenFHE: SetNumLargeDigits)"
            )


def switching_noise(old: Parameters, new: Parameters, level: int) -> float:
    """The noise of a key switch at `level` on `new` over that on `old`, or over a quarter of a fresh ciphertext's where that is more.

    What is switched has at least a fresh ciphertext's noise, and goes on through the same weights: a quarter of it adds 3 %.
    """
    was, now = (NoiseModel(p).key_switch(level, 1.0) for p in (old, new))
    return now / max(was, NoiseModel(old).fresh(1.0) / 4)


def _far(what: str, ins: Instruction, old: Parameters, new: Parameters) -> ParameterError:
    """Names the limb that is furthest from its place."""
    off = [math.log2(q / p) for p, q in zip(old.data_primes, new.data_primes, strict=True)]
    limb = max(range(len(off)), key=lambda i: abs(off[i]))
    bits, wanted = math.log2(new.data_primes[limb]), math.log2(old.data_primes[limb])
    size = "SetFirstModSize" if limb == 0 else "SetScalingModSize"
    where = f" in {ins.layer!r}" if ins.layer else ""
    return ParameterError(
        f"limb {limb} ({new.data_primes[limb]}, 2^{bits:.2f}) is too far from 2^{wanted:.2f}, which the scales need: {what}{where}; "
        f"choose a prime near it (OpenFHE: {size}({round(wanted)})), or use the model's own primes"
    )
