"""text8: the checked reading of a file, the TFDS builder, and every way in which it can fail."""
# ruff: noqa: D103 (a test's name says what it tests)

import gzip
import hashlib
import io
import pathlib
import random
import shutil
import string
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest

from zoneout_jax.data import DataError, load_corpus, stdlib

text8 = pytest.importorskip("zoneout_jax.data.text8", reason="tensorflow_datasets is not installed")

SPLITS = ("train", "validation", "test")
SYMBOLS = " " + string.ascii_lowercase
TEXT = "".join(random.Random(0).choices(SYMBOLS, k=2_510)).encode()
SHA256 = hashlib.sha256(TEXT).hexdigest()
URL = "https://nowhere.invalid/text8.zip"
PATHS = ("text8/text8", "text8/text8.txt.gz", "text8/text8.zip")
SAMPLE = "text8/enwiki_sample_text8_like.txt.gz"

pytestmark = pytest.mark.usefixtures("no_named_folders")


def make_file(path: str) -> "text8.TextFile":
    """The description of a file that holds TEXT."""
    return text8.TextFile(path=path, url=None, sha256=SHA256, length=len(TEXT))


def make_config(text: bytes = TEXT) -> "text8.Text8Config":
    """A config like that of text8, of another text."""
    known = {"sha256": hashlib.sha256(text).hexdigest(), "length": len(text)}
    files = (
        text8.TextFile(path="text8/text8", url=None, **known),
        text8.TextFile(path="text8/text8.zip", url=URL, **known),
    )
    return text8.Text8Config(name="toy", files=files, corpus_name="toy")


def pack(path: str, text: bytes = TEXT, member: str = "text8") -> bytes:
    """What a file called so holds if its text is `text`."""
    if path.endswith(".gz"):
        return gzip.compress(text)
    if not path.endswith(".zip"):
        return text
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "something else")
        archive.writestr(member, text)
    return buffer.getvalue()


def write(folder: pathlib.Path, content: bytes, path: str = "text8/text8.zip") -> pathlib.Path:
    """Puts a file below a folder and returns the folder."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    return folder


def decode(corpus, split: str) -> bytes:
    """The text of a split."""
    return "".join(corpus.vocabulary[number] for number in getattr(corpus, split)).encode()


def prepared_files(data_dir: pathlib.Path) -> list[pathlib.Path]:
    """What could be taken for a prepared or half-prepared dataset below a data folder."""
    return [
        path
        for path in data_dir.rglob("*")
        if "array_record" in path.name or "incomplete" in path.name or path.name == "1.0.0"
    ]


@pytest.fixture
def raw_data(tmp_path) -> pathlib.Path:
    """A folder with TEXT as a zip file."""
    return write(tmp_path / "raw", pack("text8/text8.zip"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> pathlib.Path:
    """A data folder in which TEXT is prepared."""
    folder = tmp_path_factory.mktemp("text8")
    write(folder / "raw", pack("text8/text8.zip"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text8, "PIECE", 100)
        text8.load(make_config(), raw_data_dir=folder / "raw", data_dir=folder / "data")
    return folder / "data"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail."""

    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def test_text8_as_it_is_known():
    config = text8.Text8.builder_configs["text8"]
    assert config.bounds() == {
        "train": (0, 90_000_000),
        "validation": (90_000_000, 95_000_000),
        "test": (95_000_000, 100_000_000),
    }
    assert config.corpus_name == "text8"
    assert [file.path for file in config.files] == ["text8/text8", "text8/text8.zip"]
    assert [file.url for file in config.files] == [None, "http://mattmahoney.net/dc/text8.zip"]
    for file in config.files:
        assert file.length == 100_000_000
        assert file.sha256 == "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7"


