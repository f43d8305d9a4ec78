"""MNIST: the TFDS builder, and every way in which it can fail."""
# ruff: noqa: D103 (a test's name says what it tests)

import gzip
import hashlib
import pathlib
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from tests.data.idx_files import idx
from zoneout_jax.data import DataError, RawFile, load_images

mnist = pytest.importorskip(
    "zoneout_jax.data.mnist", reason="tensorflow_datasets or pillow is not installed"
)

SPLITS = ("train", "validation", "test")
NAMES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
# Known of the real files: the MD5 of what they hold, how many of each label, first labels, means.
MD5 = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}
LABELS = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}
FIRST_LABELS = {"train": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "test": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]}
MEAN_PIXEL = {"train": 33.31842, "test": 33.79122}

pytestmark = pytest.mark.usefixtures("no_named_folders")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail."""

    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.fixture
def small(tmp_path, monkeypatch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Takes 50 + 10 + 12 random images for MNIST, their files in `tmp_path / "raw"`."""
    monkeypatch.setattr(mnist, "EXAMPLES", {"train": 60, "test": 12})
    monkeypatch.setattr(mnist, "VALIDATION", 10)
    (tmp_path / "raw" / "mnist").mkdir(parents=True)
    random = np.random.RandomState(0)
    arrays, raw_files = {}, {}
    for split, count in (("train", 60), ("test", 12)):
        arrays[split] = (random.randint(0, 256, (count, 28, 28)), random.randint(0, 10, count))
        files = []
        for name, array in zip(NAMES[split], arrays[split], strict=True):
            content = idx(array)
            (tmp_path / "raw" / "mnist" / name).write_bytes(gzip.compress(content))
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(RawFile(f"mnist/{name}", f"https://nowhere.invalid/{name}", sha256))
        raw_files[split] = tuple(files)
    monkeypatch.setattr(mnist, "RAW_FILES", raw_files)
    return arrays


def load_small(tmp_path: pathlib.Path):
    """Loads what the fixture `small` wrote."""
    return load_images("mnist", raw_data_dir=tmp_path / "raw", data_dir=tmp_path / "data")


def prepared_files(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """What could be taken for a prepared or half-prepared dataset below a data folder."""
    return [
        path
        for path in data_dir.rglob("*")
        if "array_record" in path.name or "incomplete" in path.name or path.name == "3.0.1"
    ]


def assert_split(split, images: np.ndarray, labels: np.ndarray) -> None:
    """Asserts that a split holds just these images and labels, as bytes."""
    assert split.images.dtype == split.labels.dtype == np.uint8
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)


@pytest.mark.parametrize("split", ["train", "test"])
def test_real_files(real_mnist, split):
    """The files in the folder are MNIST, and the sums written down are theirs."""
    for name, raw_file in zip(NAMES[split], mnist.RAW_FILES[split], strict=True):
        assert raw_file.path == f"mnist/{name}"
        assert raw_file.url == f"https://storage.googleapis.com/cvdf-datasets/mnist/{name}"
        content = gzip.decompress((real_mnist / "mnist" / name).read_bytes())
        assert hashlib.md5(content).hexdigest() == MD5[name]
        assert hashlib.sha256(content).hexdigest() == raw_file.sha256
    images, labels = (real_mnist / "mnist" / name for name in NAMES[split])
    count = mnist.EXAMPLES[split]
    pixels = mnist.read_idx(images, (count, 28, 28))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (count, 28, 28)
    assert pixels.mean() == pytest.approx(MEAN_PIXEL[split], abs=1e-5)
    numbers = mnist.read_idx(labels, (count,), below=10)
    assert np.bincount(numbers).tolist() == LABELS[split]
    assert numbers[:10].tolist() == FIRST_LABELS[split]


@pytest.mark.slow
def test_real_mnist(real_mnist, tmp_path):
    images = load_images("mnist", raw_data_dir=real_mnist, data_dir=tmp_path)
    assert images.name == "mnist"
    assert images.sizes == {"train": 50_000, "validation": 10_000, "test": 10_000}
    assert images.image_shape == (28, 28)
    assert images.classes == 10
    assert images.max_value == 255
    train, validation, test = images.train, images.validation, images.test
    counts = np.bincount(train.labels) + np.bincount(validation.labels)
    assert counts.tolist() == LABELS["train"]
    assert np.bincount(test.labels).tolist() == LABELS["test"]
    assert train.labels[:10].tolist() == FIRST_LABELS["train"]
    assert test.labels[:10].tolist() == FIRST_LABELS["test"]
    assert test.images.mean() == pytest.approx(MEAN_PIXEL["test"], abs=1e-5)
    files = [real_mnist / "mnist" / name for name in NAMES["train"]]
    pixels = mnist.read_idx(files[0], (60_000, 28, 28))
    labels = mnist.read_idx(files[1], (60_000,))
    assert_split(train, pixels[:50_000], labels[:50_000])
    assert_split(validation, pixels[50_000:], labels[50_000:])


