"""The character-level experiment, its command line, and the runs that it makes."""

import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import char_ptb, reproduce
from experiments.lib.language_model import TILES, LanguageModel, cross_entropy_sum, readout_init
from experiments.lib.texts import carried_evaluation
from tests.processes import environment
from zoneout_jax import LSTM, unroll
from zoneout_jax.training import Batch, StopRequest, commit, versions

ROOT = pathlib.Path(__file__).parents[2]
SMOKE = ("--preset=smoke",)
EXPERIMENT = char_ptb.EXPERIMENT
pytestmark = pytest.mark.usefixtures("standard_promotion")


def command(*flags, devices=1):
    """A process that runs the experiment."""
    words = [sys.executable, "-m", "experiments.char_ptb", *flags]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment(devices), stderr=subprocess.PIPE, text=True
    )


def metrics(workdir):
    """Metrics of the epochs and of the end, without what depends on the clock."""
    timed = {"seconds", "steps_per_second"}
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    history = [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
    result = json.loads((workdir / "result.json").read_text())
    return history, {k: v for k, v in result.items() if k.endswith("_bpc")}


def raw_data():
    """The folder of real data, or None."""
    folder = pathlib.Path(os.environ.get("ZONEOUT_RAW_DATA", ROOT / "../shared/data"))
    return folder if (folder / "ptb" / "ptb.train.txt").exists() else None


def test_defaults_are_the_papers():
    config = char_ptb.Config()
    assert (config.model.hidden_features, config.run.batch_size) == (1000, 32)
    # The paper speaks of gradients; this is what the authors' log was made with.
    assert (config.optimizer.clip_norm, config.optimizer.clip_by) == (1.0, "update")
    data = config.data
    assert (data.dataset, data.char_convention, data.seq_length) == ("ptb", "rbn", 100)
    assert config.run.patience == 25
    assert not config.zoneout.spec().active


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, 2e-3),
        ({"rnn_type": "GRU"}, 1e-3),
        ({"rnn_type": "SRNN"}, 3e-4),
        ({"rnn_type": "GRU", "learning_rate": 0.1}, 0.1),
    ],
)
def test_the_step_size_is_that_of_the_kind_of_layer(settings, wanted):
    """Unless one is given. Adam's first update is the step size in every weight."""
    optimizer = EXPERIMENT.build(EXPERIMENT.presets["smoke"].replace(**settings)).optimizer
    weights = {"w": jnp.ones(3)}
    updates, _ = optimizer.update(weights, optimizer.init(weights))
    np.testing.assert_allclose(updates["w"], -wanted, rtol=1e-4)


@pytest.mark.skipif(raw_data() is None, reason="needs Penn Treebank in $ZONEOUT_RAW_DATA")
@pytest.mark.parametrize(
    ("convention", "sizes"),
    [("mikolov", (5_017_482, 393_042, 442_423)), ("rbn", (5_059_550, 396_412, 446_184))],
)
def test_counts_of_the_real_corpus(convention, sizes, tmp_path):
    config = char_ptb.Config().replace(
        char_convention=convention, raw_data_dir=str(raw_data()), data_dir=str(tmp_path)
    )
    metadata = EXPERIMENT.build(config).metadata
    assert tuple(metadata["characters"].values()) == sizes
    assert metadata["vocabulary"] == 50


@pytest.mark.parametrize("clip_by", ["gradient", "update"])
def test_what_is_clipped(clip_by):
    smoke = EXPERIMENT.presets["smoke"]
    config = smoke.replace(clip_by=clip_by, clip_norm=0.5, learning_rate=0.1)
    optimizer = EXPERIMENT.build(config).optimizer
    grads = {"w": jnp.linspace(1.0, 100.0, 50)}
    updates, state = optimizer.update(grads, optimizer.init(grads))
    # Adam's first update is the learning rate in every weight.
    raw = 0.1 * np.sqrt(50)
    wanted = raw if clip_by == "gradient" else 0.5
    np.testing.assert_allclose(optax.tree_utils.tree_norm(updates), wanted, rtol=1e-4)
    seen = optax.tree_utils.tree_norm(optax.tree_utils.tree_get(state, "mu")) / 0.1
    norm = 0.5 if clip_by == "gradient" else float(optax.tree_utils.tree_norm(grads))
    np.testing.assert_allclose(seen, norm, rtol=1e-4)


def test_cross_entropy_counts_weights():
    rng = np.random.default_rng(0)
    ys, weights = rng.normal(size=(4, 3, 5)).astype(np.float32), rng.integers(0, 2, (4, 3))
    targets = rng.integers(0, 7, (4, 3))
    readout = readout_init(jax.random.key(0), (5, 7), TILES)
    logits = ys @ np.asarray(readout["kernel"])
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nats = np.log(np.exp(logits).sum(-1)) - chosen
    total, count = cross_entropy_sum(readout, ys, targets, weights.astype(np.float32))
    np.testing.assert_allclose(total, (nats * weights).sum(), rtol=1e-5)
    assert count == weights.sum()


