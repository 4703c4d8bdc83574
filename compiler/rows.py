"""Rows of data: what a caller gives for each input, as flat rows that hold all inputs one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ckks.errors import ModelError
from compiler.graph import Array, Graph

Rows = npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]]


def flat_rows(graph: Graph, data: Rows, what: str, most: int) -> Array:
    """The first `most` rows, float64 [rows][elements]. data: one array [rows][*shape] for the one input, or arrays by input name.

    Raises ModelError for rows that are not inputs of the model; `what` names them.
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
        found.append(rows[:most].reshape(min(len(rows), most), -1))
    if len({len(rows) for rows in found}) > 1:
        raise ModelError(f"{what} rows: every input needs as many rows, got {[len(rows) for rows in found]}")
    return np.concatenate(found, axis=1)
