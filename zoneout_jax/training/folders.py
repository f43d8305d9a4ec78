"""Folders of results."""

import pathlib
import time

from zoneout_jax._files import local_folder


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
