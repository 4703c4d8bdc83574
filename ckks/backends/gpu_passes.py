"""Transforms and basis conversions on a device: the passes over shared memory that share a tile's layout (ckks/kernels/ntt.cuh)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ckks.backends import Rows
from ckks.backends.device import THREADS, TILE, Device
from ckks.backends.gpu_tables import (
    conversion,
    factor_rows,
    on_doubles,
    packed_layout,
    prime_table,
    row_table,
    twiddle_table,
)
from ckks.types import Residues

_BLOCK_STAGES = 9  # kLogBlock of ntt.cuh
_COUNTED = 65535  # blocks along the second and the third axis of a grid


@dataclass(frozen=True, eq=False)
class _Tables:
    """gpu_tables.Conversion on the device. scales: of the inverse transforms that come before it."""

    sources: int
    wide: bool
    scales: Any
    constants: Any
    words: Any
    inverses: Any


class Passes:
    """Device arrays in, device arrays out, all C-contiguous and of the right shapes. Rows are indices into `moduli`."""

    def __init__(self, device: Device, degree: int, moduli: tuple[int, ...]) -> None:
        """degree: N, 2^12..2^17. moduli: primes that are 1 mod 2N, below 2^60."""
        self._device, self._degree, self._moduli = device, degree, moduli
        self.log_n = degree.bit_length() - 1
        self._primes = device.upload(prime_table(moduli))
        self._forward = device.upload(twiddle_table(degree, moduli, False, device.doubles))
        self._inverse = device.upload(twiddle_table(degree, moduli, True, device.doubles))
        self._constants: dict[object, Any] = {}  # a few kilobytes each

    def moduli_of(self, rows: Rows) -> list[int]:
        """The primes of these rows."""
        return [self._moduli[r] for r in rows]

    def constant(self, key: object, make: Callable[[], Residues]) -> Any:
        """make() on the device, made once for `key`."""
        if key not in self._constants:
            self._constants[key] = self._device.upload(make())
        return self._constants[key]

    def scalars(self, key: object, value: int, rows: Rows) -> Any:
        """struct Factor of an integer modulo the prime of each row, made once for `key`."""
        moduli = self.moduli_of(rows)
        return self.constant(
            key, lambda: factor_rows([value % q for q in moduli], moduli, self._device.doubles)
        )

    def table(self, rows: Rows) -> tuple[Any, Any]:
        """The kernel arguments `primes, rows`."""
        return self._primes, self.constant(rows, lambda: row_table(rows))

    def layout(self, packed: Rows, length: int, wanted: Rows) -> Any:
        """struct PackedRow of each row in `wanted`, of polynomials packed with `length` residues for each row in `packed`."""
        key = ("layout", packed, length, wanted)
        return self.constant(
            key, lambda: packed_layout(self.moduli_of(packed), length, [packed.index(r) for r in wanted])
        )

    def counts(self, rows: Sequence[int], words: int, **operations: int) -> dict[str, int]:
        """For the counters: `operations` (fields of Work) shared alike by these rows, on doubles where their primes are."""
        doubles = sum(on_doubles(q, self._device.doubles) for q in map(self._moduli.__getitem__, rows))
        split = {"words": words}
        for name, count in operations.items():
            split["double_" + name] = count * doubles // len(rows)
            split[name] = count - split["double_" + name]
        return split

    def wide(self, rows: int) -> tuple[int, int, int]:
        """The grid of kernels with one thread for one position of so many rows."""
        return self._degree // THREADS, *_counted(rows)

    def forward(self, x: Any, rows: Rows) -> Any:
        """Backend.forward."""
        out = self._device.empty(x.shape)
        count, common = x.size // self._degree, (*self.table(rows), len(rows), self.log_n)
        grid, done = self._tiles(count), rows * (count // len(rows))
        self._device.launch(
            "ntt_forward_columns", grid, (x, out, self._forward, *common), **self._columns_work(done)
        )
        self._device.launch(
            "ntt_forward_blocks", grid, (out, self._forward, *common), **self._blocks_work(done)
        )
        return out

    def inverse(self, x: Any, rows: Rows) -> Any:
        """Backend.inverse."""
        scales = self.constant(("1/N", rows), lambda: self._over_n(rows, [1] * len(rows)))
        return self._scaled_inverse(x, x.shape, rows, len(rows), 0, scales)

    def digits(self, x: Any, groups: tuple[Rows, ...], rows: Rows) -> Any:
        """Backend.decompose of x [limb][N], whose limbs `groups` share out, to `rows`."""
        limbs, tables = x.shape[0], self._conversion(groups, rows)
        own = tuple(range(limbs))
        y = self._scaled_inverse(x, x.shape, own, limbs, 0, tables.scales)
        overflow = self._overflow(y, tables, own, len(groups), tables.words.size // len(groups))
        out = self._device.empty((len(groups), len(rows), self._degree))
        count = len(groups) * len(rows)
        converted = tuple(row for group in groups for row in rows if row not in group)
        self._convert(y, overflow, out, tables, rows, tables.constants.size // len(groups), converted)
        common = (*self.table(rows), len(rows), tables.sources, limbs, self.log_n)
        work = self._blocks_work(converted, extra_words=2 * x.size)
        self._device.launch("digits_blocks", self._tiles(count), (x, out, self._forward, *common), **work)
        return out

    def divide(self, x: Any, keep: Rows, drop: Rows) -> Any:
        """(x - [x]_D) / D over the rows `keep`, D the product of the primes of the rows `drop`: x [...][keep, drop][N]."""
        x_rows, tables = len(keep) + len(drop), self._conversion((drop,), keep)
        outer = x.size // (x_rows * self._degree)
        y = self._scaled_inverse(x, (outer, len(drop), self._degree), drop, x_rows, len(keep), tables.scales)
        overflow = self._overflow(y, tables, drop, outer, 0)
        out = self._device.empty((*x.shape[:-2], len(keep), self._degree))
        self._convert(y, overflow, out, tables, keep, 0, keep * outer)
        common = (*self.table(keep), len(keep), x_rows, self.log_n)
        arguments = (x, out, tables.inverses, self._forward, *common)
        work = self._blocks_work(keep * outer, extra_words=out.size, extra_products=out.size)
        self._device.launch("divide_blocks", self._tiles(outer * len(keep)), arguments, **work)
        return out

    def _scaled_inverse(
        self, x: Any, shape: tuple[int, ...], rows: Rows, x_rows: int, offset: int, scales: Any
    ) -> Any:
        """Inverse transforms of rows offset.. of the polynomials of x [...][x_rows][N], times scales (_over_n)."""
        out = self._device.empty(shape)
        count, common = out.size // self._degree, (*self.table(rows), len(rows))
        arguments: tuple[Any, ...] = (x, out, self._inverse, *common, x_rows, offset, self.log_n)
        done = rows * (count // len(rows))
        self._device.launch("ntt_inverse_blocks", self._tiles(count), arguments, **self._blocks_work(done))
        arguments = (out, self._inverse, scales, *common, self.log_n)
        self._device.launch(
            "ntt_inverse_columns",
            self._tiles(count),
            arguments,
            **self._columns_work(done, extra_products=out.size),
        )
        return out

    def _overflow(self, y: Any, tables: _Tables, rows: Rows, groups: int, words_per_group: int) -> Any:
        out = self._device.empty((groups, self._degree))
        common = (*self.table(rows), len(rows), tables.words, words_per_group, tables.sources)
        arguments = (y, out, *common, y.size // self._degree, self.log_n)
        self._device.launch(
            "overflow_rows", self.wide(groups), arguments, words=y.size + out.size, sums=y.size
        )
        return out

    def _convert(
        self, y: Any, overflow: Any, out: Any, tables: _Tables, rows: Rows, per_group: int, converted: Rows
    ) -> None:
        """converted: the rows of all groups in `out` that are: all, or all but a digit's own."""
        count, per_value = out.size // self._degree, tables.sources + 1
        common = (tables.constants, per_group, self._forward, *self.table(rows), len(rows), tables.sources)
        skips, wide = int(len(converted) < count), int(tables.wide)
        arguments = (y, overflow, out, *common, y.size // self._degree, skips, wide, self.log_n)
        values = len(converted) * self._degree
        work = self._columns_work(converted, extra_words=values * (per_value - 1))
        # Sums of what is too large for doubles are on integers, whatever the transform after them is on.
        sums = {"sums": values * per_value, "reductions": values}
        for name, done in sums.items() if tables.wide else self.counts(converted, 0, **sums).items():
            work[name] = work.get(name, 0) + done
        self._device.launch("convert_columns", self._tiles(count), arguments, **work)

    def _conversion(self, groups: tuple[Rows, ...], targets: Rows) -> _Tables:
        if (groups, targets) not in self._constants:
            host = conversion(
                [self.moduli_of(g) for g in groups], self.moduli_of(targets), self._device.doubles
            )
            scales = self._over_n(tuple(row for group in groups for row in group), host.y_scales)
            arrays = (scales, host.constants, host.words, host.inverses)
            tables = _Tables(host.sources, host.wide, *map(self._device.upload, arrays))
            self._constants[groups, targets] = tables
        return cast(_Tables, self._constants[groups, targets])

    def _over_n(self, rows: Rows, scales: list[int]) -> Residues:
        """struct Factor of scale / N for each row."""
        moduli = self.moduli_of(rows)
        return factor_rows(
            [pow(self._degree, -1, q) * scale % q for q, scale in zip(moduli, scales, strict=True)],
            moduli,
            self._device.doubles,
        )

    def _tiles(self, rows: int) -> tuple[int, int, int]:
        return self._degree // TILE, *_counted(rows)

    def _columns_work(self, rows: Rows, extra_words: int = 0, extra_products: int = 0) -> dict[str, int]:
        """For the counters. Few twiddles: all tiles of a row share them."""
        values = len(rows) * self._degree
        butterflies = (self.log_n - _BLOCK_STAGES) * values // 2
        return self.counts(rows, 2 * values + extra_words, products=butterflies + extra_products)

    def _blocks_work(self, rows: Rows, extra_words: int = 0, extra_products: int = 0) -> dict[str, int]:
        """For the counters. Every tile has twiddles of its own, for each value two words or a double."""
        values = len(rows) * self._degree
        twiddles = sum(1 if on_doubles(self._moduli[row], self._device.doubles) else 2 for row in rows)
        words = 2 * values + twiddles * self._degree + extra_words
        return self.counts(rows, words, products=_BLOCK_STAGES * values // 2 + extra_products)


def _counted(rows: int) -> tuple[int, int]:
    """The second and third axis of a grid of so many rows (grid_row of modular.cuh): stacks have more than one axis counts.

    The rows of a stack have a divisor of the right size, its members (ckks/bundle.py).
    """
    parts = next(parts for parts in range(-(-rows // _COUNTED), rows + 1) if rows % parts == 0)
    return rows // parts, parts
