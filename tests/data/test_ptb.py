"""The Penn Treebank: derived streams, the TFDS builder, and every way in which it can fail."""
# ruff: noqa: D103 (a test's name says what it tests)

import hashlib
import pathlib
import shutil
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest

from zoneout_jax.data import DataError, load_corpus

ptb = pytest.importorskip("zoneout_jax.data.ptb", reason="tensorflow_datasets is not installed")

SPLITS = ("train", "validation", "test")
ALPHABET = "\n #$&'*-./0123456789<>N\\abcdefghijklmnopqrstuvwxyz"
CHAR_STREAMS = {
    "mikolov": [
        (5_017_482, "5145926136ee9aef6f359b267ac09cc8a920879cd71725de17c490dd111d2998"),
        (393_042, "fadf6277290823f881b7bf39b84e88536c87a859cd629dcfd1d2dfdef06097cf"),
        (442_423, "c2f8c16a611595d31da5acdb7a61d50e7d5e95f6b9c05fceda5f5ddc4383e791"),
    ],
    "rbn": [
        (5_059_550, "b6f47d46428d6c3bcccbb4199d998cd5b6ffcb470d796694b5b79216cd604d5f"),
        (396_412, "221313a0fa0d4e39316b7282c3475ee968e95bae081195f1c9848c37efde79f3"),
        (446_184, "427ca00d1598a5c32e1805fd0a6b5f2e79ef694629f87b02368b3c97c68b7a7e"),
    ],
}
# Tokens, distinct words, <unk>s and lines of each split.
WORD_COUNTS = [
    (929_589, 10_000, 45_020, 42_068),
    (73_760, 6_022, 3_485, 3_370),
    (82_430, 6_049, 4_794, 3_761),
]
RAW_LINES = " no it was <unk> \n at N \n"

pytestmark = pytest.mark.usefixtures("no_named_folders")


@pytest.fixture(scope="session")
def prepared(real_raw_data, tmp_path_factory) -> pathlib.Path:
    """A data folder in which all three configs are prepared."""
    data_dir = tmp_path_factory.mktemp("tfds")
    for unit, convention in (("char", "mikolov"), ("char", "rbn"), ("word", "mikolov")):
        ptb.load(unit, convention, raw_data_dir=real_raw_data, data_dir=data_dir)
    return data_dir


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail."""

    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.fixture
def own_raw_data(real_raw_data, tmp_path) -> pathlib.Path:
    """A copy of the raw files that a test may spoil."""
    shutil.copytree(real_raw_data / "ptb", tmp_path / "raw" / "ptb", copy_function=shutil.copyfile)
    return tmp_path / "raw"


def prepared_files(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """What could be taken for a prepared or half-prepared dataset below a data folder."""
    return [
        path
        for path in data_dir.rglob("*")
        if "array_record" in path.name or "incomplete" in path.name or path.name == "1.0.0"
    ]


@pytest.mark.parametrize(
    ("unit", "convention", "expected"),
    [
        ("char", "mikolov", "no it was <unk>\nat N\n"),
        ("char", "rbn", "no it was <unk> \nat N \n"),
        ("word", "mikolov", "no it was <unk> <eos> at N <eos>"),
    ],
)
def test_derive(unit, convention, expected):
    assert ptb.derive(RAW_LINES, unit, convention) == expected


@pytest.mark.parametrize("convention", ["mikolov", "rbn"])
def test_characters(prepared, convention):
    corpus = load_corpus("ptb", convention=convention, data_dir=prepared)
    assert "".join(corpus.vocabulary) == ALPHABET
    assert corpus.name == f"ptb char ({convention})"
    table = np.frombuffer(ALPHABET.encode(), np.uint8)
    for split, (length, sha256) in zip(SPLITS, CHAR_STREAMS[convention], strict=True):
        stream = getattr(corpus, split)
        assert stream.dtype == np.uint8
        assert len(stream) == length
        assert hashlib.sha256(table[stream].tobytes()).hexdigest() == sha256
    missing = {corpus.vocabulary[n] for n in set(range(50)) - set(corpus.test.tolist())}
    assert missing == {"*", "4"}


def test_words(prepared):
    corpus = load_corpus("ptb", unit="word", data_dir=prepared)
    assert corpus.name == "ptb word"
    assert corpus.vocab_size == 10_000
    assert corpus.vocabulary[:4] == ("the", "<unk>", "<eos>", "N")
    unk, eos = corpus.vocabulary.index("<unk>"), corpus.vocabulary.index("<eos>")
    for split, (tokens, distinct, unks, lines) in zip(SPLITS, WORD_COUNTS, strict=True):
        stream = getattr(corpus, split)
        assert stream.dtype == np.int32
        assert len(stream) == tokens
        assert len(np.unique(stream)) == distinct
        assert np.sum(stream == unk) == unks
        assert np.sum(stream == eos) == lines
    counts = np.bincount(corpus.train)
    assert np.all(np.diff(counts) <= 0)
    tied = np.flatnonzero(np.diff(counts) == 0)
    assert all(corpus.vocabulary[n] < corpus.vocabulary[n + 1] for n in tied)


def test_builder_round_trip(prepared):
    builder = ptb.Ptb(config="char", data_dir=prepared)
    assert builder.name == "ptb"
    assert builder.info.file_format.value == "array_record"
    assert {split: builder.info.splits[split].num_examples for split in SPLITS} == dict.fromkeys(
        SPLITS, 1
    )
    text = builder.as_data_source("test")[0]["text"].decode()
    assert text.startswith("no it was n't black monday\n")
    assert not [path for path in prepared.rglob("*") if "incomplete" in path.name]


def test_builder_finds_raw_data_by_the_environment(real_raw_data, tmp_path, monkeypatch):
    monkeypatch.setenv("ZONEOUT_RAW_DATA", str(real_raw_data))
    builder = ptb.Ptb(config="word", data_dir=tmp_path)
    builder.download_and_prepare()
    assert builder.as_data_source("test")[0]["text"].startswith(b"no it was n't black monday <eos>")


def test_prepared_dataset_needs_no_raw_files(prepared, tmp_path, no_network):
    (tmp_path / "empty").mkdir()
    corpus = load_corpus("ptb", raw_data_dir=tmp_path / "empty", data_dir=prepared)
    assert corpus.sizes["test"] == 442_423


def test_without_tensorflow(real_raw_data, tmp_path):
    code = f"""
