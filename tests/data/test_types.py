"""Datasets once loaded: sizes, fingerprints, cutting."""
# ruff: noqa: D103 (a test's name says what it tests)

import dataclasses
import hashlib

import numpy as np
import pytest

from zoneout_jax.data import Corpus, Images, ImageSplit, cut_split, types

TEXT = Corpus(*np.split(np.arange(9, dtype=np.uint8) % 2, [5, 8]), vocabulary=("a", "b"), name="x")


def blank(count: int) -> ImageSplit:
    """Images of 4×6 pixels, all blank."""
    return ImageSplit(np.zeros((count, 4, 6), np.uint8), np.zeros(count, np.uint8))


def test_images():
    images = Images(blank(3), blank(2), blank(1), classes=10, max_value=16, name="toy")
    assert images.sizes == {"train": 3, "validation": 2, "test": 1}
    assert images.image_shape == (4, 6)
    pixels, labels = images.validation
    assert pixels is images.validation.images
    assert labels is images.validation.labels
    with pytest.raises(AttributeError):
        images.name = "other"


def test_corpus_is_frozen():
    encoded = Corpus(*[np.zeros(1, np.uint8)] * 3, vocabulary=("a",), name="toy")
    with pytest.raises(AttributeError):
        encoded.name = "other"


def images(**changes) -> Images:
    """Three images or fewer a split, all different."""
    pixels = np.arange(6 * 12, dtype=np.uint8).reshape(6, 3, 4)
    parts = np.split(pixels, [3, 5]), np.split(np.arange(6, dtype=np.uint8), [3, 5])
    splits = dict(zip(types.SPLITS, map(ImageSplit, *parts), strict=True))
    return Images(**{**splits, "classes": 6, "max_value": 99, "name": "toy", **changes})


def test_fingerprint_is_known():
    """It stays what it is, as runs begun before go on only with data of the same."""
    written = b'["a", "b"]|u1(5,)\0\1\0\1\0|u1(3,)\1\0\1|u1(1,)\0'
    assert TEXT.sha256 == hashlib.sha256(written).hexdigest()
    pixels, labels = bytes(range(72)), bytes(range(6))
    written = b"[6, 99]"
    for count, start, stop in ((3, 0, 3), (2, 3, 5), (1, 5, 6)):
        written += f"|u1({count}, 3, 4)".encode() + pixels[12 * start : 12 * stop]
        written += f"|u1({count},)".encode() + labels[start:stop]
    assert images().sha256 == hashlib.sha256(written).hexdigest()


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"name": "y"}, True),
        ({"train": TEXT.train.copy()}, True),
        ({"vocabulary": ("a", "c")}, False),
        ({"vocabulary": ("b", "a")}, False),
        ({"vocabulary": ("ab",)}, False),
        ({"train": TEXT.train[::-1] ^ 1}, False),
        ({"test": TEXT.test ^ 1}, False),
        ({"train": TEXT.train[:4], "validation": np.r_[TEXT.train[4:], TEXT.validation]}, False),
        ({"validation": TEXT.test, "test": TEXT.validation}, False),
        ({"train": TEXT.train.astype(np.int32)}, False),
    ],
)
def test_fingerprint_of_a_corpus_is_of_its_contents(changes, same):
    assert (dataclasses.replace(TEXT, **changes).sha256 == TEXT.sha256) == same


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"name": "y"}, True),
        ({"classes": 7}, False),
        ({"max_value": 255}, False),
        ({"test": ImageSplit(images().test.images, images().test.labels ^ 1)}, False),
        ({"train": ImageSplit(images().train.images ^ 1, images().train.labels)}, False),
        (
            {
                split: ImageSplit(part.images.reshape(-1, 4, 3), part.labels)
                for split in types.SPLITS
                for part in [getattr(images(), split)]
            },
            False,
        ),
    ],
)
def test_fingerprint_of_images_is_of_their_contents(changes, same):
    assert (images(**changes).sha256 == images().sha256) == same


@pytest.mark.parametrize("order", ["<", ">"])
def test_fingerprint_does_not_depend_on_the_machine(order):
    words = dataclasses.replace(TEXT, train=np.arange(300, dtype=f"{order}i4"))
    little = dataclasses.replace(TEXT, train=np.arange(300, dtype="<i4"))
    assert words.sha256 == little.sha256


def test_fingerprint_is_worked_out_once(monkeypatch):
    data = images()
    first = data.sha256
    monkeypatch.delattr(types, "_sha256")
    assert data.sha256 == first


@pytest.mark.parametrize("size", [None, 1, 4, 5])
def test_cut_stream(size):
    np.testing.assert_array_equal(cut_split(TEXT.train, size, "train_size"), TEXT.train[:size])


@pytest.mark.parametrize("size", [None, 1, 3])
def test_cut_images(size):
    whole = images().train
    part = cut_split(whole, size, "train_size")
    assert isinstance(part, ImageSplit)
    np.testing.assert_array_equal(part.images, whole.images[:size])
    np.testing.assert_array_equal(part.labels, whole.labels[:size])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            10_000_000,
            "some_size is 10000000, but the data has only {}; give at most that, or leave ",
        ),
        (0, "some_size must be at least 1, got 0"),
        (-1, "some_size must be at least 1, got -1"),
    ],
)
@pytest.mark.parametrize(("split", "available"), [(TEXT.train, 5), (images().train, 3)])
def test_sizes_that_the_data_has_not(split, available, size, message):
    with pytest.raises(ValueError) as error:
        cut_split(split, size, "some_size")
    assert str(error.value).startswith(message.format(available))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError):
        cut_split(split, available + 1, "some_size")
