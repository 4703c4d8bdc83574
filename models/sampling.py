"""Sample inputs of the demonstration models: test pictures as PNG files, and test rows as npz."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from models.data import Dataset

# One picture of every lesion class; a few for the others.
PICTURES = {"lesion": 7, "lesion64": 2, "fashion": 5, "digits": 3}
ROWS = {"lesion64": 16}  # as a file, a row of 64 x 64 pixels is five times as large
DEFAULT_ROWS = 64


def write_samples(dataset: Dataset, folder: Path) -> None:
    """Writes `<model>_<label>_<test index>.png`, `<model>.npz` and entries of index.json to `folder`.

    The pictures are the first of each class in the test set, whether the network gets them right or not. The
    npz holds the first test rows: x float32 [rows][channels][height][width] in [0, 1], and labels y int64
    [rows].
    """
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"
    entries = json.loads(index.read_text()) if index.exists() else []
    for entry in entries:
        if entry["model"] == dataset.name:
            (folder / entry["file"]).unlink(missing_ok=True)
    entries = [entry for entry in entries if entry["model"] != dataset.name]
    for label in range(PICTURES[dataset.name]):
        at = int(np.flatnonzero(dataset.test_labels == label)[0])
        word = dataset.labels[label].lower().replace("/", "-").replace(" ", "-")
        name = f"{dataset.name}_{word}_{at}.png"
        picture = dataset.test_images[at].transpose(1, 2, 0)
        Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture).save(
            folder / name, optimize=True
        )
        source = f"{dataset.description}; test set, index {at}"
        entries.append(
            {"file": name, "model": dataset.name, "label": dataset.labels[label], "source": source}
        )
    entries.sort(key=lambda entry: (entry["model"], entry["file"]))
    index.write_text(json.dumps(entries, indent=2) + "\n")
    rows = ROWS.get(dataset.name, DEFAULT_ROWS)
    x = dataset.test_images[:rows].astype(np.float32) / np.float32(255.0)
    np.savez_compressed(folder / f"{dataset.name}.npz", x=x, y=dataset.test_labels[:rows])
