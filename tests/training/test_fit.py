"""The training loop with tasks of a single number, which take no network."""

import dataclasses
import functools
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.training.quadratic import (
    CONFIG,
    DEVICES,
    STEPS,
    Cut,
    cut_at,
    history,
    last_checkpoint,
    quadratic,
    start,
    towards,
    untimed,
)
from zoneout_jax.training import Diverged, Evaluation, RunError, commit, loop
from zoneout_jax.training.state import Streams

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_what_a_run_leaves(tmp_path):
    result = start(quadratic(), tmp_path / "a" / "run")
    run = tmp_path / "a" / "run"
    entries = history(run)
    assert [(entry["epoch"], entry["step"]) for entry in entries] == [
        (epoch, STEPS * epoch) for epoch in range(1, 7)
    ]
    fields = {"epoch", "step", "train_cost", "validation_cost"}
    assert all(set(entry) == fields for entry in entries)
    times = [json.loads(line) for line in (run / "times.jsonl").read_text().splitlines()]
    assert [(e["epoch"], e["step"]) for e in times] == [(e["epoch"], e["step"]) for e in entries]
    assert all(a["seconds"] < b["seconds"] for a, b in itertools.pairwise(times))
    assert json.loads((run / "result.json").read_text()) == result
    assert result["validation_cost"] == min(entry["validation_cost"] for entry in entries)
    assert result["name"] == "quadratic"
    assert (result["corpus"], result["sizes"]) == ("none", {"train": 4})
    assert (result["epochs"], result["steps"], result["resumed"]) == (6, 30, 0)
    assert result["peak_memory_bytes"] > 0 and result["steps_per_second"] > 0
    assert result["devices"].startswith(f"{DEVICES} × ")
    assert {"python", "jax", "optax"} <= set(result["versions"])
    config = json.loads((run / "config.json").read_text())
    assert config["commit"] == result["commit"]
    # Somebody may edit files meanwhile.
    assert config["commit"].removesuffix("-dirty") == commit().removesuffix("-dirty")
    assert config["settings"] == json.loads(json.dumps(CONFIG.identity()))
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [file.stat().st_size > 100 for file in run.glob("events.out.tfevents*")] == [True]
    assert not list(run.glob(".*.tmp"))


def test_metrics_are_those_of_the_algebra(tmp_path):
    # Without noise x is 1 - 0.9^t after t steps, and the loss of step t is 0.9^(2t).
    task = quadratic(
        loss=lambda params, state, batch, key: (towards(1.0)(params, state, batch), state)
    )
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
    # The test is 100 x²: of epoch 2, not of the last.
    assert result["test_cost"] == pytest.approx(100 * 0.65**2, rel=0.1)


def test_calibration_goes_before_evaluation_and_is_kept(tmp_path):
    # The mean of examples 0 … 2n-1 of the data becomes the model's state.
    data = np.arange(2 * DEVICES, dtype=np.float32)

    def sums(params, model_state, batch):
        examples, weights = batch.take()
        return {"mean": jnp.sum(examples)}, jnp.sum(weights)

    calibration = Evaluation(sums, data, np.arange(2 * DEVICES).reshape(2, DEVICES))

    def seen(params, model_state, batch):
        counted = jnp.sum((batch.indices >= 0).astype(jnp.float32))
        return {"cost": counted * params["x"], "mean": counted * model_state["mean"]}, counted

    evaluation = Evaluation(seen, np.zeros(1), np.zeros((1, 3), np.int32))
    task = quadratic(
        model_state=lambda params: {"mean": jnp.full((), -1.0)},
        calibration=calibration,
        validation=evaluation,
        test_evaluations={"test": evaluation},
        monitor="mean",
    )
    result = start(task, tmp_path)
    assert [entry["validation_mean"] for entry in history(tmp_path)] == [DEVICES - 0.5] * 6
    assert result["validation_mean"] == result["test_mean"] == DEVICES - 0.5
    # Chosen by the mean, which never changes: the first epoch is the best.
    assert result["best_epoch"] == 1 and result["test_cost"] == result["validation_cost"]


def test_a_figure_that_only_stands_still_is_not_better(tmp_path):
    config = dataclasses.replace(CONFIG, patience=2)
    result = start(quadratic(optimizer=optax.sgd(0.0)), tmp_path, config)
    assert (result["best_epoch"], result["epochs"]) == (1, 3)


