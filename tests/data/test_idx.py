"""IDX files, whole and damaged."""

import gzip
import struct

import numpy as np
import pytest

from tests.data.idx_files import idx
from zoneout_jax.data import DataError

mnist = pytest.importorskip(
    "zoneout_jax.data.mnist", reason="tensorflow_datasets or pillow is not installed"
)

IMAGES = np.arange(24).reshape(2, 3, 4)
LABEL_ARRAY = np.array([9, 0, 5])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it ends in its header, after 0 bytes"),
        (idx(IMAGES)[:11], "it ends in its header, after 11 bytes"),
        (idx(IMAGES)[:-1], "23 bytes follow the header, expected 24"),
        (idx(IMAGES)[:16], "0 bytes follow the header, expected 24"),
        (idx(IMAGES) + b"x", "25 bytes follow the header, expected 24"),
        (idx(IMAGES, kind=13), "it starts with 00000d03, expected 00000803"),
        (idx(np.arange(24)), "it starts with 00000801, expected 00000803"),
        (b"\x89PNG" + idx(IMAGES)[4:], "it starts with 89504e47, expected 00000803"),
        (idx(IMAGES[:1]), r"it holds an array of shape (1, 3, 4), expected (2, 3, 4)"),
        (idx(IMAGES.reshape(2, 4, 3)), "it holds an array of shape (2, 4, 3), expected (2, 3, 4)"),
    ],
    ids="empty header cut bare long type rank png count transposed".split(),
)
def test_wrong_idx_files(tmp_path, content, message):
    path = tmp_path / "some-images.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError) as error:
        mnist.read_idx(path, (2, 3, 4))
    assert str(error.value).startswith(
        f"{path}: {message}; replace it with the original from https:"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "packed",
    [gzip.compress(idx(IMAGES))[:-3], idx(IMAGES), b"\x1f\x8b\x08"],
    ids="cut not-packed start".split(),
)
def test_wrong_gzip_files(tmp_path, packed):
    path = tmp_path / "some-images.gz"
    path.write_bytes(packed)
    with pytest.raises(DataError, match="some-images.gz: not a whole gzip file"):
        mnist.read_idx(path, (2, 3, 4))


def test_right_idx_files(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 2, 3, 4) + bytes(range(24))))
    array = mnist.read_idx(path, (2, 3, 4))
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, IMAGES)
    path.write_bytes(gzip.compress(idx(LABEL_ARRAY)))
    np.testing.assert_array_equal(mnist.read_idx(path, (3,), below=10), LABEL_ARRAY)


def test_unpacked_idx_files(tmp_path):
    path = tmp_path / "some-images.idx3-ubyte"
    path.write_bytes(idx(IMAGES))
    np.testing.assert_array_equal(mnist.read_idx(path, (2, 3, 4)), IMAGES)
    path.write_bytes(gzip.compress(idx(IMAGES)))
    with pytest.raises(DataError, match="it starts with 1f8b08.., expected 00000803"):
        mnist.read_idx(path, (2, 3, 4))


def test_labels_out_of_range(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(idx(np.array([9, 0, 10, 255]))))
    with pytest.raises(DataError, match="labels.gz: number 2 is 10, expected at most 9"):
        mnist.read_idx(path, (4,), below=10)
