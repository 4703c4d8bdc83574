"""Lanes: a circuit for one image in few slots becomes one for several images in many, interleaved.

Slot s of image b is s*lanes + b. A rotation by `steps` of every image is then one rotation by steps*lanes, and as it is cyclic for the
whole vector it is so for each image. Costs are those of the ring; only weights and keys are more than those of the smaller circuit.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ckks.circuit import Circuit, Instruction, Weights


def interleave(circuit: Circuit, weights: Weights, lanes: int) -> tuple[Circuit, Weights]:
    """The circuit and its weights for several images. circuit: its steps are those of slots/lanes slots; without hops."""
    if lanes == 1:
        return circuit, weights
    instructions = tuple(_interleaved(ins, lanes) for ins in circuit.instructions)
    # A vector of period 1 stays as it is: the shorter the period, the smaller the encoding.
    repeated = {k: w if w.shape[-1] == 1 else np.repeat(w, lanes, axis=-1) for k, w in weights.items()}
    return Circuit(circuit.slots, instructions), repeated


def _interleaved(ins: Instruction, lanes: int) -> Instruction:
    terms = tuple((giant * lanes, baby * lanes) for giant, baby in ins.terms)
    return replace(ins, steps=ins.steps * lanes, terms=terms)
