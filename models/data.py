"""Pictures and labels of the demonstration models; reads local files and packages, downloads nothing."""

from __future__ import annotations

import gzip
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import lesions

Pictures = NDArray[np.uint8]
Labels = NDArray[np.int64]

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Test pictures come from a seed of their own, so no training picture can be among them.
LESION_TRAIN, LESION_TRAIN_SEED = 14_000, 1
LESION_TEST, LESION_TEST_SEED = 3_500, 2
LARGE_TRAIN, LARGE_TRAIN_SEED = 8_400, 4
LARGE_TEST, LARGE_TEST_SEED = 1_400, 5
LARGE_SIDE = 64
DIGITS_TEST, DIGITS_SPLIT_SEED = 360, 3


class DataError(ValueError):
    """A data set that is missing, damaged or of the wrong shape; the message says where and what to do."""


@dataclass(frozen=True)
class Dataset:
    """Pictures uint8 [count][channels][height][width] (model input: value / 255), labels int64 [count]."""

    name: str
    description: str
    labels: tuple[str, ...]
    train_images: Pictures
    train_labels: Labels
    test_images: Pictures
    test_labels: Labels


def synthetic_lesions() -> Dataset:
    """14,000 training and 3,500 test lesions of models.lesions, 3 x 28 x 28, balanced; under a minute."""
    train = lesions.dataset(LESION_TRAIN, LESION_TRAIN_SEED)
    return _lesions("lesion", train, lesions.dataset(LESION_TEST, LESION_TEST_SEED))


def large_synthetic_lesions() -> Dataset:
    """8,400 training and 1,400 test lesions of models.lesions, 3 x 64 x 64, balanced; two minutes."""
    train = lesions.dataset(LARGE_TRAIN, LARGE_TRAIN_SEED, LARGE_SIDE)
    return _lesions("lesion64", train, lesions.dataset(LARGE_TEST, LARGE_TEST_SEED, LARGE_SIDE))


def _lesions(name: str, train: tuple[Pictures, Labels], test: tuple[Pictures, Labels]) -> Dataset:
    train_images, train_labels = train
    test_images, test_labels = test
    return Dataset(
        name=name,
        description="synthetic lesions, drawn by models/lesions.py: not photographs, not for medical use",
        labels=lesions.CLASSES,
        train_images=_channels_first(train_images),
        train_labels=train_labels,
        test_images=_channels_first(test_images),
        test_labels=test_labels,
    )


def dermamnist(path: Path) -> Dataset:
    """DermaMNIST (real HAM10000 pictures, 28 x 28 x 3) from its npz file, as MedMNIST distributes it.

    Its class numbers stand for models.lesions.CLASSES, in the same order; its validation split is left alone.
    Raises DataError for a missing or damaged file, and for arrays of the wrong shape, type or labels.
    """
    if not path.is_file():
        raise DataError(f"no DermaMNIST file at {path}; give the path of dermamnist.npz")
    arrays: dict[str, NDArray[Any]] = {}
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} cannot be read: it is not an npz file, or cut short")
    with _readable(path), path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        for split in ("train", "test"):
            for kind in ("images", "labels"):
                key = f"{split}_{kind}"
                if key not in archive:
                    raise DataError(f"{path}: no array {key}; the keys are {', '.join(archive.files)}")
                arrays[key] = archive[key]
    images, labels = {}, {}
    for split in ("train", "test"):
        pictures, numbers = arrays[f"{split}_images"], arrays[f"{split}_labels"].reshape(-1)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (28, 28, 3):
            raise DataError(
                f"{path}: {split}_images is {pictures.dtype} {pictures.shape}, not uint8 (count, 28, 28, 3)"
            )
        images[split] = _channels_first(pictures)
        labels[split] = _checked_labels(path, numbers, len(pictures), len(lesions.CLASSES))
    return Dataset(
        name="lesion",
        description="DermaMNIST (HAM10000, 28 x 28): real dermatoscopic pictures, not for medical use",
        labels=lesions.CLASSES,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
    )


def fashion_mnist(folder: Path = FASHION_FOLDER) -> Dataset:
    """Fashion-MNIST's 60,000 training and 10,000 test pictures, 1 x 28 x 28, from its four IDX files.

    The files may be plain or .gz. Raises DataError for a missing or damaged one.
    """
    images, labels = {}, {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pictures = _idx(folder, f"{prefix}-images-idx3-ubyte", dimensions=3)
        if pictures.shape[1:] != (28, 28):
            raise DataError(f"{folder}: {prefix} pictures are {pictures.shape[1:]}, not 28 x 28")
        numbers = _idx(folder, f"{prefix}-labels-idx1-ubyte", dimensions=1)
        images[split] = pictures[:, None]
        labels[split] = _checked_labels(folder, numbers, len(pictures), len(FASHION_LABELS))
    return Dataset(
        name="fashion",
        description="Fashion-MNIST (Zalando Research, MIT licence): real greyscale product pictures",
        labels=FASHION_LABELS,
        train_images=images["train"],
        train_labels=labels["train"],
        test_images=images["test"],
        test_labels=labels["test"],
    )


def digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 1 x 8 x 8, split at random (fixed seed) into 1,437 and 360.

    Grey levels 0..16 are stretched to 0..255, so that a picture file holds exactly what the network saw.
    Raises DataError if scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install 'he-serve[train]'"
        ) from error
    bunch = load_digits()
    pictures = np.rint(bunch.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    numbers = bunch.target.astype(np.int64)
    order = np.random.default_rng(DIGITS_SPLIT_SEED).permutation(len(pictures))
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    return Dataset(
        name="digits",
        description="scikit-learn digits (from UCI optical recognition): real 8 x 8 handwritten digits",
        labels=tuple("0123456789"),
        train_images=pictures[train],
        train_labels=numbers[train],
        test_images=pictures[test],
        test_labels=numbers[test],
    )


def _channels_first(pictures: Pictures) -> Pictures:
    return np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))


def _checked_labels(source: Path, numbers: NDArray[np.integer], count: int, classes: int) -> Labels:
    if not np.issubdtype(numbers.dtype, np.integer) or len(numbers) != count:
        raise DataError(f"{source}: {len(numbers)} labels of type {numbers.dtype} for {count} pictures")
    if not np.array_equal(np.unique(numbers), np.arange(classes)):
        raise DataError(f"{source}: labels must be 0..{classes - 1}, each at least once")
    return numbers.astype(np.int64)


def _idx(folder: Path, name: str, dimensions: int) -> Pictures:
    """One IDX file of unsigned bytes (format: LeCun et al., the MNIST page).

    Bytes 0 0 8 dims, u32 sizes, data; all numbers are big-endian. Returns uint8 [sizes...].
    """
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"no {name}(.gz) in {folder}; on Debian apt-get install dataset-fashion-mnist, "
            "elsewhere name the folder of its four files with --data"
        )
    with _readable(path):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    header = 4 + 4 * dimensions
    if len(raw) < header or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions")
    sizes = tuple(int(s) for s in np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4))
    expected = header + math.prod(sizes)
    if len(raw) != expected:
        raise DataError(
            f"{path} holds {len(raw)} bytes, its header {sizes} asks for {expected}: it is damaged"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=header).reshape(sizes).copy()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