@pytest.mark.parametrize("piece", [1, 100, 2_510, 1_000_000])
@pytest.mark.parametrize("path", PATHS)
def test_right_form(tmp_path, monkeypatch, path, piece):
    monkeypatch.setattr(text8, "PIECE", piece)
    copy = write(tmp_path, pack(path), path) / path
    pieces = list(make_file(path).pieces(copy))
    assert b"".join(pieces) == TEXT
    assert {len(part) for part in pieces[:-1]} <= {piece}
    assert make_file(path).fault(copy) is None


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (TEXT[:-1], "it ends after 2,509 characters, expected 2,510"),
        (b"", "it ends after 0 characters, expected 2,510"),
        (TEXT + b"a", "it is longer than 2,510 characters"),
        (TEXT + b"\n", r"byte 2,510 is b'\n', expected a letter a–z or a blank"),
        (b"W" + TEXT[1:], "byte 0 is b'W', expected a letter a–z or a blank"),
        (TEXT[:1_234] + b"W" + TEXT[1_235:], "byte 1,234 is b'W', expected a letter a–z"),
        (TEXT[:2_509] + b"7", "byte 2,509 is b'7', expected a letter a–z or a blank"),
        (TEXT[:9] + "é".encode() + TEXT[11:], r"byte 9 is b'\xc3', expected a letter a–z"),
        (TEXT[::-1], f"is {hashlib.sha256(TEXT[::-1]).hexdigest()}, expected {SHA256}"),
    ],
    ids="cut empty long newline first capital digit accent other".split(),
)
def test_wrong_text_is_refused(tmp_path, no_network, monkeypatch, path, text, fault):
    monkeypatch.setattr(text8, "PIECE", 100)
    raw_data = write(tmp_path / "raw", pack(path, text), path)
    config = text8.Text8Config(name="toy", files=(make_file(path),), corpus_name="toy")
    with pytest.raises(DataError) as error:
        text8.load(config, raw_data_dir=raw_data, data_dir=tmp_path / "data")
    message = str(error.value)
    assert f"{raw_data / path} is not the expected {path}: " in message
    assert fault in message
    assert "put the original file there" in message
    assert "\n" not in message
    assert prepared_files(tmp_path / "data") == []


def spoiled(place: int) -> bytes:
    """A zip file of which one byte has changed."""
    packed = bytearray(pack(".zip"))
    packed[place] ^= 0xFF
    return bytes(packed)


BAD_NAME = pack(".zip", member="é").replace("é".encode(), b"\xff\xff")


