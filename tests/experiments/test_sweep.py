"""Grids of rates in one program, against runs of their own."""

import json

import numpy as np
import pytest

from experiments import sample
from experiments.lib.experiment import find
from zoneout_jax.training import launch

pytestmark = pytest.mark.usefixtures("standard_promotion")


def run(name, folder, *flags):
    find(name).main(["--preset=smoke", "--epochs=1", f"--workdir={folder}", *flags])
    result = json.loads((folder / "result.json").read_text())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("name", "flags", "rates", "alone"),
    [
        pytest.param(
            "char_ptb",
            (),
            ("z_prob_cells=0,0.5", "z_prob_states=0,0.25"),
            (0.5, 0.25),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "word_ptb",
            ("--num_layers=2", "--dropout=0.2"),
            ("z_prob_cells=0,0.5", "z_prob_states=0,0.25"),
            (0.5, 0.25),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "permuted_mnist",
            ("--batch_normalization",),
            ("z_prob_states=0,0.5", "igate_drop=0,0.25"),
            (0.5, 0.25),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "seq2seq",
            ("--weight_noise=0.01",),
            ("drop_prob_igates=0,0.5",),
            (0.5,),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_sweep_is_each_of_its_models_alone(name, flags, rates, alone, tmp_path):
    swept, entries = run(name, tmp_path / "sweep", *flags, "--num_seeds=2", "--sweep", *rates)
    names = [item.partition("=")[0] for item in rates]
    metrics = find(name).metrics
    for values in ((0,) * len(names), alone):
        own = [f"--{n}={v}" for n, v in zip(names, values, strict=True) if v]
        single, history = run(name, tmp_path / str(values), *flags, *own, "--seed=1")
        member = dict(zip(names, values, strict=True)) | {"seed": 1}
        (mine,) = [r for r in swept["runs"] if member.items() <= r.items()]
        np.testing.assert_allclose(
            [mine[m] for m in metrics], [single[m] for m in metrics], rtol=2e-5
        )
        (entry,) = [e for e in entries if member.items() <= e.items()]
        for key in history[0]:
            np.testing.assert_allclose(entry[key], history[0][key], rtol=2e-5)


@pytest.mark.slow
def test_a_model_of_a_sweep_writes_with_its_rates(tmp_path):
    folder = tmp_path / "sweep"
    run("char_ptb", folder, "--sweep", "z_prob_cells=0,0.9")
    texts = {
        sample.sample(sample.Options(workdir=folder, prompt="x", length=300, number=n))
        for n in (0, 1)
    }
    assert len(texts) == 2
    with pytest.raises(ValueError, match="the run has 2 models, numbered from 0, got 2"):
        sample.sample(sample.Options(workdir=folder, prompt="x", number=2))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sweep", "z_prob_cells=0,2"), "z_prob_cells must be in [0, 1], got 2.0"),
        (("--sweep", "z_prob_cells=-1,0.5"), "z_prob_cells must be in [0, 1], got -1.0"),
        (("--sweep", "hidden_features=1,2"), "sweep must be over z_prob_cells, z_prob_states"),
        (("--sweep", "z_prob_cells=0,1", "--share_mask"), "a shared mask has one rate for both"),
        (("--sweep", "z_prob_cells=0,a"), "sweep must be name=rate,rate"),
        (("--sweep", "z_prob_cells=0,1", "--z_prob_cells=0.5"), "z_prob_cells is given twice"),
        (("--sweep", "z_prob_cells=0,1", "--rnn_type=GRU"), "rnn_type GRU has no memory cells"),
        (("--sweep", "z_prob_cells=0,1", "--rng_impl=rbg"), "rng_impl must be threefry2x32"),
    ],
)
def test_bad_sweeps_are_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run("char_ptb", tmp_path / "run", *flags)
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["--static_mask", "--stoch_depth", "--gaussian_mask"])
def test_a_kind_of_mask_may_be_swept_from_a_rate_of_zero(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("zoneout_jax.training.cli.fit", lambda task, config, *_: config.members)
    flags = ["--preset=smoke", "--dataset=stdlib", kind, "--sweep", "z_prob_cells=0,0.5"]
    char_ptb = find("char_ptb")
    _, members = launch(
        "char_ptb", char_ptb.presets, char_ptb.build, "", [*flags, f"--workdir={tmp_path / 'run'}"]
    )
    assert [member["z_prob_cells"] for member in members] == [0, 0.5]
