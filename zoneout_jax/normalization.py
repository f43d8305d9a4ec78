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
        change = weights[:, None, None].astype(old.dtype) * (batch - old)
        return population.at[steps].add(change, mode="drop")

    return {name: move(stats[name], batch_stats[name]) for name in ("mean", "var")}


class BatchNormalizer:
    """Batch normalization of the quantities of a single step.

        (x − mean) / √(var + ε)     over the batch, for each row (quantity) and unit; ε = 1e-5

    Args:
      step: number of the step, a scalar.
      stats: population statistics to use (those of the last step, for steps beyond it); None for
        those of the batch, which are then kept.
      valid: booleans `[B, 1]`: the examples that count; None for all.
      axis_name: mapped axis over which the batch is spread.
    """

    def __init__(self, step, stats: Stats | None, valid=None, axis_name: str | None = None):
        self._step, self._valid, self._axis_name = step, valid, axis_name
        self._population = None
        if stats is not None:
            last = stats["mean"].shape[0] - 1
            index = jnp.minimum(step, last).astype(jnp.int32)
            self._population = {name: stats[name][index] for name in ("mean", "var")}
        self._rows: dict[int, tuple[jax.Array, jax.Array]] = {}
        self._count = jnp.zeros(())

    def __call__(self, row: int, x: jax.Array) -> jax.Array:
        """Normalizes the quantity `x` `[B, H]` of a row."""
        if self._population is not None:
            mean, variance = (self._population[name][row] for name in ("mean", "var"))
        else:
            valid = jnp.ones((x.shape[0], 1), bool) if self._valid is None else self._valid
            self._count = self._sum(valid.astype(x.dtype))[0]
            count = jnp.maximum(self._count, 1)
            mean = self._sum(jnp.where(valid, x, 0)) / count
            variance = self._sum(jnp.where(valid, jnp.square(x - mean), 0)) / count
            self._rows[row] = mean, variance
        return (x - mean) * jax.lax.rsqrt(variance + EPSILON)

    def _sum(self, x: jax.Array) -> jax.Array:
        total = jnp.sum(x, 0)
        return total if self._axis_name is None else jax.lax.psum(total, self._axis_name)

    def found(self) -> Stats | None:
        """Statistics of the batch: `mean` and `var` `[rows, H]`, `step` and `count` scalars."""
        if not self._rows:
            return None
        rows = [self._rows[row] for row in sorted(self._rows)]
        means, variances = (jnp.stack(values) for values in zip(*rows, strict=True))
        return {"mean": means, "var": variances, "step": self._step, "count": self._count}
