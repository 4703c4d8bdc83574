"""Operations on stacks of ciphertexts, uint64 [member][2 or 3][level+1][N]: one member per tensor element, one slot per image.

A weight is then the same for all slots, an integer: no encoding, no rotation. A linear layer is a matrix product modulo each prime
(Gilad-Bachrach et al. 2016, CryptoNets, section 5).
"""

from __future__ import annotations

import numpy as np

from ckks.backends import Backend
from ckks.types import KeySwitchKey, Residues


def add_constants(backend: Backend, a: Residues, constants: Residues) -> Residues:
    """Member i plus the constant polynomial constants[:, i], residues [level+1][member]: in NTT domain the same number everywhere."""
    rows, result = backend.parameters.data_rows(len(constants) - 1), a.copy()
    for i, member in enumerate(result):
        member[0] = backend.add_scalars(member[0], np.ascontiguousarray(constants[:, i]), rows)
    return result


def multiply_constants(backend: Backend, a: Residues, constants: Residues) -> Residues:
    """Member i times constants[:, i], residues [level+1][member]."""
    rows = backend.parameters.data_rows(len(constants) - 1)
    result = backend.empty_like(a, a.shape)
    for i, member in enumerate(a):
        result[i] = backend.multiply_scalars(member, np.ascontiguousarray(constants[:, i]), rows)
    return result


def multiply(backend: Backend, a: Residues, b: Residues, level: int) -> Residues:
    """Member by member, [member][2].. -> [member][3].."""
    rows = backend.parameters.data_rows(level)
    result = backend.empty_like(a, (a.shape[0], 3, *a.shape[2:]))
    for i in range(a.shape[0]):
        result[i] = backend.tensor(a[i], b[i], rows)
    return result


def relinearise(backend: Backend, a: Residues, key: KeySwitchKey, level: int) -> Residues:
    """[member][3].. -> [member][2].."""
    result = backend.empty_like(a, (a.shape[0], 2, *a.shape[2:]))
    for i, member in enumerate(a):
        result[i] = backend.key_switch(member[2], key, level, moved=member[:2], divided=True)
    return result
