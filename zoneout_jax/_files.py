"""Folders that a user names, and files that are written whole or not at all."""

import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Iterator


def local_folder(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """A folder that a user named, with `~` expanded.

    Args:
      path: the folder.
      name: the flag or variable that names it, for the message.

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


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a file to write, which takes the place of `path` when it is whole.

    It lies in the same folder; if anything is raised it is removed, and `path` stays as it was.
    """
    # Several processes, on several hosts, may write the same file: a process id would not do.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
