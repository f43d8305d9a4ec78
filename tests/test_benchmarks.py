"""The benchmarks run. Their measurements are not judged here."""

import json
import pathlib
import re

import numpy as np
import pytest

from benchmarks import choices, chunks, linear, outside_compiled, rnn, rounding
from experiments import seq2seq

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_quick_run_measures_all_peers(tmp_path, capsys):
    folder = tmp_path / "deep" / "result"
    rnn.main(["--quick", f"--out={folder}"])
    result = json.loads((folder / "rnn.json").read_text())
    table = (folder / "rnn.md").read_text()
    said = capsys.readouterr().out
    assert table in said and said.endswith(f"{folder}/rnn.json and {folder}/rnn.md\n")
    for peers in result["results"]["quick"].values():
        for name in ("zoneout", "zoneout off", "Flax NNX", "matrix products alone"):
            assert len(peers[name]["seconds"]) == 2 and min(peers[name]["seconds"]) > 0
            assert peers[name]["temporary_bytes"] > 0
            assert f"| {name} |" in table
    assert {"jax", "torch", "numpy"} <= set(result["versions"])


def test_the_documentation_quotes_the_results():
    table = (ROOT / "benchmarks/results/rnn.md").read_text()
    page = re.sub("<!-- .* -->\n\n", "", (ROOT / "docs/performance.md").read_text())
    assert table in page
    header, _, *rows = table.split("\n\n", 1)[0].splitlines()
    shapes = [name.strip() for name in header.strip("| ").split("|")]
    (to_flax,) = (row for row in rows if row.startswith("| zoneout / Flax Linen |"))
    ratios = dict(zip(shapes, to_flax.strip("| ").split("|"), strict=True))
    lstms = [name for name, shape in rnn.SHAPES.items() if shape.kind == "LSTM"]
    of_lstm = [float(ratios[name]) for name in lstms if name in ratios]
    quoted = f"zoneout takes {min(of_lstm):.2f} to {max(of_lstm):.2f} of the time"
    assert quoted in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_chunks_save_memory(tmp_path):
    chunks.main(["--steps=400", "--hidden_features=32", "--rounds=1", f"--out={tmp_path}"])
    results = json.loads((tmp_path / "chunks.json").read_text())["results"]
    for found in results.values():
        assert found["auto"]["temporary_bytes"] < found["None"]["temporary_bytes"]
        assert found["auto"]["ratio"] > 0
    kept = json.loads((ROOT / "benchmarks/results/chunks.json").read_text())
    assert kept["table"] in (ROOT / "docs/performance.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_choices_are_measured(tmp_path):
    choices.main(["--quick", f"--out={tmp_path}"])
    results = json.loads((tmp_path / "choices.json").read_text())["results"]["quick"]
    assert set(results) == set(choices.CHANGES)
    assert all(found["milliseconds"] > 0 for found in results.values())


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_linear_cells_are_measured(tmp_path):
    linear.main(["--quick", f"--out={tmp_path}"])
    results = json.loads((tmp_path / "linear.json").read_text())["results"]["T = 9"]
    assert len(results) == 13 and results["LSTM"]["ratio"] == 1
    assert all(min(found["seconds"]) > 0 for found in results.values())
    assert (tmp_path / "linear.md").read_text().count("\n") == 15


@pytest.mark.usefixtures("standard_promotion")
def test_rounding_is_measured(tmp_path, monkeypatch):
    losses = rounding.losses("smoke", 3, change=1e-3, floor=1e-3)
    assert len(losses) == 3 and 2 < min(losses) < max(losses) < 3

    def shifted(options, devices, change=0.0, floor=None):
        return np.arange(options.batches) * (devices - 1 + change)

    monkeypatch.setattr(rounding, "in_a_process", shifted)
    rounding.main(["--batches=5", "--at", "2", "5", f"--out={tmp_path}"])
    result = json.loads((tmp_path / "rounding.json").read_text())
    found = result["largest difference up to batch"]
    assert found["1 and 2 devices"] == {"2": 1.0, "5": 4.0}
    assert found["1 device, first weights changed by a relative 1e-7"] == {"2": 1e-7, "5": 4e-7}


@pytest.mark.slow
@pytest.mark.usefixtures("standard_promotion")
def test_time_outside_compiled_code_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(seq2seq.PRESETS, "long", seq2seq.PRESETS["smoke"])
    outside_compiled.main(["--rounds=2", "--eval_size=64", f"--out={tmp_path}"])
    result = json.loads((tmp_path / "outside_compiled.json").read_text())
    assert len(result["share_outside"]) == 2 and 0 < result["median_share_outside"] < 1
    assert result["median_batches_per_second"] > 0 < result["median_seconds_an_epoch"]


def test_a_choice_that_is_not_used_is_an_error():
    with pytest.raises(RuntimeError, match="_on_cpu was replaced, but nothing called it"):
        with choices.changed({(choices._unroll, "_on_cpu"): choices.always(True)}):
            pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "huge"], "shapes must be among char-PTB, "),
        (["--rounds=0"], "rounds must be at least 1, got 0"),
        (["--quik"], "quik"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        rnn.main(flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
