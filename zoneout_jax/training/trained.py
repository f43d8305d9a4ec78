"""Trained parameters of a run, read from its directory."""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.config import RunConfig
from zoneout_jax.training.run_directory import check_task
from zoneout_jax.training.state import TrainState
from zoneout_jax.training.sweep import rates_of
from zoneout_jax.training.task import Task


class Trained(NamedTuple):
    """Parameters of a run, with the model state.

    Attributes:
      last: `(params, model_state)` of the last checkpoint.
      best: the same of the best validation so far; before any validation, the initial values.
    """

    last: tuple[Any, Any]
    best: tuple[Any, Any]


def read_trained(task: Task, config: RunConfig, path: pathlib.Path, number: int = 0) -> Trained:
    """Reads parameters from the last checkpoint of a run, which may still be training.

    Args:
      task: the task that the run trains.
      config: settings of the run.
      path: directory of the run.
      number: which of its models to read, from 0.

    Raises:
      ValueError: there is no checkpoint, or no such model.
      RunError: no checkpoint can be read, or the run has another model or other data.
    """
    models = config.members
    if not 0 <= number < len(models):
        raise ValueError(f"the run has {len(models)} models, numbered from 0, got {number}")
    check_task(path, task.identity())
    folder = path / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
    if checkpoints is None or checkpoints.latest is None:
        raise ValueError(f"{path} holds no checkpoint; train a run in it first")
    state = jax.eval_shape(
        lambda key: task.initial_state(key, rates_of(models[0])), jax.random.key(0)
    )
    like = jax.tree.map(
        lambda a: jnp.zeros((len(models), *a.shape), a.dtype), (state, state.for_evaluation())
    )
    try:
        (state, best), _ = checkpoints.restore(like, lambda words: print(words, file=sys.stderr))
    finally:
        checkpoints.close()
    trained = Trained(TrainState(*state).for_evaluation(), tuple(best))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), trained)
