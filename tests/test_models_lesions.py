"""The synthetic lesion generator: shapes, determinism, and classes that differ as their names promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models import lesions

SAMPLES = Path(lesions.__file__).parent / "samples"
# The seed of the held-out set from which the committed samples come (models/data.py).
TEST_SEED = 2


def test_classes_are_ham10000s_in_order() -> None:
    assert lesions.CLASSES == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert set(lesions.PROFILES) == set(lesions.CLASSES)


@settings(max_examples=25, deadline=None)
@given(label=st.integers(0, 6), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([8, 27, 28, 64]))
def test_render_is_deterministic_and_shaped(label: int, seed: int, size: int) -> None:
    one = lesions.render(label, np.random.default_rng(seed), size)
    two = lesions.render(label, np.random.default_rng(seed), size)
    assert one.dtype == np.uint8
    assert one.shape == (size, size, 3)
    assert np.array_equal(one, two)
    # A blank or saturated picture would mean that the absorber model ran away.
    assert one.std() > 2
    assert 20 < one.mean() < 245


def test_dataset_is_balanced_and_a_longer_one_extends_a_shorter() -> None:
    images, labels = lesions.dataset(21, seed=5)
    longer, longer_labels = lesions.dataset(28, seed=5)
    assert images.dtype == np.uint8
    assert images.shape == (21, 28, 28, 3)
    assert labels.dtype == np.int64
    assert np.array_equal(np.bincount(labels), [3] * 7)
    assert np.array_equal(longer[:21], images)
    assert np.array_equal(longer_labels[:21], labels)


def test_seeds_give_different_pictures() -> None:
    one, _ = lesions.dataset(14, seed=1)
    two, _ = lesions.dataset(14, seed=2)
    assert all((np.abs(a.astype(int) - b) > 8).any() for a, b in zip(one, two, strict=True))
    assert len({picture.tobytes() for picture in one}) == 14


def test_classes_differ_as_their_names_promise() -> None:
    images, labels = lesions.dataset(7 * 60, seed=9)
    centre = images[:, 10:18, 10:18].astype(np.float64)
    darkness = {c: 255 - centre[labels == i].mean() for i, c in enumerate(lesions.CLASSES)}
    redness = {
        c: (centre[labels == i][..., 0] / (centre[labels == i][..., 1] + 1)).mean()
        for i, c in enumerate(lesions.CLASSES)
    }
    assert max(darkness, key=lambda c: darkness[c]) == "mel"
    assert max(redness, key=lambda c: redness[c]) == "vasc"
    assert darkness["nv"] > darkness["df"]
    assert redness["akiec"] > redness["df"]


@pytest.mark.parametrize("label", [-1, 7])
def test_unknown_label_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match="akiec"):
        lesions.render(label, np.random.default_rng(0))


def test_tiny_size_is_refused() -> None:
    with pytest.raises(ValueError, match="8 or more"):
        lesions.render(0, np.random.default_rng(0), size=7)


@pytest.mark.parametrize(("model", "seed", "size"), [("lesion", TEST_SEED, 28), ("lesion64", 5, 64)])
def test_committed_samples_are_what_the_generator_draws(model: str, seed: int, size: int) -> None:
    entries = [e for e in json.loads((SAMPLES / "index.json").read_text()) if e["model"] == model]
    drawn_classes = lesions.CLASSES if size == 28 else lesions.CLASSES[:2]
    assert sorted(e["label"] for e in entries) == sorted(drawn_classes)
    for entry in entries:
        assert "synthetic" in entry["source"]
        index = int(Path(entry["file"]).stem.rsplit("_", 1)[1])
        drawn = lesions.render(
            lesions.CLASSES.index(entry["label"]), np.random.default_rng([seed, index]), size
        )
        stored = np.asarray(Image.open(SAMPLES / entry["file"]))
        # NumPy's exp and cos may differ in the last bit between CPUs and tip a rounding to the next level.
        assert np.abs(stored.astype(int) - drawn).max() <= 1
