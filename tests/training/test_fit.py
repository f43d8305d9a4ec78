"""The training loop with tasks of a single number, which take no network."""

import dataclasses
import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.training import Evaluation, RunConfig, RunDirectory, Task, fit, loop
from zoneout_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("standard_promotion")
DEVICES = jax.local_device_count()
STEPS = 5
CONFIG = RunConfig(
    epochs=6, patience=10, batch_size=DEVICES, steps_per_call=2, checkpoint_seconds=1000
)
TIMED = {"seconds", "steps_per_second", "peak_memory_bytes", "resumed"}


def towards(target, steepness=1.0):
    """Squared distance of the parameter to a number, for each example."""

    def loss(params, data, examples, key=None):
        counted = jnp.sum((examples >= 0).astype(jnp.float32))
        wanted = target
        if key is not None:
            wanted = wanted + 0.1 * jax.random.normal(key)
        return steepness * counted * (params["x"] - wanted) ** 2, counted

    return loss


def quadratic(validation_target=1.0, **changes):
    """From 0 training heads for 1, a tenth of the way in each step.

    Validation wants `validation_target`: less than 1 is overshot, and its figure grows again.
    """
    rows = np.zeros((1, 3), np.int32)
    task = Task(
        name="quadratic",
        init=lambda key: {"x": jnp.zeros(())},
        optimizer=optax.sgd(0.05),
        loss=towards(1.0),
        data=np.zeros(4, np.float32),
        plan=lambda key: jax.random.randint(key, (STEPS, DEVICES), 0, 4),
        steps_per_epoch=STEPS,
        metric="cost",
        figure=lambda loss: 100 * loss,
        validation=Evaluation(towards(validation_target), np.zeros(1), rows),
        final={"test": Evaluation(towards(0.0), np.zeros(1), rows)},
        facts={"corpus": "none", "sizes": {"train": 4}},
    )
    return dataclasses.replace(task, **changes)


def start(task, path, config=CONFIG):
    """Fits in a directory."""
    return fit(task, config, RunDirectory(path, config.identity()))


def untimed(mapping):
    """What does not depend on the clock or the machine."""
    return {name: value for name, value in mapping.items() if name not in TIMED}


def history(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_what_a_run_leaves(tmp_path):
    result = start(quadratic(), tmp_path / "a" / "run")
    run = tmp_path / "a" / "run"
    entries = history(run)
    assert [(entry["epoch"], entry["step"]) for entry in entries] == [
        (epoch, STEPS * epoch) for epoch in range(1, 7)
    ]
    fields = {"epoch", "step", "train_cost", "validation_cost", "steps_per_second", "seconds"}
    assert all(set(entry) == fields for entry in entries)
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(entries))
    assert json.loads((run / "result.json").read_text()) == result
    assert result["validation_cost"] == min(entry["validation_cost"] for entry in entries)
    assert result["name"] == "quadratic"
    assert (result["corpus"], result["sizes"]) == ("none", {"train": 4})
    assert (result["epochs"], result["steps"], result["resumed"]) == (6, 30, 0)
    assert result["peak_memory_bytes"] > 0 and result["steps_per_second"] > 0
    assert result["devices"].startswith(f"{DEVICES} × ")
    assert {"python", "jax", "optax"} <= set(result["versions"])
    config = json.loads((run / "config.json").read_text())
    assert config["settings"] == CONFIG.identity()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.stat().st_size > 100 for file in run.glob("events.out.tfevents*")] == [True]
    assert not list(run.glob("*.tmp")) and not list(run.glob(".*"))


def test_figures_are_those_of_the_algebra(tmp_path):
    # Without noise x is 1 - 0.9^t after t steps, and the loss of step t is 0.9^(2t).
    task = quadratic(loss=lambda params, data, examples, key: towards(1.0)(params, data, examples))
    start(task, tmp_path)
    for entry in history(tmp_path):
        steps = np.arange(entry["step"] - STEPS, entry["step"])
        wanted = 100 * np.mean(0.9 ** (2 * steps))
        np.testing.assert_allclose(entry["train_cost"], wanted, rtol=1e-5)
        wanted = 100 * 0.9 ** (2 * entry["step"])
        np.testing.assert_allclose(entry["validation_cost"], wanted, rtol=1e-4)


@pytest.mark.parametrize("patience", [1, 2])
def test_patience_ends_a_run_and_the_best_parameters_count(patience, tmp_path):
    config = dataclasses.replace(CONFIG, patience=patience)
    # After 5, 10, 15 steps x is about 0.41, 0.65, 0.79.
    result = start(quadratic(validation_target=0.65), tmp_path, config)
    costs = [entry["validation_cost"] for entry in history(tmp_path)]
    assert len(costs) == result["epochs"] == 2 + patience
    assert result["best_epoch"] == 2 and result["validation_cost"] == costs[1] == min(costs)
    # The final figure is 100 x²: of epoch 2, not of the last.
    assert result["test_cost"] == pytest.approx(100 * 0.65**2, rel=0.1)


