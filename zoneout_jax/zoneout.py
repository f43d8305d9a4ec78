"""Zoneout: units that keep their previous value, and how their masks are drawn.

Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations", ICLR 2017
(arXiv:1606.01305), section 3.
"""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Rate = float | jax.Array | None | Callable[[Any], Any]


def zoneout(previous: jax.Array, candidate: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Keeps the previous value where the mask says so.

        new = d ∘ previous + (1 − d) ∘ candidate

    Args:
      previous: values of the step before, `[B, H]`.
      candidate: values that the cell computed, `[B, H]`.
      mask: d, broadcast against both: booleans (True keeps), real numbers (a rate, the
        expectation, or a Gaussian draw), or None (zoneout is off: d = 0).

    Returns:
      The new values, `[B, H]`, in the type of `candidate`.

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
    """Masks of one step (`[B, H]`, or what broadcasts to it) or of a sequence (`[T, B, H]`).

    Attributes:
      cells: d of the memory cells; of no use to cells that have none.
      states: d of the hidden states.
      update: u, multiplies what the input gate lets in. True or 1 lets it pass.

    None stands for "off": d = 0, u = 1.
    """

    cells: jax.Array | None = None
    states: jax.Array | None = None
    update: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Zoneout:
    """Which units zone out, how often, and how the masks are drawn.

    A rate is the probability of keeping the previous value. In training d ~ Bernoulli(rate), in
    evaluation d = rate, the expectation. The rates are leaves of the pytree, so a jitted function
    that takes the spec as an argument serves all rates, and rates can be scheduled, vmapped or
    swept without compiling again. A rate of None is structural: no mask is drawn at all. A rate may
    also be a schedule, a function of the training step as in optax, to be evaluated by `at`.

    Attributes:
      cells: rate of the memory cells (z_c of the paper).
      states: rate of the hidden states (z_h of the paper).
      update_drop: rate of dropping the update of a cell, "recurrent dropout without memory loss"
        (Semeniuta et al. 2016; input-gate dropout in the authors' repository). No rescaling in
        training; evaluation multiplies by the expectation, 1 − update_drop.
      shared: one mask for cells and states, at the rate of the cells.
      static: one mask a sequence instead of one a step.
      per_layer: one draw for all units of an example (stochastic depth over time).
      gaussian: d ~ Normal(rate, rate·(1 − rate)): the Bernoulli's mean and variance.

    Raises:
      ValueError: a rate outside [0, 1], or `shared` with different rates or a missing one.
      TypeError: a rate that is neither a real number nor an array nor a schedule.

    Example:
      >>> Zoneout(cells=0.5, states=0.05)  # the paper's character-level language model
      Zoneout(cells=0.5, states=0.05, update_drop=None, ...)
    """

    cells: Rate = None
    states: Rate = None
    update_drop: Rate = None
    shared: bool = dataclasses.field(default=False, metadata={"static": True})
    static: bool = dataclasses.field(default=False, metadata={"static": True})
    per_layer: bool = dataclasses.field(default=False, metadata={"static": True})
    gaussian: bool = dataclasses.field(default=False, metadata={"static": True})

    def __post_init__(self):
        rates = {name: getattr(self, name) for name in ("cells", "states", "update_drop")}
        for name, rate in rates.items():
            _check_rate(name, rate)
        if self.shared:
            if self.cells is None or self.states is None:
                raise ValueError("shared masks need a rate for both cells and states")
            known = all(isinstance(rates[k], numbers.Real) for k in ("cells", "states"))
            if known and self.cells != self.states:
                raise ValueError(
                    f"a shared mask has one rate, got cells={self.cells} and states={self.states}"
                )

    def at(self, step: jax.Array | int) -> "Zoneout":
        """The spec with its schedules evaluated at a step of the training.

        Example:
          >>> Zoneout(states=lambda step: 0.1 * step).at(3).states
          0.30000000000000004
        """
        rates = {name: getattr(self, name) for name in ("cells", "states", "update_drop")}
        return dataclasses.replace(
            self, **{name: rate(step) for name, rate in rates.items() if callable(rate)}
        )

    @property
    def active(self) -> bool:
        """Whether any mask is drawn."""
        return any(not _is_off(rate) for rate in (self.cells, self.states, self.update_drop))

    def without_zeros(self) -> "Zoneout":
        """The spec with rates that are the number 0 turned off, for exactly the plain cell.

        A mask that never keeps anything changes no value, but the compiler may order the sums
        around it in another way. A traced rate can not be seen to be 0.
        """
        rates = {name: getattr(self, name) for name in ("cells", "states", "update_drop")}
        rates = {name: None if _is_off(rate) else rate for name, rate in rates.items()}
        shared = self.shared and rates["cells"] is not None
        return dataclasses.replace(self, **rates, shared=shared)

    def expected(self) -> Masks:
        """The masks of evaluation: their expectations, scalars for every step."""
        update = None if self.update_drop is None else 1 - jnp.asarray(self.update_drop)
        return Masks(self.cells, self.states, update)

    def sample(
        self, key: jax.Array, steps: int, batch: int, features: int, offset: jax.Array | int = 0
    ) -> Masks:
        """Draws the masks of a sequence.

        Masks belong to examples: example b draws from `fold_in(key, offset + b)`, whatever the
        batch around it, so that a batch spread over devices has the masks of the whole batch when
        each device passes the global index of its first example.

        Bernoulli masks of cells and states compare the two 16-bit halves of one random word with
        the rate, which is thereby rounded to a multiple of 2⁻¹⁶.

        Args:
          key: a JAX random key.
          steps, batch, features: T, B and H.
          offset: global index of the first example.

        Returns:
          Masks `[T, B, H]`; T is 1 if static, H is 1 if per layer. Booleans unless Gaussian.
        """
        shape = (1 if self.static else steps, 1 if self.per_layer else features)
        examples = jax.vmap(lambda index: jax.random.fold_in(key, index))(
            offset + jnp.arange(batch, dtype=jnp.int32)
        )
        draw = self._sample_gaussian if self.gaussian else self._sample_bernoulli
        masks = jax.vmap(lambda example: draw(example, shape), out_axes=1)(examples)
        return masks._replace(states=masks.cells) if self.shared else masks

    def _sample_bernoulli(self, key: jax.Array, shape: tuple[int, int]) -> Masks:
        """Masks `[T, H]` of one example."""
        cells = states = update = None
        if self.cells is not None or self.states is not None:
            bits = jax.random.bits(jax.random.fold_in(key, 0), shape, jnp.uint32)
            if self.cells is not None:
                cells = (bits & 0xFFFF) < _threshold(self.cells)
            if self.states is not None and not self.shared:
                states = (bits >> 16) < _threshold(self.states)
        if self.update_drop is not None:
            bits = jax.random.bits(jax.random.fold_in(key, 1), shape, jnp.uint32)
            update = (bits & 0xFFFF) >= _threshold(self.update_drop)
        return Masks(cells, states, update)

    def _sample_gaussian(self, key: jax.Array, shape: tuple[int, int]) -> Masks:
        """Masks `[T, H]` of one example."""

        def normal(stream: int, mean):
            if mean is None:
                return None
            mean = jnp.asarray(mean, jnp.float32)
            noise = jax.random.normal(jax.random.fold_in(key, stream), shape, jnp.float32)
            return mean + jnp.sqrt(mean * (1 - mean)) * noise

        update = self.expected().update
        states = None if self.shared else normal(2, self.states)
        return Masks(normal(0, self.cells), states, normal(1, update))


def _is_off(rate: Rate) -> bool:
    return rate is None or (isinstance(rate, numbers.Real) and rate == 0)


def _threshold(rate: Rate) -> jax.Array:
    """Number of 16-bit values below which a unit keeps its value: round(rate · 2¹⁶)."""
    return jnp.round(jnp.asarray(rate, jnp.float32) * 65536).astype(jnp.uint32)


def _check_rate(name: str, rate: Rate) -> None:
    """Raises unless a rate that is known already is a probability. Traced ones pass."""
    if isinstance(rate, bool | str | list | tuple):
        raise TypeError(f"rate of {name} must be a number in [0, 1], got {rate!r}")
    if isinstance(rate, numbers.Real | np.ndarray):
        if not np.all((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)):
            raise ValueError(f"rate of {name} must be in [0, 1], got {rate}")
