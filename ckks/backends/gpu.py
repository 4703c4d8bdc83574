"""The GPU backend: every function of the protocol in CUDA kernels (ckks/kernels/*.cu). Agrees with `reference` bit for bit.

No GPU has measured it yet: docs/gpu.md says what is tested, and how.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np

from ckks.backends import Fetched, Rows, Run, Values, checks
from ckks.backends.device import THREADS, Device
from ckks.backends.gpu_passes import Passes
from ckks.backends.gpu_recordings import Recordings
from ckks.errors import DeviceError, EvaluationError, ParameterError
from ckks.packed import Packed, packed_bytes
from ckks.parameters import Parameters
from ckks.types import EvaluationKeys, KeySwitchKey, Residues

_INSTALL = "install it with: pip install 'he-serve[gpu]' (CUDA 13; for CUDA 12 or a Volta GPU: cupy-cuda12x)"
_DRIVER = "check that this machine has a CUDA device and its driver (nvidia-smi), or use --device cpu"

_SINGLE_TO_DOUBLE = (
    87  # cudaDevAttrSingleToDoublePrecisionPerfRatio: 2 on V100, A100 and H100, 32 or 64 on consumer cards
)
# 9 operations on doubles do what 27 on integers do, of which a multiprocessor starts half as many as of FP32 at least: up to a ratio of 6.
_FAST_DOUBLES = 4


def find_library() -> Any:
    """The module cupy, where it sees a device. Starts nothing on it. Raises DeviceError."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(f"no GPU can be used: CuPy is missing ({error}); {_INSTALL}") from None
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own error classes differ from release to release
        raise DeviceError(f"no GPU can be used: {error}; {_DRIVER}") from None
    if count == 0:
        raise DeviceError(f"no GPU can be used: the driver sees no CUDA device; {_DRIVER}")
    return cupy


def device_index(name: str) -> int:
    """0 for "gpu", i for "gpu:i". Raises ParameterError for another name, DeviceError where this machine has no such device."""
    match = re.fullmatch(r"gpu(?::(\d{1,4}))?", name)
    if match is None:
        raise ParameterError(f"no device is called {name!r}; use auto, cpu, gpu, or gpu:0, gpu:1 and so on")
    index, count = int(match[1] or 0), find_library().cuda.runtime.getDeviceCount()
    if index >= count:
        there = "gpu:0" if count == 1 else f"gpu:0 to gpu:{count - 1}"
        raise DeviceError(f"there is no device {name}: the driver sees {there}; {_DRIVER}")
    return index


def open_device(index: int = 0) -> Device:
    """A CUDA device, its kernels compiled. Half of its free memory is for copies of keys and weights, and graphs. Raises DeviceError."""
    return opened(index)


