"""The state of a model, which goes from step to step beside the parameters."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.training import AXIS, Evaluation, RunConfig, RunDirectory, Task, fit, loop

pytestmark = pytest.mark.usefixtures("standard_promotion")
BATCH = 8
STEPS = 4
EPOCHS = 3
DATA = np.linspace(0.2, 1.2, 16, dtype=np.float32)
CONFIG = RunConfig(epochs=EPOCHS, batch_size=BATCH, steps_per_call=3, checkpoint_minutes=1000)


def leaky_sums():
    """Each example adds to a leaky sum of its own, which goes on in the example's next batch.

    After an epoch the sums move on by one place, and the parameter loses a part of the figure.
    """

    def loss(params, model_state, batch, key):
        examples, weights = batch.take()
        first = jax.lax.axis_index(AXIS) * len(weights)
        sums = jax.lax.dynamic_slice_in_dim(model_state["sums"], first, len(weights))
        sums = 0.5 * sums + params["x"] * examples
        total = jnp.sum((sums - 1) ** 2)
        gathered = jax.lax.all_gather(sums, AXIS, tiled=True)
        return (total, jnp.sum(weights)), {"sums": gathered}

    def validation(params, model_state, batch):
        count = len(batch.indices)
        seen = {"cost": params["x"] ** 2 * count, "sums": jnp.sum(model_state["sums"]) * count}
        return seen, jnp.float32(count)

    def end_epoch(state, metrics, key):
        x = state.params["x"] - 0.01 * metrics["cost"] + 0.1 * jax.random.normal(key)
        sums = jnp.roll(state.model_state["sums"], 1)
        return state._replace(params={"x": x}, model_state={"sums": sums})

    rows = np.zeros((1, BATCH), np.int32)
    return Task(
        name="leaky sums",
        init=lambda key: {"x": jnp.ones(())},
        optimizer=optax.sgd(0.1),
        loss=loss,
        data=DATA,
        epoch_indices=lambda key: jax.random.randint(key, (STEPS, BATCH), 0, len(DATA)),
        metric="cost",
        validation=Evaluation(validation, np.zeros(1), rows),
        test_evaluations={"test": Evaluation(validation, np.zeros(1), rows)},
        model_state=lambda params: {"sums": jnp.full(BATCH, params["x"])},
        end_epoch=end_epoch,
    )


def by_hand(seed):
    """The validation's metrics by epoch, cost and sum of the model state, in float64."""
    key = jax.random.fold_in(jax.random.key(seed), 1)  # the stream of data
    x, sums, metrics = 1.0, np.ones(BATCH), []
    for epoch in range(EPOCHS):
        plan = jax.random.randint(
            jax.random.fold_in(key, epoch), (STEPS, BATCH), 0, len(DATA), jnp.int32
        )
        for examples in np.asarray(plan):
            inputs = DATA[examples].astype(np.float64)
            sums = 0.5 * sums + x * inputs
            x -= 0.1 * np.mean(2 * (sums - 1) * inputs)
        metrics.append((x**2, sums.sum()))
        end = jax.random.fold_in(jax.random.key(seed), 3)  # the stream of what ends epochs
        x += 0.1 * float(jax.random.normal(jax.random.fold_in(end, epoch + 1))) - 0.01 * x**2
        sums = np.roll(sums, 1)
    return metrics


def metrics(path, seed=None):
    entries = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    wanted = [e for e in entries if e.get("seed") == seed]
    return [(e["validation_cost"], e["validation_sums"]) for e in wanted]


def run(path, config=CONFIG):
    return fit(leaky_sums(), config, RunDirectory(path, config.identity()))


def test_it_goes_through_a_run(tmp_path):
    result = run(tmp_path)
    np.testing.assert_allclose(metrics(tmp_path), by_hand(0), rtol=1e-5)
    # Kept with the best parameters: the test is made with both of that epoch.
    _, sums = by_hand(0)[result["best_epoch"] - 1]
    np.testing.assert_allclose(result["test_sums"], sums, rtol=1e-5)


@pytest.mark.parametrize("seeds", [2, jax.local_device_count()])
def test_each_seed_has_its_own(seeds, tmp_path):
    run(tmp_path, RunConfig(epochs=EPOCHS, batch_size=BATCH, num_seeds=seeds))
    for seed in range(seeds):
        np.testing.assert_allclose(metrics(tmp_path, seed), by_hand(seed), rtol=1e-5)


@pytest.mark.parametrize("calls", [pytest.param(3, marks=pytest.mark.slow), 4])
def test_it_is_kept_in_checkpoints(calls, tmp_path, monkeypatch):
    """Cut off in an epoch, and between two."""
    steps = loop.parallel.train_steps

    def cut(*args, **kwargs):
        train, left = steps(*args, **kwargs), iter(range(calls))

        def call(*args):
            if next(left, None) is None:
                raise ZeroDivisionError
            return train(*args)

        return call

    config = RunConfig(epochs=EPOCHS, batch_size=BATCH, steps_per_call=3, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(loop.parallel, "train_steps", cut)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "cut", config)
    run(tmp_path / "cut", config)
    run(tmp_path / "whole", config)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
