"""ONNX operators that only move elements, on arrays: of constants, or of the indices of an encrypted tensor's elements."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ckks.errors import ModelError

Constant = npt.NDArray[Any]  # float64 or int64
Attributes = Mapping[str, Any]
Operands = Sequence["Constant | None"]  # the tensor first; what is left out is None


def operand(a: Operands, i: int, at: Attributes, name: str) -> list[int] | None:
    """Integers that newer opsets give as operand i and older ones as the attribute `name`; None where they are left out."""
    value = a[i] if i < len(a) else at.get(name)
    return None if value is None else [int(v) for v in np.asarray(value).reshape(-1)]


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


def _reshape(x: Constant, a: Operands, at: Attributes) -> Constant:
    wanted = operand(a, 1, at, "shape")
    return x.reshape(reshaped_dimensions(wanted or [], x.shape, bool(at.get("allowzero", 0))))


def _flatten(x: Constant, a: Operands, at: Attributes) -> Constant:
    axis = at.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.squeeze(x, tuple(operand(a, 1, at, "axes") or ()) or None)


def _unsqueeze(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.expand_dims(x, tuple(operand(a, 1, at, "axes") or ()))


def _transpose(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.transpose(x, at.get("perm"))


def _slice(x: Constant, a: Operands, at: Attributes) -> Constant:
    starts, ends = operand(a, 1, at, "starts") or [], operand(a, 2, at, "ends") or []
    axes = operand(a, 3, at, "axes")
    steps = operand(a, 4, at, "steps")
    cut = [slice(None)] * x.ndim
    for start, end, axis, step in zip(
        starts, ends, range(len(starts)) if axes is None else axes, steps or [1] * len(starts), strict=True
    ):
        cut[axis] = slice(start, end, step)
    return x[tuple(cut)]


def _indices(a: Operands) -> Constant:
    if len(a) < 2 or a[1] is None:
        raise ModelError("its indices are missing")
    return a[1].astype(np.int64)


def _gather(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.take(x, _indices(a), axis=at.get("axis", 0))


def _gather_elements(x: Constant, a: Operands, at: Attributes) -> Constant:
    axis, index = at.get("axis", 0), _indices(a)
    return np.take_along_axis(x, np.where(index < 0, index + x.shape[axis], index), axis)


def _gather_nd(x: Constant, a: Operands, at: Attributes) -> Constant:
    if at.get("batch_dims", 0):
        raise ModelError("batch_dims cannot be compiled; index the whole tensor")
    return np.asarray(x[tuple(np.moveaxis(_indices(a), -1, 0))])


def _expand(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(operand(a, 1, at, "shape") or ())))


def _tile(x: Constant, a: Operands, at: Attributes) -> Constant:
    return np.tile(x, operand(a, 1, at, "repeats") or [1])


def _depth_to_space(x: Constant, a: Operands, at: Attributes) -> Constant:
    n, c, h, w = x.shape
    k = at["blocksize"]
    columns_first = at.get("mode", "DCR") == "CRD"
    form, order = (
        ((c // k**2, k, k), (1, 4, 2, 5, 3)) if columns_first else ((k, k, c // k**2), (3, 4, 1, 5, 2))
    )
    return x.reshape(n, *form, h, w).transpose(0, *order).reshape(n, c // k**2, h * k, w * k)


def _space_to_depth(x: Constant, a: Operands, at: Attributes) -> Constant:
    n, c, h, w = x.shape
    k = at["blocksize"]
    order = (0, 1, 3, 5, 2, 4) if at.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return x.reshape(n, c, h // k, k, w // k, k).transpose(order).reshape(n, c * k**2, h // k, w // k)


_Mover = Callable[[Constant, Operands, Attributes], Constant]
_MOVERS: dict[str, _Mover] = {
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Transpose": _transpose,
    "Slice": _slice, "Gather": _gather, "GatherElements": _gather_elements, "GatherND": _gather_nd, "Expand": _expand,
    "Tile": _tile, "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
}  # fmt: skip
MOVES = frozenset(_MOVERS)


def moved(op: str, a: Operands, attributes: Attributes, limit: int) -> Constant:
    """The result of `op` in MOVES on the array a[0], of up to `limit` elements. Raises ModelError."""
    x = a[0]
    if x is None:
        raise ModelError("its first operand is missing")
    if _result_size(op, x, a, attributes) > limit:
        raise ModelError(f"its result has more than {limit} elements")
    try:
        return _MOVERS[op](x, a, attributes)
    except (ValueError, IndexError, KeyError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise ModelError(f"its operands do not fit together ({error})") from None


def _result_size(op: str, x: Constant, a: Operands, at: Attributes) -> int:
    """A bound on the elements of the result, found before anything of its size is made."""
    second = a[1] if len(a) > 1 else None
    if op in ("Gather", "GatherElements", "GatherND") and second is not None:
        rest = x.size if op != "Gather" else x.size // max(x.shape[at.get("axis", 0)] if x.ndim else 1, 1)
        return second.size * (rest if op != "GatherElements" else 1)
    if op in ("Expand", "Tile"):
        wanted = operand(a, 1, at, "shape" if op == "Expand" else "repeats") or []
        return x.size * math.prod(max(abs(n), 1) for n in wanted)
    return x.size


def padded(
    x: Constant, pads: Sequence[int], axes: Sequence[int], mode: str, value: float | int, limit: int
) -> Constant:
    """ONNX Pad: `pads` are all beginnings, then all ends, of `axes`; negative ones cut off. Raises ModelError."""
    if len(pads) != 2 * len(axes) or any(not -x.ndim <= k < x.ndim for k in axes):
        raise ModelError("pads must be pairs, one for each axis")
    if max(map(abs, pads), default=0) > limit:
        raise ModelError(f"pads are too large, above {limit}")
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        widths[axis] = pads[i], pads[i + len(axes)]
    cut = tuple(
        slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, widths, strict=True)
    )
    x = x[cut]
    added = [(max(low, 0), max(high, 0)) for low, high in widths]
    if math.prod(n + low + high for n, (low, high) in zip(x.shape, added, strict=True)) > limit:
        raise ModelError(f"its result has more than {limit} elements")
    if mode == "constant":
        return np.pad(x, added, constant_values=value)
    if mode not in ("reflect", "edge", "wrap"):
        raise ModelError(f"padding of mode {mode!r} is not known")
    if any(max(pair) > n for n, pair in zip(x.shape, added, strict=True)) and mode != "edge":
        raise ModelError("reflected or wrapped padding is wider than the tensor")
    return np.pad(x, added, mode=mode)  # type: ignore[call-overload,no-any-return]  # one of three literals
