"""The training loop on tasks that need no network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.training import Evaluation, RunConfig, RunDirectory, Task, fit, parallel
from zoneout_jax.training.metrics import MetricLog
from zoneout_jax.training.state import Streams, TrainState

RATE = 0.1


def squares(params, data, examples, key=None):
    """Weighted squared distance from the data that the examples point to; -1 counts nothing."""
    weights = jnp.where(examples >= 0, 1 + examples % 3, 0).astype(jnp.float32)
    noise = 0.0 if key is None else jax.random.normal(key)
    distance = (params["w"] + noise - data[jnp.maximum(examples, 0)]) ** 2
    return jnp.sum(weights * distance), jnp.sum(weights)


def make_task(**changes):
    data = jnp.linspace(0.0, 1.0, 24)
    evaluation = Evaluation(lambda p, d, e: squares(p, d, e), data, jnp.arange(24).reshape(1, 24))
    settings = {
        "name": "squares",
        "init": lambda key: {"w": jnp.full((), 5.0)},
        "optimizer": optax.sgd(RATE),
        "loss": squares,
        "data": data,
        "plan": lambda key: jax.random.permutation(key, 24).astype(jnp.int32).reshape(3, 8),
        "steps_per_epoch": 3,
        "metric": "loss",
        "figure": lambda mean: mean,
        "validation": evaluation,
        "final": {"test": evaluation},
    }
    return Task(**(settings | changes))


def run(tmp_path, task, **changes):
    config = RunConfig(**({"epochs": 4, "batch_size": 8} | changes))
    directory = RunDirectory(tmp_path / "run", config.identity())
    return fit(task, config, directory), directory


def test_steps_equal_a_plain_loop(tmp_path):
    task = make_task()
    result, directory = run(tmp_path, task, epochs=2, seed=3, steps_per_call=2)
    streams = Streams.from_seed(3)
    w, losses = np.float64(5.0), []
    for epoch in range(2):
        rows = np.asarray(task.plan(jax.random.fold_in(streams.data, epoch)))
        for number, row in enumerate(rows):
            noise = jax.random.normal(jax.random.fold_in(streams.noise, 3 * epoch + number))
            weights, target = 1 + row % 3, np.asarray(task.data, np.float64)[row]
            distance = w + float(noise) - target
            losses.append((np.sum(weights * distance**2), np.sum(weights)))
            w -= RATE * np.sum(weights * 2 * distance) / np.sum(weights)
    history = directory.history()
    assert [entry["step"] for entry in history] == [3, 6]
    for epoch, entry in enumerate(history):
        totals, counts = np.array(losses[3 * epoch : 3 * epoch + 3]).sum(axis=0)
        np.testing.assert_allclose(entry["train_loss"], totals / counts, rtol=1e-5)
    rows = np.arange(24)
    weights = 1 + rows % 3
    wanted = np.sum(weights * (w - np.asarray(task.data)) ** 2) / weights.sum()
    np.testing.assert_allclose(history[-1]["validation_loss"], wanted, rtol=1e-5)
    assert result["steps"] == 6 and result["epochs"] == 2


def test_best_parameters_are_kept_and_patience_ends_the_run(tmp_path):
    # The parameter passes 2, best for validation, on its way to 0.
    task = make_task(
        loss=lambda p, d, e, key: (p["w"] ** 2 * e.size, jnp.float32(e.size)),
        validation=Evaluation(
            lambda p, d, e: ((p["w"] - 2) ** 2 * e.size, jnp.float32(e.size)),
            jnp.zeros(1),
            jnp.zeros((1, 8), jnp.int32),
        ),
        final={
            "w": Evaluation(
                lambda p, d, e: (p["w"] * e.size, jnp.float32(e.size)),
                jnp.zeros(1),
                jnp.zeros((1, 8), jnp.int32),
            )
        },
    )
    result, directory = run(tmp_path, task, epochs=50, patience=3)
    ws = 5.0 * (1 - 2 * RATE) ** (3 * np.arange(1, 51))
    best = int(np.argmin((ws - 2) ** 2))
    assert result["best_epoch"] == best + 1
    assert result["epochs"] == best + 1 + 3 == len(directory.history())
    np.testing.assert_allclose(result["w_loss"], ws[best], rtol=1e-5)
    np.testing.assert_allclose(result["validation_loss"], (ws[best] - 2) ** 2, rtol=1e-4)


def test_a_finished_run_is_not_run_again(tmp_path):
    result, _ = run(tmp_path, make_task())
    broken = make_task(init=lambda key: pytest.fail("trained again"))
    again, _ = run(tmp_path, broken)
    assert again == json.loads(json.dumps(result))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    task = make_task(optimizer=optax.sgd(1e30))
    with pytest.raises(FloatingPointError, match="steps"):
        run(tmp_path, task, epochs=50)
    assert not (tmp_path / "run" / "result.json").exists()


def test_replicate_and_shard():
    devices = jax.local_device_count()
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.int32(4)}
    back = parallel.unreplicate(parallel.replicate(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    rows = np.arange(2 * 2 * devices).reshape(2, 2 * devices)
    parts = parallel.shard(jnp.asarray(rows))
    np.testing.assert_array_equal(np.concatenate(list(parts), axis=1), rows)
    padded = parallel.shard(jnp.asarray(rows[:, :-1]), pad=True)
    wanted = np.append(rows[:, :-1], [[-1], [-1]], axis=1)
    np.testing.assert_array_equal(np.concatenate(list(padded), axis=1), wanted)
    parallel.check_divides(2 * devices)
    with pytest.raises(ValueError, match=f"{devices + 1} does not divide"):
        parallel.check_divides(devices + 1)


def test_gradient_weighs_devices_by_their_counts():
    devices = jax.local_device_count()
    task = make_task()
    step = parallel.train_steps(lambda p, d, e, key: squares(p, d, e), task.optimizer)
    state = parallel.replicate(TrainState.create({"w": jnp.full((), 5.0)}, task.optimizer))
    row = np.full((1, 2 * devices), -1, np.int32)
    row[0, :3] = (4, 5, 7)  # the other devices have nothing that counts
    rows = parallel.shard(jnp.asarray(row))
    data = parallel.replicate(task.data)
    state, total, count = step(state, data, rows, 0, 1, jax.random.key(0))
    weights, target = np.array([2, 3, 2]), np.asarray(task.data)[[4, 5, 7]]
    assert float(count[0]) == weights.sum()
    np.testing.assert_allclose(total[0], np.sum(weights * (5 - target) ** 2), rtol=1e-6)
    gradient = np.sum(weights * 2 * (5 - target)) / weights.sum()
    np.testing.assert_allclose(state.params["w"], 5 - RATE * gradient, rtol=1e-6)


def test_log_forgets_what_comes_after_the_checkpoint(tmp_path):
    directory = RunDirectory(tmp_path / "run", {"seed": 0})
    directory.begin()
    lines = [json.dumps({"epoch": n, "step": 10 * n}) + "\n" for n in (1, 2, 3)]
    directory.metrics_file.write_text("".join(lines) + '{"epoch": 4, "st')
    log = MetricLog(directory, last_step=20)
    log.append({"epoch": 3, "step": 30, "train_loss": 1.0})
    log.close()
    assert [entry["step"] for entry in directory.history()] == [10, 20, 30]
    assert directory.history()[-1]["train_loss"] == 1.0


@pytest.mark.parametrize(
    "changes", [{"epochs": 0}, {"batch_size": 0}, {"seed": -1}, {"checkpoint_seconds": -1.0}]
)
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        RunConfig(**changes)
