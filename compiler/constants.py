"""Operators whose inputs are all constants, as exporters leave them before a Reshape or around weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt

from ckks.errors import ModelError
from compiler.graph import MAX_NONZEROS

Constant = npt.NDArray[Any]  # float64 or int64
Attributes = Mapping[str, Any]


def reshaped_dimensions(wanted: Sequence[int], shape: Sequence[int], allow_zero: bool) -> tuple[int, ...]:
    """ONNX Reshape's result: 0 copies an axis (unless allow_zero), one -1 is deduced."""
    dims = [
        shape[i] if d == 0 and not allow_zero and i < len(shape) else int(d) for i, d in enumerate(wanted)
    ]
    known, size = 1, int(np.prod(shape, dtype=np.int64))
    for d in dims:
        known *= d if d != -1 else 1
    if -1 in dims and known > 0 and dims.count(-1) == 1:
        dims[dims.index(-1)] = size // known
        known = size if size % known == 0 else 0
    if known != size or any(d < 1 for d in dims):
        raise ModelError(f"cannot reshape {tuple(shape)} to {tuple(int(d) for d in wanted)}")
    return tuple(dims)


def _gather(a: Sequence[Constant], at: Attributes) -> Constant:
    return np.take(a[0], a[1].astype(np.int64), axis=at.get("axis", 0))


def _reshape(a: Sequence[Constant], at: Attributes) -> Constant:
    return a[0].reshape(reshaped_dimensions(a[1].tolist(), a[0].shape, bool(at.get("allowzero", 0))))


def _squeeze(a: Sequence[Constant], at: Attributes) -> Constant:
    axes = tuple(a[1].tolist()) if len(a) > 1 else tuple(at.get("axes", ()))
    return np.squeeze(a[0], axes or None)


def _unsqueeze(a: Sequence[Constant], at: Attributes) -> Constant:
    return np.expand_dims(a[0], tuple(a[1].tolist()) if len(a) > 1 else tuple(at["axes"]))


def _divide(a: Sequence[Constant], at: Attributes) -> Constant:
    return a[0] // a[1] if a[0].dtype.kind == "i" else a[0] / a[1]


def _slice(a: Sequence[Constant], at: Attributes) -> Constant:
    lists = (
        [x.tolist() for x in a[1:]] if len(a) > 2 else [at[k] for k in ("starts", "ends", "axes") if k in at]
    )
    starts, ends = lists[:2]
    axes = lists[2] if len(lists) > 2 else range(len(starts))
    steps = lists[3] if len(lists) > 3 else [1] * len(starts)
    cut = [slice(None)] * a[0].ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cut[axis] = slice(start, end, step)
    return a[0][tuple(cut)]


_INTEGER_TYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # TensorProto's integer and boolean element types
_FOLDERS: dict[str, Callable[[Sequence[Constant], Attributes], Constant]] = {
    "Identity": lambda a, at: a[0],
    "Add": lambda a, at: a[0] + a[1],
    "Sub": lambda a, at: a[0] - a[1],
    "Mul": lambda a, at: a[0] * a[1],
    "Div": _divide,
    "Neg": lambda a, at: -a[0],
    "Sqrt": lambda a, at: np.sqrt(a[0]),
    "Pow": lambda a, at: a[0] ** a[1],
    "Reciprocal": lambda a, at: 1.0 / a[0],
    "Concat": lambda a, at: np.concatenate(a, axis=at["axis"]),
    "Transpose": lambda a, at: np.transpose(a[0], at.get("perm")),
    "Gather": _gather,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Cast": lambda a, at: a[0].astype(np.int64 if at["to"] in _INTEGER_TYPES else np.float64),
}


def _result_size(op: str, arrays: Sequence[Constant], attributes: Attributes) -> int:
    """A bound on the elements of the result, found before anything of its size is made."""
    sizes = [a.size for a in arrays]
    if op == "Gather" and len(arrays) == 2 and arrays[0].ndim:
        axis = min(max(attributes.get("axis", 0), -arrays[0].ndim), arrays[0].ndim - 1)
        return int(sizes[1] * (sizes[0] // max(arrays[0].shape[axis], 1)))
    if op in ("Add", "Sub", "Mul", "Div", "Pow") and len(arrays) == 2:
        # Shapes that do not broadcast are refused by the operation itself.
        return math.prod(
            max(m, n) for m, n in zip_longest(arrays[0].shape[::-1], arrays[1].shape[::-1], fillvalue=1)
        )
    return sum(sizes)


def fold_constant(op: str, arrays: Sequence[Constant], attributes: Attributes) -> Constant | None:
    """The value of `op` on constants; None for an operator that is not done here. Raises ModelError."""
    folder = _FOLDERS.get(op)
    if folder is None or not arrays:
        return None
    if _result_size(op, arrays, attributes) > MAX_NONZEROS:
        raise ModelError("constants are too large to combine")
    try:
        with np.errstate(all="ignore"):
            return np.asarray(folder(arrays, attributes))
    except (ValueError, IndexError, KeyError, TypeError, MemoryError) as error:
        raise ModelError(f"its constants do not fit together ({error})") from None
