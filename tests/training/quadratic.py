"""A task of a single number, which takes no network, and runs of it that are cut off."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training import Evaluation, RunConfig, RunDirectory, Task, fit, loop
from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.state import TrainState

DEVICES = jax.local_device_count()
STEPS = 5
CONFIG = RunConfig(
    epochs=6, patience=10, batch_size=DEVICES, steps_per_call=2, checkpoint_minutes=1000
)
TIMED = {"seconds", "steps_per_second", "peak_memory_bytes", "resumed"}


def towards(target, steepness=1.0):
    """Squared distance of the parameter to a number, for each example."""

    def sums(params, batch, noise=0.0):
        counted = jnp.sum((batch.indices >= 0).astype(jnp.float32))
        return steepness * counted * (params["x"] - target - noise) ** 2, counted

    def loss(params, model_state, batch, *key):
        if not key:
            return sums(params, batch)
        return sums(params, batch, 0.1 * jax.random.normal(*key)), model_state

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
        epoch_indices=lambda key: jax.random.randint(key, (STEPS, DEVICES), 0, 4),
        metric="cost",
        to_metric=lambda loss: 100 * loss,
        validation=Evaluation(towards(validation_target), np.zeros(1), rows),
        test_evaluations={"test": Evaluation(towards(0.0), np.zeros(1), rows)},
        metadata={"corpus": "none", "sizes": {"train": 4}},
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


def last_checkpoint(path, task, seeds=1):
    """Arrays and progress of a run's last checkpoint, for one seed without the axis of seeds."""
    state = TrainState.create(task.init(jax.random.key(0)), task.optimizer)
    like = jax.tree.map(
        lambda x: np.stack([np.asarray(x)] * seeds), (state, state.for_evaluation())
    )
    checkpoints = Checkpoints(path / "checkpoints")
    (state, best), progress = checkpoints.restore(like, print)
    checkpoints.close()
    state = TrainState(*state)._asdict()
    return jax.tree.map(lambda x: x[0] if seeds == 1 else x, (state, best[0])), progress
