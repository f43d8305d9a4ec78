"""Loads datasets by name."""

import os.path

from zoneout_jax._checks import check_choice
from zoneout_jax.data import own_text, stdlib
from zoneout_jax.data.raw import DataError, PathLike, as_data_error
from zoneout_jax.data.types import Corpus, Images

UNITS = {
    "ptb": ("char", "word"),
    "stdlib": ("char", "word", "text8"),
    "text8": ("char",),
    "text8_like": ("char",),
}
OWN_UNITS = ("char", "word")
CONVENTIONS = ("mikolov", "rbn")
IMAGES = ("mnist", "digits")

# TFDS, Pillow and scikit-learn belong to an extra and are slow to import, so modules that need them
# are imported only where they are used.


def load_corpus(
    name: str,
    *,
    unit: str = "char",
    convention: str = "mikolov",
    raw_data_dir: PathLike | None = None,
    data_dir: PathLike | None = None,
) -> Corpus:
    """Loads a corpus by name.

    Args:
      name: `ptb` (Penn Treebank, see `zoneout_jax.data.ptb`), `text8` or `text8_like` (see
        `zoneout_jax.data.text8`), `stdlib` (library sources of the running Python, see
        `zoneout_jax.data.stdlib`, needs no files), or the path of your own text file (see
        `zoneout_jax.data.own_text`).
      unit: `char` or, except for `text8` and `text8_like`, `word`; for `stdlib` also `text8`
        (letters a–z and blanks).
      convention: how a line of char-level `ptb` ends: with a newline (`mikolov`) or with a blank
        and a newline (`rbn`). Nothing else depends on it.
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      DataError: an unknown name, unit or convention, or data that are not available.

    Example:
      >>> from zoneout_jax.data import load_corpus
      >>> corpus = load_corpus("stdlib")
      >>> corpus.vocab_size
      96
    """
    if name not in UNITS and not os.path.isfile(os.path.expanduser(name)):
        raise DataError(
            f"dataset must be one of {', '.join(UNITS)} or a text file, got {name!r}, which is "
            "not a file"
        )
    with as_data_error(ValueError):
        check_choice(f"unit of {name}", unit, UNITS.get(name, OWN_UNITS))
        check_choice("convention", convention, CONVENTIONS)
    if name not in UNITS:
        return own_text.load(name, unit)
    if name == "stdlib":
        return stdlib.load(unit)
    if name == "ptb":
        with as_data_error(ModuleNotFoundError):
            from zoneout_jax.data import ptb
        return ptb.load(unit, convention, raw_data_dir=raw_data_dir, data_dir=data_dir)
    with as_data_error(ModuleNotFoundError):
        from zoneout_jax.data import text8
    return text8.load(name, raw_data_dir=raw_data_dir, data_dir=data_dir)


def load_images(
    name: str, *, raw_data_dir: PathLike | None = None, data_dir: PathLike | None = None
) -> Images:
    """Loads a dataset of images by name.

    Args:
      name: `mnist` (28×28, see `zoneout_jax.data.mnist`) or `digits` (8×8, comes with
        scikit-learn, see `zoneout_jax.data.digits`, needs no files).
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `$TFDS_DATA_DIR` or
        `~/tensorflow_datasets`.

    Raises:
      DataError: an unknown name, or data that are not available.

    Example:
      >>> from zoneout_jax.data import load_images
      >>> images = load_images("digits")
      >>> images.sizes
      {'train': 1197, 'validation': 300, 'test': 300}
      >>> images.train.images.shape
      (1197, 8, 8)
    """
    with as_data_error(ValueError):
        check_choice("dataset", name, IMAGES)
    if name == "digits":
        with as_data_error(ModuleNotFoundError):
            from zoneout_jax.data import digits
        return digits.load()
    with as_data_error(ModuleNotFoundError):
        from zoneout_jax.data import mnist
    return mnist.load(raw_data_dir=raw_data_dir, data_dir=data_dir)
