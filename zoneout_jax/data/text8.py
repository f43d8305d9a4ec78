"""text8 as a `Corpus`, and as a TFDS dataset whose examples are pieces of the text.

The first 100,000,000 characters of the English Wikipedia of March 3, 2006, reduced to the letters
a–z and single blanks, 27 symbols; digits are spelled out.

| config       | train      | validation | test      |
| ------------ | ---------- | ---------- | --------- |
| `text8`      | 90,000,000 | 5,000,000  | 5,000,000 |
| `text8_like` | 3,236,993  | 179,832    | 179,832   |

The last twentieth of a text is test, the twentieth before it validation, as is usual for bits per
character of text8 (Krueger et al., arXiv:1606.01305, section 4.2).

`text8_like` is not text8: it is other Wikipedia text, of 2016 to 2021, in the same form, for
development where text8 is not available. It has no public address. Results on it cannot be compared
with results on text8.

A raw file is read in pieces, and its symbols, its length and the SHA-256 of its text are checked.
Only the text counts, not its packing: `text8/text8.zip` may be any zip file with the member
`text8`, and `text8/text8` is the text itself.

Source: Mahoney 2006, "Large text compression benchmark", http://mattmahoney.net/dc/textdata.html.

License: Wikipedia's (CC BY-SA and GFDL).
"""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import pathlib
import string
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from zoneout_jax._needs import needs
from zoneout_jax.data import prepared, raw
from zoneout_jax.data.types import SPLITS, Corpus

with needs("zoneout_jax.data.text8", "training"):
    import tensorflow_datasets as tfds

    from zoneout_jax.data.dataset_info import DatasetInfo

VOCABULARY = (" ", *string.ascii_lowercase)
PIECE = 1_000_000

_SYMBOLS = "".join(VOCABULARY).encode("ascii")
_NUMBERS = bytes.maketrans(_SYMBOLS, bytes(range(len(_SYMBOLS))))


@dataclasses.dataclass(frozen=True)
class TextFile(raw.RawFile):
    """A raw file that holds one text in the form of text8.

    If `path` ends in `.gz`, the text is the content of the gzip file; if it ends in `.zip`, the
    text is the member with the name of the zip file; otherwise it is the file itself.

    Attributes:
      length: number of symbols in the text.
      sha256: hexadecimal SHA-256 of the text, not of the packed file.
    """

    length: int

    def pieces(self, path: pathlib.Path) -> Iterator[bytes]:
        """Reads and checks the copy of the file at `path`, `PIECE` characters at a time.

        Raises:
          DataError: a symbol other than a–z and blank, too few or too many symbols, a wrong
            checksum, or a damaged packed file; the message says only what is wrong.

        Example::

            file = TextFile(path="text8/text8.zip", url=None, sha256="2cf24dba…", length=5)
            text = b"".join(file.pieces(pathlib.Path("hello.zip")))
        """
        digest, length = hashlib.sha256(), 0
        with self._open(path) as file:
            while piece := file.read(PIECE):
                if others := piece.translate(None, delete=_SYMBOLS):
                    place = length + piece.index(others[0])
                    raise raw.DataError(
                        f"byte {place:,} is {others[:1]!r}, expected a letter a–z or a blank"
                    )
                length += len(piece)
                if length > self.length:
                    raise raw.DataError(f"it is longer than {self.length:,} characters")
                digest.update(piece)
                yield piece
        if length < self.length:
            raise raw.DataError(f"it ends after {length:,} characters, expected {self.length:,}")
        if digest.hexdigest() != self.sha256:
            raise raw.DataError(
                f"the SHA-256 of its text is {digest.hexdigest()}, expected {self.sha256}"
            )

    def fault(self, path: pathlib.Path) -> str | None:
        """Says in one line what is wrong with the copy of the file at `path`; None if nothing."""
        try:
            for _ in self.pieces(path):
                pass
        except raw.DataError as error:
            return str(error)
        return None

    @contextlib.contextmanager
    def _open(self, path: pathlib.Path) -> Iterator[IO[bytes] | io.BufferedIOBase]:
        """Opens the text as a binary file."""
        # During a download the file has another name, so `self.path` tells its kind.
        name = pathlib.PurePath(self.path)
        kind = {".gz": "gzip", ".zip": "zip"}.get(name.suffix, "text")
        try:
            with contextlib.ExitStack() as stack:
                if kind == "zip":
                    archive = stack.enter_context(zipfile.ZipFile(path))
                    if name.stem not in archive.namelist():
                        raise raw.DataError(f"a zip file that does not hold {name.stem!r}")
                    yield stack.enter_context(archive.open(name.stem))
                else:
                    opened = gzip.open(path) if kind == "gzip" else path.open("rb")
                    yield stack.enter_context(opened)
        # zipfile raises these for damage, a password (RuntimeError) or an unknown compression.
        except (
            EOFError,
            OSError,
            RuntimeError,
            UnicodeDecodeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise raw.DataError(f"not a readable {kind} file ({error})") from error


@dataclasses.dataclass(eq=False, kw_only=True)
class Text8Config(tfds.core.BuilderConfig):
    """A text and the name that is printed next to results.

    Attributes:
      files: raw files with the same text, of which one is enough. All files except the last are
        searched for in a raw data folder only.
      corpus_name: name of the corpus.
    """

    files: tuple[TextFile, ...]
    corpus_name: str

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Returns the first position of each split, and the position after its last."""
        length = self.files[0].length
        cuts = (0, length - 2 * (length // 20), length - length // 20, length)
        return dict(zip(SPLITS, itertools.pairwise(cuts), strict=True))


# Many projects that read the file publish this checksum, and that of its zip file,
# a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232; Mahoney gives the MD5,
# 3bea1919949baf155f99411df5fada7e. It was not computed from a copy of the file here.
_TEXT8: dict[str, Any] = {
    "sha256": "6e890197040d37d85beb962ae1f041ff1d9a9ca8d20c7d99c85027eebf51dca7",
    "length": 100_000_000,
}
CONFIGS = (
    Text8Config(
        name="text8",
        description="The first 100,000,000 characters of the English Wikipedia of 2006.",
        files=(
            TextFile(path="text8/text8", url=None, **_TEXT8),
            TextFile(path="text8/text8.zip", url="http://mattmahoney.net/dc/text8.zip", **_TEXT8),
        ),
        corpus_name="text8",
    ),
    Text8Config(
        name="text8_like",
        description="Not text8: other Wikipedia text in the same form, for development.",
        files=(
            TextFile(
                path="text8/enwiki_sample_text8_like.txt.gz",
                url=None,
                sha256="90783913090f8d4587ee051dffd58aecc4560a5d77fa6335bbfdbfcf0a73d5c3",
                length=3_596_657,
            ),
        ),
        corpus_name="text8_like (other Wikipedia text, not text8)",
    ),
)


class Text8(tfds.core.GeneratorBasedBuilder):
    """Builder of `text8/text8` and `text8/text8_like`: the pieces of a text, feature `text`.

    Examples keep their order and hold up to `PIECE` characters each; joined, they are the text of a
    split. Writes array_record files, which can be read without TensorFlow.

    Args:
      raw_data_dir: folder that may hold `text8/text8.zip` or `text8/text8`; None means
        `$ZONEOUT_RAW_DATA`. A missing file is downloaded to `<data_dir>/downloads`.
      **kwargs: as for any TFDS builder: `config`, `data_dir`, `version`.

    Raises:
      DataError: during preparation, if the raw file is not available or not the expected one;
        nothing is left of the dataset then.

    Example::

        builder = Text8(config="text8", raw_data_dir="~/raw")
        builder.download_and_prepare()
        piece = builder.as_data_source("test")[0]["text"]  # 1,000,000 bytes
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = list(CONFIGS)

    def __init__(self, *, raw_data_dir: raw.PathLike | None = None, **kwargs: Any):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)
        self.raw_data_dir = raw_data_dir

    def _info(self) -> tfds.core.DatasetInfo:
        return DatasetInfo(
            builder=self,
            description="Wikipedia text in letters a–z and blanks, in pieces.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="http://mattmahoney.net/dc/textdata.html",
            license="CC BY-SA, GFDL",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict]]]:
        # `raw.fetch` replaces the checksums, the cache and the messages of `dl_manager`.
        file = raw.choose(self.builder_config.files, self.raw_data_dir)
        path = raw.fetch(file, self.raw_data_dir, self.data_dir_root)
        return {
            split: self._generate_examples(file, path, *bounds)
            for split, bounds in self.builder_config.bounds().items()
        }

    def _generate_examples(
        self, file: TextFile, path: pathlib.Path, start: int, stop: int
    ) -> Iterator[tuple[int, dict]]:
        # Every split reads the file from its start, so that no state is shared between them.
        for index, piece in enumerate(file.pieces(path)):
            first = index * PIECE
            if part := piece[max(start - first, 0) : max(stop - first, 0)]:
                yield index, {"text": part.decode("ascii")}


