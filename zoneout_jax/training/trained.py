"""What a run has learned, read from its directory."""

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
    """Parameters of a run, each with the model's state.

    Attributes:
      last: `(params, model_state)` after the last step that was saved.
      best: those of the best validation so far; at first those before the first step.
    """

    last: tuple[Any, Any]
    best: tuple[Any, Any]


def read_trained(task: Task, config: RunConfig, path: pathlib.Path, number: int = 0) -> Trained:
    """Reads parameters from the last checkpoint of a run, which may still be going on.

    Args:
      task: what the run trains.
      config: its settings.
      path: its directory.
      number: which of the models that it trains at once, from 0.

    Raises:
      ValueError: there is no checkpoint, or no such model.
      RunError: no checkpoint can be read, or it is of another model or other data.
    """
    models = config.members
    if not 0 <= number < len(models):
        raise ValueError(f"the run has {len(models)} models, from number 0 on, got {number}")
    folder = path / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
    if checkpoints is None or checkpoints.latest is None:
        raise ValueError(f"{path} holds no checkpoint; train first, with --workdir={path}")
    check_task(path, task.identity())
    state = jax.eval_shape(
        lambda key: task.first_state(key, rates_of(models[0])), jax.random.key(0)
    )
    like = jax.tree.map(
        lambda a: jnp.zeros((len(models), *a.shape), a.dtype), (state, state.best())
    )
    try:
        (state, best), _ = checkpoints.restore(like, lambda words: print(words, file=sys.stderr))
    finally:
        checkpoints.close()
    trained = Trained(TrainState(*state).best(), tuple(best))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), trained)
