"""Numbering symbols, and loading a corpus by its name."""
# ruff: noqa: D103 (a test's name says what it tests)

import ast
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from zoneout_jax.data import Corpus, DataError, corpus, load_corpus

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"name": "wikitext"}, ("got 'wikitext'", "ptb, stdlib, text8, text8_like or a text file")),
        ({"name": "ptb", "unit": "text8"}, ("unit of ptb 'text8'", "char, word")),
        ({"name": "stdlib", "unit": "byte"}, ("unit of stdlib 'byte'", "char, word, text8")),
        ({"name": "text8", "unit": "word"}, ("unit of text8 'word'", "one of char")),
        ({"name": "ptb", "convention": "x"}, ("convention 'x'", "mikolov, rbn")),
    ],
)
def test_unknown_names(arguments, parts):
    with pytest.raises(DataError) as error:
        load_corpus(**arguments)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize("name", ["ptb", "text8"])
def test_missing_tfds_names_the_extra(monkeypatch, name):
    monkeypatch.delitem(sys.modules, f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.delattr(f"zoneout_jax.data.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"needs tensorflow_datasets: pip install .*\[training\]"):
        load_corpus(name)


def test_encode_characters():
    texts = {"train": "abcab\n", "validation": "ba", "test": "\nc"}
    encoded = corpus.encode_characters(texts, sorted(set(texts["train"])), "toy")
    assert encoded.vocabulary == ("\n", "a", "b", "c")
    assert encoded.vocab_size == 4
    assert encoded.sizes == {"train": 6, "validation": 2, "test": 2}
    assert encoded.name == "toy"
    np.testing.assert_array_equal(encoded.train, [1, 2, 3, 1, 2, 0])
    for split in SPLITS:
        stream = getattr(encoded, split)
        assert stream.dtype == np.uint8
        assert "".join(encoded.vocabulary[number] for number in stream) == texts[split]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_symbols_unknown_to_train_are_errors(split):
    texts = {"train": "ab", "validation": "a", "test": "a"} | {split: "ab*a"}
    with pytest.raises(DataError, match=rf"'\*' occurs in {split}"):
        corpus.encode_characters(texts, "ab", "toy")
    with pytest.raises(DataError, match=rf"'\*' occurs in {split}"):
        corpus.encode_words({name: list(text) for name, text in texts.items()}, "toy")


def test_encode_words_orders_by_frequency_then_alphabet():
    words = {"train": "c b a c b c z y".split(), "validation": ["a"], "test": ["z", "c"]}
    encoded = corpus.encode_words(words, "toy")
    assert encoded.vocabulary == ("c", "b", "a", "y", "z")
    np.testing.assert_array_equal(encoded.test, [4, 0])


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.int32)])
def test_dtype_follows_the_number_of_symbols(count, dtype):
    words = [f"w{number:03}" for number in range(count)]
    encoded = corpus.encode_words({"train": words, "validation": words, "test": words}, "toy")
    for split in SPLITS:
        assert getattr(encoded, split).dtype == dtype
        np.testing.assert_array_equal(getattr(encoded, split), np.arange(count))


def test_marks_are_always_in_the_vocabulary():
    words = {"train": ["b", "b", "<eos>"], "validation": ["<unk>"], "test": ["b"]}
    encoded = corpus.encode_words(words, "toy", marks=("<unk>", "<eos>"))
    assert encoded.vocabulary == ("b", "<eos>", "<unk>")
    np.testing.assert_array_equal(encoded.validation, [2])


def test_corpus_is_frozen():
    encoded = Corpus(*[np.zeros(1, np.uint8)] * 3, vocabulary=("a",), name="toy")
    with pytest.raises(AttributeError):
        encoded.name = "other"


def test_data_imports_nothing_else_of_the_package():
    modules = set()
    for path in pathlib.Path(corpus.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                modules.add(node.module)
            elif isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
    ours = {module for module in modules if module.startswith("zoneout_jax")}
    ours.remove("zoneout_jax._needs")
    assert ours
    assert all(f"{module}.".startswith("zoneout_jax.data.") for module in ours)


def test_importing_and_stdlib_load_nothing_heavy():
    """Only numpy and jax come along, even when a corpus of the standard library is loaded."""
    code = """
import sys
from zoneout_jax.data import load_corpus
load_corpus("stdlib")
heavy = {"flax", "optax", "tensorflow", "tensorflow_datasets", "array_record"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
