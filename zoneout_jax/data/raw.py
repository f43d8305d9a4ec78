"""Raw data files from a folder, a download cache or their public address, checked by SHA-256.

A file such as `ptb/ptb.train.txt` is searched for in this order:

1. `raw_data_dir`, or `$ZONEOUT_RAW_DATA` if that is None, for machines without a network;
2. the cache `<data_dir>/downloads/zoneout_jax/`;
3. the public address of the file, from which it is downloaded into the cache.

Its SHA-256 must always be the expected one. For a gzip file it is the SHA-256 of the unpacked
content, because packing the same content again gives other bytes.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import http.client
import os
import pathlib
import shutil
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

from zoneout_jax._files import local_folder, replacing

RAW_DATA_VARIABLE = "ZONEOUT_RAW_DATA"
TIMEOUT_SECONDS = 5.0

PathLike = str | os.PathLike[str]


class DataError(ValueError):
    """A dataset cannot be loaded as requested; the message is one line and says what to do."""


@contextlib.contextmanager
def as_data_error(kind: type[Exception]) -> Iterator[None]:
    """Turns an error of this kind, whose message is one line, into a DataError."""
    try:
        yield
    except kind as error:
        raise DataError(str(error)) from error


@dataclasses.dataclass(frozen=True)
class RawFile:
    """One file of a dataset, as published.

    Attributes:
      path: path below a raw data folder, with `/`, such as `ptb/ptb.train.txt`.
      url: public address; None if there is none.
      sha256: hexadecimal SHA-256 of the content; if the path ends in `.gz`, of the unpacked
        content.
    """

    path: str
    url: str | None
    sha256: str

    @property
    def packed(self) -> bool:
        """True if the file is a gzip file."""
        return self.path.endswith(".gz")

    def fault(self, path: pathlib.Path) -> str | None:
        """Says in one line what is wrong with the copy of the file at `path`; None if nothing."""
        try:
            found = sha256_of(path, self.packed)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            return f"not a whole gzip file ({error})"
        if found != self.sha256:
            what = "the SHA-256 of what it holds" if self.packed else "its SHA-256"
            return f"{what} is {found}, expected {self.sha256}"
        return None


File = TypeVar("File", bound=RawFile)


def default_data_dir() -> pathlib.Path:
    """Returns the folder of prepared datasets: `$TFDS_DATA_DIR` or `~/tensorflow_datasets`."""
    return _local(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "$TFDS_DATA_DIR")


def data_folder(data_dir: PathLike | None = None) -> pathlib.Path:
    """Returns `data_dir` as a local path; None means `default_data_dir()`."""
    return default_data_dir() if data_dir is None else _local(data_dir, "--data_dir")


def sha256_of(path: pathlib.Path, packed: bool = False) -> str:
    """Hexadecimal SHA-256 of a file, or of the unpacked content of a gzip file if `packed`.

    Raises:
      EOFError, gzip.BadGzipFile, zlib.error: `packed`, and the file is not a whole gzip file.
    """
    with gzip.open(path) if packed else path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(raw_file: RawFile, raw_data_dir: PathLike | None = None) -> pathlib.Path | None:
    """Looks for a file in the raw data folder only, and checks it.

    Args:
      raw_file: the file.
      raw_data_dir: the folder; None means `$ZONEOUT_RAW_DATA`, which may be unset.

    Returns:
      The path of the file, or None if no folder is named or the folder does not hold the file.

    Raises:
      DataError: the named folder does not exist, or its copy of the file has a wrong checksum.
    """
    folder, named_by = _raw_folder(raw_data_dir)
    if folder is None:
        return None
    if not folder.is_dir():
        raise DataError(f"the raw data folder {folder} does not exist; correct or unset {named_by}")
    path = folder / raw_file.path
    if not path.is_file():
        return None
    instead = f"unset {named_by} to download it" if raw_file.url else "remove it"
    _check(path, raw_file, f"put the original file there, or {instead}")
    return path


def choose(files: Sequence[File], raw_data_dir: PathLike | None = None) -> File:
    """Chooses one of several files with the same content.

    Args:
      files: all files except the last are searched for in the raw data folder only.
      raw_data_dir: the folder; None means `$ZONEOUT_RAW_DATA`, which may be unset.

    Returns:
      The first file that the folder holds; if there is none, the last.

    Raises:
      DataError: as in `find`.
    """
    *others, last = files
    return next((file for file in others if find(file, raw_data_dir)), last)


def fetch(
    raw_file: RawFile, raw_data_dir: PathLike | None = None, data_dir: PathLike | None = None
) -> pathlib.Path:
    """Returns the path of a checked copy of a raw file; downloads the file if necessary.

    Args:
      raw_file: the file.
      raw_data_dir: folder that may hold it; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of the download cache; None means `default_data_dir()`.

    Raises:
      DataError: the raw data folder does not exist, a checksum is wrong, or the file is missing
        and cannot be downloaded.
    """
    if (found := find(raw_file, raw_data_dir)) is not None:
        return found
    cached = data_folder(data_dir) / "downloads" / "zoneout_jax" / raw_file.path
    if cached.is_file():
        _check(cached, raw_file, "delete it, and it will be downloaded again")
        return cached
    folder, named_by = _raw_folder(raw_data_dir)
    looked_in = f"{folder} ({named_by})" if folder else f"${RAW_DATA_VARIABLE} (not set)"
    missing = f"{raw_file.path} is neither in {looked_in} nor at {cached}"
    way_out = f"set --raw_data_dir or ${RAW_DATA_VARIABLE} to a folder that holds {raw_file.path}"
    if raw_file.url is None:
        raise DataError(f"{missing}, and has no public address; {way_out}")
    try:
        _download(raw_file, raw_file.url, cached)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{missing}, and cannot be downloaded from {raw_file.url} ({reason}); {way_out}"
        ) from error
    return cached


def _raw_folder(raw_data_dir: PathLike | None) -> tuple[pathlib.Path | None, str]:
    """Returns the raw data folder, if any, and the flag or variable that names it."""
    if raw_data_dir is not None:
        return _local(raw_data_dir, "--raw_data_dir"), "--raw_data_dir"
    variable = f"${RAW_DATA_VARIABLE}"
    value = os.environ.get(RAW_DATA_VARIABLE)
    return _local(value, variable) if value else None, variable


def _local(path: PathLike, named_by: str) -> pathlib.Path:
    """Returns a folder that the user named; raises DataError if it is not a local path."""
    with as_data_error(ValueError):
        folder = local_folder(path, named_by)
    return folder


def _check(path: pathlib.Path, raw_file: RawFile, way_out: str) -> None:
    """Raises DataError, which ends with `way_out`, unless the file is the expected one."""
    if (fault := raw_file.fault(path)) is not None:
        raise DataError(f"{path} is not the expected {raw_file.path}: {fault}; {way_out}")


def _download(raw_file: RawFile, url: str, target: pathlib.Path) -> None:
    """Downloads a file to `target`, which appears only when it is complete and checked."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            with partial.open("wb") as file:
                shutil.copyfileobj(response, file)
            _check(
                partial,
                raw_file,
                f"the download was cut short or {url} has changed: try again, or set "
                f"--raw_data_dir or ${RAW_DATA_VARIABLE} to a folder that holds {raw_file.path}",
            )