def test_splits_and_order(small, tmp_path):
    images = load_small(tmp_path)
    assert images.sizes == {"train": 50, "validation": 10, "test": 12}
    assert_split(images.train, *(array[:50] for array in small["train"]))
    assert_split(images.validation, *(array[50:] for array in small["train"]))
    assert_split(images.test, *small["test"])


def test_builder_round_trip(small, tmp_path):
    builder = mnist.MnistInOrder(raw_data_dir=tmp_path / "raw", data_dir=tmp_path / "data")
    builder.download_and_prepare()
    assert builder.name == "mnist_in_order"
    assert builder.info.file_format.value == "array_record"
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {
        "train": 60,
        "test": 12,
    }
    example = builder.as_data_source("test")[3]
    assert example["image"].shape == (28, 28, 1)
    np.testing.assert_array_equal(example["image"][..., 0], small["test"][0][3])
    assert example["label"] == small["test"][1][3]
    assert not [path for path in tmp_path.rglob("*") if "incomplete" in path.name]


def test_builder_finds_raw_data_by_the_environment(small, tmp_path, monkeypatch):
    monkeypatch.setenv("ZONEOUT_RAW_DATA", str(tmp_path / "raw"))
    builder = mnist.MnistInOrder(data_dir=tmp_path / "data")
    builder.download_and_prepare()
    assert len(builder.as_data_source("train")) == 60


def test_prepared_dataset_is_used_again(small, tmp_path, monkeypatch, no_network):
    first = load_small(tmp_path)
    shutil.rmtree(tmp_path / "raw" / "mnist")

    def fail(self) -> None:
        raise AssertionError("prepared again")

    monkeypatch.setattr(mnist.MnistInOrder, "download_and_prepare", fail)
    again = load_small(tmp_path)
    for split in SPLITS:
        assert_split(getattr(again, split), *getattr(first, split))


def test_without_tensorflow(small, tmp_path):
    """Not even where it is installed; in a process of its own, for the first and second load."""
    (tmp_path / "site" / "tensorflow").mkdir(parents=True)
    (tmp_path / "site" / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path / "site")!r})
from zoneout_jax.data import RawFile, load_images, mnist
mnist.EXAMPLES, mnist.VALIDATION = {{"train": 60, "test": 12}}, 10
mnist.RAW_FILES = {mnist.RAW_FILES!r}
for _ in range(2):
    load_images(
        "mnist", raw_data_dir={str(tmp_path / "raw")!r}, data_dir={str(tmp_path / "data")!r}
    )
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_downloads(small, tmp_path, monkeypatch):
    requested = []

    def urlopen(url: str, timeout: float):
        requested.append(url)
        return (tmp_path / "raw" / "mnist" / url.rsplit("/", 1)[1]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    images = load_images("mnist", data_dir=tmp_path / "data")
    load_images("mnist", data_dir=tmp_path / "data")
    assert_split(images.test, *small["test"])
    assert requested == [file.url for files in mnist.RAW_FILES.values() for file in files]


def rename(folder: pathlib.Path, form: str) -> None:
    """Gives the files of MNIST in a folder names of another form, unpacked unless `.gz` ends it."""
    for path in list(folder.iterdir()):
        content = gzip.decompress(path.read_bytes())
        path.unlink()
        name = path.stem if form.startswith("-") else path.stem.replace("-idx", ".idx")
        if form.endswith(".gz"):
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)


@pytest.mark.parametrize("form", ["-idx", ".idx", ".idx.gz"])
def test_other_names(small, tmp_path, no_network, form):
    rename(tmp_path / "raw" / "mnist", form)
    images = load_small(tmp_path)
    assert_split(images.train, *(array[:50] for array in small["train"]))
    assert_split(images.test, *small["test"])


@pytest.mark.parametrize("form", ["-idx", ".idx", ".idx.gz"])
@pytest.mark.parametrize("prepared", [True, False])
def test_wrong_checksum_by_other_names(small, tmp_path, no_network, form, prepared):
    if prepared:
        load_small(tmp_path)
    folder = tmp_path / "raw" / "mnist"
    rename(folder, form)
    path = next(folder.glob("t10k-labels*"))
    other = idx(small["test"][1] ^ 1)
    path.write_bytes(gzip.compress(other) if form.endswith(".gz") else other)
    with pytest.raises(DataError) as error:
        load_small(tmp_path)
    assert f"{path} is not the expected mnist/{path.name}: " in str(error.value)
    assert hashlib.sha256(other).hexdigest() in str(error.value)
    assert "or remove it" in str(error.value) and "\n" not in str(error.value)
    assert prepared or prepared_files(tmp_path / "data") == []


@pytest.mark.parametrize("use_builder", [True, False])
def test_missing_without_network(tmp_path, no_network, use_builder):
    with pytest.raises(DataError) as error:
        if use_builder:
            mnist.MnistInOrder(data_dir=tmp_path).download_and_prepare()
        else:
            load_images("mnist", data_dir=tmp_path)
    assert "mnist/train-images-idx3-ubyte.gz is neither in" in str(error.value)
    assert "\n" not in str(error.value)
    assert prepared_files(tmp_path) == []
    if not use_builder:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use_builder", [True, False])
