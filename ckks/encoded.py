"""The weights of a circuit as plaintext polynomials: each encoded once, kept across requests, shared by processes through a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckks.backends import Backend
from ckks.bundle import Bundle
from ckks.circuit import Circuit, Op, Weights
from ckks.encoder import Encoder
from ckks.errors import EvaluationError
from ckks.integers import IntegerWeights, integer_bytes
from ckks.mapped import map_arrays, write_arrays
from ckks.packed import Bytes, Packed, pack, packed_bytes
from ckks.parameters import Parameters
from ckks.types import Residues, Slots

_FORMAT = (
    "encoded weights 4"  # change it with anything that changes an encoding: old files are then made anew
)
_TOGETHER = 16  # polynomials in memory at a time while a file is written


@dataclass(frozen=True)
class _Encoding:
    """One weight as a circuit uses it. giants: the rotation of each diagonal of a linear transform; None for a vector."""

    weight: str
    level: int
    scale: float
    giants: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        split = "" if self.giants is None else hashlib.sha256(repr(self.giants).encode()).hexdigest()[:16]
        return f"{self.weight} {self.level} {self.scale.hex()} {split}"


class EncodedWeights:
    """Encodes weights on first use; later requests read the same arrays. For one thread at a time.

    A vector of period k is a polynomial in X^s, s = slots/k, whose NTT holds every value s times in a row (the
    low bits of a position do not enter): one of each s is kept.
    """

    def __init__(self, backend: Backend, weights: Weights) -> None:
        self.backend = backend
        self.weights = weights
        self.encoder = Encoder(backend.parameters, backend)
        self.integers = IntegerWeights(backend.parameters, weights)
        self._arrays: dict[str, Bytes] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all encodings so far, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays.values()) + self.integers.nbytes

    def prepare(self, circuit: Circuit) -> None:
        """Encode all that a circuit uses, so that its first run is no slower than the others. Raises EvaluationError."""
        self.integers.prepare(circuit)
        for encoding in _encodings(circuit):
            self._find(encoding)

    def prepare_shared(self, circuit: Circuit, path: Path) -> None:
        """As `prepare`, through the file `path` (see `encoded_file`): the first process writes it, all map it.

        A few polynomials are in memory at a time while it is written. Mapped pages are shared, and given back by the system when
        memory is short. Raises EvaluationError.
        """
        self.integers.prepare(circuit)
        with _lock(path):
            if not path.exists():
                partial = path.with_suffix(".part")
                encodings = {e.name: e for e in _encodings(circuit)}
                shapes = {name: self._shape(e) for name, e in encodings.items()}
                write_arrays(partial, {"kind": _FORMAT}, shapes, lambda name: self._encode(encodings[name]))
                partial.replace(path)
        _, self._arrays = map_arrays(path)

    def vector(self, name: str, level: int, scale: float) -> Residues:
        """Weight `name` (float64 [period]) in NTT domain, uint64 [level+1][N]. Raises EvaluationError."""
        kept = self._find(_Encoding(name, level, scale)).unpack()[0]
        times = self.backend.parameters.degree // kept.shape[1]
        return np.repeat(kept, times, axis=1) if times > 1 else kept

    def diagonals(self, name: str, level: int, scale: float, giants: tuple[int, ...]) -> Packed:
        """Weight `name` (float64 [diagonals][period]), diagonal i rotated right by giants[i].

        NTT domain over the extended rows of `level`, packed [diagonal][row][N/s], for Backend.multiply_sums. Raises EvaluationError.
        """
        return self._find(_Encoding(name, level, scale, giants))

    def _find(self, encoding: _Encoding) -> Packed:
        name = encoding.name
        if name not in self._arrays:
            array = np.empty(self._shape(encoding), np.uint8)
            start = 0
            for part in self._encode(encoding):
                array[start : start + len(part)] = part
                start += len(part)
            self._arrays[name] = array
        length = 2 * self._rows(encoding).shape[1]
        return Packed(self._arrays[name], self._moduli(encoding), length)

    def _encode(self, encoding: _Encoding) -> Iterator[Bytes]:
        """The packed polynomials of `encoding`, some at a time."""
        rows, extended = self._rows(encoding), encoding.giants is not None
        stride = self.backend.parameters.slots // rows.shape[1]

        def encode(i: int) -> Bytes:
            values = np.roll(rows[i], encoding.giants[i]) if encoding.giants is not None else rows[i]
            plain = self.encoder.encode(values, encoding.level, encoding.scale, extended)
            return pack(plain.polynomial.residues[:, ::stride], self._moduli(encoding)).data

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            for start in range(0, len(rows), _TOGETHER):
                yield np.stack(list(pool.map(encode, range(start, min(start + _TOGETHER, len(rows))))))

    def _moduli(self, encoding: _Encoding) -> tuple[int, ...]:
        return _moduli(self.backend.parameters, encoding)

    def _shape(self, encoding: _Encoding) -> tuple[int, int]:
        return _shape(self.backend.parameters, encoding, self._rows(encoding).shape)

    def _rows(self, encoding: _Encoding) -> Slots:
        """The vectors that are encoded, float64 [diagonals or 1][period]."""
        axes = 1 if encoding.giants is None else 2
        values = self.weights.get(encoding.weight)
        if values is None or values.ndim != axes:
            raise EvaluationError(
                f"weight {encoding.weight!r} is missing or not of {axes} axes; compile the model again"
            )
        if encoding.giants is None:
            return values[None]
        if len(values) != len(encoding.giants):
            raise EvaluationError(
                f"weight {encoding.weight!r} has {len(values)} diagonals, the circuit uses {len(encoding.giants)}"
            )
        return values


def encoded_bytes(circuit: Circuit, shapes: Mapping[str, tuple[int, ...]], parameters: Parameters) -> int:
    """Bytes of the encoded weights of a circuit (without the file's header). shapes: of all weights by name."""
    sizes = {e.name: _shape(parameters, e, shapes[e.weight]) for e in _encodings(circuit)}
    return sum(count * size for count, size in sizes.values()) + integer_bytes(circuit)


def _encodings(circuit: Circuit) -> Iterator[_Encoding]:
    for ins, members in zip(circuit.instructions, circuit.members(), strict=True):
        if members:
            continue
        if ins.op is Op.ADD_PLAIN:
            yield _Encoding(ins.weight, ins.level, ins.scale)
        elif ins.op is Op.MULTIPLY_PLAIN:
            yield _Encoding(ins.weight, ins.level, ins.weight_scale)
        elif ins.op is Op.LINEAR_TRANSFORM:
            yield _Encoding(ins.weight, ins.level, ins.weight_scale, tuple(giant for giant, _ in ins.terms))


def _moduli(parameters: Parameters, encoding: _Encoding) -> tuple[int, ...]:
    whole = encoding.giants is not None
    rows = parameters.extended_rows(encoding.level) if whole else parameters.data_rows(encoding.level)
    return tuple(parameters.moduli[r] for r in rows)


def _shape(parameters: Parameters, encoding: _Encoding, shape: tuple[int, ...]) -> tuple[int, int]:
    """Polynomials of a weight of this shape, [diagonals][period] or [period], and the bytes of each."""
    return math.prod(shape[:-1]), packed_bytes(_moduli(parameters, encoding), 2 * shape[-1])


def encoded_file(folder: Path, bundle: Bundle) -> Path:
    """Where the encoded weights of a model lie: named by all that they depend on, so that a name never changes its meaning."""
    parts = (_FORMAT, bundle.checked_parameters().digest, bundle.circuit_digest, bundle.weights_digest)
    return folder / f"{hashlib.sha256(' '.join(parts).encode()).hexdigest()}.safetensors"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; a lock dies with its process."""
    with path.with_suffix(".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
