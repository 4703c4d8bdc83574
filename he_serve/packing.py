"""Tensors into slot vectors and back, as a bundle says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ckks.bundle import Bundle, OutputSpec, Packing
from ckks.types import Slots


def pack(values: Slots, packing: Packing) -> Slots:
    """float64 of packing.shape, or [images][*shape] with 1..lanes images -> float64 [parts*period*lanes], one part after the other.

    Of a stack [members][lanes]. Slots that hold no element are zero. Lanes without an image of their own repeat the images: a value
    outside the range that the circuit was made for could wrap around, and that would spoil all lanes.
    """
    rows = np.resize(values, (packing.lanes, math.prod(packing.shape)))
    if packing.stacked:
        return np.ascontiguousarray(rows.T)
    slots = np.zeros((packing.parts * packing.period, packing.lanes))
    for places in packing.places():
        slots[places] = rows.T
    return slots.reshape(-1)


def pack_inputs(values: Mapping[str, Slots], bundle: Bundle) -> dict[str, Slots]:
    """What every ciphertext of the inputs `values` (see `pack`) is to hold, float64 [period*lanes], by the ciphertext's name."""
    if bundle.input_members:
        return {bundle.input.name: pack(values[bundle.input.name], bundle.input.packing)}
    return {
        name: part
        for spec in bundle.inputs
        for name, part in zip(
            spec.ciphertexts,
            pack(values[spec.name], spec.packing).reshape(spec.packing.parts, -1),
            strict=True,
        )
    }


def in_requests(rows: Sequence[Mapping[str, Slots]], bundle: Bundle) -> list[dict[str, Slots]]:
    """Rows of inputs by name, as requests hold them: of every input float64 [images][*shape], at most as many as there are lanes."""
    groups = [rows[i : i + bundle.lanes] for i in range(0, len(rows), bundle.lanes)]
    return [{s.name: np.array([row[s.name] for row in group]) for s in bundle.inputs} for group in groups]


def joined(slots: Mapping[str, Slots], output: OutputSpec) -> Slots:
    """The decrypted slots of all parts of an output, float64 [parts*N/2] (of a stack [members][N/2]), from its ciphertexts' by name."""
    return np.concatenate([slots[name] for name in output.ciphertexts])


def unpack(slots: Slots, packing: Packing) -> Slots:
    """Decrypted slots as `joined` gives them -> float64 [lanes][*shape]: the first of the copies that the period gives."""
    first: Slots = copies(slots, packing)[0]
    return first.reshape(packing.lanes, *packing.shape)


def copies(slots: Slots, packing: Packing) -> Slots:
    """All copies of the tensors, float64 [copies][lanes][elements]: equal, but for noise, in an honest answer."""
    if packing.stacked:
        return slots.T.reshape(-1, packing.lanes, len(slots))
    parts = slots.reshape(packing.parts, -1, packing.period, packing.lanes)
    whole = parts.transpose(1, 0, 2, 3).reshape(-1, packing.parts * packing.period, packing.lanes)
    found: Slots = whole[:, packing.slots].transpose(0, 2, 1)
    return found
