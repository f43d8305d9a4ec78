"""Layer normalization and recurrent batch normalization.

Ba et al., "Layer Normalization" (arXiv:1607.06450), section 3.1; Cooijmans et al., "Recurrent Batch
Normalization" (arXiv:1603.09025), section 3.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Stats = dict[str, jax.Array]

EPSILON = 1e-5


def layer_norm(parts: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Normalizes a vector that is given in parts, such as the gates `[B, H]` of a step.

    (x − mean) / √(var + ε), with mean and variance over all features of all parts, ε = 1e-5
    """
    count = sum(part.shape[-1] for part in parts)
    mean = sum(jnp.sum(part, -1, keepdims=True) for part in parts) / count
    parts = [part - mean for part in parts]
    variance = sum(jnp.sum(jnp.square(part), -1, keepdims=True) for part in parts) / count
    return tuple(part * jax.lax.rsqrt(variance + EPSILON) for part in parts)


def init_stats(max_steps: int, rows: int, features: int, dtype: Any = jnp.float32) -> Stats:
    """Population statistics at the start: means `[max_steps, rows, H]` of 0, variances of 1."""
    shape = (max_steps, rows, features)
    return {"mean": jnp.zeros(shape, dtype), "var": jnp.ones(shape, dtype)}


def update_stats(stats: Stats, batch_stats: Stats, rate: jax.Array | float = 0.01) -> Stats:
    """Moves population statistics towards those of a batch.

        stats + rate · (batch_stats − stats)     for the steps that the batch has examples of

    With a rate of 1/n for the n-th batch, counted from one, they are the average over batches.
    Steps beyond the population's last are left out.

    Args:
      stats: `mean` and `var` of the population, `[max_steps, rows, H]`.
      batch_stats: as `unroll` returns them in training: `mean` and `var` `[T, rows, H]`, `step` and
        `count` `[T]`.
      rate: weight of the batch, in [0, 1].

    Example:
      >>> stats = init_stats(max_steps=3, rows=1, features=2)
      >>> seen = {"mean": jnp.ones((1, 1, 2)), "var": jnp.zeros((1, 1, 2))}
      >>> seen |= {"step": jnp.zeros(1), "count": jnp.full(1, 32.0)}
      >>> update_stats(stats, seen, rate=0.5)["mean"][:, 0, 0]
      Array([0.5, 0. , 0. ], dtype=float32)
    """
    steps = batch_stats["step"].astype(jnp.int32)
    weights = jnp.where(batch_stats["count"] > 0, jnp.asarray(rate, jnp.float32), 0.0)

    def move(population, batch):
        old = population.at[steps].get(mode="clip")
        change = weights[:, None, None].astype(old.dtype) * (batch.astype(old.dtype) - old)
        return population.at[steps].add(change, mode="drop")

    return {name: move(stats[name], batch_stats[name]) for name in ("mean", "var")}


class BatchNormalizer:
    """Batch normalization of the quantities of a single step.

        (x − mean) / √(var + ε)     over the batch, for each row (quantity) and unit; ε = 1e-5

    Statistics are summed in float32 or wider.

    Args:
      step: number of the step, a scalar.
      stats: population statistics to use (those of the last step, for steps beyond it); None for
        those of the batch, which are then kept.
      valid: booleans `[B, 1]`: the examples that count; None for all.
      axis_name: mapped axis over which the batch is spread.
    """

    def __init__(
        self,
        step: jax.Array,
        stats: Stats | None,
        valid: jax.Array | None = None,
        axis_name: str | None = None,
    ):
        self._step, self._valid, self._axis_name = step, valid, axis_name
        self._population: Stats | None = None
        self._count: jax.Array | None = None
        if stats is not None:
            last = stats["mean"].shape[0] - 1
            index = jnp.minimum(step, last).astype(jnp.int32)
            # They are no parameters: neither way of running over time has a gradient of them.
            stats = jax.lax.stop_gradient(stats)
            self._population = {name: stats[name][index] for name in ("mean", "var")}
        self._rows: dict[int, tuple[jax.Array, jax.Array]] = {}

    def __call__(self, row: int, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Normalizes the quantities `[B, H]` of the rows from `row` on."""
        if self._population is not None:
            stats = self._population
            rows = [(stats["mean"][row + k], stats["var"][row + k]) for k in range(len(values))]
        else:
            rows = self._measure(values)
            self._rows |= {row + k: found for k, found in enumerate(rows)}
        return tuple(
            ((_widen(x) - mean) * jax.lax.rsqrt(var + EPSILON)).astype(x.dtype)
            for x, (mean, var) in zip(values, rows, strict=True)
        )

    def _measure(self, values: tuple[jax.Array, ...]) -> list[tuple[jax.Array, jax.Array]]:
        values = tuple(map(_widen, values))
        if self._count is None:
            batch = values[0].shape[0]
            valid = jnp.ones(batch) if self._valid is None else self._valid[:, 0]
            self._count = self._sum([valid.astype(values[0].dtype)])[0]
        count = jnp.maximum(self._count, 1)
        means = self._sum([self._counted(x) for x in values]) / count
        squares = [jnp.square(x - mean) for x, mean in zip(values, means, strict=True)]
        variances = self._sum([self._counted(x) for x in squares]) / count
        return list(zip(means, variances, strict=True))

    def _counted(self, x: jax.Array) -> jax.Array:
        return x if self._valid is None else jnp.where(self._valid, x, 0)

    def _sum(self, arrays: list[jax.Array]) -> jax.Array:
        """The sum of each over the whole batch; devices exchange all sums together."""
        totals = jnp.stack([jnp.sum(x, 0) for x in arrays])
        return totals if self._axis_name is None else jax.lax.psum(totals, self._axis_name)

    def found(self) -> Stats | None:
        """Statistics of the batch: `mean` and `var` `[rows, H]`, `step` and `count` scalars."""
        if self._count is None:
            return None
        rows = [self._rows[row] for row in sorted(self._rows)]
        means, variances = (jnp.stack(values) for values in zip(*rows, strict=True))
        return {"mean": means, "var": variances, "step": self._step, "count": self._count}


def statistics_dtype(dtype: Any) -> Any:
    """The type of statistics of values of a type: float32 or wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(statistics_dtype(x.dtype))
