"""Rows of data: what a caller gives for each input, as flat rows that hold all inputs one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ckks.errors import ModelError
from compiler.approximate import interval
from compiler.graph import Array, Graph, Node

Rows = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]


def flat_rows(graph: Graph, data: Rows, what: str, most: int) -> Array:
    """Up to `most` rows, float64 [rows][elements]. data: one array [rows][*shape] for the one input, or arrays by input name.

    Of more rows as many are taken at even distances: files are often sorted by class. Raises ModelError for rows that are not inputs
    of the model; `what` names them.
    """
    names = [source.name for source in graph.sources]
    arrays: Mapping[str, npt.NDArray[Any]]
    if isinstance(data, Mapping):
        arrays = {names[0]: data["x"]} if len(names) == 1 and names[0] not in data and "x" in data else data
    else:
        arrays = {names[0]: data}
    if missing := [name for name in names if name not in arrays]:
        raise ModelError(
            f"{what} rows: there is no array for the input {missing[0]!r}; give one for each input"
        )
    found = []
    for source in graph.sources:
        rows = np.asarray(arrays[source.name], dtype=np.float64)
        wanted = source.shape[1:] if len(source.shape) > 1 else source.shape
        if rows.ndim < 1 or rows.shape[1:] != wanted or not len(rows) or not np.isfinite(rows).all():
            raise ModelError(
                f"{what} rows must be finite and of shape [rows, {', '.join(map(str, wanted))}], got {rows.shape}"
            )
        found.append(rows.reshape(len(rows), -1))
    if len({len(rows) for rows in found}) > 1:
        raise ModelError(f"{what} rows: every input needs as many rows, got {[len(rows) for rows in found]}")
    chosen = spread(len(found[0]), most)
    return np.concatenate([rows[chosen] for rows in found], axis=1)


def with_ranges(graph: Graph, rows: Array) -> Graph:
    """The graph with the range of every input that the file declares none for, and that leaves 0..1 on calibration rows
    [rows][elements], taken from there (compiler.approximate.interval). Clients refuse inputs outside: so are rows outside a declared
    range, with ModelError."""
    nodes: list[Node] = list(graph.nodes)
    for i, source in enumerate(graph.sources):
        mine = rows[:, source.start : source.start + math.prod(source.shape)]
        low, high = float(mine.min()), float(mine.max())
        slack = 1e-6 * (source.high - source.low)
        if source.low - slack <= low and high <= source.high + slack:
            continue
        if source.declared:
            raise ModelError(
                f"calibration rows of the input {source.name!r} lie in {low:.6g}..{high:.6g}, outside the input_range "
                f"{source.low:g}..{source.high:g} of the file's metadata; scale the rows as in training, or correct the metadata"
            )
        low, high = interval(mine)
        nodes[i] = replace(source, low=low, high=high)
    return replace(graph, nodes=tuple(nodes))


def spread(count: int, most: int) -> npt.NDArray[np.int64]:
    """The indices of up to `most` of `count` rows, at even distances."""
    return np.arange(min(count, most)) * count // min(count, most)
