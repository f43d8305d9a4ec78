"""Numbering symbols."""
# ruff: noqa: D103 (a test's name says what it tests)

import numpy as np
import pytest

from zoneout_jax.data import DataError, encoding

SPLITS = ("train", "validation", "test")


def test_encode_characters():
    texts = {"train": "abcab\n", "validation": "ba", "test": "\nc"}
    encoded = encoding.encode_characters(texts, sorted(set(texts["train"])), "toy")
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
        encoding.encode_characters(texts, "ab", "toy")
    with pytest.raises(DataError, match=rf"'\*' occurs in {split}"):
        encoding.encode_words({name: list(text) for name, text in texts.items()}, "toy")


def test_encode_words_orders_by_frequency_then_alphabet():
    words = {"train": "c b a c b c z y".split(), "validation": ["a"], "test": ["z", "c"]}
    encoded = encoding.encode_words(words, "toy")
    assert encoded.vocabulary == ("c", "b", "a", "y", "z")
    np.testing.assert_array_equal(encoded.test, [4, 0])


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.int32)])
@pytest.mark.parametrize("unit", ["char", "word"])
def test_dtype_follows_the_number_of_symbols(unit, count, dtype):
    if unit == "word":
        words = [f"w{number:03}" for number in range(count)]
        encoded = encoding.encode_words(dict.fromkeys(SPLITS, words), "toy")
    else:
        text = "".join(map(chr, range(0x1F400, 0x1F400 + count)))
        encoded = encoding.encode_characters(dict.fromkeys(SPLITS, text), text, "toy")
    for split in SPLITS:
        assert getattr(encoded, split).dtype == dtype
        np.testing.assert_array_equal(getattr(encoded, split), np.arange(count))


def test_marks_are_always_in_the_vocabulary():
    words = {"train": ["b", "b", "<eos>"], "validation": ["<unk>"], "test": ["b"]}
    encoded = encoding.encode_words(words, "toy", marks=("<unk>", "<eos>"))
    assert encoded.vocabulary == ("b", "<eos>", "<unk>")
    np.testing.assert_array_equal(encoded.validation, [2])
