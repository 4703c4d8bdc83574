"""Linear operators of ONNX as sparse matrices over flat tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import block_diag, csr_array

from ckks.errors import ModelError
from compiler.graph import MAX_ELEMENTS, MAX_NONZEROS, Array, Shape

Index = npt.NDArray[np.int64]
PADDING = -1  # an index that reads zero
OVERHANG = -2  # the same, in the part that ceil_mode adds: not even a pooling divisor counts it


def sparse(values: Array, rows: Index, columns: Index, shape: tuple[int, int]) -> csr_array:
    """A matrix from triplets; exact zeros are dropped, triplets of one place are added."""
    keep = values != 0.0
    matrix = csr_array((values[keep], (rows[keep], columns[keep])), shape=shape, dtype=np.float64)
    matrix.sum_duplicates()
    return matrix


def selection(index: Index, size: int) -> csr_array:
    """The matrix that picks x[index], index flat, from a vector of `size`."""
    return sparse(np.ones(index.size), np.arange(index.size), index.reshape(-1), (index.size, size))


def windows(
    shape: Shape,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    overhang: Sequence[int],
) -> Index:
    """Flat input indices [channels][*outputs][*kernel] of every window over [1][channels][*spatial]; PADDING or OVERHANG outside.

    pads: ONNX order, all beginnings then all ends. overhang: extra elements at each end. Raises ModelError when a window does not fit.
    """
    rank = len(kernel)
    channels, spatial = shape[1], shape[2:]
    places: list[Index] = []
    for axis in range(rank):
        padded = spatial[axis] + pads[axis] + pads[axis + rank]
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        outputs = (padded + overhang[axis] - reach) // strides[axis] + 1
        if outputs < 1 or outputs > MAX_ELEMENTS:
            raise ModelError(
                f"a kernel reaching over {reach} does not fit an axis of {padded} elements (padding included)"
            )
        starts = (
            np.arange(outputs)[:, None] * strides[axis] + np.arange(kernel[axis])[None, :] * dilations[axis]
        )
        place = starts - pads[axis]
        place = np.where(
            starts >= padded, OVERHANG, np.where((place < 0) | (place >= spatial[axis]), PADDING, place)
        )
        places.append(place)
    count = channels * math.prod(p.size for p in places)
    if count > MAX_NONZEROS:
        raise ModelError(
            f"its matrix would have {count} entries, more than {MAX_NONZEROS}; make the picture or the kernel smaller"
        )
    index = np.arange(channels).reshape([channels] + [1] * 2 * rank)
    outside = np.zeros_like(index)
    for axis, place in enumerate(places):
        form = [1] * (1 + 2 * rank)
        form[1 + axis], form[1 + rank + axis] = place.shape
        p = place.reshape(form)
        index = index * spatial[axis] + np.maximum(p, 0)
        outside = np.minimum(outside, np.minimum(p, 0))
    return np.where(outside < 0, outside, index)


def convolution(weight: Array, groups: int, window: Index, size: int) -> csr_array:
    """weight [out][in/groups][*kernel] over `window` (see windows) of an input of `size` elements."""
    out, per_group, *kernel = weight.shape
    rank = len(kernel)
    places = math.prod(window.shape[1 : 1 + rank])
    taps = math.prod(kernel)
    if out * per_group * places * taps > MAX_NONZEROS or out * places > MAX_ELEMENTS:
        raise ModelError(
            f"its matrix would have more than {MAX_NONZEROS} entries; use fewer channels or a smaller picture"
        )
    # [groups][out/groups][places][in/groups][taps]
    columns = window.reshape(groups, 1, per_group, places, taps).transpose(0, 1, 3, 2, 4)
    values = weight.reshape(groups, out // groups, 1, per_group, taps)
    rows = np.arange(out * places).reshape(groups, out // groups, places, 1, 1)
    form = (groups, out // groups, places, per_group, taps)
    columns, values, rows = (np.broadcast_to(a, form).reshape(-1) for a in (columns, values, rows))
    inside = columns >= 0
    return sparse(values[inside], rows[inside], columns[inside], (out * places, size))


def average(window: Index, size: int, count_padding: bool) -> csr_array:
    """The mean of each window (see windows); padding enters the divisor or not, overhang never does."""
    rank = (window.ndim - 1) // 2
    outputs = math.prod(window.shape[: 1 + rank])
    flat = window.reshape(outputs, -1)
    divisors = np.count_nonzero(flat != OVERHANG if count_padding else flat >= 0, axis=1)
    inside = flat >= 0
    rows = np.broadcast_to(np.arange(outputs)[:, None], flat.shape)[inside]
    return sparse(1.0 / divisors[rows], rows, flat[inside], (outputs, size))


def matrix_product(weight: Array, shape: Shape, from_left: bool) -> tuple[csr_array, Shape]:
    """The matrix of x @ weight (or weight @ x) by NumPy's rules for x of `shape`, and the result's shape."""
    if not weight.ndim or not shape:
        raise ModelError("a matrix product needs at least one axis on both sides")
    index = np.arange(math.prod(shape)).reshape(shape)
    left, right = (weight, index) if from_left else (index, weight)
    # A vector is a row on the left, a column on the right, and its axis is dropped afterwards.
    dropped = (-2,) * (left.ndim == 1) + (-1,) * (right.ndim == 1)
    left = left[None, :] if left.ndim == 1 else left
    right = right[:, None] if right.ndim == 1 else right
    if left.shape[-1] != right.shape[-2]:
        raise ModelError(f"a constant of shape {weight.shape} cannot multiply a tensor of shape {shape}")
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    m, k, n = left.shape[-2], left.shape[-1], right.shape[-1]
    outputs = math.prod(batch) * m * n
    if outputs * k > MAX_NONZEROS or outputs > MAX_ELEMENTS:
        raise ModelError(f"its matrix would have more than {MAX_NONZEROS} entries; use a smaller layer")
    form = (*batch, m, n, k)
    first = np.broadcast_to(left[..., :, None, :], form).reshape(-1)
    second = np.broadcast_to(np.swapaxes(right, -1, -2)[..., None, :, :], form).reshape(-1)
    values, columns = (first, second) if from_left else (second, first)
    places: Index = columns.astype(np.int64)
    rows = np.repeat(np.arange(outputs), k)
    result = np.squeeze(np.empty((*batch, m, n), np.bool_), dropped).shape
    return sparse(values.astype(np.float64), rows, places, (outputs, index.size)), result or (1,)


def repeated(matrix: csr_array, count: int) -> csr_array:
    """Block diagonal: `matrix` for each of `count` tensors one after the other."""
    if count * max(matrix.nnz, *matrix.shape) > MAX_NONZEROS:
        raise ModelError(f"its matrix would have more than {MAX_NONZEROS} entries; use a smaller layer")
    return matrix if count == 1 else csr_array(block_diag([matrix] * count))


def mean_over(shape: Shape, axes: Sequence[int], scale_by_count: bool) -> csr_array:
    """Sum (or mean) over `axes` of a tensor of `shape`."""
    size = math.prod(shape)
    index = np.moveaxis(np.arange(size).reshape(shape), axes, range(-len(axes), 0)).reshape(
        -1, math.prod(shape[a] for a in axes)
    )
    outputs, count = index.shape
    rows = np.repeat(np.arange(outputs), count)
    values = np.full(size, 1.0 / count if scale_by_count else 1.0)
    return sparse(values, rows, index.reshape(-1), (outputs, size))
