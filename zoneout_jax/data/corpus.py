"""A text corpus as integer arrays, and `load_corpus`, which makes one by its name."""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from zoneout_jax.data import raw

SPLITS = ("train", "validation", "test")
UNITS = {
    "ptb": ("char", "word"),
    "stdlib": ("char", "word", "text8"),
    "text8": ("char",),
    "text8_like": ("char",),
}
CONVENTIONS = ("mikolov", "rbn")


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Three streams of symbol numbers over one vocabulary.

    Attributes:
      train, validation, test: 1-D arrays of positions in `vocabulary`; uint8 for up to 256
        symbols, int32 for more.
      vocabulary: the symbols; characters sorted by code point, words by decreasing frequency in
        train and alphabetically where frequencies are equal.
      name: dataset, unit and convention, to be printed beside every figure.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocabulary: tuple[str, ...]
    name: str

    @property
    def vocab_size(self) -> int:
        """Number of symbols."""
        return len(self.vocabulary)

    @property
    def sizes(self) -> dict[str, int]:
        """Length of each split in symbols."""
        return {split: len(getattr(self, split)) for split in SPLITS}


def load_corpus(
    name: str,
    *,
    unit: str = "char",
    convention: str = "mikolov",
    raw_data_dir: raw.PathLike | None = None,
    data_dir: raw.PathLike | None = None,
) -> Corpus:
    """Loads a corpus by name.

    Args:
      name: `ptb` (Penn Treebank, see `zoneout_jax.data.ptb`), `text8` or `text8_like` (see
        `zoneout_jax.data.text8`), `stdlib` (the running Python's own library sources, see
        `zoneout_jax.data.stdlib`, which needs no files), or the path of a text file of your own
        (see `zoneout_jax.data.own_text`).
      unit: `char` or, but for `text8` and `text8_like`, `word`; for `stdlib` also `text8`,
        letters a–z and blanks.
      convention: how a line of char-level `ptb` ends: `mikolov`, with a newline, or `rbn`, with
        a blank and a newline. Nothing else depends on it.
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      DataError: an unknown name, unit or convention, or data that cannot be had.

    Example:
      >>> from zoneout_jax.data import load_corpus
      >>> corpus = load_corpus("stdlib")
      >>> corpus.vocab_size
      96
    """
    if name not in UNITS:
        if not pathlib.Path(name).expanduser().is_file():
            raise raw.DataError(
                f"dataset must be one of {', '.join(UNITS)} or a text file, got {name!r}, which is"
                " no file here"
            )
        from zoneout_jax.data import own_text

        _check_choice("unit of a file", unit, ("char", "word"))
        return own_text.load(name, unit)
    _check_choice(f"unit of {name}", unit, UNITS[name])
    _check_choice("convention", convention, CONVENTIONS)
    if name == "stdlib":
        from zoneout_jax.data import stdlib

        return stdlib.load(unit)
    # TFDS takes half a second to import and belongs to an extra: only those who need it pay.
    try:
        if name == "ptb":
            from zoneout_jax.data import ptb
        else:
            from zoneout_jax.data import text8
    except ModuleNotFoundError as error:
        raise raw.DataError(str(error)) from error
    if name == "ptb":
        return ptb.load(unit, convention, raw_data_dir=raw_data_dir, data_dir=data_dir)
    return text8.load(name, raw_data_dir=raw_data_dir, data_dir=data_dir)


def encode_characters(texts: Mapping[str, str], vocabulary: Sequence[str], name: str) -> Corpus:
    """Numbers the characters of ASCII texts, one text a split.

    Raises:
      DataError: a text holds a character that is not in the vocabulary.
    """
    table = np.full(128, -1, np.int16)
    table[[ord(symbol) for symbol in vocabulary]] = np.arange(len(vocabulary))
    streams = {}
    for split in SPLITS:
        numbers = table[np.frombuffer(texts[split].encode("ascii"), np.uint8)]
        if np.any(numbers < 0):
            unknown = texts[split][int(np.argmax(numbers < 0))]
            raise raw.DataError(f"{name}: {unknown!r} occurs in {split}, but never in train")
        streams[split] = numbers.astype(np.uint8)
    return Corpus(**streams, vocabulary=tuple(vocabulary), name=name)


def keep_frequent(words: Mapping[str, Sequence[str]], kept: int) -> dict[str, list[str]]:
    """The words, one list a split; those that are not frequent enough in train become `<unk>`.

    Args:
      words: the words of each split, in order; `<eos>` ends a line and is kept whatever.
      kept: how many others are kept, alphabetically where frequencies are equal.
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
    """Numbers words, one list a split, by decreasing frequency in train, then alphabetically.

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
    dtype = np.uint8 if len(vocabulary) <= 256 else np.int32
    streams = {}
    for split in SPLITS:
        try:
            streams[split] = np.array([number[word] for word in words[split]], dtype)
        except KeyError as error:
            raise raw.DataError(
                f"{name}: {error.args[0]!r} occurs in {split}, but never in train"
            ) from error
    return Corpus(**streams, vocabulary=vocabulary, name=name)


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises DataError unless `value` is one of those allowed."""
    if value not in allowed:
        raise raw.DataError(f"unknown {what} {value!r}; choose one of {', '.join(allowed)}")
