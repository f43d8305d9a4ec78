"""Encodes symbols as a corpus of numbers."""

import collections
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from zoneout_jax.data.raw import DataError
from zoneout_jax.data.types import SPLITS, Corpus


def encode_characters(texts: Mapping[str, str], vocabulary: Sequence[str], name: str) -> Corpus:
    """Encodes the characters of texts, one text per split, as numbers.

    Raises:
      DataError: a text holds a character that is not in the vocabulary.
    """
    table = np.full(sys.maxunicode + 1, -1, np.int32)
    table[[ord(symbol) for symbol in vocabulary]] = np.arange(len(vocabulary))
    streams = {}
    for split in SPLITS:
        numbers = table[np.frombuffer(texts[split].encode("utf-32-le"), "<u4")]
        if np.any(numbers < 0):
            unknown = texts[split][int(np.argmax(numbers < 0))]
            raise DataError(f"{name}: {unknown!r} occurs in {split}, but never in train")
        streams[split] = numbers.astype(_dtype(vocabulary))
    return Corpus(**streams, vocabulary=tuple(vocabulary), name=name)


def keep_frequent(words: Mapping[str, Sequence[str]], kept: int) -> dict[str, list[str]]:
    """Replaces words that are not frequent enough in train by `<unk>`.

    Args:
      words: the words of each split, in order; `<eos>` ends a line and is always kept.
      kept: number of other words to keep; equally frequent words are kept in alphabetical order.
    """
    counts = collections.Counter(words["train"])
    del counts["<eos>"]
    by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
    known = {"<eos>", *by_frequency[:kept]}
    return {
        split: [word if word in known else "<unk>" for word in listed]
        for split, listed in words.items()
    }


def encode_words(
    words: Mapping[str, Sequence[str]], name: str, marks: Sequence[str] = ()
) -> Corpus:
    """Encodes words as numbers, by decreasing frequency in train, then alphabetically.

    Args:
      words: the words of each split, in order.
      name: name of the corpus.
      marks: symbols that belong to the vocabulary even if train lacks them.

    Raises:
      DataError: a word of validation or test does not occur in train.
    """
    counts = collections.Counter(words["train"])
    counts.update(dict.fromkeys(marks, 0))
    vocabulary = tuple(sorted(counts, key=lambda word: (-counts[word], word)))
    number = {word: position for position, word in enumerate(vocabulary)}
    streams = {}
    for split in SPLITS:
        try:
            streams[split] = np.array([number[word] for word in words[split]], _dtype(vocabulary))
        except KeyError as error:
            raise DataError(
                f"{name}: {error.args[0]!r} occurs in {split}, but never in train"
            ) from error
    return Corpus(**streams, vocabulary=vocabulary, name=name)


def _dtype(vocabulary: Sequence[str]) -> type[np.integer]:
    """Returns the type of the numbers of symbols."""
    return np.uint8 if len(vocabulary) <= 256 else np.int32
