"""What training hands from step to step, and from epoch to epoch, beside the parameters."""

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

    def loss(params, data, examples, key, memory):
        first = jax.lax.axis_index(AXIS) * len(examples)
        sums = jax.lax.dynamic_slice_in_dim(memory["sums"], first, len(examples))
        sums = 0.5 * sums + params["x"] * data[examples]
        total = jnp.sum((sums - 1) ** 2)
        gathered = jax.lax.all_gather(sums, AXIS, tiled=True)
        return total, jnp.float32(len(examples)), {"sums": gathered}

    def validation(params, data, examples):
        return params["x"] ** 2 * len(examples), jnp.float32(len(examples))

    def end_epoch(state, figures, key):
        x = state.params["x"] - 0.01 * figures["cost"] + 0.1 * jax.random.normal(key)
        return state._replace(params={"x": x}, memory={"sums": jnp.roll(state.memory["sums"], 1)})

    rows = np.zeros((1, BATCH), np.int32)
    return Task(
        name="leaky sums",
        init=lambda key: {"x": jnp.ones(())},
        optimizer=optax.sgd(0.1),
        loss=loss,
        data=DATA,
        plan=lambda key: jax.random.randint(key, (STEPS, BATCH), 0, len(DATA)),
        steps_per_epoch=STEPS,
        metric="cost",
        figure=lambda mean: mean,
        validation=Evaluation(validation, np.zeros(1), rows),
        final={},
        memory=lambda params: {"sums": jnp.full(BATCH, params["x"])},
        end_epoch=end_epoch,
    )


def by_hand(seed):
    """The validation figures, from a loop in float64."""
    key = jax.random.fold_in(jax.random.key(seed), 1)  # the stream of data
    x, sums, figures = 1.0, np.ones(BATCH), []
    for epoch in range(EPOCHS):
        plan = jax.random.randint(
            jax.random.fold_in(key, epoch), (STEPS, BATCH), 0, len(DATA), jnp.int32
        )
        for examples in np.asarray(plan):
            inputs = DATA[examples].astype(np.float64)
            sums = 0.5 * sums + x * inputs
            x -= 0.1 * np.mean(2 * (sums - 1) * inputs)
        figures.append(x**2)
        end = jax.random.fold_in(jax.random.key(seed), 3)  # the stream of what ends epochs
        x += 0.1 * float(jax.random.normal(jax.random.fold_in(end, epoch + 1))) - 0.01 * x**2
        sums = np.roll(sums, 1)
    return figures


def figures(path, seed=None):
    entries = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [e["validation_cost"] for e in entries if e.get("seed") == seed]


def run(path, config=CONFIG):
    return fit(leaky_sums(), config, RunDirectory(path, config.identity()))


def test_a_memory_goes_through_a_run(tmp_path):
    run(tmp_path)
    np.testing.assert_allclose(figures(tmp_path), by_hand(0), rtol=1e-5)


@pytest.mark.parametrize("seeds", [2, jax.local_device_count()])
def test_each_seed_has_its_own(seeds, tmp_path):
    run(tmp_path, RunConfig(epochs=EPOCHS, batch_size=BATCH, num_seeds=seeds))
    for seed in range(seeds):
        np.testing.assert_allclose(figures(tmp_path, seed), by_hand(seed), rtol=1e-5)


@pytest.mark.parametrize("calls", [3, 4])
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
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
