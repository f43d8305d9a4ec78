"""Loaded datasets: integer arrays in three splits."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

import numpy as np

from zoneout_jax._checks import check_sizes

SPLITS = ("train", "validation", "test")


class ImageSplit(NamedTuple):
    """Images and labels of one split.

    Attributes:
      images: uint8 `[N, H, W]`.
      labels: uint8 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


Split = TypeVar("Split", np.ndarray, ImageSplit)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Three streams of symbol numbers over one vocabulary.

    Attributes:
      train, validation, test: 1-D arrays of positions in `vocabulary`; uint8 for up to 256
        symbols, int32 for more.
      vocabulary: the symbols; characters are sorted by code point, words by decreasing frequency
        in train, then alphabetically.
      name: dataset, unit and convention, to be printed next to every result.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]
    name: str

    @property
    def vocab_size(self) -> int:
        """Number of symbols."""
        return len(self.vocabulary)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each split in symbols."""
        return {split: len(getattr(self, split)) for split in SPLITS}

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the splits and the vocabulary, without the name."""
        return _sha256(self.vocabulary, (getattr(self, split) for split in SPLITS))


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Three splits of gray images, each with its labels.

    Attributes:
      train, validation, test: pairs of images, uint8 `[N, H, W]` with values 0…`max_value`, and
        labels, uint8 `[N]` with values 0…`classes` - 1.
      classes: number of classes.
      max_value: the largest value of a pixel; images divided by it lie in [0, 1].
      name: name of the dataset, to be printed next to every result.
    """

    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    classes: int
    max_value: int
    name: str

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[1:]

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images in each split."""
        return {split: len(getattr(self, split).labels) for split in SPLITS}

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of everything except the name."""
        arrays = (array for split in SPLITS for array in getattr(self, split))
        return _sha256((self.classes, self.max_value), arrays)


def cut_split(split: Split, size: int | None, name: str) -> Split:
    """Keeps the first symbols or images of a split.

    Args:
      split: a stream of a `Corpus`, or a pair of `Images`.
      size: number to keep; None means all.
      name: name of the size in the message, such as `train_size`.

    Raises:
      ValueError: `size` is below one, or larger than the split.

    Example:
      >>> cut_split(np.arange(5), 3, "train_size")
      array([0, 1, 2])
    """
    if size is None:
        return split
    check_sizes(**{name: size})
    available = len(split.labels if isinstance(split, ImageSplit) else split)
    if size > available:
        raise ValueError(
            f"{name} is {size}, but the data has only {available}; give at most that, or leave it "
            "out to use all"
        )
    if isinstance(split, ImageSplit):
        return ImageSplit(split.images[:size], split.labels[:size])
    return split[:size]


def _sha256(metadata: Any, arrays: Iterable[np.ndarray]) -> str:
    """Hexadecimal SHA-256 of JSON-able metadata and of arrays, the same on all machines."""
    digest = hashlib.sha256(json.dumps(metadata).encode())
    for array in arrays:
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        # Types and shapes matter: the same bytes may be other numbers, or be cut elsewhere.
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array.ravel().data)
    return digest.hexdigest()
