"""What training needs to know about an experiment."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training.checkpoint import digest
from zoneout_jax.training.parallel import EvaluationLoss, Loss
from zoneout_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A metric to measure.

    Attributes:
      loss: `loss(params, model_state, batch) -> (total, count)` over one device's part of a batch
        (see `Batch`). The total may be a dict of totals, one of them for the task's metric.
      data: arrays, copied to every device.
      rows: indices of the examples `[rows, batch, …]`; each row is split over the devices. Rows
        that cannot be split evenly are padded with −1, which the loss must not count.
    """

    loss: EvaluationLoss
    data: Any
    rows: Any

    def __post_init__(self) -> None:
        for rows in jax.tree.leaves(self.rows):
            if np.ndim(rows) < 2:
                raise ValueError(f"rows must have shape [rows, batch, …], got {np.shape(rows)}")
        check_indices(self.rows, self.data, "an evaluation")


def check_indices(indices: Any, data: Any, what: str) -> None:
    """Raises ValueError if an index is past the end of the data: JAX would take the last item.

    Args:
      indices: arrays of integers.
      data: arrays; the shortest one sets the limit, and without arrays there is none.
      what: where the indices come from, for the message.
    """
    sizes = [len(array) for array in jax.tree.leaves(data)]
    last = max((int(np.max(array, initial=-1)) for array in jax.tree.leaves(indices)), default=-1)
    if sizes and last >= min(sizes):
        raise ValueError(f"{what} asks for example {last}, but the data ends with {min(sizes) - 1}")


@dataclasses.dataclass(frozen=True)
class Task:
    """What `fit` needs to know about an experiment.

    Attributes:
      name: name of the run in its output.
      init: `init(key) -> params`.
      optimizer: an optax optimizer.
      loss: `loss(params, model_state, batch, key) -> ((total, count), model_state)` over one
        device's part of a batch (see `Batch`). It runs inside the mapped axis `AXIS`, over which
        the batch is split; the model state that it returns must be the same on every device.
      data: training arrays, copied to every device.
      epoch_indices: `epoch_indices(key) -> rows`, the indices `[steps, batch, …]` of an epoch.
      metric: name of the mean loss, such as `bpc`; lower is better.
      to_metric: turns a mean loss into the metric.
      validation: evaluation after each epoch; it decides the best parameters and the end.
      monitor: name of the validation total that decides instead of `metric`, if any.
      test_evaluations: evaluations by name, done once, with the best parameters.
      model_state: `model_state(params)`, a dict, before the first step: values that are neither
        trained nor data. It also gets the rates of a sweep as `rates`, where the loss reads them.
      calibration: estimates entries of the model state before each evaluation, as Σ total /
        Σ count; the total is a dict.
      end_epoch: `end_epoch(state, metrics, key) -> state`, compiled; changes the `TrainState` after
        an epoch, given the metrics of the validation by name and a random key of the epoch.
      describe: `describe(params, model_state) -> text`, printed from time to time and at the end.
      data_sha256: SHA-256 of the data, as `Corpus.sha256`; by default that of the arrays in `data`
        and `validation`. A run does not resume with other data.
      metadata: other entries of the result, such as sizes of the data.
    """

    name: str
    init: Callable[[jax.Array], Any]
    optimizer: optax.GradientTransformation
    loss: Loss
    data: Any
    epoch_indices: Callable[[jax.Array], Any]
    validation: Evaluation
    metric: str = "loss"
    to_metric: Callable[[float], float] = float
    monitor: str | None = None
    test_evaluations: Mapping[str, Evaluation] = dataclasses.field(default_factory=dict)
    model_state: Callable[[Any], Mapping[str, Any]] = lambda params: {}
    calibration: Evaluation | None = None
    end_epoch: Callable[[TrainState, Mapping[str, jax.Array], jax.Array], TrainState] | None = None
    describe: Callable[[Any, Any], str] | None = None
    data_sha256: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        """Number of steps in an epoch.

        Raises:
          ValueError: there are no steps, or the indices have no batch axis.
        """
        shape = jax.tree.leaves(jax.eval_shape(self.epoch_indices, jax.random.key(0)))[0].shape
        if len(shape) < 2 or not shape[0]:
            raise ValueError(f"epoch_indices must be [steps, batch, …], got {list(shape)}")
        return shape[0]

    def identity(self) -> dict[str, str]:
        """Returns the hash of the data, and types and shapes of all trained or carried arrays."""
        state = jax.eval_shape(self.initial_state, jax.random.key(0))
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        found = {jax.tree_util.keystr(at): f"{x.dtype}{list(x.shape)}" for at, x in leaves}
        sha256 = self.data_sha256 or digest((self.data, self.validation.data))
        return {"data": sha256} | found

    def initial_state(self, key: jax.Array, rates: Mapping[str, float] | None = None) -> TrainState:
        """Returns the state before the first step.

        Args:
          key: random key of the parameters.
          rates: rates of a sweep by name, which the model state holds as `rates`.
        """
        params = self.init(key)
        model_state = dict(self.model_state(params))
        if rates:
            model_state["rates"] = {name: jnp.float32(rate) for name, rate in rates.items()}
        return TrainState.create(params, self.optimizer, model_state)
