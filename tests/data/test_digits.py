"""The digits of scikit-learn: sizes, values, the fixed split."""
# ruff: noqa: D103 (a test's name says what it tests)

import numpy as np
import pytest

from zoneout_jax.data import DataError, load_images

digits = pytest.importorskip("zoneout_jax.data.digits", reason="scikit-learn is not installed")

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def images():
    return load_images("digits")


def test_sizes_and_range(images):
    assert images.name == "digits"
    assert images.sizes == {"train": 1_197, "validation": 300, "test": 300}
    assert images.image_shape == (8, 8)
    assert images.classes == 10
    assert images.max_value == 16
    for split in SPLITS:
        pixels, labels = getattr(images, split)
        assert pixels.shape == (images.sizes[split], 8, 8)
        assert pixels.dtype == labels.dtype == np.uint8
        assert pixels.min() == 0
        assert pixels.max() == 16
        assert set(labels.tolist()) == set(range(10))
        assert np.bincount(labels).min() >= 20


def test_every_digit_is_in_one_split(images):
    """Each with its own label: as pairs they are those of scikit-learn, none twice."""
    bunch = digits.datasets.load_digits()
    expected = sorted(zip(bunch.data.tolist(), bunch.target.tolist(), strict=True))
    found = [
        (image.ravel().tolist(), label)
        for split in SPLITS
        for image, label in zip(*map(list, getattr(images, split)), strict=True)
    ]
    assert len(found) == 1_797
    assert sorted(found) == expected


def test_split_is_the_same_for_good(images):
    """Drawn with NumPy 2.4; results on digits cannot be compared if it ever changes."""
    first = {split: getattr(images, split).labels[:10].tolist() for split in SPLITS}
    assert first == {
        "train": [2, 8, 2, 6, 6, 7, 1, 9, 8, 5],
        "validation": [5, 3, 9, 6, 1, 6, 0, 6, 4, 0],
        "test": [8, 8, 2, 2, 2, 9, 8, 8, 3, 6],
    }
    again = load_images("digits")
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(images, split).images, getattr(again, split).images)


def test_other_digits_are_refused(monkeypatch):
    bunch = digits.datasets.load_digits()
    bunch.images[1_000, 4, 4] += 1
    monkeypatch.setattr(digits.datasets, "load_digits", lambda: bunch)
    with pytest.raises(DataError, match="not the expected ones: their SHA-256 is") as error:
        load_images("digits")
    assert "\n" not in str(error.value)
