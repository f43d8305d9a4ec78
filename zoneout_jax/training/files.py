"""Files of results, written completely or not at all, and the folders for them."""

import contextlib
import fcntl
import json
import pathlib
import time
from collections.abc import Iterator
from typing import Any

from zoneout_jax._files import local_folder, replacing
from zoneout_jax.training.errors import RunError


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns an OSError while `path` is written into a RunError that names it."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file completely or not at all; raises RunError if it cannot be written."""
    with writing(path), replacing(path) as temporary:
        temporary.write_text(text)


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file as `write_text` does."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Locks a folder against other callers of this function; waits until it is free."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a") as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def output_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Returns the folder for results, `--out` or a folder below `runs`, without creating it.

    Raises:
      ValueError: the folder is an address or a file.
    """
    out = pathlib.Path("runs") / default if given is None else local_folder(given, "out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give another --out")
    return out


def new_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Creates the folder for a measurement: `--out`, or a new folder below `runs`.

    It is created before the measurement, so that no result is lost for lack of a folder.

    Raises:
      ValueError: the folder is an address, a file, or a default folder that already exists.
      OSError: the folder cannot be created.
    """
    out = output_folder(given, f"{default}/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    try:
        out.mkdir(parents=True, exist_ok=given is not None)
    except FileExistsError:
        raise ValueError(f"{out} already exists; name a folder with --out") from None
    return out
