"""Operators whose inputs are all constants, as exporters leave them before a Reshape or a Pad or around weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np

from ckks.errors import ModelError
from compiler.graph import MAX_NONZEROS
from compiler.moving import MOVES, Attributes, Constant, Operands, moved, operand, padded

_INTEGER_TYPES = (2, 3, 4, 5, 6, 7, 9, 12, 13)  # TensorProto's integer and boolean element types


def _divide(a: Sequence[Constant], at: Attributes) -> Constant:
    quotient = np.asarray(a[0] / a[1])
    # ONNX rounds integers towards zero, as C does.
    return (
        np.asarray(np.trunc(quotient), dtype=np.int64)
        if a[0].dtype.kind == a[1].dtype.kind == "i"
        else quotient
    )


def _cast(a: Sequence[Constant], at: Attributes) -> Constant:
    if at["to"] == 9:
        return np.asarray(a[0] != 0, dtype=np.int64)
    return a[0].astype(np.int64 if at["to"] in _INTEGER_TYPES else np.float64)


def _range(a: Sequence[Constant], at: Attributes) -> Constant:
    start, limit, delta = (v.item() for v in a)
    if abs(limit - start) > MAX_NONZEROS * abs(delta):
        raise ModelError("constants are too large to combine")
    return np.arange(start, limit, delta)


def _filled(a: Sequence[Constant], at: Attributes) -> Constant:
    dims = [int(n) for n in a[0].reshape(-1)]
    if math.prod(dims) > MAX_NONZEROS:
        raise ModelError("constants are too large to combine")
    value = np.asarray(at.get("value", 0.0))
    return np.full(dims, value.reshape(-1)[0], value.dtype)


def _reduced(a: Sequence[Constant], at: Attributes, reduce: Callable[..., Constant]) -> Constant:
    axes = operand(a, 1, at, "axes")
    if not axes and at.get("noop_with_empty_axes", 0):
        return a[0]
    return reduce(a[0], axis=tuple(axes) if axes else None, keepdims=bool(at.get("keepdims", 1)))


_Folder = Callable[[Sequence[Constant], Attributes], Constant]
_FOLDERS: dict[str, _Folder] = {
    "Identity": lambda a, at: a[0],
    "Dropout": lambda a, at: a[0],
    "Add": lambda a, at: a[0] + a[1],
    "Sub": lambda a, at: a[0] - a[1],
    "Mul": lambda a, at: a[0] * a[1],
    "Div": _divide,
    "Mod": lambda a, at: np.fmod(a[0], a[1]) if at.get("fmod", 0) else np.mod(a[0], a[1]),
    "Neg": lambda a, at: -a[0],
    "Abs": lambda a, at: np.abs(a[0]),
    "Sqrt": lambda a, at: np.sqrt(a[0]),
    "Exp": lambda a, at: np.exp(a[0]),
    "Floor": lambda a, at: np.floor(a[0]),
    "Ceil": lambda a, at: np.ceil(a[0]),
    "Pow": lambda a, at: a[0] ** a[1],
    "Reciprocal": lambda a, at: 1.0 / a[0],
    "Max": lambda a, at: a[0] if len(a) == 1 else np.maximum(a[0], a[1]),
    "Min": lambda a, at: a[0] if len(a) == 1 else np.minimum(a[0], a[1]),
    "Equal": lambda a, at: (a[0] == a[1]).astype(np.int64),
    "Greater": lambda a, at: (a[0] > a[1]).astype(np.int64),
    "Less": lambda a, at: (a[0] < a[1]).astype(np.int64),
    "Not": lambda a, at: (a[0] == 0).astype(np.int64),
    "And": lambda a, at: a[0] & a[1],
    "Or": lambda a, at: a[0] | a[1],
    "Where": lambda a, at: np.where(a[0] != 0, a[1], a[2]),
    "Range": _range,
    "ConstantOfShape": _filled,
    "ReduceProd": lambda a, at: _reduced(a, at, np.prod),
    "ReduceSum": lambda a, at: _reduced(a, at, np.sum),
    "ReduceMean": lambda a, at: _reduced(a, at, np.mean),
    "ReduceMax": lambda a, at: _reduced(a, at, np.max),
    "ReduceMin": lambda a, at: _reduced(a, at, np.min),
    "Concat": lambda a, at: np.concatenate(a, axis=at["axis"]),
    "Cast": _cast,
    "CastLike": lambda a, at: a[0].astype(a[1].dtype),
}
_BROADCASTING = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Pow",
    "Max",
    "Min",
    "Equal",
    "Greater",
    "Less",
    "And",
    "Or",
    "Where",
)


def _result_size(op: str, arrays: Sequence[Constant]) -> int:
    """A bound on the elements of the result, found before anything of its size is made."""
    if op in _BROADCASTING:
        # Shapes that do not broadcast are refused by the operation itself.
        return math.prod(max(n) for n in zip_longest(*(a.shape[::-1] for a in arrays), fillvalue=1))
    return sum(a.size for a in arrays)


def _padded(operands: Operands, at: Attributes) -> Constant:
    x = operands[0]
    if x is None:
        raise ModelError("its first operand is missing")
    pads, axes = operand(operands, 1, at, "pads") or [], operand(operands, 3, at, "axes")
    value = operands[2] if len(operands) > 2 and operands[2] is not None else np.asarray(at.get("value", 0.0))
    fill = value.reshape(-1)[0].item()
    return padded(
        x, pads, range(x.ndim) if axes is None else axes, at.get("mode", "constant"), fill, MAX_NONZEROS
    )


def fold_constant(op: str, operands: Operands, attributes: Attributes) -> Constant | None:
    """The value of `op` on constants; None for an operator that is not done here. Raises ModelError."""
    arrays = [a for a in operands if a is not None]
    folder = _FOLDERS.get(op)
    if (folder is None and op not in MOVES and op != "Pad") or not arrays:
        return None
    try:
        with np.errstate(all="ignore"):
            if op in MOVES:
                return moved(op, operands, attributes, MAX_NONZEROS)
            if op == "Pad":
                return _padded(operands, attributes)
            if _result_size(op, arrays) > MAX_NONZEROS:
                raise ModelError("constants are too large to combine")
            assert folder is not None  # what is left has one
            return np.asarray(folder(arrays, attributes))
    except (ValueError, IndexError, KeyError, TypeError, MemoryError, ArithmeticError) as error:
        raise ModelError(f"its constants do not fit together ({error})") from None