def test_a_figure_that_only_stands_still_is_not_better(tmp_path):
    config = dataclasses.replace(CONFIG, patience=2)
    result = start(quadratic(optimizer=optax.sgd(0.0)), tmp_path, config)
    assert (result["best_epoch"], result["epochs"]) == (1, 3)


def test_a_validation_that_is_never_a_number_ends_with_the_first_parameters(tmp_path):
    def broken(params, data, examples):
        return params["x"] * jnp.nan, jnp.ones(())

    evaluation = Evaluation(broken, np.zeros(1), np.zeros((1, 1), np.int32))
    config = dataclasses.replace(CONFIG, patience=3)
    result = start(quadratic(validation=evaluation), tmp_path, config)
    assert result["epochs"] == 3 and result["best_epoch"] == 0
    assert result["test_cost"] == 0


def test_a_run_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    result = start(quadratic(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    monkeypatch.setattr(loop, "_Fit", None)
    assert start(quadratic(), tmp_path) == result
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    def explode(params, data, examples, key):
        count = jnp.sum((examples >= 0).astype(jnp.float32))
        # From the 8th step on, in the second epoch, the square root is of a negative number.
        return count * jnp.sqrt(1 - params["x"]), count

    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) in steps \d+ to \d+"):
        start(quadratic(loss=explode, optimizer=optax.sgd(0.3)), tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_seed_and_calls(tmp_path):
    whole = start(quadratic(), tmp_path / "whole")
    one = dataclasses.replace(CONFIG, steps_per_call=1)
    again = start(quadratic(), tmp_path / "again", one)
    for name in ("validation_cost", "test_cost"):
        assert again[name] == whole[name]
    other = start(quadratic(), tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    assert other["test_cost"] != whole["test_cost"]


class Cut(Exception):
    """Stands for the moment at which a process is killed."""


def cut_at(monkeypatch, step, action):
    """Calls `action` once the step is done."""
    update = loop.Progress.update

    def updated(self, done, text):
        update(self, done, text)
        if done == step:
            action()

    monkeypatch.setattr(loop.Progress, "update", updated)


# 4 and 13 within an epoch, 5 and 15 at the end of one, before it is validated.
@pytest.mark.parametrize(("step", "seconds"), [(4, 0), (5, 0), (13, 0), (15, 0), (13, 1000)])
def test_a_crash_at_any_step_changes_no_figure(step, seconds, tmp_path, monkeypatch):
    def crash():
        raise Cut

    task = quadratic(validation_target=0.65, optimizer=optax.adam(0.1))
    config = dataclasses.replace(CONFIG, epochs=4, steps_per_call=1, checkpoint_seconds=seconds)
    monkeypatch.setattr(loop, "draw_curves", lambda *arguments: None)  # slow
    whole = start(task, tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        cut_at(patch, step, crash)
        with pytest.raises(Cut):
            start(task, tmp_path / "cut", config)
    result = start(task, tmp_path / "cut", config)
    assert result["resumed"] == (0 if seconds else 1)
    assert untimed(result) == untimed(whole)
    entries = [[untimed(e) for e in history(tmp_path / name)] for name in ("cut", "whole")]
    assert entries[0] == entries[1]


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 4), (signal.SIGTERM, 10)])
def test_a_signal_ends_the_run_with_a_checkpoint(number, step, tmp_path, monkeypatch):
    whole = start(quadratic(), tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        cut_at(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt, match=f"stopped at step {step}; the same command"):
            start(quadratic(), tmp_path / "cut")
    assert signal.getsignal(number) == before
    checkpoints = Checkpoints(tmp_path / "cut" / "checkpoints")
    assert checkpoints.latest == step
    checkpoints.close()
    assert untimed(start(quadratic(), tmp_path / "cut")) == untimed(whole)


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    cut_at(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt, match="stopped at once; the last checkpoint stands"):
        start(quadratic(), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_run_cut_off_before_its_final_figures_only_measures_them(tmp_path, monkeypatch):
    whole = start(quadratic(), tmp_path / "whole")

    def crash(self):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "_finish", crash)
        with pytest.raises(Cut):
            start(quadratic(), tmp_path / "cut")
    monkeypatch.setattr(loop._Fit, "_epoch", None)
    assert untimed(start(quadratic(), tmp_path / "cut")) == untimed(whole)


def test_checkpoints_keep_two_and_restore_the_last(tmp_path):
    def arrays(number):
        return {"x": np.full(2, number, np.float32)}, np.array(number, np.int32)

    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.latest is None
    for step in (3, 5, 9):
        checkpoints.save(step, arrays(step), {"at": step})
    checkpoints.save(9, arrays(0), {"at": -1})  # is there already
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]
    checkpoints = Checkpoints(tmp_path)
    restored, progress = checkpoints.restore(arrays(0))
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, tuple(restored), arrays(9))
    assert progress == {"at": 9}
