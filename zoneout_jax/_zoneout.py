"""Zoneout: units that keep their previous value, and how their masks are drawn.

Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", ICLR 2017
(arXiv:1606.01305), section 3.
"""

import dataclasses
import numbers
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zoneout_jax._threefry import normal, random_words

Rate = float | jax.Array | None | Callable[[Any], Any]

RATES = ("cells", "states", "update_drop", "hidden_drop")
KINDS = ("shared", "static", "per_layer", "gaussian")


def zoneout(previous: jax.Array, candidate: jax.Array, mask: ArrayLike | None) -> jax.Array:
    """Keeps the previous value where the mask says so.

        new = d ∘ previous + (1 − d) ∘ candidate

    Args:
      previous: values of the previous step, `[B, H]`.
      candidate: values that the cell computed, `[B, H]`.
      mask: d, which broadcasts against both: booleans (True keeps the previous value), real numbers
        (a rate, an expectation or a Gaussian draw), or None (no zoneout, d = 0).

    Returns:
      The new values, `[B, H]`, of the type of `candidate`.

    Example:
      >>> zoneout(jnp.zeros(3), jnp.ones(3), jnp.array([True, False, True]))
      Array([0., 1., 0.], dtype=float32)
    """
    if mask is None:
        return candidate
    mask = jnp.asarray(mask)
    if mask.dtype == bool:
        return jnp.where(mask, previous, candidate)
    mask = mask.astype(candidate.dtype)
    return mask * previous + (1 - mask) * candidate


class Masks(NamedTuple):
    """Masks of one step or of a sequence.

    Masks of a step, for `Cell.step`, are `[B, H]` or broadcast to that shape. Masks of a sequence,
    for `unroll`, are scalars or have all three axes, `[T or 1, B or 1, H or 1]`.

    Attributes:
      cells: d of the memory cells, for cells that have them.
      states: d of the hidden states.
      update: u, which multiplies what the input gate lets in. True or 1 changes nothing.
      hidden: m, already rescaled, which multiplies h only where h enters the recurrent product.
        True or 1 changes nothing.

    None turns a mask off: d = 0, u = 1, m = 1.
    """

    cells: ArrayLike | None = None
    states: ArrayLike | None = None
    update: ArrayLike | None = None
    hidden: ArrayLike | None = None


@dataclasses.dataclass(frozen=True)
class Zoneout:
    """Rates and kinds of masks: which units zone out, how often, and how the masks are drawn.

    A rate is the probability of keeping the previous value. In training d ~ Bernoulli(rate), with
    the rate rounded to a multiple of 2⁻¹⁶; in evaluation d = rate, the expectation. The rates are
    leaves of the pytree, so a jitted function that takes the spec as an argument serves all rates,
    and rates can be scheduled, vmapped or swept without compiling again. A rate of None belongs to
    the structure of the pytree: no mask is drawn. A rate may also be a schedule, a function of the
    training step as in optax; `at` evaluates it.

    Attributes:
      cells: rate of the memory cells (z_c of the paper).
      states: rate of the hidden states (z_h of the paper).
      update_drop: rate of dropping the update of a cell, "recurrent dropout without memory loss"
        (Semeniuta et al. 2016; input-gate dropout in the authors' repository). Training does not
        rescale; evaluation multiplies by the expectation, 1 − update_drop.
      hidden_drop: rate of dropping units of h where h enters the recurrent product; the carry is
        not masked (variational dropout, Gal and Ghahramani 2016, section 4). With
        m ~ Bernoulli(1 − rate), the mask is m/(1 − rate), one draw for each sequence and unit,
        whatever the kinds below. Evaluation has no such mask, because its expectation is 1.
      shared: one mask for cells and states, at the rate of the cells.
      static: one mask for a whole sequence instead of one for each step.
      per_layer: one draw for all units of an example (stochastic depth over time).
      gaussian: d ~ Normal(rate, rate·(1 − rate)), with the Bernoulli's mean and variance.

    Raises:
      ValueError: a rate outside [0, 1], or `shared` with different rates or a missing rate.
      TypeError: a rate that is neither a real number nor an array nor a schedule.

    Example:
      >>> Zoneout(cells=0.5, states=0.05)  # the paper's character-level language model
      Zoneout(cells=0.5, states=0.05, update_drop=None, ...)
    """

    cells: Rate = None
    states: Rate = None
    update_drop: Rate = None
    hidden_drop: Rate = None
    shared: bool = False
    static: bool = False
    per_layer: bool = False
    gaussian: bool = False

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            check_rate(name, rate)
        if self.shared:
            if self.cells is None or self.states is None:
                raise ValueError("shared masks need a rate for both cells and states")
            known = all(isinstance(rate, numbers.Real) for rate in (self.cells, self.states))
            if known and self.cells != self.states:
                raise ValueError(
                    f"a shared mask has one rate, got cells={self.cells} and states={self.states}"
                )

    @property
    def rates(self) -> dict[str, Any]:
        """The rates by name."""
        return {name: getattr(self, name) for name in RATES}

    def at(self, step: jax.Array | int) -> "Zoneout":
        """Returns the spec with its schedules evaluated at a training step.

        Example:
          >>> Zoneout(states=lambda step: 0.1 * step).at(3).states
          0.30000000000000004
        """
        return dataclasses.replace(
            self, **{name: rate(step) for name, rate in self.rates.items() if callable(rate)}
        )

    @property
    def active(self) -> bool:
        """True if any mask is drawn."""
        return any(rate is not None for rate in self.without_zeros().rates.values())

    def without_zeros(self) -> "Zoneout":
        """Returns the spec with rates that are the number 0 turned off, for exactly the plain cell.

        A mask of rate 0 changes no value, but the compiler may order the sums around it in another
        way. Traced rates stay, because their values are unknown. A shared mask has the rate of the
        cells, so it is off if that rate is 0.
        """
        deciding = self.rates | ({"states": self.cells} if self.shared else {})
        off: dict[str, Any] = {name: None for name, rate in deciding.items() if is_off(rate)}
        return dataclasses.replace(self, **off, shared=self.shared and "cells" not in off)

    def expected(self) -> Masks:
        """Returns the masks of evaluation: expectations, as scalars for every step."""
        cells, states, update_drop, _ = self.rates.values()
        update = None if update_drop is None else 1 - jnp.asarray(update_drop)
        return Masks(cells, cells if self.shared else states, update)

    def sample(
        self, key: jax.Array, steps: int, batch: int, features: int, offset: jax.Array | int = 0
    ) -> Masks:
        """Draws the masks of a sequence.

        Example b draws from `fold_in(key, offset + b)`, whatever the rest of the batch is. If
        devices share a batch and each passes the global index of its first example, the masks are
        therefore those of the whole batch.

        Bernoulli masks compare 16 bits of a random word with the rate, which rounds the rate to a
        multiple of 2⁻¹⁶. The masks of cells and states use the two halves of one word.

        Args:
          key: a JAX random key.
          steps: number of time steps, T.
          batch: number of examples, B.
          features: number of units, H.
          offset: global index of the first example.

        Returns:
          Masks `[T, B, H]`; T is 1 if static, H is 1 if per layer. Booleans unless Gaussian.
          `hidden` is always `[1, B, H]` and holds the numbers 0 and 1/(1 − rate).
        """
        examples = offset + jnp.arange(batch, dtype=jnp.int32)
        hidden = None
        if self.hidden_drop is not None:
            words = random_words(key, 1, examples, features, stream=1)
            hidden = _rescaled(words[1], self.hidden_drop)
        steps, features = 1 if self.static else steps, 1 if self.per_layer else features
        if self.gaussian:
            masks = self._sample_gaussian(key, steps, examples, features)
        else:
            words = random_words(key, steps, examples, features)
            dropped = _below(words[1] & 0xFFFF, self.update_drop)
            masks = Masks(
                cells=_below(words[0] & 0xFFFF, self.cells),
                states=None if self.shared else _below(words[0] >> 16, self.states),
                update=None if dropped is None else ~dropped,
            )
        return masks._replace(states=masks.cells if self.shared else masks.states, hidden=hidden)

    def _sample_gaussian(
        self, key: jax.Array, steps: int, examples: jax.Array, features: int
    ) -> Masks:
        means = self.expected()
        words = random_words(key, steps, examples, features)
        more = random_words(key, steps, examples, features, stream=1)
        return Masks(
            cells=_gaussian(means.cells, words[0]),
            states=None if self.shared else _gaussian(means.states, words[1]),
            update=_gaussian(means.update, more[0]),
        )


