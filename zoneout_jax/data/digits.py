"""The 8×8 digits that come with scikit-learn, for experiments without a download.

1,797 gray images with values 0…16 of the digits 0…9, written by 13 people: the test part of the
"Optical Recognition of Handwritten Digits". Results on them say nothing about MNIST.

Split: NumPy's `RandomState` with seed 0 shuffles the images, which are then cut into
1,197 / 300 / 300 for train / validation / test. The split is not stratified: a class has 109 to 136
images in train and 21 to 40 in each of the others. One person may have written digits of all three.

Source: Alpaydin and Kaynak 1998, UCI Machine Learning Repository, doi:10.24432/C50P49 (CC BY 4.0).
"""

import hashlib

import numpy as np

from zoneout_jax._needs import needs
from zoneout_jax.data.raw import DataError
from zoneout_jax.data.types import Images, ImageSplit

with needs("zoneout_jax.data.digits", "training"):
    from sklearn import datasets

SIZES = {"train": 1_197, "validation": 300, "test": 300}
CLASSES = 10
MAX_VALUE = 16

# SHA-256 of the pixels and then the labels, one byte each, in scikit-learn's order.
SHA256 = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


def load() -> Images:
    """Loads the digits.

    Raises:
      DataError: the installed scikit-learn has other digits.
    """
    bunch = datasets.load_digits()
    pixels, labels = bunch.images.astype(np.uint8), bunch.target.astype(np.uint8)
    found = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    if found != SHA256:
        raise DataError(
            f"the digits of the installed scikit-learn are not the expected ones: their SHA-256 is "
            f"{found}, expected {SHA256}; install the scikit-learn of constraints.txt"
        )
    order = np.random.RandomState(0).permutation(len(labels))
    ends = np.cumsum(list(SIZES.values()))
    splits = {
        split: ImageSplit(pixels[part], labels[part])
        for split, part in zip(SIZES, np.split(order, ends[:-1]), strict=True)
    }
    return Images(**splits, classes=CLASSES, max_value=MAX_VALUE, name="digits")
