"""What a run has learned, read from its directory."""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.state import TrainState
from zoneout_jax.training.task import Task


class Trained(NamedTuple):
    """Parameters of a run.

    Attributes:
      last: after the last step that was saved.
      best: of the best validation so far; at first those before the first step.
    """

    last: Any
    best: Any


def read_trained(task: Task, path: pathlib.Path, num_seeds: int = 1, number: int = 0) -> Trained:
    """Reads parameters from the last checkpoint of a run, which may still be going on.

    Args:
      task: what the run trains.
      path: its directory.
      num_seeds: seeds that it trains at once.
      number: which of them, from 0.

    Raises:
      ValueError: there is no checkpoint, or no such seed.
      RunError: no checkpoint can be read.
    """
    if not 0 <= number < num_seeds:
        raise ValueError(f"the run has {num_seeds} seeds, from number 0 on, got {number}")
    folder = path / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True) if folder.is_dir() else None
    if checkpoints is None or checkpoints.latest is None:
        raise ValueError(f"{path} holds no checkpoint; train first, with --workdir={path}")
    state = jax.eval_shape(task.first_state, jax.random.key(0))
    like = jax.tree.map(lambda a: jnp.zeros((num_seeds, *a.shape), a.dtype), (state, state.params))
    try:
        (state, best), _ = checkpoints.restore(like, lambda words: print(words, file=sys.stderr))
    finally:
        checkpoints.close()
    trained = Trained(TrainState(*state).params, best)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[number]), trained)