def test_a_validation_that_is_never_a_number_ends_the_run_with_an_error(tmp_path):
    def broken(params, model_state, batch):
        return params["x"] * jnp.nan, jnp.ones(())

    evaluation = Evaluation(broken, np.zeros(1), np.zeros((1, 1), np.int32))
    config = dataclasses.replace(CONFIG, patience=3)
    for _ in range(2):  # resuming changes nothing
        with pytest.raises(Diverged, match="no epoch had a finite validation cost; start again"):
            start(quadratic(validation=evaluation), tmp_path, config)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and not (tmp_path / "result.json").exists()


def test_a_run_that_is_done_is_not_run_again(tmp_path, monkeypatch):
    result = start(quadratic(), tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    monkeypatch.setattr(loop, "_Fit", None)
    assert start(quadratic(), tmp_path) == result
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_run_that_is_done_can_be_extended(tmp_path):
    def run(folder, epochs, **settings):
        return start(quadratic(), tmp_path / folder, CONFIG.replace(epochs=epochs, **settings))

    short = run("extended", 4)
    result = run("extended", 6)
    assert (short["epochs"], result["epochs"]) == (4, 6)
    whole = run("whole", 6)
    assert untimed(result) == untimed(whole)
    assert history(tmp_path / "extended") == history(tmp_path / "whole")
    assert json.loads((tmp_path / "extended/config.json").read_text())["settings"]["epochs"] == 6
    with pytest.raises(ValueError, match="holds a run of 6 epochs, more than 4; use another"):
        run("extended", 4)
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        run("extended", 8, seed=1)


def test_an_extension_that_is_cut_off_goes_on(tmp_path, monkeypatch):
    start(quadratic(), tmp_path, CONFIG.replace(epochs=2))
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 12, raise_cut)
        start(quadratic(), tmp_path, CONFIG.replace(checkpoint_steps=1))
    assert not (tmp_path / "result.json").exists()
    assert start(quadratic(), tmp_path, CONFIG.replace(checkpoint_steps=1))["epochs"] == 6


@pytest.mark.parametrize("damage", ["removed", "unreadable"])
def test_an_extension_without_a_checkpoint_loses_nothing(damage, tmp_path):
    result = start(quadratic(), tmp_path, CONFIG.replace(epochs=2))
    before = (tmp_path / "metrics.jsonl").read_text()
    for folder in (tmp_path / "checkpoints").iterdir():
        if damage == "removed":
            shutil.rmtree(folder)
        else:
            shutil.rmtree(folder / "arrays")
    with pytest.raises(RunError, match="no checkpoint"):
        start(quadratic(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert start(quadratic(), tmp_path, CONFIG.replace(epochs=2)) == result


def raise_cut():
    raise Cut


def test_another_model_in_the_same_folder_is_refused(tmp_path):
    result = start(quadratic(), tmp_path)
    other = quadratic(init=lambda key: {"x": jnp.zeros(()), "y": jnp.zeros(3)})
    with pytest.raises(RunError, match=r"another model .*\['y'\] is None there, float32\[3\] here"):
        start(other, tmp_path)
    with pytest.raises(RunError, match=r"a run with another optimizer \(\.opt_state"):
        start(quadratic(optimizer=optax.adam(0.1)), tmp_path)
    assert start(quadratic(), tmp_path) == result
    config = json.loads((tmp_path / "config.json").read_text())
    del config["task"]  # as before there were any
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="of an older zoneout_jax"):
        start(quadratic(), tmp_path)


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda total, count, state: total, r"return \(\(total, count\), model_state\)"),
        (lambda total, count, state: (total, count), "got .*float32"),
        (lambda total, count, state: (total, count, state), "must return"),
        (lambda total, count, state: ((total[None], count), state), "scalars total and count"),
        (lambda total, count, state: ((total, count), 1.0), "a model_state like the one"),
        (lambda total, count, state: ((total, count), {"a": total}), "model_state like"),
    ],
)
def test_losses_of_another_form(returned, words, tmp_path):
    def loss(params, model_state, batch, key):
        sums, _ = towards(1.0)(params, model_state, batch, key)
        return returned(*sums, model_state)

    with pytest.raises(TypeError, match=words):
        start(quadratic(loss=loss), tmp_path)


