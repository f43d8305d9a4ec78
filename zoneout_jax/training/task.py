"""What training must know of an experiment."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training.parallel import EvaluationLoss, Loss
from zoneout_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A metric to measure.

    Attributes:
      loss: `loss(params, model_state, batch) -> (total, count)` over one device's part of a batch
        (see `Batch`). The total may be a dict of totals, one of them of the task's metric.
      data: arrays, copied to every device.
      rows: indices of the examples `[rows, batch, …]`, each row spread over the devices. Where a
        batch does not divide by them it is filled up with −1, which the loss must not count.
    """

    loss: EvaluationLoss
    data: Any
    rows: Any

    def __post_init__(self) -> None:
        check_indices(self.rows, self.data, "an evaluation")


def check_indices(indices: Any, data: Any, what: str) -> None:
    """Raises ValueError where indices are past the end of the data: JAX would take its last item.

    Args:
      indices: arrays of integers.
      data: arrays; the shortest counts, none has no end.
      what: whose indices they are.
    """
    sizes = [len(array) for array in jax.tree.leaves(data)]
    last = max((int(np.max(array, initial=-1)) for array in jax.tree.leaves(indices)), default=-1)
    if sizes and last >= min(sizes):
        raise ValueError(f"{what} asks for example {last}, but the data ends with {min(sizes) - 1}")


@dataclasses.dataclass(frozen=True)
class Task:
    """What `fit` must know of an experiment.

    Attributes:
      name: what to call the run in its output.
      init: `init(key) -> params`.
      optimizer: an optax optimizer.
      loss: `loss(params, model_state, batch, key) -> ((total, count), model_state)` over one
        device's part of a batch (see `Batch`). It runs inside the mapped axis `AXIS`, over which
        the batch is spread; the model state it returns must be the same on every device.
      data: training arrays, copied to every device.
      epoch_indices: `epoch_indices(key) -> rows`, the indices `[steps, batch, …]` of an epoch.
      metric: name of the mean loss, such as `bpc`; lower is better.
      to_metric: turns a mean loss into the metric.
      validation: measured after each epoch; chooses the parameters and the end.
      monitor: name of the validation's total that does so, if it is not the metric.
      test_evaluations: measured once, with the best parameters, by name.
      model_state: `model_state(params)`, a dict, before the first step: what is neither trained nor
        data. The rates of a sweep join it as `rates`, and the loss reads them there.
      calibration: an estimate of entries of the model's state before each evaluation, Σ total /
        Σ count; the total is a dict.
      end_epoch: `end_epoch(state, metrics, key) -> state`, a change of the `TrainState` after an
        epoch, given the validation's metrics by name and a key of the epoch. Compiled.
      describe: `describe(params, model_state) -> text`, what to tell people now and then, and at
        the end.
      data_sha256: of the data, as `Corpus.sha256`: a run does not go on with others.
      metadata: what else to keep beside the result, such as sizes of the data.
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
        """Steps of an epoch.

        Raises:
          ValueError: there are none, or the indices have no axis of the batch.
        """
        shape = jax.tree.leaves(jax.eval_shape(self.epoch_indices, jax.random.key(0)))[0].shape
        if len(shape) < 2 or not shape[0]:
            raise ValueError(f"epoch_indices must be [steps, batch, …], got {list(shape)}")
        return shape[0]

    def identity(self) -> dict[str, str]:
        """The data, and types and shapes of all that is trained or carried, by name."""
        state = jax.eval_shape(self.first_state, jax.random.key(0))
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        found = {jax.tree_util.keystr(at): f"{x.dtype}{list(x.shape)}" for at, x in leaves}
        return ({"data": self.data_sha256} if self.data_sha256 else {}) | found

    def first_state(self, key: jax.Array, rates: Mapping[str, float] | None = None) -> TrainState:
        """The state before the first step.

        Args:
          key: of the parameters.
          rates: those of a sweep by name, which the model's state holds as `rates`.
        """
        params = self.init(key)
        model_state = dict(self.model_state(params))
        if rates:
            model_state["rates"] = {name: jnp.float32(rate) for name, rate in rates.items()}
        return TrainState.create(params, self.optimizer, model_state)
