"""Labelled images as integer arrays, `load_images`, and the permutation of their pixels."""

import dataclasses
from typing import NamedTuple

import numpy as np

from zoneout_jax.data import raw

SPLITS = ("train", "validation", "test")
DATASETS = ("mnist", "digits")


class ImageSplit(NamedTuple):
    """A pair of arrays.

    Attributes:
      images: uint8 `[N, H, W]`.
      labels: uint8 `[N]`.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Three splits of grey images, each with its labels.

    Attributes:
      train, validation, test: pairs of images, uint8 `[N, H, W]` with values 0…`max_value`, and
        labels, uint8 `[N]` with values 0…`classes` - 1.
      classes: number of classes.
      max_value: the value of full ink; images divided by it lie in [0, 1].
      name: the dataset, to be printed beside every figure.
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


def load_images(
    name: str,
    *,
    raw_data_dir: raw.PathLike | None = None,
    data_dir: raw.PathLike | None = None,
) -> Images:
    """Loads a dataset of images by name.

    Args:
      name: `mnist` (28×28, see `zoneout_jax.data.mnist`) or `digits` (8×8, comes with
        scikit-learn, see `zoneout_jax.data.digits`, which needs no files).
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      DataError: an unknown name, or data that cannot be had.

    Example:
      >>> from zoneout_jax.data import load_images
      >>> images = load_images("digits")
      >>> images.sizes
      {'train': 1197, 'validation': 300, 'test': 300}
      >>> images.train.images.shape
      (1197, 8, 8)
    """
    if name not in DATASETS:
        raise raw.DataError(f"unknown dataset {name!r}; choose one of {', '.join(DATASETS)}")
    # TFDS and scikit-learn belong to an extra and take their time to import: only those who need
    # them pay.
    try:
        if name == "digits":
            from zoneout_jax.data import digits
        else:
            from zoneout_jax.data import mnist
    except ModuleNotFoundError as error:
        raise raw.DataError(str(error)) from error
    if name == "digits":
        return digits.load()
    return mnist.load(raw_data_dir=raw_data_dir, data_dir=data_dir)


def permutation(seed: int, length: int) -> np.ndarray:
    """The order in which permuted MNIST shows the pixels of an image, one for all its images.

    Every position occurs exactly once. (The repository of the paper drew positions with
    replacement, so that 501 of the 784 pixels survived.) NumPy keeps the stream of `RandomState`
    as it is for good: the same seed gives the same order under every version.

    Args:
      seed: from 0 to 2³² - 1; the permutation depends on nothing else.
      length: number of pixels, H · W.

    Returns:
      int32 array `[length]`; step t reads pixel `order[t]` of an image read row by row.

    Raises:
      ValueError: a seed outside its range, or no pixels.

    Example:
      >>> order = permutation(seed=0, length=64)
      >>> steps = load_images("digits").train.images.reshape(-1, 64)[:, order]
      >>> steps.shape
      (1197, 64)
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return np.random.RandomState(seed).permutation(length).astype(np.int32)