def load(
    config: str | Text8Config = "text8",
    *,
    raw_data_dir: raw.PathLike | None = None,
    data_dir: raw.PathLike | None = None,
) -> Corpus:
    """Loads text8 or another text of its form; prepares the TFDS dataset the first time.

    A prepared dataset is used without its raw file, but a raw file in a folder that the user names
    must be the expected one even then. For text8 the peak memory of the process is about 320 MB
    during preparation and 290 MB later; 100 MB of this are the arrays.

    Args:
      config: `text8`, `text8_like`, or your own config.
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `raw.default_data_dir()`.

    Raises:
      DataError: the raw file is not available or not the expected one, or the prepared dataset is
        damaged.
    """
    chosen: Text8Config = Text8.builder_configs[config] if isinstance(config, str) else config
    builder = prepared.open_builder(
        lambda folder: Text8(config=chosen, raw_data_dir=raw_data_dir, data_dir=folder),
        [raw.choose(chosen.files, raw_data_dir)],
        raw_data_dir,
        data_dir,
    )
    return Corpus(**_read(builder), vocabulary=VOCABULARY, name=chosen.corpus_name)


def _read(builder: Text8) -> dict[str, np.ndarray]:
    """Reads and checks the symbol numbers of each split of a prepared dataset."""
    config, damaged = builder.builder_config, prepared.damaged(builder)
    streams, digest = {}, hashlib.sha256()
    try:
        for split, (start, stop) in config.bounds().items():
            streams[split], filled = np.empty(stop - start, np.uint8), 0
            source = builder.as_data_source(split)
            for index in range(len(source)):
                text = source[index]["text"]
                digest.update(text)
                numbers = np.frombuffer(text.translate(_NUMBERS), np.uint8)
                streams[split][filled : filled + len(text)] = numbers
                filled += len(text)
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        raise damaged from error
    # Joined, the splits must be the text of the raw file.
    if digest.hexdigest() != config.files[0].sha256:
        raise damaged
    return streams