def _flatten(spec: Zoneout) -> tuple[list[tuple[Any, Rate]], tuple[bool, ...]]:
    leaves = [(jax.tree_util.GetAttrKey(name), rate) for name, rate in spec.rates.items()]
    return leaves, tuple(getattr(spec, name) for name in KINDS)


def _unflatten(kinds: tuple[bool, ...], rates: Iterable[Any]) -> Zoneout:
    # The constructor would check the rates, but a spec may also hold gradients, axes or shapes.
    spec = object.__new__(Zoneout)
    vars(spec).update(zip(RATES + KINDS, (*rates, *kinds), strict=True))
    return spec


jax.tree_util.register_pytree_with_keys(Zoneout, _flatten, _unflatten)


def is_off(rate: Rate) -> bool:
    """True if there is no rate or it is the number 0; False for a traced rate."""
    return rate is None or (isinstance(rate, numbers.Real) and rate == 0)


def _below(values: jax.Array, rate: Rate) -> jax.Array | None:
    """True with the probability of the rate, from uniform 16-bit values; None without a rate."""
    if rate is None:
        return None
    return values < jnp.round(jnp.asarray(rate, jnp.float32) * 65536).astype(jnp.uint32)


def _rescaled(words: jax.Array, rate: Any) -> jax.Array:
    """Returns 0 with the probability of the rate, else 1/(1 − rate), from uniform words."""
    dropped: Any = _below(words & 0xFFFF, rate)
    kept = 1 - jnp.asarray(rate, jnp.float32)
    # At a rate of 1 everything is dropped, and 1/0 must not occur.
    return jnp.where(dropped, 0, 1 / jnp.where(kept > 0, kept, 1))


def _gaussian(mean: ArrayLike | None, words: jax.Array) -> jax.Array | None:
    """Returns normal values with a Bernoulli variable's mean and variance, from uniform words."""
    if mean is None:
        return None
    mean = jnp.asarray(mean, jnp.float32)
    variance = mean * (1 - mean)
    # The square root has no derivative at zero.
    deviation = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1)), 0)
    return mean + deviation * normal(words)


def check_rate(name: str, rate: Any) -> None:
    """Raises unless a known rate is a probability. Traced rates and schedules pass."""
    if isinstance(rate, jax.core.Tracer) or rate is None or callable(rate):
        return
    kind = rate.dtype if isinstance(rate, jax.Array) else np.asarray(rate).dtype
    numeric = any(jnp.issubdtype(kind, real) for real in (jnp.floating, jnp.integer))
    if isinstance(rate, list | tuple) or not numeric:
        raise TypeError(f"rate of {name} must be a number in [0, 1], got {rate!r}")
    if not np.all((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)):
        raise ValueError(f"rate of {name} must be in [0, 1], got {rate}")