@pytest.mark.parametrize("name", [*NAMES["train"], *NAMES["test"]])
def test_wrong_checksum(small, tmp_path, no_network, use_builder, name):
    path = tmp_path / "raw" / "mnist" / name
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=f"{name}: the SHA-256 of what it holds is .*, expected"):
        if use_builder:
            raw_data_dir, data_dir = tmp_path / "raw", tmp_path / "data"
            builder = mnist.MnistInOrder(raw_data_dir=raw_data_dir, data_dir=data_dir)
            builder.download_and_prepare()
        else:
            load_small(tmp_path)
    assert prepared_files(tmp_path / "data") == []


def test_wrong_checksum_counts_although_prepared(small, tmp_path):
    load_small(tmp_path)
    (tmp_path / "raw" / "mnist" / NAMES["test"][1]).write_bytes(gzip.compress(b"other"))
    with pytest.raises(DataError, match=f"{NAMES['test'][1]}: the SHA-256 of what it holds is"):
        load_small(tmp_path)


def test_a_wrong_file_with_the_right_checksum_leaves_nothing(small, tmp_path, monkeypatch):
    """The builder checks labels whatever the sums say; the next attempt starts afresh."""
    labels = idx(np.full(12, 10))
    path = tmp_path / "raw" / "mnist" / NAMES["test"][1]
    original = path.read_bytes()
    images_file, labels_file = mnist.RAW_FILES["test"]
    with monkeypatch.context() as patch:
        path.write_bytes(gzip.compress(labels))
        sha256 = hashlib.sha256(labels).hexdigest()
        changed = RawFile(labels_file.path, labels_file.url, sha256)
        patch.setitem(mnist.RAW_FILES, "test", (images_file, changed))
        with pytest.raises(DataError, match="number 0 is 10, expected at most 9"):
            load_small(tmp_path)
    assert prepared_files(tmp_path / "data") == []
    path.write_bytes(original)
    assert_split(load_small(tmp_path).test, *small["test"])


@pytest.mark.parametrize("damage", ["cut", "flip", "delete", "swap", "no info"])
def test_damaged_dataset_is_not_used(small, tmp_path, damage):
    load_small(tmp_path)
    folder = tmp_path / "data" / "mnist_in_order" / "3.0.1"
    (record,) = folder.glob("*-test.array_record*")
    content = record.read_bytes()
    if damage == "cut":
        record.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        place = content.index(b"IDAT") + 20
        record.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "delete":
        record.unlink()
    elif damage == "swap":
        (other,) = folder.glob("*-train.array_record*")
        shutil.copyfile(other, record)
    else:
        (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError) as error:
        load_small(tmp_path)
    assert f"{folder} is damaged; delete that folder" in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    assert_split(load_small(tmp_path).test, *small["test"])


@pytest.mark.parametrize("damage", ["not a PNG", "cut PNG", "other pixels", "other label"])
def test_other_examples_are_not_used(small, tmp_path, monkeypatch, damage):
    """A dataset that reads well, but does not hold what it should."""
    generate = mnist.MnistInOrder._generate_examples

    def spoil(self, *args):
        for index, example in generate(self, *args):
            if index == 5:
                if damage == "not a PNG":
                    example["image"] = b"something"
                elif damage == "cut PNG":
                    example["image"] = PNG_START
                elif damage == "other pixels":
                    example["image"] = example["image"].point(lambda value: value ^ 1)
                else:
                    example["label"] = (example["label"] + 1) % 10
            yield index, example

    monkeypatch.setattr(mnist.MnistInOrder, "_generate_examples", spoil)
    with pytest.raises(DataError, match="is damaged; delete that folder"):
        load_small(tmp_path)


# Of a PNG of 28×28 grey pixels, the header only.
PNG_START = bytes.fromhex("89504e470d0a1a0a0000000d494844520000001c0000001c080000000057660048")


def test_a_dataset_of_the_stock_builder_is_left_alone(small, tmp_path):
    """It may lie in the same folder, in another order and in a format that needs TensorFlow."""
    stock = tmp_path / "data" / "mnist" / "3.0.1"
    stock.mkdir(parents=True)
    (stock / "mnist-test.tfrecord-00000-of-00001").write_bytes(b"something")
    assert_split(load_small(tmp_path).test, *small["test"])
    assert [path.name for path in stock.iterdir()] == ["mnist-test.tfrecord-00000-of-00001"]


def test_another_process_may_prepare_it_first(small, tmp_path, monkeypatch):
    prepare = mnist.MnistInOrder.download_and_prepare

    def overtaken(self) -> None:
        prepare(mnist.MnistInOrder(raw_data_dir=tmp_path / "raw", data_dir=tmp_path / "data"))
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(mnist.MnistInOrder, "download_and_prepare", overtaken)
    assert_split(load_small(tmp_path).test, *small["test"])


def test_full_disk(small, tmp_path, monkeypatch):
    def fail(self) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mnist.MnistInOrder, "download_and_prepare", fail)
    with pytest.raises(DataError, match="cannot prepare .*No space left on device"):
        load_small(tmp_path)
