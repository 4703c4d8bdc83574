"""Constants of the CUDA kernels, computed on the host: uint64 arrays laid out as the structures in ckks/kernels/*.cu."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ckks import modular
from ckks.packed import packed_bytes, residue_bytes
from ckks.types import Residues

WORD = 1 << 64
DOUBLE_BITS = 49  # Doubles::kBits of doubles.cuh: primes that are computed with on doubles, where the device is fast at them


def prime_table(moduli: Sequence[int]) -> Residues:
    """struct Prime per modulus: [row][5] of q, floor(2^(bits+63) / q), bits, and as doubles q and 1/q."""
    whole = [[q, (1 << (q.bit_length() + 63)) // q, q.bit_length()] for q in moduli]
    doubles = np.array([[float(q), 1.0 / q] for q in moduli])
    return np.concatenate([np.array(whole, dtype=np.uint64), doubles.view(np.uint64)], axis=1)


def on_doubles(q: int, doubles: bool) -> bool:
    """Whether kernels compute modulo q on doubles. doubles: on a device that is fast at them."""
    return doubles and q.bit_length() <= DOUBLE_BITS


def factors(values: Residues, q: int, doubles: bool) -> Residues:
    """A constant per value in [0, q), as the kernels read them: [value][2] of w, floor(w * 2^64 / q).

    On doubles: one double each, in (-q/2, q/2), one after the other in the first half of this array.
    """
    if on_doubles(q, doubles):
        numbers = values.astype(np.float64)  # exact: below 2^49
        balanced = np.where(values > q // 2, numbers - q, numbers)
        return np.concatenate([balanced, np.zeros_like(balanced)]).view(np.uint64).reshape(-1, 2)
    quotients = np.array([w * WORD // q for w in values.tolist()], dtype=np.uint64)
    return np.stack([values, quotients], axis=-1)


def factor_rows(values: Sequence[int], moduli: Sequence[int], doubles: bool) -> Residues:
    """A constant per value, each in [0, q) of its own modulus: [row][2]."""
    return np.concatenate(
        [factors(np.array([w], dtype=np.uint64), q, doubles) for w, q in zip(values, moduli, strict=True)]
    )


def row_table(rows: Sequence[int]) -> Any:
    """The kernel argument `rows`."""
    return np.array(rows, dtype=np.uint32)


def packed_layout(moduli: Sequence[int], length: int, wanted: Sequence[int]) -> Any:
    """struct PackedRow of the wanted ones among rows that are packed one behind the other: uint32 [wanted][2]."""
    sizes = [packed_bytes((q,), length) for q in moduli]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return np.array([(starts[i], residue_bytes(moduli[i])) for i in wanted], dtype=np.uint32)


def twiddle_table(degree: int, moduli: Sequence[int], inverse: bool, doubles: bool) -> Residues:
    """The roots of every modulus in the order of the stages, as factors: [row][N][2]."""
    return np.stack([factors(modular.stage_roots(degree, q)[int(inverse)], q, doubles) for q in moduli])


@dataclass(frozen=True, eq=False)
class Conversion:
    """Groups of source primes, each to all target primes. D: the product of a group.

    sources: primes per group; the last group may be short. y_scales: (D/q_i)^-1 mod q_i of every source.
    constants: [group][target][sources+1], D/q_i and then -D modulo the target.
    words: [group][sources+1][sources], D/q_i and right behind them D, as little-endian words.
    inverses: [group][target], D^-1 or 0, as factors.
    wide: whether some source is too large for doubles.
    """

    sources: int
    y_scales: list[int]
    constants: Residues
    words: Residues
    inverses: Residues
    wide: bool


def conversion(groups: Sequence[Sequence[int]], targets: Sequence[int], doubles: bool) -> Conversion:
    """groups, targets: primes. A target may be a source: what is converted to it is then of no use."""
    sources = len(groups[0])
    constants = np.zeros((len(groups), len(targets), sources + 1), dtype=np.uint64)
    words = np.zeros((len(groups), sources + 1, sources), dtype=np.uint64)
    inverses = np.zeros((len(groups), len(targets), 2), dtype=np.uint64)
    scales = []
    for g, group in enumerate(groups):
        product = math.prod(group)
        scales += [pow(product // q, -1, q) for q in group]
        parts = [product // q for q in group]
        for i, value in enumerate([*parts, product]):
            words[g, i] = [value >> (64 * k) & (WORD - 1) for k in range(sources)]
        for t, q in enumerate(targets):
            constants[g, t, : len(parts)] = [value % q for value in parts]
            constants[g, t, sources] = -product % q
            if product % q:
                inverses[g, t] = factor_rows([pow(product, -1, q)], [q], doubles)[0]
    wide = any(q.bit_length() > DOUBLE_BITS for group in groups for q in group)
    return Conversion(sources, scales, constants, words, inverses, wide)
