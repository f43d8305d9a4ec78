"""The task of one's own in the documentation."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from zoneout_jax import LSTM, Zoneout, unroll
from zoneout_jax.training import Evaluation, launch

pytestmark = pytest.mark.usefixtures("standard_promotion")
PAGE = pathlib.Path(__file__).parents[2] / "docs/own_task.md"


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The program as a module."""
    _, program = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    file = tmp_path_factory.mktemp("own") / "mine.py"
    file.write_text(program)
    spec = importlib.util.spec_from_file_location("mine", file)
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mine"]


def test_the_short_program_continues_and_notices_other_settings(tmp_path, monkeypatch):
    short, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)

    def result(**changes):
        program = short.replace("RunConfig(epochs=3)", "RunConfig(**settings)")
        settings = {"epochs": 1} | changes
        found = {"__name__": "mine", "settings": settings}
        exec(compile(program, "mine", "exec"), found)
        return found["result"]

    assert result()["epochs"] == 1 and result()["resumed"] == 0
    more = result(epochs=2)
    assert more["epochs"] == 2 and more["resumed"] == 1
    for changes, words in (
        ({"epochs": 1}, "a run of 2 epochs, more than 1"),
        ({"epochs": 2, "seed": 1}, "seed is 0 there, 1 here"),
        ({"epochs": 2, "precision": "bfloat16"}, "precision is 'float32' there"),
    ):
        with pytest.raises(ValueError, match=words):
            result(**changes)


def run(mine, folder, *flags, build=None):
    argv = [f"--workdir={folder}", *flags]
    return launch("waves", mine.Config(), build or mine.build, "about", argv)


def test_it_learns_and_goes_on(mine, tmp_path):
    config, result = run(mine, tmp_path)
    assert (config.hidden_features, config.run.epochs, result["epochs"]) == (16, 3, 3)
    assert result["validation_loss"] < 0.2  # chance is 0.69
    _, more = run(mine, tmp_path, "--epochs=4")
    assert more["epochs"] == 4
    history = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert history[2]["validation_loss"] == result["validation_loss"]


def test_rates_of_a_sweep_are_in_the_model_state(mine, tmp_path):
    def build(config):
        task = mine.build(config)

        def seen(params, model_state, batch):
            return model_state["rates"]["z_prob_states"] * 64, jnp.float32(64)

        return dataclasses.replace(
            task, validation=Evaluation(seen, task.validation.data, task.validation.rows)
        )

    _, result = run(mine, tmp_path, "--sweep", "z_prob_states=0.5,0.25", "--epochs=1", build=build)
    assert [cell["validation_loss"] for cell in result["cells"]] == [0.5, 0.25]
    assert (tmp_path / "sweep.png").exists()


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--hiden=3", "there is no --hiden; did you mean --hidden_features?"),
        ("--hidden_features=0", "hidden_features must be at least 1, got 0"),
        ("--batch_size=7", "cannot be split evenly over the 8 devices"),
        ("--sweep=z_prob_states=0.5,1.5", "z_prob_states must be in [0, 1], got 1.5"),
        ("--sweep=z_prob_cells=0.5", "which are in [0, 1]; got z_prob_cells"),
        ("--sweep=hidden_features=4,8", "which are in [0, 1]; got hidden_features"),
        ("--sweep=checkpoint_minutes=0.5,1", "which are in [0, 1]; got checkpoint_minutes"),
    ],
)
def test_bad_flags_are_one_line(flag, words, mine, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        run(mine, tmp_path / "run", flag)
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_loss_leaves_the_folder_free(mine, tmp_path):
    def build(config):
        return dataclasses.replace(
            mine.build(config), init=lambda key: {"w": jnp.zeros(3)}, loss=lambda *_: jnp.zeros(())
        )

    with pytest.raises(TypeError, match="loss must return"):
        run(mine, tmp_path, "--epochs=1", "--hidden_features=3", build=build)
    _, result = run(mine, tmp_path, "--epochs=1")
    assert result["epochs"] == 1


def test_other_data_in_the_folder_are_refused(mine, tmp_path, capsys):
    def build(config):
        task = mine.build(config)
        return dataclasses.replace(task, data=jax.tree.map(lambda a: a + 1, task.data))

    run(mine, tmp_path, "--epochs=1")
    with pytest.raises(SystemExit) as end:
        run(mine, tmp_path, "--epochs=2", build=build)
    assert end.value.code == 2 and "holds a run on other data" in capsys.readouterr().err


def test_masks_without_the_axis_are_an_error(mine, tmp_path):
    cell = LSTM(1, 4)

    def build(config):
        task = mine.build(config)

        def loss(params, model_state, batch, key):
            (xs, _), weights = batch.take()
            _, ys = unroll(cell, params, xs.swapaxes(0, 1), zoneout=Zoneout(cells=0.5), key=key)
            return (jnp.sum(ys), jnp.sum(weights)), model_state

        return dataclasses.replace(task, init=cell.init, loss=loss)

    with pytest.raises(ValueError, match="pass axis_name='data', which is zoneout_jax.training.AX"):
        run(mine, tmp_path, build=build)
