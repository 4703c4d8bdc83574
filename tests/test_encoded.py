"""Encoded weights: the same arrays whether encoded here or mapped from the file that another process wrote."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from samples import tiny_model

from ckks.backends import make_backend
from ckks.circuit import Op
from ckks.encoded import EncodedWeights, encoded_bytes, encoded_file
from ckks.errors import EvaluationError
from ckks.mapped import map_arrays, write_arrays

MODEL = tiny_model()
BACKEND = make_backend(MODEL.bundle.checked_parameters(), "cpu")


def _all(weights: EncodedWeights) -> list[np.ndarray]:
    found = []
    for ins in MODEL.circuit.instructions:
        if ins.op is Op.LINEAR_TRANSFORM:
            giants = tuple(giant for giant, _ in ins.terms)
            found.append(weights.diagonals(ins.weight, ins.level, ins.weight_scale, giants).data)
        elif ins.op is Op.ADD_PLAIN:
            found.append(weights.vector(ins.weight, ins.level, ins.scale))
    return found


def test_shared_encodings_are_the_same_and_mapped(tmp_path: Path) -> None:
    path = encoded_file(tmp_path, MODEL.bundle)
    own = EncodedWeights(BACKEND, MODEL.weights)
    own.prepare(MODEL.circuit)
    for _ in range(2):  # the first writes the file, the second finds it
        shared = EncodedWeights(BACKEND, MODEL.weights)
        shared.prepare_shared(MODEL.circuit, path)
        arrays = _all(shared)
        assert all(np.array_equal(a, b) for a, b in zip(arrays, _all(own), strict=True))
        assert not arrays[0].flags.writeable and shared.nbytes == own.nbytes
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".safetensors"]


def test_size_is_known_beforehand() -> None:
    weights = EncodedWeights(BACKEND, MODEL.weights)
    weights.prepare(MODEL.circuit)
    assert weights.nbytes == encoded_bytes(
        MODEL.circuit, {k: w.shape for k, w in MODEL.weights.items()}, BACKEND.parameters
    )


def test_name_depends_on_everything_encoded() -> None:
    folder = Path("x")
    names = {encoded_file(folder, MODEL.bundle)}
    for change in ({"weights_digest": "0" * 64}, {"circuit_digest": "0" * 64}):
        names.add(encoded_file(folder, MODEL.bundle.model_copy(update=change)))
    assert len(names) == 3
    assert encoded_file(folder, MODEL.bundle.model_copy(update={"description": "other"})) in names


def test_wrong_weights_are_refused() -> None:
    weights = EncodedWeights(BACKEND, MODEL.weights)
    with pytest.raises(EvaluationError, match="missing"):
        weights.vector("none", 1, 2.0**20)
    with pytest.raises(EvaluationError, match="4 diagonals"):
        weights.diagonals("w", 1, 2.0**20, (0, 1))
    bad = dataclasses.replace(MODEL, weights={**MODEL.weights, "b": np.full(4, 1e30)})
    with pytest.raises(EvaluationError, match="fit"):
        EncodedWeights(BACKEND, bad.weights).prepare(MODEL.circuit)


def test_mapped_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(128, dtype=np.uint8).reshape(2, 64), "b c": np.full((1, 1, 64), 255, np.uint8)}
    shapes = {k: v.shape for k, v in arrays.items()}
    write_arrays(
        tmp_path / "f", {"kind": "test"}, shapes, lambda name: np.split(arrays[name], len(arrays[name]))
    )
    metadata, mapped = map_arrays(tmp_path / "f")
    assert metadata == {"kind": "test"} and list(mapped) == list(arrays)
    assert all(np.array_equal(mapped[k], v) for k, v in arrays.items())
    assert mapped["a"].ctypes.data % 64 == 0
