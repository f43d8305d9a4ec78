"""Loading datasets by their names."""
# ruff: noqa: D103 (a test's name says what it tests)

import subprocess
import sys

import pytest

from zoneout_jax.data import DataError, load_corpus, load_images


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"name": "wikitext"}, ("got 'wikitext'", "ptb, stdlib, text8, text8_like or a text file")),
        ({"name": "ptb", "unit": "text8"}, ("unit of ptb", "'char', 'word'", "got 'text8'")),
        (
            {"name": "stdlib", "unit": "byte"},
            ("unit of stdlib", "'char', 'word', 'text8'", "got 'byte'"),
        ),
        ({"name": "text8", "unit": "word"}, ("unit of text8", "one of 'char'", "got 'word'")),
        ({"name": "ptb", "convention": "x"}, ("convention", "'mikolov', 'rbn'", "got 'x'")),
        ({"name": "~nobody at all/x"}, ("got '~nobody at all/x', which is not a file",)),
    ],
)
def test_unknown_names(arguments, parts):
    with pytest.raises(DataError) as error:
        load_corpus(**arguments)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_unknown_images():
    with pytest.raises(DataError) as error:
        load_images("cifar10")
    assert str(error.value) == "dataset must be one of 'mnist', 'digits'; got 'cifar10'"


@pytest.mark.parametrize(
    ("load", "name", "package"),
    [
        (load_corpus, "ptb", "tensorflow_datasets"),
        (load_corpus, "text8", "tensorflow_datasets"),
        (load_images, "mnist", "tensorflow_datasets"),
        (load_images, "mnist", "PIL"),
        (load_images, "digits", "sklearn"),
    ],
)
def test_a_missing_package_names_the_extra(monkeypatch, load, name, package):
    monkeypatch.delitem(sys.modules, f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.delattr(f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "PIL":
        pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match=rf"{name} needs {package}: pip install .*\[training\]"):
        load(name)


def test_importing_and_stdlib_load_nothing_heavy():
    """Only numpy and jax come along, even when a corpus of the standard library is loaded."""
    code = """
import sys
from zoneout_jax.data import load_corpus
load_corpus("stdlib")
heavy = {"flax", "optax", "tensorflow", "tensorflow_datasets", "array_record", "sklearn", "PIL"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
