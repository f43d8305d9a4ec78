"""Folders that users name."""

import os
import pathlib
import re


def local_folder(path: str | os.PathLike, name: str) -> pathlib.Path:
    """A folder that a user named, with `~` expanded.

    Raises:
      ValueError: an address such as `gs://…`, which would become a local folder of that name; the
        home folder of somebody unknown.
    """
    # A path has lost one of the slashes.
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(f"{name} must be a local folder, not {os.fspath(path)}")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: there is no home folder for {os.fspath(path)}") from error