@pytest.mark.parametrize("length", [90, 101, 102, 2501])
@pytest.mark.parametrize("streams", [1, 3, 8])
def test_carried_evaluation_is_the_text_in_one_piece(length, streams):
    text = np.random.default_rng(1).integers(0, 6, length).astype(np.uint8)
    cell = LSTM(6, 8, learned_carry=True)
    key = jax.random.key(2)
    params = {"lstm": cell.init(key), "readout": readout_init(key, (6 + 2, 6), TILES)}

    def sums(params, inputs, targets, weights, carry=None, deterministic=True, rates=None):
        assert deterministic and rates is None
        carry, ys = unroll(cell, params["lstm"], jax.nn.one_hot(inputs, 6), carry)
        return cross_entropy_sum(params["readout"], ys, targets, weights), carry

    def initial_carry(params, batch):
        return cell.initial_carry(params["lstm"], batch)

    model = LanguageModel(None, initial_carry, sums, read=None, logits=None)
    evaluation = carried_evaluation(model, text, streams)
    assert evaluation.rows.shape[0] == 1 and evaluation.rows.shape[1] <= streams
    padded = np.append(evaluation.rows[0], -1)
    batch = Batch(jnp.asarray(text), jnp.asarray(padded))
    total, count = jax.jit(evaluation.loss)(params, {}, batch)
    tokens = text[:, None].astype(np.int32)
    (wanted, _), _ = sums(params, tokens[:-1], tokens[1:], jnp.ones((length - 1, 1)))
    assert count == length - 1
    np.testing.assert_allclose(total, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--z_prob_cells=1.5"], "z_prob_cells must be in [0, 1], got 1.5"),
        (["--z_prob_states=nan"], "z_prob_states must be in [0, 1], got nan"),
        (["--z_prob_cell=0.5"], "there is no --z_prob_cell; did you mean --z_prob_cells"),
        (["--no_such_flag=1"], "there is no --no_such_flag; --help lists the flags"),
        (["--dataset=nope"], "ptb, stdlib or a text file, got 'nope'"),
        (["--char_convention=mikolov"], "char_convention is for dataset ptb only, got stdlib"),
        (["--momentum=0.5"], "momentum has no effect with algorithm adam"),
        (["--algorithm=sgd", "--momentum=0.5"], "momentum has no effect with algorithm sgd"),
        (["--share_mask"], "share_mask needs masks"),
        (["--preset=nope"], "unknown preset 'nope'"),
        (["--epochs=x"], "--epochs"),
        (["--epochs=0"], "epochs must be at least 1"),
        (["--batch_size=12"], "a batch of 12 cannot be split evenly over the 8 devices"),
        (["--train_size=100"], "shorter than one batch"),
        (["--dataset=ptb", "--raw_data_dir={tmp}/none"], "none"),
        (["--dataset=ptb", "--raw_data_dir={tmp}/wrong"], "SHA-256"),
    ],
)
def test_bad_input_is_one_line(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    (tmp_path / "wrong" / "ptb").mkdir(parents=True)
    for split in ("train", "valid", "test"):
        (tmp_path / "wrong" / "ptb" / f"ptb.{split}.txt").write_text(" something else \n")
    workdir = tmp_path / "run"
    flags = [flag.format(tmp=tmp_path) for flag in flags]
    where = [f"--workdir={workdir}", f"--data_dir={tmp_path / 'data'}"]
    with pytest.raises(SystemExit) as end:
        EXPERIMENT.main([*SMOKE, *where, *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error
    assert not workdir.exists()


def test_bad_workdirs(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    run = tmp_path / "run"
    flags = [*SMOKE, "--epochs=1"]
    EXPERIMENT.main([*flags, f"--workdir={run}"])
    capsys.readouterr()
    for extra, words in (
        ([f"--workdir={file}"], "is a file"),
        ([f"--workdir={run}", "--seed=1"], "seed is 0 there, 1 here"),
        ([f"--workdir={run}", "--no_resume"], "is not empty"),
        ([f"--workdir={tmp_path}"], "holds no run"),
    ):
        with pytest.raises(SystemExit) as end:
            EXPERIMENT.main([*flags, *extra])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert file.read_text() == "mine"
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(run.glob("events.out.tfevents*"))
    assert json.loads((run / "config.json").read_text())["settings"]["seed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rng_impl", "numbers"), [("threefry2x32", (1, 2, 8)), ("rbg", (1, 8))], ids=["threefry", "rbg"]
)
def test_same_metrics_on_any_number_of_devices(rng_impl, numbers, tmp_path):
    flags = (*SMOKE, "--z_prob_cells=0.5", "--z_prob_states=0.3", "--drop_prob_igates=0.2")
    flags = (*flags, f"--rng_impl={rng_impl}")
    found = []
    for devices in numbers:
        workdir = tmp_path / str(devices)
        process = command(*flags, f"--workdir={workdir}", devices=devices)
        assert process.wait() == 0, process.stderr.read()
        history, final = metrics(workdir)
        found.append([*(v for entry in history for v in entry.values()), *final.values()])
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5)


SAVING = ("--checkpoint_steps=1", "--steps_per_call=1")
CUT_OFF = (*SMOKE, "--z_prob_cells=0.5", "--epochs=4", *SAVING)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The directory of a run that was not cut off."""
    workdir = tmp_path_factory.mktemp("whole")
    assert command(*CUT_OFF, f"--workdir={workdir}").wait() == 0
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_cut_off_goes_on_to_the_last_bit(number, whole, tmp_path):
    cut = tmp_path / "cut"
    process = command(*CUT_OFF, f"--workdir={cut}")
    while not (cut / "metrics.jsonl").exists() or not (cut / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait() == (143 if number == signal.SIGTERM else -number)
    assert not (cut / "result.json").exists()
    assert command(*CUT_OFF, f"--workdir={cut}").wait() == 0
    assert json.loads((cut / "result.json").read_text())["resumed"] == 1
    assert metrics(cut) == metrics(whole)


@pytest.fixture
def no_compilation_cache() -> Iterator[None]:
    """Switches off the cache that CONTRIBUTING.md shows."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", folder)


@pytest.mark.usefixtures("no_compilation_cache")
def test_reproduce_keeps_compiled_programs_as_long_as_it_runs():
    with reproduce.compiled_once():
        folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
        assert folder.is_dir()
        with reproduce.compiled_once():  # the user's own
            assert jax.config.jax_compilation_cache_dir == str(folder)
        assert folder.is_dir()
    assert jax.config.jax_compilation_cache_dir is None and not folder.exists()


def test_a_table_of_runs_that_differ_and_of_one_that_diverged(tmp_path, monkeypatch):
    """It says what each was made with, and has no deviation where there is none."""
    task, run_directory = EXPERIMENT.build(EXPERIMENT.presets["smoke"]), types.SimpleNamespace()
    run_directory.history = list
    runs = []
    for jax_version, metric, best in (
        ("0.9.0", 1.5, 1),
        ("0.10.2", math.inf, 1),
        ("0.9.0", 1.6, 1),
        ("0.9.0", math.nan, 0),
    ):
        run = dict.fromkeys(EXPERIMENT.metrics, metric)
        run |= {"seed": 0, "best_epoch": best, "steps": 2, "seconds": 3.0, "corpus": "ptb"}
        runs.append(run | {"devices": "1 × cpu", "versions": {"jax": jax_version}})
    runs[0]["commit"] = "c0ffee"
    found = iter(runs)
    monkeypatch.setattr(reproduce, "prepare", lambda *given: (task, run_directory))
    monkeypatch.setattr(reproduce, "fit", lambda *given, **options: next(found))
    options = reproduce.Options(experiment="char_ptb", preset="paper", out=tmp_path)
    table = reproduce.Table(EXPERIMENT, options, tmp_path)
    for seed in range(4):
        table.train("LSTM", (seed,), table.config("LSTM", (seed,)), StopRequest())
    content = table.content()
    assert content["versions"]["jax"] == "0.9.0 and 0.10.2"
    assert content["commit"] == "c0ffee and unknown" and content["dataset"] == "ptb"
    assert content["rows"][0]["failed"] == "diverged in every epoch with seed 3"
    (line,) = [x for x in (tmp_path / "table.md").read_text().splitlines() if "| LSTM" in x]
    assert line.startswith("| LSTM (a run diverged) | inf ± nan (1.466) |")
    assert "0 1 2" in line


def test_reproduce_writes_a_table_and_skips_what_is_done(tmp_path, monkeypatch, capsys):
    options = reproduce.Options(
        experiment="char_ptb", preset="smoke", seeds=(0, 1), epochs=1, out=tmp_path
    )
    table = reproduce.reproduce(options)
    monkeypatch.setattr("zoneout_jax.training.loop._Fit", None)
    assert reproduce.reproduce(options)["rows"] == table["rows"]
    assert [row["name"] for row in table["rows"]] == ["LSTM", "zoneout"]
    metric = table["rows"][0]["metrics"]["test_bpc"]
    assert metric["published"] == 1.356
    np.testing.assert_allclose(metric["mean"], np.mean(metric["runs"]))
    np.testing.assert_allclose(metric["sd"], np.std(metric["runs"], ddof=1))
    cell = f"{metric['mean']:.3f} ± {metric['sd']:.3f} |"  # not comparable with the paper's
    assert cell in (tmp_path / "table.md").read_text()
    assert (tmp_path / "curves.png").exists()
    assert (table["commit"], table["versions"]) == (commit(), versions())
    for bad, words in (
        ({"rows": ("CNN",)}, "unknown row"),
        ({"rows": ("LSTM", "LSTM")}, "rows must be distinct"),
        ({"seeds": (0, 0)}, "seeds must be one or more distinct"),
    ):
        with pytest.raises(ValueError, match=words):
            reproduce.reproduce(options.replace(**bad))
