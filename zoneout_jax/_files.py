"""Folders that a user names, and files that are written completely or not at all."""

import contextlib
import os
import pathlib
import re
import uuid
from collections.abc import Iterator


def local_folder(path: str | os.PathLike[str], name: str) -> pathlib.Path:
    """Returns a folder that a user named, with `~` expanded.

    Args:
      path: the folder.
      name: the flag or variable that names the folder, for messages.

    Raises:
      ValueError: an address such as `gs://…`, which would become a local folder of that name; the
        home folder of an unknown user.
    """
    if re.match("[A-Za-z][A-Za-z0-9+.-]+:/", os.fspath(path)):
        raise ValueError(f"{name} must be a local folder, got {os.fspath(path)}")
    try:
        return pathlib.Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{name}: there is no home folder for {os.fspath(path)}") from error


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file to write, which replaces `path` once the block ends.

    The temporary file is in the same folder. If the block raises, the file is removed and `path`
    does not change.
    """
    # Processes on several hosts may write the same file, so a process id would not be unique.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
