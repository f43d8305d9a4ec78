"""Finding, checking and downloading raw files."""
# ruff: noqa: D103 (a test's name says what it tests)

import gzip
import hashlib
import io
import pathlib
import urllib.error
import urllib.request

import pytest

from zoneout_jax.data import raw

CONTENT = b"some text\n" * 1_000
PATH = "set/part.txt"

pytestmark = pytest.mark.usefixtures("no_named_folders")


def make_raw_file(url: str | None = "https://nowhere.invalid/part.txt") -> raw.RawFile:
    """The description of a file whose content is CONTENT."""
    return raw.RawFile(path=PATH, url=url, sha256=hashlib.sha256(CONTENT).hexdigest())


def write(folder: pathlib.Path, content: bytes = CONTENT) -> pathlib.Path:
    """Puts the file below a folder."""
    path = folder / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def files_below(folder: pathlib.Path) -> list[pathlib.Path]:
    """All files in a folder and its subfolders."""
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every download fail."""

    def urlopen(url: str, timeout: float) -> None:
        raise urllib.error.URLError("name or service\nnot known")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def assert_one_line(error: pytest.ExceptionInfo, *parts: str) -> None:
    """Asserts that the message is one line and holds all parts."""
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("by", ["argument", "environment"])
def test_named_folder_comes_first(tmp_path, monkeypatch, no_network, by):
    path = write(tmp_path / "raw")
    write(tmp_path / "data" / "downloads" / "zoneout_jax", b"never looked at")
    if by == "environment":
        monkeypatch.setenv("ZONEOUT_RAW_DATA", str(tmp_path / "raw"))
    argument = tmp_path / "raw" if by == "argument" else None
    assert raw.fetch(make_raw_file(), argument, tmp_path / "data") == path


def test_argument_beats_environment(tmp_path, monkeypatch, no_network):
    path = write(tmp_path / "raw")
    monkeypatch.setenv("ZONEOUT_RAW_DATA", str(tmp_path / "absent"))
    assert raw.fetch(make_raw_file(), str(tmp_path / "raw"), tmp_path / "data") == path


@pytest.mark.parametrize("name_folder", [True, False])
def test_falls_through_to_cache(tmp_path, no_network, name_folder):
    cached = write(tmp_path / "data" / "downloads" / "zoneout_jax")
    (tmp_path / "raw").mkdir()
    folder = tmp_path / "raw" if name_folder else None
    assert raw.fetch(make_raw_file(), folder, tmp_path / "data") == cached


def test_download_is_cached(tmp_path, monkeypatch):
    source = write(tmp_path / "server")
    raw_file = make_raw_file(source.as_uri())
    path = raw.fetch(raw_file, data_dir=tmp_path / "data")
    assert path == tmp_path / "data" / "downloads" / "zoneout_jax" / PATH
    assert path.read_bytes() == CONTENT
    assert files_below(tmp_path / "data") == [path]
    source.unlink()
    assert raw.fetch(raw_file, data_dir=tmp_path / "data") == path


def test_default_data_dir(tmp_path, monkeypatch):
    assert raw.default_data_dir() == pathlib.Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert raw.default_data_dir() == tmp_path
    cached = write(tmp_path / "downloads" / "zoneout_jax")
    assert raw.fetch(make_raw_file()) == cached


class InterruptedResponse(io.BytesIO):
    """Half of the content, and then the connection breaks with an error."""

    def __init__(self, error: BaseException):
        super().__init__(CONTENT[: len(CONTENT) // 2])
        self._error = error

    def read(self, size: int = -1) -> bytes:
        if block := super().read(size):
            return block
        raise self._error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("timed out"), raw.DataError),
        (ConnectionResetError("reset by peer"), raw.DataError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch, error, expected):
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: InterruptedResponse(error))
    with pytest.raises(expected):
        raw.fetch(make_raw_file(), data_dir=tmp_path)
    assert files_below(tmp_path) == []


def test_cut_download_is_refused(tmp_path, monkeypatch):
    source = write(tmp_path / "server", CONTENT[:-1])
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(source.as_uri()), data_dir=tmp_path / "data")
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    assert_one_line(error, PATH, make_raw_file().sha256, found, "try again", "ZONEOUT_RAW_DATA")
    assert files_below(tmp_path / "data") == []


def test_wrong_checksum_in_named_folder(tmp_path, no_network):
    write(tmp_path / "raw", b"other")
    write(tmp_path / "data" / "downloads" / "zoneout_jax")
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(), tmp_path / "raw", tmp_path / "data")
    found = hashlib.sha256(b"other").hexdigest()
    assert_one_line(error, PATH, make_raw_file().sha256, found, "unset --raw_data_dir")


def test_wrong_checksum_in_cache(tmp_path, no_network):
    write(tmp_path / "downloads" / "zoneout_jax", b"other")
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(), data_dir=tmp_path)
    assert_one_line(error, PATH, make_raw_file().sha256, "delete it")


@pytest.mark.parametrize("name_folder", [True, False])
def test_missing_without_network(tmp_path, no_network, name_folder):
    (tmp_path / "raw").mkdir()
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(), tmp_path / "raw" if name_folder else None, tmp_path / "data")
    looked_in = str(tmp_path / "raw") if name_folder else "$ZONEOUT_RAW_DATA (not set)"
    assert_one_line(
        error, PATH, looked_in, "not known", "https://nowhere.invalid", "set --raw_data_dir or"
    )
    assert not (tmp_path / "data").exists()


def test_missing_without_an_address(tmp_path, no_network):
    raw_file = raw.RawFile(PATH, None, "0" * 64)
    with pytest.raises(raw.DataError) as error:
        raw.fetch(raw_file, data_dir=tmp_path)
    assert_one_line(error, PATH, "has no public address", "set --raw_data_dir or")
    cached = write(tmp_path / "downloads" / "zoneout_jax")
    assert raw.fetch(make_raw_file(None), data_dir=tmp_path) == cached


def test_unwritable_cache(tmp_path):
    source = write(tmp_path / "server")
    (tmp_path / "data").write_text("a file where a folder should be")
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(source.as_uri()), data_dir=tmp_path / "data")
    assert_one_line(error, PATH, str(tmp_path / "data"))


@pytest.mark.parametrize("by", ["--raw_data_dir", "$ZONEOUT_RAW_DATA"])
def test_named_folder_must_exist(tmp_path, monkeypatch, no_network, by):
    absent = tmp_path / "absent"
    if by == "$ZONEOUT_RAW_DATA":
        monkeypatch.setenv("ZONEOUT_RAW_DATA", str(absent))
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(), absent if by == "--raw_data_dir" else None, tmp_path / "data")
    assert_one_line(error, f"{absent} does not exist", by)


def test_addresses_are_not_folders(tmp_path, monkeypatch):
    with pytest.raises(raw.DataError, match="--raw_data_dir must be a local folder, got gs://b"):
        raw.fetch(make_raw_file(), "gs://bucket/raw", tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket")
    with pytest.raises(raw.DataError, match=r"\$TFDS_DATA_DIR must be a local folder, got gs://b"):
        raw.default_data_dir()


@pytest.mark.parametrize(
    "by", ["--raw_data_dir", "$ZONEOUT_RAW_DATA", "--data_dir", "$TFDS_DATA_DIR"]
)
def test_home_of_somebody_unknown(tmp_path, monkeypatch, by):
    folders = {"--raw_data_dir": None, "--data_dir": None}
    if by in folders:
        folders[by] = "~nobody at all/x"
    else:
        monkeypatch.setenv(by.strip("$"), "~nobody at all/x")
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_raw_file(), folders["--raw_data_dir"], folders["--data_dir"])
    assert str(error.value) == f"{by}: there is no home folder for ~nobody at all/x"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "raw")
    assert raw.fetch(make_raw_file(), "~/raw", tmp_path / "data") == path


def test_one_of_several_files(tmp_path, no_network):
    unpacked, packed = raw.RawFile(PATH, None, make_raw_file().sha256), make_packed_file()
    files, folder = [unpacked, packed], tmp_path / "raw"
    folder.mkdir()
    assert raw.choose(files, folder) is packed
    write_packed(folder, gzip.compress(CONTENT))
    assert raw.choose(files, folder) is packed
    (folder / PATH).mkdir()
    assert raw.choose(files, folder) is packed
    (folder / PATH).rmdir()
    (folder / PATH).write_bytes(CONTENT)
    assert raw.choose(files, folder) is unpacked
    (folder / PATH).write_bytes(b"other")
    with pytest.raises(raw.DataError) as error:
        raw.choose(files, folder)
    assert_one_line(error, f"{folder / PATH} is not the expected {PATH}", "or remove it")


def make_packed_file(url: str = "https://nowhere.invalid/part.txt.gz") -> raw.RawFile:
    """The description of a gzip file that holds CONTENT."""
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return raw.RawFile(path=f"{PATH}.gz", url=url, sha256=sha256)


def write_packed(folder: pathlib.Path, packed: bytes) -> pathlib.Path:
    """Puts a gzip file below a folder."""
    path = folder / f"{PATH}.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize(("level", "time"), [(9, 0), (1, 1_000_000_000)])
def test_gzip_files_are_known_by_what_they_hold(tmp_path, no_network, level, time):
    path = write_packed(tmp_path / "raw", gzip.compress(CONTENT, level, mtime=time))
    assert raw.fetch(make_packed_file(), tmp_path / "raw", tmp_path / "data") == path
    source = write_packed(tmp_path / "server", path.read_bytes())
    assert raw.sha256_of(source) != raw.sha256_of(source, packed=True)


def test_gzip_files_are_downloaded_as_they_are(tmp_path):
    source = write_packed(tmp_path / "server", gzip.compress(CONTENT))
    path = raw.fetch(make_packed_file(source.as_uri()), data_dir=tmp_path / "data")
    assert path.read_bytes() == source.read_bytes()
    assert files_below(tmp_path / "data") == [path]


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (gzip.compress(b"other"), f"of what it holds is {hashlib.sha256(b'other').hexdigest()}"),
        (gzip.compress(CONTENT)[:-20], "not a whole gzip file"),
        (gzip.compress(CONTENT)[:-8] + bytes(8), "not a whole gzip file"),
        (gzip.compress(CONTENT)[:12] + bytes(100), "not a whole gzip file"),
        (gzip.compress(CONTENT)[:10] + b"\xff" * 100, "not a whole gzip file"),
        (gzip.compress(CONTENT) + b"more", "not a whole gzip file"),
        (CONTENT, "not a whole gzip file"),
        (b"", "of what it holds is"),
    ],
    ids="other cut sum data type more text empty".split(),
)
def test_damaged_gzip_files(tmp_path, no_network, packed, message):
    write_packed(tmp_path / "raw", packed)
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_packed_file(), tmp_path / "raw", tmp_path / "data")
    assert_one_line(error, f"{PATH}.gz", message, "unset --raw_data_dir")


def test_cut_download_of_a_gzip_file_is_refused(tmp_path):
    source = write_packed(tmp_path / "server", gzip.compress(CONTENT)[:-1])
    with pytest.raises(raw.DataError) as error:
        raw.fetch(make_packed_file(source.as_uri()), data_dir=tmp_path / "data")
    assert_one_line(error, f"{PATH}.gz", "not a whole gzip file", "try again")
    assert files_below(tmp_path / "data") == []
