r"""A corpus that every Python has: the source files of its standard library.

It is for experiments without a download. It is about twice the size of the Penn Treebank. Other
Python versions have other files, so results can be compared only under the same Python version, and
not with published results.

Files: every `*.py` of the library, without installed packages, tests, `idlelib`, `turtledemo` and
`lib2to3` (which newer versions lack), and without files that are written when Python is built or
installed. The SHA-256 of a file's relative path puts it into train (80 %), validation or test (10 %
each) and gives its place there. So neither depends on the disk, and any prefix of train is a mixed
sample.

Text: tabs become four blanks, characters other than printable ASCII and newline are dropped, and
blanks at the ends of lines are stripped. Units:

- `char`: the text, over a fixed alphabet of 96 symbols.
- `word`: a word is a name or number (`[A-Za-z0-9_]+`) or any other single character except blank;
  `<eos>` ends each line that is not blank; indentation is lost. The 10,000 most frequent words of
  train are kept, in alphabetical order if equally frequent; the others become `<unk>`.
- `text8`: lower case; every run of characters other than a–z becomes one blank; 27 symbols. Unlike
  in the real text8, digits are not spelled out.
"""

import hashlib
import os
import pathlib
import platform
import re
import string
import sysconfig

from zoneout_jax.data.encoding import encode_characters, encode_words, keep_frequent
from zoneout_jax.data.raw import DataError, PathLike
from zoneout_jax.data.types import SPLITS, Corpus

ALPHABETS = {
    "char": ("\n", *map(chr, range(ord(" "), ord("~") + 1))),
    "text8": (" ", *string.ascii_lowercase),
}
KEPT_WORDS = 10_000

_EXCLUDED_FOLDERS = frozenset(
    "__pycache__ dist-packages idlelib lib2to3 site-packages test tests turtledemo".split()
)
_EXCLUDED_FILES = re.compile(r"_sysconfigdata.*|sitecustomize\.py|usercustomize\.py")


def load(unit: str = "char", library: PathLike | None = None) -> Corpus:
    """Makes the corpus.

    Args:
      unit: `char`, `word` or `text8`.
      library: folder of the library; None means the library of the running Python.

    Raises:
      DataError: the library is not available as source files in a folder.
    """
    root = pathlib.Path(sysconfig.get_paths()["stdlib"] if library is None else library)
    paths = split_files(root)
    texts = {split: "".join(map(_clean, files)) for split, files in paths.items()}
    name = f"stdlib {unit} (Python {platform.python_version()})"
    if unit == "word":
        return encode_words(_frequent_words(texts), name, marks=("<unk>", "<eos>"))
    if unit == "text8":
        texts = {split: re.sub("[^a-z]+", " ", text.lower()) for split, text in texts.items()}
    return encode_characters(texts, ALPHABETS[unit], name)


def split_files(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Lists the files of the library in each split, in reading order.

    Raises:
      DataError: there are too few files for three splits.
    """
    digests = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = set(subfolders) - _EXCLUDED_FOLDERS
        for name in names:
            if name.endswith(".py") and not _EXCLUDED_FILES.fullmatch(name):
                path = pathlib.Path(folder, name)
                relative = path.relative_to(root).as_posix()
                digests[path] = hashlib.sha256(relative.encode()).hexdigest()
    splits: dict[str, list[pathlib.Path]] = {split: [] for split in SPLITS}
    # The first digits of a digest choose the split, the others the place, independently.
    for path in sorted(digests, key=lambda path: digests[path][8:]):
        tenth = int(digests[path][:8], 16) % 10
        splits[{8: "validation", 9: "test"}.get(tenth, "train")].append(path)
    if not all(splits.values()):
        raise DataError(
            f"too few source files (*.py) of the Python standard library in {root}: this Python "
            "may keep it in a zip file or compiled only; choose another dataset or Python"
        )
    return splits


def _clean(path: pathlib.Path) -> str:
    """Returns the text of a file in the 96 symbols; it ends with a newline unless empty."""
    # In the encodings of the library, non-ASCII characters have no byte below 128.
    text = path.read_bytes().decode("ascii", errors="ignore").replace("\t", "    ")
    text = re.sub(r"[^\n -~]", "", text)
    text = "\n".join(map(str.rstrip, text.split("\n")))
    return text if text.endswith("\n") or not text else text + "\n"


def _frequent_words(texts: dict[str, str]) -> dict[str, list[str]]:
    """Returns the words of each split; words not frequent in train become `<unk>`."""
    words = {split: _words(text) for split, text in texts.items()}
    return keep_frequent(words, KEPT_WORDS)


def _words(text: str) -> list[str]:
    """Splits a text into words, with `<eos>` after each line that has words."""
    words = []
    for line in text.split("\n"):
        if found := re.findall(r"\w+|[^\w ]", line, re.ASCII):
            words += found
            words.append("<eos>")
    return words
