"""Tensors into slot vectors and back, as a bundle's Packing says."""

from __future__ import annotations

import numpy as np

from ckks.bundle import Packing
from ckks.types import Slots


def pack(values: Slots, packing: Packing) -> Slots:
    """float64 of packing.shape -> float64 [period]; slots that hold no element are zero."""
    slots = np.zeros(packing.period)
    for places in packing.places():
        slots[places] = values.reshape(-1)
    return slots


def unpack(slots: Slots, packing: Packing) -> Slots:
    """Decrypted slots, float64 [N/2] -> float64 of packing.shape: the first of the copies that the period gives."""
    return slots[packing.slots].reshape(packing.shape)


def copies(slots: Slots, packing: Packing) -> Slots:
    """All copies of the tensor, float64 [copies][elements]: equal, but for noise, in an honest answer."""
    return slots.reshape(-1, packing.period)[:, packing.slots]
