"""The corpus made of Python's own standard library."""
# ruff: noqa: D103 (a test's name says what it tests)

import pathlib
import string
import sysconfig

import numpy as np
import pytest

from zoneout_jax.data import DataError, load_corpus, stdlib

SPLITS = ("train", "validation", "test")


@pytest.fixture
def library(tmp_path) -> pathlib.Path:
    """A small library of forty files, with others that must not be read."""
    root = tmp_path / "lib"
    for number in range(40):
        folder = root / ("package" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"def f{number}(x):  ", "\treturn 'é' + x\f", "", f"X = {number}"]
        (folder / f"m{number}.py").write_text("\n".join(lines), encoding="utf-8")
    for excluded in ("site-packages/a", "unittest/test", "tests", "idlelib", "__pycache__"):
        (root / excluded).mkdir(parents=True)
        (root / excluded / "m.py").write_text("EXCLUDED = 1\n")
    (root / "_sysconfigdata__linux_.py").write_text("EXCLUDED = 1\n")
    (root / "notes.txt").write_text("EXCLUDED = 1\n")
    return root


def decode(corpus, split: str, between: str = "") -> str:
    """The text of a split."""
    return between.join(corpus.vocabulary[number] for number in getattr(corpus, split))


def test_splits_share_no_file_and_miss_none(library):
    splits = stdlib.split_files(library)
    listed = [path.relative_to(library).as_posix() for split in SPLITS for path in splits[split]]
    expected = [f"package/m{n}.py" if n % 2 else f"m{n}.py" for n in range(40)]
    assert sorted(listed) == sorted(expected)
    assert all(splits[split] for split in SPLITS)
    assert listed[: len(splits["train"])] != sorted(listed[: len(splits["train"])])


def test_does_not_depend_on_place_or_order(library, tmp_path, monkeypatch):
    before = stdlib.load("char", library)
    moved = library.rename(tmp_path / "elsewhere")
    walk = stdlib.os.walk

    def reversed_walk(root):
        for folder, subfolders, names in walk(root):
            yield folder, subfolders, names[::-1]

    monkeypatch.setattr(stdlib.os, "walk", reversed_walk)
    after = stdlib.load("char", moved)
    for split in SPLITS:
        np.testing.assert_array_equal(getattr(before, split), getattr(after, split))


def test_characters_are_cleaned(library):
    corpus = stdlib.load("char", library)
    files = stdlib.split_files(library)
    for split in SPLITS:
        numbers = [int(path.stem[1:]) for path in files[split]]
        expected = "".join(f"def f{n}(x):\n    return '' + x\n\nX = {n}\n" for n in numbers)
        assert decode(corpus, split) == expected


def test_words(library):
    corpus = stdlib.load("word", library)
    text = decode(corpus, "test", " ")
    for path in stdlib.split_files(library)["test"]:
        number = int(path.stem[1:])
        name, value = (
            word if word in corpus.vocabulary else "<unk>" for word in (f"f{number}", f"{number}")
        )
        line = f"def {name} ( x ) : <eos> return ' ' + x <eos> X = {value} <eos>"
        assert line in text
    assert corpus.vocabulary[0] == "<eos>"


def test_rare_words_become_unk(library, monkeypatch):
    monkeypatch.setattr(stdlib, "KEPT_WORDS", 5)
    corpus = stdlib.load("word", library)
    assert set(corpus.vocabulary) == {"<unk>", "<eos>", "'", "x", "(", ")", "+"}


def test_text8(library):
    corpus = stdlib.load("text8", library)
    assert corpus.vocabulary == (" ", *string.ascii_lowercase)
    assert decode(corpus, "test").startswith("def f x return x x def f x return x x ")


@pytest.mark.parametrize("unit", ["char", "word", "text8"])
def test_running_python(unit):
    first, second = load_corpus("stdlib", unit=unit), load_corpus("stdlib", unit=unit)
    assert first.name.startswith(f"stdlib {unit} (Python 3.")
    assert first.vocabulary == second.vocabulary
    total = sum(first.sizes.values())
    assert total > 1_000_000
    for split, share in zip(SPLITS, (0.8, 0.1, 0.1), strict=True):
        np.testing.assert_array_equal(getattr(first, split), getattr(second, split))
        assert abs(first.sizes[split] / total - share) < 0.06
        assert getattr(first, split).max() < first.vocab_size
    assert first.vocab_size == {"char": 96, "word": 10_002, "text8": 27}[unit]
    assert first.train.dtype == (np.int32 if unit == "word" else np.uint8)


def test_running_python_has_no_tests_or_packages():
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = [path for split in stdlib.split_files(root).values() for path in split]
    assert len(files) == len(set(files)) > 300
    for path in files:
        assert not {"test", "tests", "site-packages"} & set(path.relative_to(root).parts)


@pytest.mark.parametrize("exists", [True, False])
def test_no_sources(tmp_path, exists):
    root = tmp_path / "lib"
    if exists:
        root.mkdir()
        (root / "os.pyc").write_bytes(b"")
    with pytest.raises(DataError) as error:
        stdlib.load("char", root)
    assert str(root) in str(error.value)
    assert "\n" not in str(error.value)
