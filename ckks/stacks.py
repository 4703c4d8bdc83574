"""Operations on stacks of ciphertexts, uint64 [member][2 or 3][level+1][N]: one member per tensor element, one slot per image.

A weight is then the same for all slots, an integer: no encoding, no rotation. A linear layer is a matrix product modulo each prime
(Gilad-Bachrach et al. 2016, CryptoNets, section 5).
"""

from __future__ import annotations

import numpy as np

from ckks.backends import Backend
from ckks.circuit import Circuit, Op
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
        product = backend.key_switch(member[2], key, level, moved=member[:2])
        result[i] = backend.mod_down(product, level)
    return result


def stack_bytes(circuit: Circuit) -> int:
    """Bytes of the most values that ckks.interpreter.run holds at a time, beside the working space of operations."""
    last = {o: i for i, ins in enumerate(circuit.instructions) for o in ins.operands}
    members: list[int] = []
    polys: list[int] = []
    held: dict[int, int] = {}
    most = 0
    for i, ins in enumerate(circuit.instructions):
        sized, of = ins.op in (Op.INPUT, Op.MATRIX), ins.operands[0] if ins.operands else i
        members.append(ins.members if sized else members[of])
        three = ins.op is Op.MULTIPLY or (ins.op in (Op.MATRIX, Op.ADD) and polys[of] == 3)
        polys.append(3 if three else 2)
        if ins.op is Op.OUTPUT:  # results stay
            continue
        held[i] = 8 * max(members[i], 1) * polys[i] * (ins.level + 1) * 2 * circuit.slots
        most = max(most, sum(held.values()))
        for o in ins.operands:
            if last[o] == i:
                held.pop(o, None)
    return most