import sys
from zoneout_jax.data import load_corpus
for _ in range(2):
    load_corpus("ptb", raw_data_dir={str(real_raw_data)!r}, data_dir={str(tmp_path)!r})
print("tensorflow" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_downloads(own_raw_data, tmp_path, monkeypatch):
    requested = []

    def urlopen(url: str, timeout: float):
        requested.append(url)
        return (own_raw_data / "ptb" / url.rsplit("/", 1)[1]).open("rb")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    corpus = load_corpus("ptb", data_dir=tmp_path / "data")
    load_corpus("ptb", unit="word", data_dir=tmp_path / "data")
    assert corpus.sizes["train"] == 5_017_482
    assert requested == [raw_file.url for raw_file in ptb.RAW_FILES.values()]


@pytest.mark.parametrize("use_builder", [True, False])
def test_missing_without_network(tmp_path, no_network, use_builder):
    with pytest.raises(DataError) as error:
        if use_builder:
            ptb.Ptb(config="char", data_dir=tmp_path).download_and_prepare()
        else:
            load_corpus("ptb", data_dir=tmp_path)
    assert "ptb/ptb.train.txt is neither in" in str(error.value)
    assert "\n" not in str(error.value)
    assert prepared_files(tmp_path) == []
    if not use_builder:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("use_builder", [True, False])
@pytest.mark.parametrize("name", ["ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"])
def test_wrong_checksum(own_raw_data, tmp_path, no_network, use_builder, name):
    with (own_raw_data / "ptb" / name).open("a") as file:
        file.write(" one line more \n")
    with pytest.raises(DataError, match=f"{name}: its SHA-256 is .*, expected"):
        if use_builder:
            builder = ptb.Ptb(config="char", raw_data_dir=own_raw_data, data_dir=tmp_path / "data")
            builder.download_and_prepare()
        else:
            load_corpus("ptb", raw_data_dir=own_raw_data, data_dir=tmp_path / "data")
    assert prepared_files(tmp_path / "data") == []


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_wrong_checksum_counts_although_prepared(prepared, own_raw_data, monkeypatch, by):
    (own_raw_data / "ptb" / "ptb.test.txt").write_text("other\n")
    if by == "environment":
        monkeypatch.setenv("ZONEOUT_RAW_DATA", str(own_raw_data))
    with pytest.raises(DataError, match="ptb.test.txt: its SHA-256 is"):
        load_corpus(
            "ptb", raw_data_dir=own_raw_data if by == "argument" else None, data_dir=prepared
        )


def test_absent_raw_folder_counts_although_prepared(prepared, tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        load_corpus("ptb", raw_data_dir=tmp_path / "absent", data_dir=prepared)


@pytest.mark.parametrize("split", SPLITS)
def test_derived_text_is_checked(real_raw_data, tmp_path, monkeypatch, split):
    """A failure half-way through preparing leaves no dataset; the next attempt starts afresh."""
    with monkeypatch.context() as patch:
        patch.setitem(ptb.TEXT_SHA256["char"], split, "0" * 64)
        with pytest.raises(DataError, match="ptb/char: the text derived from"):
            load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
    assert prepared_files(tmp_path) == []
    corpus = load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
    assert corpus.sizes["test"] == 442_423


@pytest.mark.parametrize("damage", ["cut", "delete", "swap", "no info"])
def test_damaged_dataset_is_not_used(prepared, real_raw_data, tmp_path, damage):
    folder = tmp_path / "ptb" / "char" / "1.0.0"
    shutil.copytree(prepared / "ptb" / "char" / "1.0.0", folder)
    (record,) = folder.glob("*-test.array_record*")
    if damage == "cut":
        record.write_bytes(record.read_bytes()[:100_000])
    elif damage == "delete":
        record.unlink()
    elif damage == "swap":
        (other,) = folder.glob("*-validation.array_record*")
        shutil.copyfile(other, record)
    else:
        (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError) as error:
        load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
    assert f"{folder} is damaged; delete that folder" in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    corpus = load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
    assert corpus.sizes["test"] == 442_423


def test_another_process_may_prepare_it_first(prepared, real_raw_data, tmp_path, monkeypatch):
    prepare = ptb.Ptb.download_and_prepare

    def overtaken(self) -> None:
        prepare(ptb.Ptb(config="char", raw_data_dir=real_raw_data, data_dir=tmp_path))
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(ptb.Ptb, "download_and_prepare", overtaken)
    corpus = load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
    assert corpus.sizes["test"] == 442_423


def test_full_disk(real_raw_data, tmp_path, monkeypatch):
    def fail(self) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ptb.Ptb, "download_and_prepare", fail)
    with pytest.raises(DataError, match="cannot prepare .*No space left on device"):
        load_corpus("ptb", raw_data_dir=real_raw_data, data_dir=tmp_path)
