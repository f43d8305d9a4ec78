"""What training must know of an experiment."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from zoneout_jax.training.parallel import Loss
from zoneout_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A figure to measure.

    Attributes:
      loss: `loss(params, data, examples) -> (total, count)` over one device's examples. The total
        may be a dict of totals, one of them of the task's metric.
      data: arrays, copied to every device.
      rows: examples `[rows, batch, …]`, each row spread over the devices. Where a batch does not
        divide by them it is filled up with -1, which the loss must not count.
    """

    loss: Loss
    data: Any
    rows: Any


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is estimated over data before every evaluation, such as population statistics.

    Attributes:
      sums: as the loss of an `Evaluation`, with any tree of arrays as the total.
      data, rows: as in `Evaluation`.
      apply: `apply(params, means) -> params`, with the tree of Σ total / Σ count.
    """

    sums: Callable[..., Any]
    data: Any
    rows: Any
    apply: Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """What `fit` must know of an experiment.

    Attributes:
      name: what to call the run in its output.
      init: `init(key) -> params`.
      optimizer: an optax optimizer.
      loss: `loss(params, data, examples, key) -> (total, count)` over one device's examples; with
        a memory `loss(params, data, examples, key, memory) -> (total, count, memory)`.
      data: training arrays, copied to every device.
      plan: `plan(key) -> rows`, the examples `[steps_per_epoch, batch, …]` of an epoch.
      steps_per_epoch: rows of a plan.
      metric: name of the figure, such as `bpc`; lower is better.
      figure: turns a mean loss into that figure.
      validation: measured after each epoch; chooses the parameters and the end.
      chosen_by: name of the validation's total that does so, if it is not the metric.
      calibration: done before each evaluation; the parameters kept are those that it gives.
      memory: `memory(params)`, what the first step of all is handed as memory; what each returns,
        the same on every device, is handed to the next.
      end_epoch: `end_epoch(state, figures, key) -> state`, a change of the `TrainState` after an
        epoch, given the validation's figures by name and a key of the epoch. Compiled.
      show: `show(params) -> text`, what to tell people now and then, and at the end.
      final: measured once, with the best parameters, by name.
      facts: what else to keep beside the result, such as sizes of the data.
    """

    name: str
    init: Callable[[jax.Array], Any]
    optimizer: optax.GradientTransformation
    loss: Loss
    data: Any
    plan: Callable[[jax.Array], Any]
    steps_per_epoch: int
    metric: str
    figure: Callable[[float], float]
    validation: Evaluation
    final: Mapping[str, Evaluation]
    chosen_by: str | None = None
    calibration: Calibration | None = None
    memory: Callable[[Any], Any] | None = None
    end_epoch: Callable[[TrainState, Mapping[str, jax.Array], jax.Array], TrainState] | None = None
    show: Callable[[Any], str] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def first_state(self, key: jax.Array) -> TrainState:
        """The state before the first step, with parameters from a key."""
        params = self.init(key)
        memory = self.memory(params) if self.memory else None
        return TrainState.create(params, self.optimizer, memory)
