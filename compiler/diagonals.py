"""Matrices by generalised diagonals, and their split into baby and giant steps (Halevi and Shoup 2018, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from compiler.graph import Array
from compiler.layouts import Layout
from compiler.matrices import Index
from compiler.prices import Steps


@dataclass(frozen=True, eq=False)
class Offsets:
    """How a matrix meets two layouts. steps: distinct rotations, centred about 0, modulo the input's period.

    period: what the diagonals repeat with. folds: rotations after the transform; each adds the result to itself rotated, so that
    partial sums of one output in several places meet (a wide matrix with few outputs: Halevi and Shoup's hybrid).
    """

    steps: Index
    period: int
    folds: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """Baby steps and giant steps: a rotation by d is its baby, in [-offset, size - offset), and a giant, a multiple of size.

    cost: predicted seconds, with the share of the keys' upload.
    """

    size: int
    offset: int
    cost: float
    rotations: frozenset[int]  # left, in 1..slots-1


def centred(steps: Index, modulus: int) -> Index:
    """Representatives in [-modulus/2, modulus/2): equal distances then need equal keys whatever the period."""
    return (steps + modulus // 2) % modulus - modulus // 2


def placed(matrix: coo_array, source: Layout, target: Layout) -> tuple[Index, Index]:
    """Rotation (0..source.period-1) and target slot of every non-zero; for layouts of several parts only the rotation."""
    a, b, m, p = source.slots[matrix.col], target.slots[matrix.row], source.period, target.period
    if target.fold is not None:
        p, block = target.fold
        distance = (a - b) & (m - 1)
        partial = np.minimum(distance // p, block // p - 1)
        return distance - partial * p, b + partial * p
    if source.copies > 1 and p <= m // source.copies:
        block = m // source.copies
        copy = np.minimum(((a - b) & (p - 1)) // source.shift, source.copies - 1)
        steps = ((a - b) & (p - 1)) - copy * source.shift
        return steps, (copy * block + ((a - copy * source.shift) & (block - 1)) - steps) & (m - 1)
    if p >= m:
        return (a - b) & (m - 1), b
    steps = centred(
        (a - b) & (p - 1), p
    )  # any copy b + k*p of the output may collect this term: take the nearest
    return steps & (m - 1), (a - steps) & (m - 1)


def offsets(matrix: coo_array, source: Layout, target: Layout) -> Offsets:
    """The rotations that `matrix` (elements to elements) needs between two layouts."""
    steps, _ = placed(matrix, source, target)
    present = np.zeros(source.period, dtype=bool)
    present[steps] = True
    period = max(source.period, target.period)
    return Offsets(centred(np.flatnonzero(present), source.period), period, folds(source, target))


def folds(source: Layout, target: Layout) -> tuple[int, ...]:
    """The rotations that add up the partial sums of any matrix between two layouts."""
    found: list[int] = []
    first, last = (target.period, source.period) if target.fold is None else target.fold
    while first << len(found) < min(last, source.period):
        found.append(first << len(found))
    return tuple(found)


def diagonals(matrix: coo_array, source: Layout, target: Layout, found: Offsets) -> Array:
    """The diagonals [steps][period] in the order of found.steps, with the shortest period they repeat with."""
    steps, places = placed(matrix, source, target)
    rank = np.zeros(source.period, dtype=np.int64)
    rank[found.steps & (source.period - 1)] = np.arange(len(found.steps))
    result = np.zeros((len(found.steps), found.period))
    np.add.at(result, (rank[steps], places), matrix.data)
    while result.shape[1] > 1 and np.array_equal(
        result[:, : result.shape[1] // 2], result[:, result.shape[1] // 2 :]
    ):
        result = np.ascontiguousarray(result[:, : result.shape[1] // 2])
    return result


def terms(steps: Index, split: Split, modulus: int, slots: int) -> tuple[tuple[int, int], ...]:
    """(giant, baby) for each step, both in 0..slots-1."""
    giants, babies = _parts(steps, split.size, split.offset, modulus)
    return tuple(zip((giants % slots).tolist(), (babies % slots).tolist(), strict=True))


def _parts(steps: Index, size: int, offset: int, modulus: int) -> tuple[Index, Index]:
    babies = (steps + offset) % size - offset
    return centred(steps - babies, modulus), babies


def splits(
    blocks: Sequence[Index],
    modulus: int,
    slots: int,
    keys: Set[int],
    sizes: list[int],
    costs: Steps,
    share: float = 1.0,
) -> list[Split]:
    """The split of each size and centring for the steps of all blocks of a matrix, cheapest first.

    keys: rotations whose keys exist already. share: of the slots that a diagonal fills before it repeats.
    """
    counts: dict[bytes, tuple[Index, int]] = {}  # blocks of one matrix often take the same steps
    for steps in blocks:
        counts[steps.tobytes()] = steps, counts.get(steps.tobytes(), (steps, 0))[1] + 1
    found = []
    for size in sizes:
        for offset in sorted({0, size // 4, size // 2}):
            cost, used = 0.0, [np.zeros(0, np.int64)]
            for steps, count in counts.values():
                giants, babies = _parts(steps, size, offset, modulus)
                g, b = np.unique(giants[giants != 0]), np.unique(babies[babies != 0])
                cost += count * costs.transform(len(b), len(g), len(steps), share)
                used += [g, b]
            rotations = frozenset((np.concatenate(used) % slots).tolist())
            found.append(Split(size, offset, cost + costs.key * len(rotations - keys), rotations))
    return sorted(found, key=lambda s: s.cost)


def coarse_sizes(modulus: int) -> list[int]:
    """Few sizes, for comparing layouts: powers of two and three halves of them."""
    powers = [1 << k for k in range(modulus.bit_length())]
    return sorted({*powers, *(3 * p // 2 for p in powers if 3 * p // 2 < modulus)})


def fine_sizes(modulus: int) -> list[int]:
    """All small sizes, and larger ones with few significant bits."""
    shifted = {k << s for k in range(1, 32) for s in range(modulus.bit_length())}
    return sorted(s for s in {*range(1, 129), *shifted} if s <= modulus)
