"""Opens a TFDS dataset, which is prepared the first time.

This module imports nothing from TFDS and knows no dataset: the caller passes the builder.
"""

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

from zoneout_jax.data import raw


def open_builder(
    make: Callable[[pathlib.Path], Any],
    raw_files: Iterable[raw.RawFile],
    raw_data_dir: raw.PathLike | None = None,
    data_dir: raw.PathLike | None = None,
) -> Any:
    """Returns a builder whose dataset is prepared.

    A prepared dataset is used without its raw files, but a raw file in a folder that the user names
    must have the right checksum even then.

    Args:
      make: makes the TFDS builder from the folder of prepared datasets.
      raw_files: all files that the builder reads.
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `raw.default_data_dir()`.

    Raises:
      DataError: a raw file is not available or not the expected one, or the dataset cannot be
        written.
    """
    folder = raw.data_folder(data_dir)
    builder = make(folder)
    if builder.data_path.exists():
        for raw_file in raw_files:
            raw.find(raw_file, raw_data_dir)
        return builder
    # TFDS makes folders and prints before it reads the files, so a missing file must fail here.
    for raw_file in raw_files:
        raw.fetch(raw_file, raw_data_dir, folder)
    try:
        builder.download_and_prepare()
    except OSError as error:
        # If several processes prepare the dataset at once, only the first can move it into place.
        if not builder.data_path.exists():
            reason = " ".join(str(error).split())
            raise raw.DataError(f"cannot prepare {builder.data_dir}: {reason}") from error
    return make(folder)


def damaged(builder: Any) -> raw.DataError:
    """Returns the error for a prepared dataset with unexpected content."""
    return raw.DataError(
        f"the prepared dataset {builder.data_dir} is damaged; delete that folder, and it will be "
        "prepared again"
    )