def test_examples_past_the_end_are_refused(tmp_path):
    def indices(key):
        return jnp.full((STEPS, DEVICES), 4)

    with pytest.raises(
        ValueError, match="epoch_indices asks for example 4, but the data ends with 3"
    ):
        start(quadratic(epoch_indices=indices), tmp_path)
    with pytest.raises(
        ValueError, match="an evaluation asks for example 2, but the data ends with 1"
    ):
        Evaluation(towards(1.0), (np.zeros(2), np.zeros((3, 1))), np.array([[0, -1, 2]]))
    with pytest.raises(ValueError, match=r"rows must have shape \[rows, batch, …\], got \(2,\)"):
        Evaluation(towards(1.0), np.zeros(2), np.arange(2))


def test_indices_of_any_epoch_are_looked_at(tmp_path):
    last = jax.random.fold_in(Streams.from_seed(0).data, 5)

    def indices(key):
        same = jnp.all(jax.random.key_data(key) == jax.random.key_data(last))
        return jnp.full((STEPS, DEVICES), jnp.where(same, 4, 0))

    with pytest.raises(ValueError, match="epoch_indices asks for example 4"):
        start(quadratic(epoch_indices=indices), tmp_path)
    assert [entry["epoch"] for entry in history(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("shape", [(0, DEVICES), (DEVICES,)])
def test_epochs_without_steps_or_batches(shape):
    with pytest.raises(ValueError, match=r"epoch_indices must be \[steps, batch, …\], got"):
        _ = quadratic(epoch_indices=lambda key: jnp.zeros(shape, int)).steps_per_epoch


@pytest.mark.parametrize(
    ("returned", "error", "words"),
    [
        (lambda total, count: total, TypeError, r"must return \(total, count\), got float32"),
        (lambda total, count: ((total, count), {}), TypeError, "scalars|must return"),
        (lambda total, count: (total[None], count), TypeError, "must be scalars"),
        (lambda total, count: ({"other": total}, count), ValueError, "'cost' among its totals"),
    ],
)
def test_evaluations_of_another_form(returned, error, words, tmp_path):
    def loss(params, model_state, batch):
        return returned(*towards(1.0)(params, model_state, batch))

    evaluation = Evaluation(loss, np.zeros(1), np.zeros((1, 3), np.int32))
    with pytest.raises(error, match=words):
        start(quadratic(validation=evaluation), tmp_path)


def test_a_sweep_of_one_rate(tmp_path):
    config = CONFIG.replace(sweep=("target=0.5", "steepness=1"))
    result = start(quadratic(loss=swept), tmp_path, config)
    assert [cell["target"] for cell in result["cells"]] == [0.5] and result["target"] == 0.5
    assert (tmp_path / "result.json").exists() and (tmp_path / "sweep.md").exists()


def swept(params, model_state, batch, *key):
    """The loss of `towards`, for a target that a sweep says."""
    rates = model_state["rates"]
    return towards(rates["target"], rates["steepness"])(params, model_state, batch, *key)


@pytest.mark.slow
def test_a_sweep_is_each_of_its_models_alone(tmp_path):
    rows = np.zeros((1, 3), np.int32)
    task = quadratic(loss=swept, validation=Evaluation(towards(0.68), np.zeros(1), rows))
    sweep = ("target=0.5,1", "steepness=1,0.5")
    config = CONFIG.replace(epochs=12, patience=2, seed=5, num_seeds=2, sweep=sweep)
    result = start(task, tmp_path / "sweep", config)
    grid = list(itertools.product((0.5, 1.0), (1.0, 0.5)))
    assert [(c["target"], c["steepness"]) for c in result["cells"]] == grid
    epochs = set()
    for number, ((target, steepness), seed) in enumerate(itertools.product(grid, (5, 6))):
        alone = quadratic(loss=towards(target, steepness), validation=task.validation)
        folder = tmp_path / f"{target}-{steepness}-{seed}"
        single = start(alone, folder, CONFIG.replace(epochs=12, patience=2, seed=seed))
        run = result["runs"][number]
        assert (run["target"], run["steepness"], run["seed"]) == (target, steepness, seed)
        assert (run["best_epoch"], run["epochs"]) == (single["best_epoch"], single["epochs"])
        epochs.add(single["epochs"])
        for name in ("validation_cost", "test_cost"):
            np.testing.assert_allclose(run[name], single[name], rtol=1e-4)
        of_run = {"target": target, "steepness": steepness, "seed": seed}
        mine = [e for e in history(tmp_path / "sweep") if of_run.items() <= e.items()]
        wanted = [e["train_cost"] for e in history(folder)]
        np.testing.assert_allclose([e["train_cost"] for e in mine], wanted, rtol=1e-5)
    assert len(epochs) > 1  # otherwise patience was not put to the test
    best = min(result["cells"], key=lambda cell: cell["validation_cost"])
    assert best.items() <= result.items()
    table = (tmp_path / "sweep/sweep.md").read_text().splitlines()
    assert table[0] == "| target | steepness | validation cost | test cost |" and len(table) == 6
    cell = result["cells"][0]
    values = [f"{cell[n]:.4f} ± {cell[f'{n}_sd']:.4f}" for n in ("validation_cost", "test_cost")]
    assert table[2] == f"| 0.5 | 1 | {' | '.join(values)} |"
    assert (tmp_path / "sweep/sweep.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_sweep_that_is_cut_off_ends_with_the_same_bits(tmp_path, monkeypatch):
    task = quadratic(loss=swept)
    config = CONFIG.replace(sweep=("target=0.5,1", "steepness=1,0.5"), checkpoint_steps=1)
    whole = start(task, tmp_path / "whole", config)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 12, raise_cut)
        start(task, tmp_path / "cut", config)
    assert untimed(start(task, tmp_path / "cut", config)) == untimed(whole)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


def explode(step, params, model_state, batch, key):
    """A loss that is not finite from a step on: x is raised by a tenth at each step."""
    count = jnp.sum((batch.indices >= 0).astype(jnp.float32))
    slope = jnp.where(params["x"] > 0.1 * step - 0.05, 0.0, 1.0)
    return (-count * params["x"] / slope, count), model_state


EXPLODES = quadratic(loss=functools.partial(explode, 7), optimizer=optax.sgd(0.1))


@pytest.mark.parametrize("steps_per_call", [1, 2, 5])
def test_a_loss_that_is_not_finite_stops_the_run_before_it(steps_per_call, tmp_path):
    config = dataclasses.replace(CONFIG, steps_per_call=steps_per_call)
    with pytest.raises(RunError, match=r"not finite at step 7 \(epoch 2, seed 0\)") as error:
        start(EXPLODES, tmp_path, config)
    assert error.value.exit_code == 1 and "resume with on_nan=skip" in str(error.value)
    assert not (tmp_path / "result.json").exists()
    assert [entry["step"] for entry in history(tmp_path)] == [5]
    batch = json.loads((tmp_path / "not_finite.json").read_text())
    assert (batch["step"], batch["epoch"], batch["seed"]) == (7, 2, 0)
    streams = Streams.from_seed(0)
    rows = EXPLODES.epoch_indices(jax.random.fold_in(streams.data, 1))
    assert batch["examples"] == rows[2].tolist()
    key = jax.random.fold_in(streams.noise, 7)
    assert batch["key"] == jax.random.key_data(key).tolist()
    (state, _), progress = last_checkpoint(tmp_path, EXPLODES)
    assert progress["step"] == 7
    assert state["params"]["x"] == pytest.approx(0.7)
    # The same command meets the same batch, and stops again.
    with pytest.raises(RunError, match="not finite at step 7"):
        start(EXPLODES, tmp_path, config)


def test_steps_that_are_not_finite_can_be_left_out(tmp_path):
    def once(params, model_state, batch, key):
        (total, count), _ = towards(1.0)(params, model_state, batch, key)
        return (jnp.where(jnp.any(batch.indices == 3), jnp.nan, total), count), model_state

    def indices(key):
        rows = np.zeros((STEPS, DEVICES), np.int32)
        rows[2, 0] = 3
        return jnp.asarray(rows)

    config = dataclasses.replace(CONFIG, epochs=2, on_nan="skip")
    result = start(quadratic(loss=once, epoch_indices=indices), tmp_path, config)
    assert result["steps"] == 10
    assert [entry["skipped"] for entry in history(tmp_path)] == [1, 1]
    assert all(math.isfinite(entry["train_cost"]) for entry in history(tmp_path))
    # What stopped a run can be left out when it goes on.
    with pytest.raises(RunError, match="not finite at step 7"):
        start(EXPLODES, tmp_path / "cut", CONFIG)
    skip = dataclasses.replace(CONFIG, on_nan="skip")
    with pytest.raises(RunError, match="no step of epoch 3 had a finite loss"):
        start(EXPLODES, tmp_path / "cut", skip)
    assert [entry["step"] for entry in history(tmp_path / "cut")] == [5, 10]


def test_a_seed_whose_losses_are_not_finite_leaves_the_others_alone(tmp_path):
    def loss(params, model_state, batch, key):
        (total, count), _ = towards(1.0)(params, model_state, batch, key)
        return (jnp.where(params["x"] < 0, jnp.nan, total), count), model_state

    # One seed begins where the loss is not finite, and stays there.
    task = quadratic(loss=loss, init=lambda key: {"x": jnp.sign(jax.random.normal(key))})
    assert [float(task.init(Streams.from_seed(seed).init)["x"]) for seed in (2, 3)] == [1, -1]
    config = dataclasses.replace(CONFIG, epochs=3, seed=2, num_seeds=2, on_nan="skip")
    alive, dead = start(task, tmp_path / "both", config)["runs"]
    wanted = start(task, tmp_path / "alone", dataclasses.replace(CONFIG, epochs=3, seed=2))
    assert alive["validation_cost"] == wanted["validation_cost"]
    assert math.isinf(dead["validation_cost"])
    assert [entry["seed"] for entry in history(tmp_path / "both")] == [2, 2, 2]


def test_a_seed_that_diverges_after_the_others_have_ended(tmp_path):
    """Seed 2 is where it should be from the start, seed 3 comes near and is lost on the way."""

    def loss(params, model_state, batch, key):
        count = jnp.sum((batch.indices >= 0).astype(jnp.float32))
        lost = (params["x"] > 0.3) & (params["x"] < 0.9)
        return (jnp.where(lost, jnp.nan, count * (params["x"] - 1.0) ** 2), count), model_state

    task = quadratic(loss=loss, init=lambda key: {"x": jnp.sign(jax.random.normal(key))})
    config = dataclasses.replace(CONFIG, patience=2, seed=2, num_seeds=2, on_nan="skip")
    there, lost = start(task, tmp_path, config)["runs"]
    assert (there["best_epoch"], there["epochs"], there["validation_cost"]) == (1, 3, 0.0)
    assert 1 < lost["best_epoch"] < 4 and 0 < lost["validation_cost"] < 60
    assert [entry["epoch"] for entry in history(tmp_path) if entry["seed"] == 2] == [1, 2, 3]


def test_seed_and_calls(tmp_path):
    whole = start(quadratic(), tmp_path / "whole")
    one = dataclasses.replace(CONFIG, steps_per_call=1)
    again = start(quadratic(), tmp_path / "again", one)
    assert untimed(again) == untimed(whole)
    assert history(tmp_path / "again") == history(tmp_path / "whole")
    other = start(quadratic(), tmp_path / "other", dataclasses.replace(CONFIG, seed=1))
    assert other["test_cost"] != whole["test_cost"]


@pytest.mark.parametrize("seeds", [3, pytest.param(DEVICES, marks=pytest.mark.slow)])
def test_many_seeds_are_each_as_if_alone(seeds, tmp_path):
    # Between what x is after two and three epochs: noise, each seed's own, decides which is best.
    task = quadratic(validation_target=0.68)
    config = dataclasses.replace(CONFIG, epochs=12, patience=2, seed=5, num_seeds=seeds)
    result = start(task, tmp_path / "many", config)
    epochs = set()
    for n in range(seeds):
        alone = dataclasses.replace(config, seed=5 + n, num_seeds=1)
        single = start(task, tmp_path / str(n), alone)
        epochs.add(single["epochs"])
        run = result["runs"][n]
        assert run["seed"] == 5 + n
        for name in ("best_epoch", "epochs"):
            assert run[name] == single[name]
        for name in ("validation_cost", "test_cost"):
            np.testing.assert_allclose(run[name], single[name], rtol=1e-5)
        entries = [e for e in history(tmp_path / "many") if e["seed"] == 5 + n]
        wanted = history(tmp_path / str(n))
        assert [e["step"] for e in entries] == [e["step"] for e in wanted]
        for entry, other in zip(entries, wanted, strict=True):
            np.testing.assert_allclose(entry["train_cost"], other["train_cost"], rtol=1e-5)
    assert len(epochs) > 1  # otherwise patience was not put to the test
    costs = [run["test_cost"] for run in result["runs"]]
    assert result["test_cost"] == pytest.approx(np.mean(costs))
    assert result["test_cost_sd"] == pytest.approx(np.std(costs, ddof=1))
