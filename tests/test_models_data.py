"""Loaders of the demonstration models' data: a good file is read as it is, a bad one is named and refused."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import data


def idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_fashion(folder: Path) -> dict[str, np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return arrays


def derma_arrays() -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(1)
    return {
        f"{split}_{kind}": (
            rng.integers(0, 256, (14, 28, 28, 3), dtype=np.uint8)
            if kind == "images"
            else (np.arange(14, dtype=np.uint8) % 7)[:, None]
        )
        for split in ("train", "val", "test")
        for kind in ("images", "labels")
    }


def test_fashion_files_are_read_as_they_are(tmp_path: Path) -> None:
    arrays = write_fashion(tmp_path)
    dataset = data.fashion_mnist(tmp_path)
    assert dataset.test_images.shape == (20, 1, 28, 28)
    assert dataset.labels[9] == "Ankle boot"
    assert np.array_equal(dataset.train_images[:, 0], arrays["train-images-idx3-ubyte"])
    assert np.array_equal(dataset.test_labels, arrays["t10k-labels-idx1-ubyte"])
    assert dataset.train_labels.dtype == np.int64


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-20], "cannot be read"),
        (lambda raw: b"no gzip at all", "cannot be read"),
        (lambda raw: gzip.compress(raw[:-1]), "damaged"),
        (lambda raw: gzip.compress(raw[:3]), "not an IDX file"),
        (lambda raw: gzip.compress(b"\0\0\x0d\x03" + raw[4:]), "not an IDX file"),
        (lambda raw: gzip.compress(raw[:4] + b"\xff" * 12 + raw[16:]), "damaged"),
    ],
)
def test_damaged_idx_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    arrays = write_fashion(tmp_path)
    name = "t10k-images-idx3-ubyte"
    (tmp_path / f"{name}.gz").write_bytes(damage(idx(arrays[name])))
    with pytest.raises(data.DataError, match=message):
        data.fashion_mnist(tmp_path)


def test_missing_fashion_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(data.DataError, match="apt-get install dataset-fashion-mnist"):
        data.fashion_mnist(tmp_path)


def test_dermamnist_is_read_channels_first(tmp_path: Path) -> None:
    arrays, path = derma_arrays(), tmp_path / "dermamnist.npz"
    np.savez(path, allow_pickle=True, **arrays)
    dataset = data.dermamnist(path)
    assert dataset.train_images.shape == (14, 3, 28, 28)
    assert np.array_equal(dataset.test_images.transpose(0, 2, 3, 1), arrays["test_images"])
    assert np.array_equal(dataset.test_labels, np.arange(14) % 7)
    assert "synthetic" not in dataset.description


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("test_images", None, "no array test_images"),
        ("train_images", np.zeros((14, 64, 64, 3), np.uint8), "not uint8"),
        ("train_images", np.zeros((14, 28, 28, 3), np.float32), "not uint8"),
        ("test_labels", np.full((14, 1), 7, np.uint8), "labels must be 0..6"),
        ("test_labels", np.zeros((13, 1), np.uint8), "13 labels"),
        ("test_labels", np.array([{}] * 14, dtype=object), "cannot be read"),
    ],
)
def test_wrong_dermamnist_is_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    arrays, path = derma_arrays(), tmp_path / "dermamnist.npz"
    if value is None:
        del arrays[key]
    else:
        arrays[key] = value
    np.savez(path, allow_pickle=True, **arrays)
    with pytest.raises(data.DataError, match=message):
        data.dermamnist(path)


def test_a_dermamnist_that_is_no_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "dermamnist.npz"
    with pytest.raises(data.DataError, match="no DermaMNIST file"):
        data.dermamnist(path)
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(data.DataError, match="cannot be read"):
        data.dermamnist(path)
    np.save(path.with_suffix(".npy"), np.zeros(3))
    path.write_bytes(path.with_suffix(".npy").read_bytes())
    with pytest.raises(data.DataError):
        data.dermamnist(path)
