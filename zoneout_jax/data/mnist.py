"""MNIST as `Images`, and as a TFDS dataset whose examples keep their order.

70,000 gray images of 28×28 pixels, values 0…255, of the digits 0…9.

| split        | images | which                                    |
| ------------ | ------ | ---------------------------------------- |
| `train`      | 50,000 | the first 50,000 of the training files   |
| `validation` | 10,000 | the last 10,000 of the training files    |
| `test`       | 10,000 | the test files                           |

This is the split of the papers on permuted MNIST (Cooijmans et al., arXiv:1603.09025, and Krueger
et al., arXiv:1606.01305); therefore the order of the files matters. The dataset on disk has the two
splits of the files.

Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", as four files in the
IDX format: two zero bytes, the type of the numbers (8: unsigned bytes), the number of dimensions,
each dimension as a big-endian 32-bit number, and then the numbers. In a raw data folder the files
may be gzip files or unpacked, named like `train-images-idx3-ubyte` or `train-images.idx3-ubyte`,
with `.gz` for gzip files.
"""

import dataclasses
import gzip
import hashlib
import io
import math
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from zoneout_jax._needs import needs
from zoneout_jax.data import prepared, raw
from zoneout_jax.data.types import Images, ImageSplit

with needs("zoneout_jax.data.mnist", "training"):
    import tensorflow_datasets as tfds
    from PIL import Image
    from tensorflow_datasets.image_classification import mnist as tfds_mnist

    from zoneout_jax.data.dataset_info import DatasetInfo

_ADDRESS = "https://storage.googleapis.com/cvdf-datasets/mnist/"


def _raw_file(name: str, sha256: str) -> raw.RawFile:
    return raw.RawFile(path=f"mnist/{name}", url=_ADDRESS + name, sha256=sha256)


