"""State that training carries from step to step, and streams of random keys."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: number of steps done so far, an int32 scalar.
      params: parameters of the model.
      opt_state: state of the optimizer.
      model_state: values that are neither trained nor data, such as population statistics, a
        carried state or the level of a curriculum; the same on every device.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    model_state: Any = None

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, model_state: Any = None
    ) -> "TrainState":
        """Returns the state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), model_state)

    def for_evaluation(self) -> tuple[Any, Any]:
        """Returns what evaluations read: parameters and model state."""
        return self.params, self.model_state


class Streams(NamedTuple):
    """Random keys of the independent streams of a seed.

    Streams never advance: step (or epoch) t draws from `fold_in(stream, t)`, so a run needs only
    its seed and its step to resume.
    """

    init: jax.Array
    data: jax.Array
    noise: jax.Array
    epoch: jax.Array

    @classmethod
    def from_seed(cls, seed: int, impl: str = "threefry2x32") -> "Streams":
        """Makes the streams of a seed, with a generator that `jax.random.key` knows."""
        root = jax.random.key(seed, impl=impl)
        return cls(*(jax.random.fold_in(root, number) for number in range(4)))


@dataclasses.dataclass
class RunProgress:
    """What a checkpoint holds next to arrays; lists have an item for each seed.

    Attributes:
      step: number of steps done.
      epoch_totals, epoch_counts: sums of the training loss in the current epoch.
      skipped: number of its steps that were skipped because loss or gradient was not finite.
      epoch_seconds, checkpoint_seconds: time spent on its training and on its checkpoints.
      best, best_epoch, best_metrics: least monitored metric, its epoch, and all metrics there.
      history, times: entries of the logs.
      seconds: time spent in earlier epochs.
      resumed: number of times that the run was resumed.
    """

    epoch_totals: list[float]
    epoch_counts: list[float]
    skipped: list[int]
    best: list[float]
    best_epoch: list[int]
    best_metrics: list[dict[str, float]]
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    times: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    step: int = 0
    epoch_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    seconds: float = 0.0
    resumed: int = 0

    @classmethod
    def begin(cls, seeds: int) -> "RunProgress":
        """Returns the progress before the first step."""
        return cls(
            epoch_totals=[0.0] * seeds,
            epoch_counts=[0.0] * seeds,
            skipped=[0] * seeds,
            best=[math.inf] * seeds,
            best_epoch=[0] * seeds,
            best_metrics=[{} for _ in range(seeds)],
        )

    def begin_epoch(self) -> None:
        """Resets the sums and times for a new epoch."""
        seeds = len(self.best)
        self.epoch_totals, self.epoch_counts = [0.0] * seeds, [0.0] * seeds
        self.skipped = [0] * seeds
        self.epoch_seconds = self.checkpoint_seconds = 0.0
