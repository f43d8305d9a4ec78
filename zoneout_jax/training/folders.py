"""Folders for results."""

import pathlib
import time

from zoneout_jax._files import local_folder


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