# Images and labels of each split of the dataset on disk.
RAW_FILES = {
    "train": (
        _raw_file(
            "train-images-idx3-ubyte.gz",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        _raw_file(
            "train-labels-idx1-ubyte.gz",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    "test": (
        _raw_file(
            "t10k-images-idx3-ubyte.gz",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        _raw_file(
            "t10k-labels-idx1-ubyte.gz",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
}
EXAMPLES = {"train": 60_000, "test": 10_000}
VALIDATION = 10_000
IMAGE_SHAPE = (28, 28)
CLASSES = 10
MAX_VALUE = 255

_UNSIGNED_BYTE = 8


def read_idx(path: pathlib.Path, shape: tuple[int, ...], below: int = 256) -> np.ndarray:
    """Reads an IDX file of unsigned bytes.

    Args:
      path: the file; a gzip file if its name ends in `.gz`.
      shape: expected shape of the array.
      below: limit that every number must be smaller than.

    Returns:
      uint8 array of that shape.

    Raises:
      DataError: the file is damaged, or holds another type or shape, too few or too many bytes,
        or a number that is too large.

    Example::

        labels = read_idx(pathlib.Path("t10k-labels-idx1-ubyte.gz"), (10_000,), below=10)
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _wrong(path, f"not a whole gzip file ({error})") from error
    header = _header(shape)
    found = content[: len(header)]
    if len(found) < len(header):
        raise _wrong(path, f"it ends in its header, after {len(found)} bytes")
    if found[:4] != header[:4]:
        raise _wrong(path, f"it starts with {found[:4].hex()}, expected {header[:4].hex()}")
    if found != header:
        other = struct.unpack(f">{len(shape)}I", found[4:])
        raise _wrong(path, f"it holds an array of shape {other}, expected {shape}")
    if len(content) != len(header) + math.prod(shape):
        raise _wrong(
            path,
            f"{len(content) - len(header)} bytes follow the header, expected {math.prod(shape)}",
        )
    array = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    if array.size and array.max() >= below:
        place = int(np.argmax(array.ravel() >= below))
        raise _wrong(
            path, f"number {place} is {array.ravel()[place]}, expected at most {below - 1}"
        )
    return array


class MnistInOrder(tfds_mnist.MNIST):
    """TFDS's builder of MNIST, changed to work without TensorFlow and to keep the order.

    Features, version and description are the same as in `tfds.builder("mnist")`. NumPy reads the
    files and Pillow encodes the images. Because the examples are not shuffled, the dataset has
    another name, `mnist_in_order`. Writes array_record files, which can be read without TensorFlow.

    Args:
      raw_data_dir: folder that may hold `mnist/train-images-idx3-ubyte.gz` and so on, under any of
        the names above; None means `$ZONEOUT_RAW_DATA`. Missing files are downloaded to
        `<data_dir>/downloads`.
      **kwargs: as for any TFDS builder: `data_dir`, `version`.

    Raises:
      DataError: during preparation, if a raw file is not available or not the expected one;
        nothing is left of the dataset then.

    Example::

        builder = MnistInOrder(raw_data_dir="~/raw")
        builder.download_and_prepare()
        example = builder.as_data_source("test")[0]  # image: uint8 [28, 28, 1], label: 7
    """

    def __init__(self, *, raw_data_dir: raw.PathLike | None = None, **kwargs: Any):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)
        self.raw_data_dir = raw_data_dir

    def _info(self) -> tfds.core.DatasetInfo:
        info = super()._info()
        return DatasetInfo(
            builder=self,
            description=info.description,
            features=info.features,
            supervised_keys=info.supervised_keys,
            homepage=info.homepage,
            citation=info.citation,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        # `raw.fetch` replaces the checksums, the cache and the messages of `dl_manager`.
        paths = {
            split: [raw.fetch(file, self.raw_data_dir, self.data_dir_root) for file in files]
            for split, files in _present(self.raw_data_dir).items()
        }
        return {
            split: self._generate_examples(EXAMPLES[split], *files)
            for split, files in paths.items()
        }

    def _generate_examples(
        self, num_examples: int, data_path: pathlib.Path, label_path: pathlib.Path
    ) -> Iterator[tuple[int, dict]]:
        pixels = read_idx(data_path, (num_examples, *IMAGE_SHAPE))
        labels = read_idx(label_path, (num_examples,), below=CLASSES)
        for index in range(num_examples):
            # TFDS encodes arrays with TensorFlow, but Pillow images with Pillow.
            yield index, {"image": Image.fromarray(pixels[index]), "label": int(labels[index])}


def load(
    *, raw_data_dir: raw.PathLike | None = None, data_dir: raw.PathLike | None = None
) -> Images:
    """Loads MNIST; prepares the TFDS dataset the first time.

    A prepared dataset is used without its raw files, but a raw file in a folder that the user names
    must have the right checksum even then.

    Args:
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `raw.default_data_dir()`.

    Raises:
      DataError: a raw file is not available or not the expected one, or the prepared dataset is
        damaged.
    """
    builder = prepared.open_builder(
        lambda folder: MnistInOrder(raw_data_dir=raw_data_dir, data_dir=folder),
        [file for files in _present(raw_data_dir).values() for file in files],
        raw_data_dir,
        data_dir,
    )
    train, test = _read(builder, "train"), _read(builder, "test")
    return Images(
        train=ImageSplit(*(array[:-VALIDATION] for array in train)),
        validation=ImageSplit(*(array[-VALIDATION:] for array in train)),
        test=test,
        classes=CLASSES,
        max_value=MAX_VALUE,
        name="mnist",
    )


def _present(raw_data_dir: raw.PathLike | None) -> dict[str, list[raw.RawFile]]:
    """Returns `RAW_FILES`, each under its name in the raw data folder, if it is there."""
    return {
        split: [raw.choose(_by_any_name(file), raw_data_dir) for file in files]
        for split, files in RAW_FILES.items()
    }


def _by_any_name(published: raw.RawFile) -> list[raw.RawFile]:
    """Returns a file under each name that is in use, the published name last."""
    unpacked = published.path.removesuffix(".gz")
    dotted = unpacked.replace("-idx", ".idx")
    others = (unpacked, dotted, f"{dotted}.gz")
    return [*(dataclasses.replace(published, path=path, url=None) for path in others), published]


def _read(builder: MnistInOrder, split: str) -> ImageSplit:
    """Reads and checks one split of a prepared dataset."""
    damaged = prepared.damaged(builder)
    try:
        # Decoding here takes half the time of decoding in TFDS.
        source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        examples = source.__getitems__(range(len(source)))
        pixels = np.stack([_unpack(example["image"]) for example in examples])
        labels = np.array([example["label"] for example in examples]).astype(np.uint8)
    # Pillow raises SyntaxError and OSError for a PNG that it cannot read.
    except (RuntimeError, LookupError, ValueError, AttributeError, OSError, SyntaxError) as error:
        raise damaged from error
    # In IDX format the arrays must equal the raw files.
    for array, raw_file in zip((pixels, labels), RAW_FILES[split], strict=True):
        if hashlib.sha256(_header(array.shape) + array.tobytes()).hexdigest() != raw_file.sha256:
            raise damaged
    return ImageSplit(pixels, labels)


def _unpack(png: bytes) -> np.ndarray:
    """Decodes the pixels of an image in PNG format."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        return np.asarray(image)


def _header(shape: tuple[int, ...]) -> bytes:
    """Returns the header of an IDX file that holds unsigned bytes of this shape."""
    return struct.pack(f">4B{len(shape)}I", 0, 0, _UNSIGNED_BYTE, len(shape), *shape)


def _wrong(path: pathlib.Path, what: str) -> raw.DataError:
    """Returns the error for an IDX file that is not the expected one."""
    return raw.DataError(f"{path}: {what}; replace it with the original from {_ADDRESS}")
