"""Matrices between tensors of several ciphertexts: a block for every part that is read and part that is made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array

from compiler import diagonals as dg
from compiler.diagonals import Offsets
from compiler.graph import Array
from compiler.layouts import Layout
from compiler.matrices import Index


@dataclass(frozen=True, eq=False)
class Blocks:
    """The blocks that have non-zeros: (source part, target part) of each, and its offsets.

    All blocks fold alike; what goes to one part is added up before.
    """

    parts: tuple[tuple[int, int], ...]
    offsets: tuple[Offsets, ...]

    @property
    def folds(self) -> tuple[int, ...]:
        return self.offsets[0].folds

    @property
    def steps(self) -> list[Index]:
        return [o.steps for o in self.offsets]


def find_blocks(matrix: coo_array, source: Layout, target: Layout) -> Blocks:
    """The blocks of `matrix` (elements to elements) between two layouts, without their values."""
    if source.parts == target.parts == 1:
        return Blocks(((0, 0),), (dg.offsets(matrix, source, target),))
    steps, _ = dg.placed(matrix, source, target)
    present = np.zeros((source.parts * target.parts, source.period), dtype=bool)
    present[_codes(matrix, source, target), steps] = True
    period, folds = max(source.period, target.period), dg.folds(source, target)
    used = np.flatnonzero(present.any(axis=1)).tolist()
    offsets = (Offsets(dg.centred(np.flatnonzero(present[i]), source.period), period, folds) for i in used)
    return Blocks(tuple(divmod(i, target.parts) for i in used), tuple(offsets))


def block_diagonals(matrix: coo_array, source: Layout, target: Layout, found: Blocks) -> list[Array]:
    """The diagonals of every block, as compiler.diagonals.diagonals gives them."""
    if source.parts == target.parts == 1:
        return [dg.diagonals(matrix, source, target, found.offsets[0])]
    codes = _codes(matrix, source, target)
    order = np.argsort(codes, kind="stable")  # of 16 bits: a radix sort
    ends = np.searchsorted(codes[order], np.arange(source.parts * target.parts + 1))
    sources, columns = _pieces(source)
    targets, rows = _pieces(target)
    result = []
    for (p, q), offsets in zip(found.parts, found.offsets, strict=True):
        here = order[ends[p * target.parts + q] : ends[p * target.parts + q + 1]]
        places = rows[matrix.row[here]], columns[matrix.col[here]]
        size = len(targets[q].slots), len(sources[p].slots)
        block = coo_array((matrix.data[here], places), shape=size, dtype=np.float64)
        result.append(dg.diagonals(block, sources[p], targets[q], offsets))
    return result


def _codes(matrix: coo_array, source: Layout, target: Layout) -> Index:
    """The number of the block of every non-zero, int16."""
    first = (source.slots // source.period * target.parts).astype(np.int16)
    second = (target.slots // target.period).astype(np.int16)
    codes: Index = first[matrix.col] + second[matrix.row]
    return codes


def _pieces(layout: Layout) -> tuple[list[Layout], Index]:
    """Every part alone, and the place of every element among those of its part."""
    parts, place = [], np.zeros(len(layout.slots), np.int64)
    for k in range(layout.parts):
        elements, part = layout.part(k)
        place[elements] = np.arange(len(elements))
        parts.append(part)
    return parts, place
