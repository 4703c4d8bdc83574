"""The weights of a circuit as plaintext polynomials: each encoded once, kept across requests, shared by processes through a file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ckks.backends import Backend
from ckks.bundle import Bundle
from ckks.circuit import Circuit, Op, Weights
from ckks.encoder import Encoder
from ckks.errors import EvaluationError
from ckks.mapped import map_arrays, write_arrays
from ckks.types import Residues, Slots

_FORMAT = (
    "encoded weights 1"  # change it with anything that changes an encoding: old files are then made anew
)


class EncodedWeights:
    """Encodes weights on first use; later requests read the same arrays. For one thread at a time.

    A vector of period k is a polynomial in X^s, s = slots/k, whose NTT holds every value s times in a row (the
    low bits of a position do not enter): one of each s is kept.
    """

    def __init__(self, backend: Backend, weights: Weights) -> None:
        self.backend = backend
        self.weights = weights
        self.encoder = Encoder(backend.parameters, backend)
        self._arrays: dict[str, Residues] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all encodings so far, in memory or mapped."""
        return sum(array.nbytes for array in self._arrays.values())

    def prepare(self, circuit: Circuit) -> None:
        """Encode all that a circuit uses, so that its first run is no slower than the others. Raises EvaluationError."""
        for ins in circuit.instructions:
            if ins.op is Op.ADD_PLAIN:
                self.vector(ins.weight, ins.level, ins.scale)
            elif ins.op is Op.MULTIPLY_PLAIN:
                self.vector(ins.weight, ins.level, ins.weight_scale)
            elif ins.op is Op.LINEAR_TRANSFORM:
                giants = tuple(giant for giant, _ in ins.terms)
                self.diagonals(ins.weight, ins.level, ins.weight_scale, giants)

    def prepare_shared(self, circuit: Circuit, path: Path) -> None:
        """As `prepare`, through the file `path` (see `encoded_file`): the first process writes it, all map it.

        Mapped pages are shared, and given back by the system when memory is short. Raises EvaluationError.
        """
        with _lock(path):
            if not path.exists():
                self.prepare(circuit)
                partial = path.with_suffix(".part")
                shapes = {name: array.shape for name, array in self._arrays.items()}
                write_arrays(partial, {"kind": _FORMAT}, shapes, self._arrays.__getitem__)
                partial.replace(path)
        _, self._arrays = map_arrays(path)

    def vector(self, name: str, level: int, scale: float) -> Residues:
        """Weight `name` (float64 [period]) in NTT domain, uint64 [level+1][N]. Raises EvaluationError."""
        key = f"{name} {level} {scale.hex()}"
        if key not in self._arrays:
            self._arrays[key] = self._encode(self._weight(name, 1), level, scale, extended=False)
        kept = self._arrays[key]
        return np.repeat(kept, self.backend.parameters.degree // kept.shape[1], axis=1)

    def diagonals(self, name: str, level: int, scale: float, giants: tuple[int, ...]) -> Residues:
        """Weight `name` (float64 [diagonals][period]), diagonal i rotated right by giants[i].

        NTT domain over the extended rows of `level`, [diagonal][row][N/s], for Backend.multiply_sums. Raises EvaluationError.
        """
        split = hashlib.sha256(repr(giants).encode()).hexdigest()[:16]
        key = f"{name} {level} {scale.hex()} {split}"
        if key not in self._arrays:
            rows = self._weight(name, 2)
            if len(rows) != len(giants):
                raise EvaluationError(
                    f"weight {name!r} has {len(rows)} diagonals, the circuit uses {len(giants)}"
                )

            def encode(i: int) -> Residues:
                return self._encode(np.roll(rows[i], giants[i]), level, scale, extended=True)

            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                self._arrays[key] = np.stack(list(pool.map(encode, range(len(rows)))))
        return self._arrays[key]

    def _encode(self, values: Slots, level: int, scale: float, extended: bool) -> Residues:
        residues = self.encoder.encode(values, level, scale, extended).polynomial.residues
        return np.ascontiguousarray(residues[:, :: self.backend.parameters.slots // len(values)])

    def _weight(self, name: str, axes: int) -> Slots:
        values = self.weights.get(name)
        if values is None or values.ndim != axes:
            raise EvaluationError(
                f"weight {name!r} is missing or not of {axes} axes; compile the model again"
            )
        return values


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
