"""Where the tests of data find real raw files."""

import os
import pathlib

import pytest

_BESIDE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def real_raw_data() -> pathlib.Path:
    """Folder with the real Penn Treebank; skips visibly where there is none."""
    folder = pathlib.Path(os.environ.get("ZONEOUT_RAW_DATA") or _BESIDE)
    if not (folder / "ptb" / "ptb.train.txt").is_file():
        pytest.skip("no ptb/ptb.train.txt; set $ZONEOUT_RAW_DATA to the folder that holds it")
    return folder


@pytest.fixture
def no_named_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that must not see the folders which the developer's environment names."""
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
