"""A text file of the user: the first 90 % are train, the next 5 % validation, the last 5 % test.

The file must be UTF-8. Units:

- `char`: its characters, unchanged; the vocabulary covers the whole file.
- `word`: its words, separated by white space, with `<eos>` at the end of each line that is not
  blank. The 10,000 most frequent words of train are kept, in alphabetical order if equally
  frequent; the others become `<unk>`.
"""

import hashlib
import os.path
import pathlib
from typing import Any

from zoneout_jax.data.encoding import encode_characters, encode_words, keep_frequent
from zoneout_jax.data.raw import DataError, PathLike
from zoneout_jax.data.types import SPLITS, Corpus

KEPT_WORDS = 10_000
LEAST_SYMBOLS = 100


def load(path: PathLike, unit: str = "char") -> Corpus:
    """Makes a corpus from a text file.

    Args:
      path: the file.
      unit: `char` or `word`.

    Raises:
      DataError: the file cannot be read, is not UTF-8, or is shorter than 100 symbols.
    """
    path = pathlib.Path(os.path.expanduser(path))
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 (byte {error.start}); convert it, for instance with iconv"
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    symbols: Any = text if unit == "char" else _words(text)
    if len(symbols) < LEAST_SYMBOLS:
        raise DataError(
            f"{path} has {len(symbols)} symbols ({unit}s); a text needs at least {LEAST_SYMBOLS}"
        )
    # The hash distinguishes files of the same name.
    name = f"{path.name} {unit} ({hashlib.sha256(content).hexdigest()[:8]})"
    ends = [len(symbols) * percent // 100 for percent in (90, 95)]
    parts = symbols[: ends[0]], symbols[ends[0] : ends[1]], symbols[ends[1] :]
    splits = dict(zip(SPLITS, parts, strict=True))
    if unit == "word":
        return encode_words(keep_frequent(splits, KEPT_WORDS), name, marks=("<unk>", "<eos>"))
    return encode_characters(splits, sorted(set(text)), name)


def _words(text: str) -> list[str]:
    lines = (line.split() for line in text.splitlines())
    return [word for line in lines if line for word in (*line, "<eos>")]
