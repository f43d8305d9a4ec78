"""Folders that a user named."""

import os
import pathlib
import re
import time


def local_folder(path: str | os.PathLike, name: str) -> pathlib.Path:
    """A folder that a user named, with `~` expanded.

    Raises:
      ValueError: an address such as `gs://…`, which would become a local folder of that name; the
        home folder of somebody unknown.
    """
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(f"{name} must be a local folder, got {os.fspath(path)}")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: there is no home folder for {os.fspath(path)}") from error


def output_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Where results go: what `--out` says, or a folder below `runs`; nothing is made yet.

    Raises:
      ValueError: an address, or a file.
    """
    out = pathlib.Path("runs") / default if given is None else local_folder(given, "out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give another --out")
    return out


def new_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Makes the folder of a measurement: what `--out` says, or a new one below `runs`.

    It is made before anything is measured, so that nothing is measured in vain.

    Raises:
      ValueError: an address, a file, or a folder that was not named and is there already.
      OSError: the folder cannot be made.
    """
    out = output_folder(given, f"{default}/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    try:
        out.mkdir(parents=True, exist_ok=given is not None)
    except FileExistsError:
        raise ValueError(f"{out} is there already; name a folder with --out") from None
    return out
