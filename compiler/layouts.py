"""Layouts: where the elements of a tensor lie in a slot vector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ckks.bundle import MAX_PARTS, copy_places
from compiler.graph import Array, Shape
from compiler.matrices import Index


@dataclass(frozen=True, eq=False)
class Layout:
    """Element i is in part slots[i] // period, there at slots[i] % period + k*period for every k.

    slots: int64 [elements], distinct, below parts*period; period: a power of two. parts: ciphertexts that the tensor takes, each with an
    element at least; only tensors that fit no single one take several, and their period is a whole ciphertext's.
    copies, shift: of an input, whose copies the client makes: the period holds `copies` blocks of equal size, block k turned left by
    k*shift slots within itself (ckks.bundle.copy_places). Other tensors have one copy.
    fold (p, m): blocks of m slots hold p elements each, at their beginning; a matrix leaves partial sums of an element p slots apart,
    and what adding them up leaves in the other slots is of no use, so that the layout suits no output and no polynomial of high degree.
    lanes: images interleaved when the circuit is done (compiler/lanes.py); slots and period are those of one image.
    """

    name: str
    slots: Index
    period: int
    fold: tuple[int, int] | None = None
    copies: int = 1
    shift: int = 0
    parts: int = 1
    lanes: int = 1

    def part(self, k: int) -> tuple[Index, Layout]:
        """The elements in part k, and where they lie in it."""
        if self.parts == 1:
            return np.arange(len(self.slots)), self
        elements = np.flatnonzero(self.slots // self.period == k)
        return elements, Layout(f"{self.name}, part {k}", self.slots[elements] % self.period, self.period)

    def spread(self, values: Array) -> Array:
        """Vectors float64 [..., parts*period] with `values` [..., elements] at all their places and zero elsewhere."""
        vector = np.zeros((*values.shape[:-1], self.parts * self.period))
        for places in copy_places(self.slots, self.period, self.copies, self.shift):
            vector[..., places] = values
        return vector


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def candidates(shape: Shape, slots: int) -> list[Layout]:
    """Layouts to choose from for a tensor of `shape` (batch axis included), all with a period of at most `slots`.

    None if it needs more than MAX_PARTS ciphertexts.

    Channel planes on grids padded to powers of two keep the offsets of a convolution the same in every plane; multiplexed planes
    (Lee et al. 2022, "Low-complexity deep convolutional neural networks on FHE using multiplexed parallel convolutions", section 4)
    interleave channels in the gaps that strides leave; polyphase planes split a picture by the phase of the stride that follows.
    """
    size = math.prod(shape)
    found = [Layout("dense", np.arange(size), power_of_two(size))]
    if len(shape) in (3, 4) and shape[0] == 1 and size > shape[1]:
        channels, *rest = shape[1:]
        height, width = rest if len(rest) == 2 else (1, rest[0])
        c, y, x = (a.reshape(-1) for a in np.indices((channels, height, width)))
        found += [_grid("planes", 1, c, y, x), _rows(c, y, x, height)]
        for gap in (2, 4):
            if channels > 1:
                block, inside = np.divmod(c, gap * gap) if height > 1 else np.divmod(c, gap)
                dy, dx = np.divmod(inside, gap) if height > 1 else (0 * inside, inside)
                rows = y * gap + dy if height > 1 else y
                found.append(_grid(f"multiplexed {gap}", 1, block, rows, x * gap + dx))
            if height % gap == 0 or width % gap == 0:
                py = y % gap if height > 1 else 0 * y
                plane = (c * (gap if height > 1 else 1) + py) * gap + x % gap
                found.append(_grid(f"polyphase {gap}", 1, plane, y // gap if height > 1 else y, x // gap))
        last = power_of_two(channels)
        found.append(_grid("channels last", last, 0 * c, y, x, c))
    if all(layout.period > slots for layout in found):
        found = [_cut(layout, slots) for layout in found]
    unique: dict[bytes, Layout] = {}
    for layout in found:
        if layout.period <= slots and layout.parts <= MAX_PARTS:
            unique.setdefault(layout.slots.tobytes() + layout.period.to_bytes(8, "little"), layout)
    return list(unique.values())


def _cut(layout: Layout, slots: int) -> Layout:
    """The same places one ciphertext after the other, those without an element left out."""
    used, part = np.unique(layout.slots // slots, return_inverse=True)
    return Layout(layout.name, part * slots + layout.slots % slots, slots, parts=len(used))


def blocks(size: int, slots: int) -> list[Layout]:
    """Layouts for `size` outputs of a dense layer whose input repeats: every copy of the input computes other outputs, so that a matrix
    of R rows over C slots takes R*C/slots diagonals (the wide matrices of Halevi and Shoup's hybrid, with all slots in use)."""
    found = []
    for shift in range(1, slots.bit_length() - 1):
        m = slots >> shift
        p = power_of_two(-(-size >> shift))
        if 2 * p <= m:
            row = np.arange(size)
            found.append(Layout(f"blocks of {m}", row // p * m + row % p, slots, (p, m)))
    return found


def sparser(size: int, slots: int) -> list[Layout]:
    """Layouts of `size` elements in a row with fewer copies than fit: what is in the other slots need not be added up."""
    first = power_of_two(size).bit_length()
    return [Layout("dense", np.arange(size), 1 << k) for k in range(first, slots.bit_length())]


def turned_copies(size: int, consumers: list[int], slots: int) -> list[Layout]:
    """Layouts of an input of `size` elements whose copies fill the slots, each turned on by a share of a consumer's `consumers` outputs.

    The copies then meet different diagonals of a wide dense layer in one product: R rows over C columns take R*C/slots diagonals, and
    their sums fold into a tidy result (Halevi and Shoup 2018, section 4.3, with the rotations made before encryption).
    """
    copies = slots // power_of_two(size)
    shifts = {power_of_two(n) // copies for n in consumers} - {0} if copies > 1 else set()
    return [
        Layout(f"{copies} copies turned by {shift}", np.arange(size), slots, None, copies, shift)
        for shift in sorted(shifts)
    ]


def _grid(name: str, step: int, plane: Index, y: Index, x: Index, inner: Index | int = 0) -> Layout:
    height, width = power_of_two(int(y.max()) + 1), power_of_two(int(x.max()) + 1)
    slots = ((plane * height + y) * width + x) * step + inner
    return Layout(name, slots, power_of_two(int(plane.max()) + 1) * height * width * step)


def _rows(plane: Index, y: Index, x: Index, height: int) -> Layout:
    width = power_of_two(int(x.max()) + 1)
    slots = (plane * height + y) * width + x
    return Layout("rows", slots, power_of_two(int(slots.max()) + 1))
