"""Text files of the user's own."""

import numpy as np
import pytest

from zoneout_jax.data import DataError, load_corpus

TEXT = "the cat sat on the mat\n\nŻółć 漢字 — end\n" * 20


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_characters(path):
    corpus = load_corpus(str(path))
    assert corpus.vocabulary == tuple(sorted(set(TEXT))) and corpus.train.dtype == np.uint8
    streams = np.concatenate([corpus.train, corpus.validation, corpus.test])
    assert "".join(corpus.vocabulary[symbol] for symbol in streams) == TEXT
    ends = [len(TEXT) * percent // 100 for percent in (90, 95)]
    assert corpus.sizes == {
        "train": ends[0],
        "validation": ends[1] - ends[0],
        "test": len(TEXT) - ends[1],
    }
    assert corpus.name.startswith("own.txt char (")
    path.write_text(TEXT + "x", encoding="utf-8")
    assert load_corpus(str(path)).name != corpus.name


def test_many_characters(tmp_path):
    path = tmp_path / "many.txt"
    path.write_text("".join(map(chr, range(0x4E00, 0x4E00 + 400))), encoding="utf-8")
    assert load_corpus(str(path)).vocab_size == 400
    assert load_corpus(str(path)).train.dtype == np.int32


def test_words(path):
    corpus = load_corpus(str(path), unit="word")
    assert corpus.vocabulary[:2] == ("<eos>", "the")  # 40 and 40 times, alphabetically
    assert {"Żółć", "漢字", "<unk>"} <= set(corpus.vocabulary) and "" not in corpus.vocabulary
    words = TEXT.replace("\n\n", "\n").replace("\n", " <eos> ").split()
    streams = np.concatenate([corpus.train, corpus.validation, corpus.test])
    assert [corpus.vocabulary[symbol] for symbol in streams] == words


def test_rare_words_are_unknown(tmp_path, monkeypatch):
    from zoneout_jax.data import own_text

    monkeypatch.setattr(own_text, "KEPT_WORDS", 2)
    path = tmp_path / "own.txt"
    path.write_text("a a a b b c\n" * 40)
    corpus = load_corpus(str(path), unit="word")
    assert set(corpus.vocabulary) == {"a", "b", "<unk>", "<eos>"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 symbols .chars.; a text needs at least 100"),
        (b"abc" * 30, "has 90 symbols"),
        (b"abc\xff" * 100, r"is not UTF-8 .byte 3.; convert it"),
        (None, "one of ptb, stdlib, text8, text8_like or a text file, got .*, which is not a file"),
    ],
)
def test_errors(content, message, tmp_path):
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_corpus(str(path))