@pytest.mark.parametrize(
    ("path", "content", "fault"),
    [
        ("text8/text8.zip", pack(".zip", member="text9"), "a zip file that does not hold 'text8'"),
        ("text8/text8.zip", pack(".zip")[:-10], "not a readable zip file"),
        ("text8/text8.zip", pack(".zip")[:1_000], "not a readable zip file"),
        ("text8/text8.zip", spoiled(pack(".zip").index(b"text8") + 25), "not a readable zip file"),
        # From the end: where the list of members starts, and how the last one is packed.
        ("text8/text8.zip", spoiled(-4), "not a readable zip file"),
        ("text8/text8.zip", spoiled(-63), "not a readable zip file"),
        ("text8/text8.zip", BAD_NAME, "not a readable zip file"),
        ("text8/text8.zip", pack(".gz"), "not a readable zip file"),
        ("text8/text8.zip", TEXT, "not a readable zip file"),
        ("text8/text8.zip", b"", "not a readable zip file"),
        ("text8/text8.txt.gz", pack(".gz")[:-10], "not a readable gzip file"),
        ("text8/text8.txt.gz", TEXT, "not a readable gzip file"),
        ("text8/text8", pack(".zip"), "byte 0 is b'P'"),
    ],
    ids="member end half data list packing name gzip text empty cut-gz text-gz zip-as-text".split(),
)
def test_damaged_wrappers(tmp_path, no_network, path, content, fault):
    raw_data = write(tmp_path / "raw", content, path)
    config = text8.Text8Config(name="toy", files=(make_file(path),), corpus_name="toy")
    with pytest.raises(DataError) as error:
        text8.load(config, raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert fault in str(error.value)
    assert "\n" not in str(error.value)
    assert prepared_files(tmp_path / "data") == []


@pytest.mark.parametrize("piece", [7, 100, 1_000_000])
def test_splits(raw_data, tmp_path, monkeypatch, piece):
    monkeypatch.setattr(text8, "PIECE", piece)
    corpus = text8.load(make_config(), raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert corpus.name == "toy"
    assert "".join(corpus.vocabulary) == SYMBOLS
    assert corpus.sizes == {"train": 2_260, "validation": 125, "test": 125}
    assert all(getattr(corpus, split).dtype == np.uint8 for split in SPLITS)
    assert [decode(corpus, split) for split in SPLITS] == [
        TEXT[:2_260],
        TEXT[2_260:-125],
        TEXT[-125:],
    ]


def test_symbols_are_those_of_the_embedded_stand_in():
    assert text8.VOCABULARY == stdlib.ALPHABETS["text8"]


def test_builder_round_trip(prepared):
    builder = text8.Text8(config=make_config(), data_dir=prepared)
    assert builder.name == "text8"
    assert builder.info.file_format.value == "array_record"
    examples = {split: builder.info.splits[split].num_examples for split in SPLITS}
    assert examples == {"train": 23, "validation": 2, "test": 3}
    pieces = [example["text"] for example in builder.as_data_source("train")]
    assert b"".join(pieces) == TEXT[:2_260]


def test_prepared_dataset_is_used_again(prepared, tmp_path, monkeypatch, no_network):
    monkeypatch.delattr(text8.Text8, "_generate_examples")
    (tmp_path / "empty").mkdir()
    corpus = text8.load(make_config(), raw_data_dir=tmp_path / "empty", data_dir=prepared)
    assert decode(corpus, "test") == TEXT[-125:]


def test_wrong_file_counts_although_prepared(prepared, tmp_path):
    raw_data = write(tmp_path / "raw", pack(".zip", TEXT[::-1]))
    with pytest.raises(DataError, match="the SHA-256 of its text is"):
        text8.load(make_config(), raw_data_dir=raw_data, data_dir=prepared)
    with pytest.raises(DataError, match="does not exist"):
        text8.load(make_config(), raw_data_dir=tmp_path / "absent", data_dir=prepared)


@pytest.mark.parametrize("damage", ["cut", "delete", "swap", "no info", "other text"])
def test_damaged_dataset_is_not_used(prepared, raw_data, tmp_path, monkeypatch, damage):
    monkeypatch.setattr(text8, "PIECE", 100)
    folder = tmp_path / "data" / "text8" / "toy" / "1.0.0"
    shutil.copytree(prepared / "text8" / "toy" / "1.0.0", folder)
    (record,) = folder.glob("*-test.array_record*")
    if damage == "cut":
        record.write_bytes(record.read_bytes()[:100])
    elif damage == "delete":
        record.unlink()
    elif damage == "swap":
        (other,) = folder.glob("*-validation.array_record*")
        shutil.copyfile(other, record)
    elif damage == "other text":
        text = TEXT[::-1]
        config, others = make_config(text), write(tmp_path / "others", pack(".zip", text))
        text8.load(config, raw_data_dir=others, data_dir=others)
        shutil.copyfile(others / "text8" / "toy" / "1.0.0" / record.name, record)
    else:
        (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError) as error:
        text8.load(make_config(), raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert f"{folder} is damaged; delete that folder" in str(error.value)
    assert "\n" not in str(error.value)
    shutil.rmtree(folder)
    corpus = text8.load(make_config(), raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert decode(corpus, "test") == TEXT[-125:]


def test_plain_text_will_do(tmp_path, no_network):
    raw_data = write(tmp_path / "raw", TEXT, "text8/text8")
    corpus = text8.load(make_config(), raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert decode(corpus, "test") == TEXT[-125:]


def test_wrong_plain_text_counts_beside_the_right_zip(raw_data, tmp_path):
    write(raw_data, TEXT[:-1], "text8/text8")
    fault = "text8/text8: it ends after 2,509 characters, .*; put the original .* or remove it"
    with pytest.raises(DataError, match=fault):
        text8.load(make_config(), raw_data_dir=raw_data, data_dir=tmp_path / "data")


@pytest.mark.parametrize("whole", [True, False])
def test_downloads(tmp_path, monkeypatch, whole):
    packed, requested = pack(".zip"), []

    def urlopen(url: str, timeout: float):
        requested.append(url)
        return io.BytesIO(packed if whole else packed[:1_000])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    if whole:
        corpus = text8.load(make_config(), data_dir=tmp_path)
        assert decode(corpus, "test") == TEXT[-125:]
    else:
        with pytest.raises(DataError, match="not a readable zip file .*cut short .*try again"):
            text8.load(make_config(), data_dir=tmp_path)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert requested == [URL]


@pytest.mark.parametrize("use_builder", [True, False])
def test_missing_without_network(tmp_path, no_network, use_builder):
    with pytest.raises(DataError) as error:
        if use_builder:
            text8.Text8(config="text8", data_dir=tmp_path).download_and_prepare()
        else:
            load_corpus("text8", data_dir=tmp_path)
    assert "text8/text8.zip is neither in" in str(error.value)
    assert "http://mattmahoney.net/dc/text8.zip (" in str(error.value)
    assert "\n" not in str(error.value)
    assert prepared_files(tmp_path) == []


def test_text8_like(real_wikipedia, tmp_path):
    corpus = load_corpus("text8_like", raw_data_dir=real_wikipedia, data_dir=tmp_path)
    assert corpus.name == "text8_like (other Wikipedia text, not text8)"
    assert "".join(corpus.vocabulary) == SYMBOLS
    assert corpus.sizes == {"train": 3_236_993, "validation": 179_832, "test": 179_832}
    text = b"".join(decode(corpus, split) for split in SPLITS)
    assert text == gzip.decompress((real_wikipedia / SAMPLE).read_bytes())


def test_text8_like_without_its_file(tmp_path, no_network):
    with pytest.raises(DataError, match=f"{SAMPLE} is neither in .*, and has no public address"):
        load_corpus("text8_like", data_dir=tmp_path)


@pytest.mark.parametrize("path", ["text8/text8", "text8/text8.zip"])
def test_text8_like_is_not_text8(real_wikipedia, tmp_path, no_network, path):
    text = gzip.decompress((real_wikipedia / SAMPLE).read_bytes())
    raw_data = write(tmp_path / "raw", pack(path, text), path)
    with pytest.raises(DataError) as error:
        load_corpus("text8", raw_data_dir=raw_data, data_dir=tmp_path / "data")
    assert f"{path}: it ends after 3,596,657 characters, expected 100,000,000" in str(error.value)


SCRIPT = """
import sys
from zoneout_jax.data import text8
from zoneout_jax.training.progress import host_peak_bytes
sha256, length, raw_data_dir, data_dir = sys.argv[1:]
file = text8.TextFile(path="text8/text8.zip", url=None, sha256=sha256, length=int(length))
config = text8.Text8Config(name="toy", files=(file,), corpus_name="toy")
corpus = text8.load(config, raw_data_dir=raw_data_dir, data_dir=data_dir)
print("tensorflow" in sys.modules, sum(stream.nbytes for stream in
    (corpus.train, corpus.validation, corpus.test)),
    host_peak_bytes())
"""


def run_script(*arguments: object) -> list[str]:
    """Loads a text in a fresh process: TensorFlow loaded or not, bytes in arrays, peak in bytes."""
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_without_tensorflow(raw_data, tmp_path):
    for _ in range(2):
        found = run_script(SHA256, len(TEXT), raw_data, tmp_path / "data")
        assert found[:2] == ["False", str(len(TEXT))]


@pytest.mark.slow
def test_memory_at_the_size_of_text8(tmp_path):
    """Preparing it and loading it again; with one byte a symbol in the arrays."""
    length, digest = 100_000_000, hashlib.sha256()
    (tmp_path / "raw" / "text8").mkdir(parents=True)
    table, generator = np.frombuffer(SYMBOLS.encode(), np.uint8), np.random.default_rng(0)
    with (
        zipfile.ZipFile(
            tmp_path / "raw/text8/text8.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1
        ) as archive,
        archive.open("text8", "w") as file,
    ):
        for _ in range(100):
            piece = table[generator.integers(0, 27, length // 100)].tobytes()
            digest.update(piece)
            file.write(piece)
    for _ in range(2):
        found = run_script(digest.hexdigest(), length, tmp_path / "raw", tmp_path / "data")
        assert found[:2] == ["False", str(length)]
        print(f"peak of {int(found[2]) / 2**20:.0f} MiB")
        assert int(found[2]) < 1e9
