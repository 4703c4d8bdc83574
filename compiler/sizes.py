"""Bytes of keys and ciphertexts."""

from __future__ import annotations

from ckks.circuit import Circuit
from ckks.parameters import Parameters


def key_bytes(parameters: Parameters, circuit: Circuit) -> int:
    """Bytes of the seeded evaluation keys a client uploads for `circuit`."""
    needs = circuit.key_needs()
    levels = [
        *needs.rotations.values(),
        *([needs.relinearisation] if needs.relinearisation is not None else []),
    ]
    return sum(key_size(parameters, level) for level in levels)


def key_size(parameters: Parameters, level: int) -> int:
    """Bytes of one seeded evaluation key for use at `level` and below."""
    return len(parameters.digits(level)) * _row_bytes(parameters, parameters.extended_rows(level))


def ciphertext_bytes(parameters: Parameters, level: int, members: int = 0) -> int:
    """Bytes of the seeded ciphertext, or stack, a client sends at `level`."""
    return max(members, 1) * _row_bytes(parameters, parameters.data_rows(level))


def _row_bytes(parameters: Parameters, rows: tuple[int, ...]) -> int:
    return sum(4 if parameters.moduli[r] < 1 << 32 else 8 for r in rows) * parameters.degree
