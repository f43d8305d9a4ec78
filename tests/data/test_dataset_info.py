"""Builders before anything is prepared."""

import tempfile

import pytest

from zoneout_jax.data.mnist import MnistInOrder
from zoneout_jax.data.ptb import Ptb
from zoneout_jax.data.text8 import Text8


@pytest.mark.parametrize(
    ("make", "config"), [(MnistInOrder, None), (Ptb, "char"), (Text8, "text8")]
)
def test_no_temporary_folder_is_left(make, config, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    builder = make(data_dir=tmp_path / "data", **({"config": config} if config else {}))
    assert builder.info.features and list(temporary.iterdir()) == []