@lru_cache(maxsize=64)
def opened(index: int) -> Device:
    """`open_device`, once for each."""
    cupy = find_library()
    name = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
    if index:
        name = f"{name} (gpu:{index})"
    doubles = cupy.cuda.runtime.deviceGetAttribute(_SINGLE_TO_DOUBLE, index) <= _FAST_DOUBLES
    try:
        free = cupy.cuda.Device(index).mem_info[0]
        return Device(cupy, name, free // 2, doubles=doubles, index=index)
    except Exception as error:
        raise DeviceError(f"{name}: the kernels cannot be compiled: {error}; {_INSTALL}") from None


class GpuBackend:
    """Backend (see ckks.backends) on one CUDA device.

    A result lies where the first array lies: device arrays give device arrays, for NumPy arrays it is brought back. Packed arrays, which
    keys and weights are, are taken for constants: their copies stay on the device while there is room.
    All functions take stacks: arrays with more axes in front than ckks.backends says give results with these axes in front, for a sum of
    products behind that of the sums.
    Raises EvaluationError for arrays of the wrong type or shape, DeviceMemoryError.
    """

    name = "gpu"

    def __init__(self, parameters: Parameters, device: Device | None = None) -> None:
        """device: open_device() if None. Raises DeviceError."""
        self.parameters = parameters
        self.device = open_device() if device is None else device
        self._passes = Passes(self.device, parameters.degree, parameters.moduli)
        self._log_n = self._passes.log_n
        self._recordings = Recordings(self.device)

    def upload(self, x: Residues) -> Residues:
        return cast(Residues, self.device.send(x))

    def download(self, x: Residues) -> Residues:
        return self.device.download(x)

    def empty_like(self, x: Residues, shape: tuple[int, ...]) -> Residues:
        on_host = isinstance(x, np.ndarray)
        return cast(Residues, np.empty(shape, dtype=np.uint64) if on_host else self.device.empty(shape))

    def fetch(self, x: Residues) -> Fetched[Residues]:
        return self.device.fetch(x)

    def repeat(self, program: object, keys: EvaluationKeys, inputs: Values, run: Run) -> Values:
        return self._recordings.repeat(program, keys, inputs, run)

    def forward(self, x: Residues, rows: Rows) -> Residues:
        return self._like(x, self._passes.forward(self._polynomials(x, rows), rows))

    def inverse(self, x: Residues, rows: Rows) -> Residues:
        return self._like(x, self._passes.inverse(self._polynomials(x, rows), rows))

    def add(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return self._pairwise("add_rows", a, b, rows, multiplied=False)

    def subtract(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return self._pairwise("subtract_rows", a, b, rows, multiplied=False)

    def multiply(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        return self._pairwise("multiply_rows", a, b, rows, multiplied=True)

    def multiply_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        self._checked(scalars, (len(rows),))
        checks.require_scalars(self.parameters, scalars, rows)
        return self._times(a, self.device.upload(scalars), rows, len(rows))

    def add_scalars(self, a: Residues, scalars: Residues, rows: Rows) -> Residues:
        x = self._polynomials(a, rows)
        self._checked(scalars, (len(rows),))
        checks.require_scalars(self.parameters, scalars, rows)
        out = self.device.empty(x.shape)
        arguments = (x, self.device.upload(scalars), out, *self._passes.table(rows), len(rows), self._log_n)
        grid = self._passes.wide(x.size // self.parameters.degree)
        self.device.launch("add_scalars_rows", grid, arguments, words=2 * x.size)
        return self._like(a, out)

    def times_p(self, x: Residues, level: int) -> Residues:
        p, rows = self.parameters, checks.extended_rows(self.parameters, level)
        scalars = self._passes.constant(
            ("P", level),
            lambda: np.array([p.special_product % q for q in p.data_primes[: level + 1]], dtype=np.uint64),
        )
        return self._times(x, scalars, rows[: level + 1], len(rows))

    def multiply_sums(
        self, terms: list[Residues], plains: Packed, sums: Sequence[Sequence[tuple[int, int]]], rows: Rows
    ) -> Residues:
        checks.require_sums(self.parameters, len(terms), plains, sums, rows)
        n, size = self.parameters.degree, len(plains.data)
        shape = (2, len(rows), n)
        inputs = [self.device.upload(self._checked(t, (..., *shape))) for t in terms]
        leading = self._leading(inputs, 3)
        stack = range(0, 16 * len(rows) * n * math.prod(leading), 16 * len(rows) * n)
        data, layout = self._packed(plains, (size,), rows)
        one = data.nbytes // size
        pointers = [
            (inputs[i].data.ptr + offset, data.data.ptr + j * one)
            for some in sums
            for offset in stack
            for i, j in some
        ]
        starts = np.cumsum([0, *(len(some) for some in sums for _ in stack)]).astype(np.uint64)
        table = self.device.upload(np.concatenate([starts, np.array(pointers, dtype=np.uint64).ravel()]))
        out = self.device.empty((len(sums), *leading, *shape))
        values, count, outputs = len(rows) * n, len(pointers), len(starts) - 1
        log_repeat = (n // plains.length).bit_length() - 1
        self.device.launch(
            "multiply_sums_rows",
            (n // THREADS, len(rows), outputs),
            (table, layout, out, *self._passes.table(rows), log_repeat, self._log_n),
            **self._passes.counts(
                rows,
                2 * values * (count + outputs) + one * count // (8 * len(stack)),
                sums=2 * values * count,
                reductions=2 * values * outputs,
            ),
        )
        return self._like(terms[0], out)

    def matrix(
        self, stacks: Sequence[Residues], terms: Residues, factors: Residues, outputs: int, rows: Rows
    ) -> Residues:
        n = self.parameters.degree
        inputs = [self._polynomials(x, rows) for x in stacks]
        checks.require_matrix(self.parameters, [x.shape for x in inputs], terms, factors, outputs, rows)
        count, member = terms.shape[1], inputs[0].shape[1:]
        size = member[0] * len(rows)
        if count:
            self._checked(terms, (2, count))
            self._checked(factors, (len(rows), count))
        addresses = [x.data.ptr + 8 * size * n * i for x in inputs for i in range(x.shape[0])]
        starts = np.searchsorted(terms[0], np.arange(outputs + 1, dtype=np.uint64)).tolist()
        table = np.array([*starts, *(addresses[i] for i in terms[1].tolist())], dtype=np.uint64)
        out = self.device.empty((outputs, *member))
        self.device.launch(
            "matrix_rows",
            (n // THREADS, size, outputs),
            (
                self.device.upload(table),
                self.device.keep(factors),
                out,
                *self._passes.table(rows),
                len(rows),
                count,
                self._log_n,
            ),
            **self._passes.counts(
                rows,
                size * n * (count + outputs),
                sums=size * n * count,
                reductions=size * n * outputs,
            ),
        )
        return self._like(stacks[0], out)

    def tensor(self, a: Residues, b: Residues, rows: Rows) -> Residues:
        checks.require_rows(self.parameters, rows)
        shape = (len(rows), self.parameters.degree)
        x, y = (self.device.upload(self._checked(v, (..., 2, *shape))) for v in (a, b))
        leading = self._leading((x, y), 3)
        out = self.device.empty((*leading, 3, *shape))
        arguments = (x, y, out, *self._passes.table(rows), self._log_n)
        size = x.size // 2
        self.device.launch(
            "tensor_rows",
            (self.parameters.degree // THREADS, len(rows), math.prod(leading)),
            arguments,
            **self._passes.counts(rows, 7 * size, sums=4 * size, reductions=3 * size),
        )
        return self._like(a, out)

    def automorphism(self, x: Residues, element: int) -> Residues:
        a = self.device.upload(self._checked(x, (..., self.parameters.degree)))
        out = self.device.empty(a.shape)
        arguments = (a, out, checks.galois_element(self.parameters, element), self._log_n)
        grid = self._passes.wide(a.size // self.parameters.degree)
        self.device.launch("automorphism_rows", grid, arguments, words=2 * a.size)
        return self._like(x, out)

    def decompose(self, x: Residues, level: int) -> Residues:
        return self._like(x, self._digits(x, level))

    def key_product(
        self,
        digits: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        p, rows = self.parameters, checks.extended_rows(self.parameters, level)
        shape = (len(p.digits(level)), len(rows), p.degree)
        a = self.device.upload(self._checked(digits, (..., *shape)))
        return self._like(digits, self._product(a, key, level, element, moved, divided))

    def key_switch(
        self,
        x: Residues,
        key: KeySwitchKey,
        level: int,
        element: int = 1,
        moved: Residues | None = None,
        divided: bool = False,
    ) -> Residues:
        return self._like(x, self._product(self._digits(x, level), key, level, element, moved, divided))

    def multiply_product_sums(
        self,
        digits: Residues,
        keys: Sequence[tuple[KeySwitchKey, int]],
        moved: Residues | None,
        terms: list[Residues],
        plains: Packed,
        sums: Sequence[Sequence[tuple[int, int]]],
        level: int,
    ) -> Residues:
        products = [self.key_product(digits, key, level, element, moved) for key, element in keys]
        return self.multiply_sums([*products, *terms], plains, sums, self.parameters.extended_rows(level))

    def mod_down(self, x: Residues, level: int) -> Residues:
        rows = checks.extended_rows(self.parameters, level)
        a = self.device.upload(self._checked(x, (..., len(rows), self.parameters.degree)))
        return self._like(x, self._passes.divide(a, rows[: level + 1], rows[level + 1 :]))

    def rescale(self, x: Residues, level: int) -> Residues:
        rows = checks.extended_rows(self.parameters, level)[: level + 1]
        if level == 0:
            raise EvaluationError("a ciphertext at level 0 cannot be rescaled; compile with one more level")
        a = self.device.upload(self._checked(x, (..., len(rows), self.parameters.degree)))
        return self._like(x, self._passes.divide(a, rows[:-1], rows[-1:]))

    def _pairwise(self, kernel: str, a: Residues, b: Residues, rows: Rows, multiplied: bool) -> Residues:
        x = self._polynomials(a, rows)
        self._checked(b, (..., len(rows), self.parameters.degree))
        if b.ndim > x.ndim or x.shape[x.ndim - b.ndim :] != b.shape:
            raise EvaluationError(f"the shape {b.shape} is not the end of the shape {x.shape}")
        y = self.device.upload(b)
        out = self.device.empty(x.shape)
        count, other = x.size // self.parameters.degree, y.size // self.parameters.degree
        arguments = (x, y, out, *self._passes.table(rows), len(rows), other, self._log_n)
        work = x.size if multiplied else 0
        self.device.launch(
            kernel,
            self._passes.wide(count),
            arguments,
            **self._passes.counts(rows, 3 * x.size, sums=work, reductions=work),
        )
        return self._like(a, out)

    def _times(self, a: Residues, scalars: Any, rows: Rows, out_rows: int) -> Residues:
        """The rows of a times scalars, and rows of zeros up to out_rows."""
        x = self._polynomials(a, rows)
        out = self.device.empty((*x.shape[:-2], out_rows, self.parameters.degree))
        arguments = (x, scalars, out, *self._passes.table(rows), len(rows), out_rows, self._log_n)
        grid = self._passes.wide(out.size // self.parameters.degree)
        words = x.size + out.size
        self.device.launch(
            "multiply_rows_by_scalars",
            grid,
            arguments,
            **self._passes.counts(rows, words, sums=x.size, reductions=x.size),
        )
        return self._like(a, out)

    def _digits(self, x: Residues, level: int) -> Any:
        rows = checks.extended_rows(self.parameters, level)
        a = self.device.upload(self._checked(x, (..., level + 1, self.parameters.degree)))
        groups = tuple(tuple(range(*limits)) for limits in self.parameters.digits(level))
        return self._passes.digits(a, groups, rows)

    def _product(
        self, digits: Any, key: KeySwitchKey, level: int, element: int, moved: Any, divided: bool
    ) -> Any:
        p, n, rows = self.parameters, self.parameters.degree, checks.extended_rows(self.parameters, level)
        if key.level < level:
            raise EvaluationError(f"a key for level {key.level} cannot be used at level {level}")
        key_rows = checks.extended_rows(self.parameters, key.level)
        if key.digits.length != n:
            raise EvaluationError(f"a key for rings of {key.digits.length} coefficients, not of {n}")
        array, _ = self._packed(key.digits, (len(p.digits(key.level)), 2), key_rows)
        layout = self._passes.layout(key_rows, n, rows)
        used_bytes = packed_bytes(tuple(self._passes.moduli_of(rows)), n)
        halves, moved_rows, moves = 0, 0, digits  # any array where there is none to move
        leading = self._leading((digits,), 3)
        if moved is not None:
            self._checked(moved, (..., n))
            checks.require_moved(moved.shape[len(leading) :], level, len(rows))
            moves = self.device.upload(moved)
            self._leading((digits, moves), 3)
            halves, moved_rows = moved.shape[-3:-1]
        stack, count = math.prod(leading), digits.shape[-3]
        out, values = self.device.empty((*leading, 2, len(rows), n)), stack * len(rows) * n
        moved_values = stack * halves * moved_rows * n
        factors = self._passes.scalars(("P as factors", level), p.special_product, p.data_rows(level))
        key_bytes = array.shape[-1]
        shape = (len(rows), count, key_bytes, halves, moved_rows)
        self.device.launch(
            "key_product_rows",
            (n // THREADS, len(rows), stack),
            (
                digits,
                array,
                layout,
                moves,
                out,
                factors,
                *self._passes.table(rows),
                *shape,
                checks.galois_element(self.parameters, element),
                self._log_n,
            ),
            **self._passes.counts(
                rows,
                (count + 2) * values + 2 * count * used_bytes // 8 + moved_values,
                products=moved_values if moved_rows < len(rows) else 0,
                sums=2 * count * values,
                reductions=2 * values,
            ),
        )
        return self._passes.divide(out, rows[: level + 1], rows[level + 1 :]) if divided else out

    def _leading(self, arrays: Sequence[Any], own: int) -> tuple[int, ...]:
        """The axes in front of the last `own` ones, which have to be the same for all."""
        first, *others = (tuple(x.shape[:-own]) for x in arrays)
        if any(leading != first for leading in others):
            raise EvaluationError(f"stacks of different sizes: {[list(x.shape) for x in arrays]}")
        return first

    def _like(self, x: Residues, out: Any) -> Residues:
        """`out` where x lies."""
        return self.device.download(out) if isinstance(x, np.ndarray) else cast(Residues, out)

    def _polynomials(self, x: Residues, rows: Rows) -> Any:
        checks.require_rows(self.parameters, rows)
        return self.device.upload(self._checked(x, (..., len(rows), self.parameters.degree)))

    def _packed(self, x: Packed, leading: tuple[int, ...], rows: Rows) -> tuple[Any, Any]:
        """Packed polynomials on the device, to stay there, and the layout of their rows."""
        checks.require_packed(self.parameters, x, leading, rows)
        return self.device.keep(x.data), self._passes.layout(rows, x.length, rows)

    def _checked(self, x: Any, shape: tuple[object, ...]) -> Any:
        """x itself, if it is a host or device array of this shape; a leading `...` stands for any leading axes."""
        if not isinstance(x, (np.ndarray, self.device.library.ndarray)) or x.dtype != np.uint64:
            kind = getattr(x, "dtype", type(x).__name__)
            raise EvaluationError(f"residues must be an array of uint64, got {kind}")
        free = shape[:1] == (...,)
        expected = shape[1:] if free else shape
        actual = x.shape[-len(expected) :] if free else x.shape
        if actual != expected or x.size == 0:
            wanted = str(list(shape)).replace("Ellipsis", "...")
            raise EvaluationError(f"residues must have the shape {wanted}, got {list(x.shape)}")
        return x
