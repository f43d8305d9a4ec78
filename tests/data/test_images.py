"""Loading images by name, and the permutation of their pixels."""
# ruff: noqa: D103 (a test's name says what it tests)

import subprocess
import sys

import numpy as np
import pytest

from zoneout_jax.data import DataError, Images, ImageSplit, load_images, permutation


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


def test_unknown_name():
    with pytest.raises(DataError) as error:
        load_images("cifar10")
    assert str(error.value) == "unknown dataset 'cifar10'; choose one of mnist, digits"


@pytest.mark.parametrize(
    ("name", "package"), [("mnist", "tensorflow_datasets"), ("mnist", "PIL"), ("digits", "sklearn")]
)
def test_a_missing_package_names_the_extra(monkeypatch, name, package):
    monkeypatch.delitem(sys.modules, f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.delattr(f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    if name == "mnist" and package == "PIL":
        pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match=rf"{name} needs {package}: pip install .*\[training\]"):
        load_images(name)


def test_importing_loads_nothing_heavy():
    code = """
import sys
import zoneout_jax.data
heavy = {"flax", "optax", "tensorflow", "tensorflow_datasets", "array_record", "sklearn", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("length", [1, 2, 64, 784])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_permutation_is_a_bijection(seed, length):
    order = permutation(seed, length)
    assert order.dtype == np.int32
    assert order.shape == (length,)
    assert sorted(order.tolist()) == list(range(length))


def test_permutation_is_a_function_of_its_seed():
    np.random.seed(7)
    first = permutation(5, 784)
    np.random.seed(8)
    np.testing.assert_array_equal(permutation(5, 784), first)
    orders = [permutation(seed, 784) for seed in range(5)]
    for number, order in enumerate(orders):
        assert not np.array_equal(order, np.arange(784))
        for other in orders[:number]:
            # Two permutations agree in one place on average, and in five about never.
            assert np.sum(order == other) < 8


def test_permutation_leaves_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    permutation(0, 784)
    assert np.random.rand() == expected


def test_permutation_is_the_same_for_good():
    """Drawn with NumPy 2.4; results on permuted images cannot be compared if it ever changes."""
    assert permutation(0, 10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert permutation(42, 784)[:8].tolist() == [598, 590, 209, 637, 174, 213, 429, 259]


@pytest.mark.parametrize(
    ("seed", "length", "message"),
    [
        (-1, 10, "seed must be from 0 .* got -1"),
        (2**32, 10, "seed must be from 0 .* got 4294967296"),
        (0, 0, "length must be at least 1, got 0"),
    ],
)
def test_bad_arguments(seed, length, message):
    with pytest.raises(ValueError, match=message):
        permutation(seed, length)
