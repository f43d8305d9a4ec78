"""Where the tests of data find real raw files."""

import os
import pathlib

import pytest

_BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


def _folder_with(path: str) -> pathlib.Path:
    """Folder of real raw files; skips visibly where it does not hold the file at `path`."""
    folder = pathlib.Path(os.environ.get("ZONEOUT_RAW_DATA") or _BESIDE)
    if not (folder / path).is_file():
        pytest.skip(f"no {path}; set $ZONEOUT_RAW_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def real_raw_data() -> pathlib.Path:
    """Folder with the real Penn Treebank; skips visibly where there is none."""
    return _folder_with("ptb/ptb.train.txt")


@pytest.fixture(scope="session")
def real_mnist() -> pathlib.Path:
    """Folder with the real MNIST; skips visibly where there is none."""
    return _folder_with("mnist/train-images-idx3-ubyte.gz")


@pytest.fixture(scope="session")
def real_wikipedia() -> pathlib.Path:
    """Folder with Wikipedia text in the form of text8; skips visibly where there is none."""
    return _folder_with("text8/enwiki_sample_text8_like.txt.gz")


@pytest.fixture
def no_named_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that must not see the folders which the developer's environment names."""
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
