"""Layer normalization and recurrent batch normalization.

Ba et al., "Layer Normalization" (arXiv:1607.06450), section 3.1; Cooijmans et al., "Recurrent Batch
Normalization" (arXiv:1603.09025), section 3.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

Stats = dict[str, jax.Array]

AxisName = str | tuple[str, ...]

EPSILON = 1e-5


def layer_norm(parts: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    """Normalizes vectors that are given in parts, such as the gates `[B, H]` of a step.

    (x − mean) / √(var + ε), with mean and variance over all features of all parts, ε = 1e-5
    """
    count = sum(part.shape[-1] for part in parts)
    mean = sum(jnp.sum(part, -1, keepdims=True) for part in parts) / count
    parts = [part - mean for part in parts]
    variance = sum(jnp.sum(jnp.square(part), -1, keepdims=True) for part in parts) / count
    return tuple(part * jax.lax.rsqrt(variance + EPSILON) for part in parts)


def init_stats(sizes: Mapping[str, int], max_steps: int, dtype: Any = jnp.float32) -> Stats:
    """Returns initial population statistics: means 0 and variances 1, `[max_steps, size]`."""
    stats = {}
    for name, size in sizes.items():
        stats[f"{name}_mean"] = jnp.zeros((max_steps, size), dtype)
        stats[f"{name}_var"] = jnp.ones((max_steps, size), dtype)
    return stats


def update_stats(stats: Stats, batch_stats: Stats, rate: jax.Array | float = 0.01) -> Stats:
    """Moves population statistics towards the statistics of a batch.

        stats + rate · (batch_stats − stats)     for the steps that the batch has examples of

    With a rate of 1/n for the n-th batch, counted from one, the result is the average over batches.
    Steps after the last step of the population statistics are ignored.

    Args:
      stats: population statistics, each `[max_steps, size]`.
      batch_stats: statistics as `unroll` returns them in training: the same names, each
        `[T, size]`, with `step` and `count` `[T]`.
      rate: weight of the batch, in [0, 1].

    Example:
      >>> stats = {"cell_mean": jnp.zeros((3, 2))}
      >>> seen = {"cell_mean": jnp.ones((1, 2)), "step": jnp.array([0]), "count": jnp.array([9])}
      >>> update_stats(stats, seen, rate=0.5)["cell_mean"][:, 0]
      Array([0.5, 0. , 0. ], dtype=float32)
    """
    steps, seen = batch_stats["step"], batch_stats["count"] > 0

    def move(population, batch):
        old = population.at[steps].get(mode="clip")
        weights = jnp.where(seen, jnp.asarray(rate, old.dtype), 0)[:, None]
        return population.at[steps].add(weights * (batch.astype(old.dtype) - old), mode="drop")

    return {name: move(population, batch_stats[name]) for name, population in stats.items()}


class BatchNormalizer:
    """Batch normalization of the quantities of a single step.

        (x − mean) / √(var + ε)     over the batch, for each unit; ε = 1e-5

    Statistics are summed in float32 or wider.

    Args:
      number: number of the step, a scalar.
      stats: population statistics to use; steps after the last use the last. None uses the batch's
        statistics, and `found` then returns them.
      valid: booleans `[B, 1]`, True for examples that count; None for all.
      axis_name: mapped axis that the batch is spread over.
    """

    def __init__(
        self,
        number: jax.Array,
        stats: Stats | None,
        valid: jax.Array | None = None,
        axis_name: AxisName | None = None,
    ):
        self._number, self._valid, self._axis_name = number, valid, axis_name
        self._stats = None
        if stats is not None:
            # Statistics are not parameters: no implementation of `unroll` gives them a gradient.
            stats = jax.lax.stop_gradient(stats)
            self._stats = {n: s[jnp.minimum(number, len(s) - 1)] for n, s in stats.items()}
        self._count: jax.Array | None = None
        self._found: Stats = {}

    def __call__(self, name: str, parts: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Normalizes a quantity that is given in parts of the same size, `[B, H]`."""
        if self._stats is not None:
            split = partial(jnp.split, indices_or_sections=len(parts))
            means, variances = (split(self._stats[f"{name}_{what}"]) for what in ("mean", "var"))
        else:
            means, variances = self._measure(parts)
            self._found[f"{name}_mean"] = jnp.concatenate(means)
            self._found[f"{name}_var"] = jnp.concatenate(variances)
        return tuple(
            ((_widen(x) - mean[None]) * jax.lax.rsqrt(var + EPSILON)[None]).astype(x.dtype)
            for x, mean, var in zip(parts, means, variances, strict=True)
        )

    def _measure(self, parts: Sequence[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        values = [_widen(part) for part in parts]
        if self._count is None:
            valid = jnp.ones((values[0].shape[0], 1)) if self._valid is None else self._valid
            self._count = self._sum([valid.astype(values[0].dtype)])[0, 0]
        count = jnp.maximum(self._count, 1)
        means = self._sum([self._counted(x) for x in values]) / count
        squares = [jnp.square(x - mean[None]) for x, mean in zip(values, means, strict=True)]
        variances = self._sum([self._counted(x) for x in squares]) / count
        return list(means), list(variances)

    def _counted(self, x: jax.Array) -> jax.Array:
        return x if self._valid is None else jnp.where(self._valid, x, 0)

    def _sum(self, arrays: list[jax.Array]) -> jax.Array:
        """Sums each array over the whole batch; devices exchange all sums at once."""
        totals = jnp.stack([jnp.sum(x, 0) for x in arrays])
        return totals if self._axis_name is None else jax.lax.psum(totals, self._axis_name)

    def found(self) -> Stats | None:
        """Returns the batch's statistics, `step` and `count`; None with population statistics."""
        if self._count is None:
            return None
        return self._found | {"step": self._number, "count": self._count}


def normalized(
    params: Mapping[str, Any],
    name: str,
    parts: Sequence[jax.Array],
    normalize: BatchNormalizer | None = None,
) -> tuple[jax.Array, ...]:
    """Computes γ∘N(x) of a quantity in parts of the same size, over features or by `normalize`."""
    parts = normalize(name, parts) if normalize else layer_norm(parts)
    gammas = jnp.split(params[f"{name}_gamma"], len(parts), -1)
    return tuple(gamma * part for gamma, part in zip(gammas, parts, strict=True))


def statistics_dtype(dtype: Any) -> Any:
    """Returns the type of the statistics of values of a type: float32 or wider."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def _widen(x: jax.Array) -> jax.Array:
    return x.astype(statistics_dtype(x.dtype))
