"""Tensors into slot vectors and back, as a bundle says."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ckks.bundle import Bundle, OutputSpec, Packing
from ckks.types import Slots


def pack(values: Slots, packing: Packing) -> Slots:
    """float64 of packing.shape -> float64 [parts*period], one part after the other; slots that hold no element are zero."""
    slots = np.zeros(packing.parts * packing.period)
    for places in packing.places():
        slots[places] = values.reshape(-1)
    return slots


def pack_inputs(values: Mapping[str, Slots], bundle: Bundle) -> dict[str, Slots]:
    """What every ciphertext of the inputs `values` is to hold, float64 [period], by the ciphertext's name."""
    return {
        name: part
        for spec in bundle.inputs
        for name, part in zip(
            spec.ciphertexts,
            pack(values[spec.name], spec.packing).reshape(spec.packing.parts, -1),
            strict=True,
        )
    }


def joined(slots: Mapping[str, Slots], output: OutputSpec) -> Slots:
    """The decrypted slots of all parts of an output, float64 [parts*N/2], from those of its ciphertexts by name."""
    return np.concatenate([slots[name] for name in output.ciphertexts])


def unpack(slots: Slots, packing: Packing) -> Slots:
    """Decrypted slots of all parts, float64 [parts*N/2] -> float64 of packing.shape: the first of the copies that the period gives."""
    first: Slots = copies(slots, packing)[0]
    return first.reshape(packing.shape)


def copies(slots: Slots, packing: Packing) -> Slots:
    """All copies of the tensor, float64 [copies][elements]: equal, but for noise, in an honest answer."""
    parts = slots.reshape(packing.parts, -1, packing.period)
    whole = parts.transpose(1, 0, 2).reshape(-1, packing.parts * packing.period)
    found: Slots = whole[:, packing.slots]
    return found
