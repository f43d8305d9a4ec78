"""The convolutional LSTM, as far as Linen and NNX share it."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Params
from zoneout_jax._flax import Mode, run_step
from zoneout_jax._lstm import LSTM
from zoneout_jax._zoneout import Masks, Zoneout


@dataclasses.dataclass(frozen=True)
class Maps(LSTM):
    """The LSTM of the units of maps `[*map, C]`, one after the other, from sums of convolutions on.

    Its inputs are those, `[*map, 4C]` one after the other, with gates in Flax's order i, g, f, o
    and a forget gate σ(f + 1).

    Attributes:
      channels: C.
    """

    channels: int = 1

    @property
    def input_width(self) -> int:
        """Size of the last axis of the inputs: four gates for each unit."""
        return 4 * self.hidden_features

    def parameters(self) -> dict[str, Any]:
        """None: the convolutions are elsewhere."""
        return {}

    def project(self, params: Params, xs: jax.Array) -> jax.Array:
        """The inputs as they are."""
        return xs

    def advance(
        self, params: Params, carry: Carry, projected: jax.Array, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """The LSTM's equations."""
        batch, units = projected.shape[0], self.hidden_features
        gates = projected.reshape(batch, units // self.channels, 4, self.channels)
        i, g, f, o = (gates[:, :, n].reshape(batch, units) for n in range(4))
        gate = jax.nn.sigmoid
        return self.update(params, carry, (gate(i), gate(f + 1), jnp.tanh(g), gate(o)), (), masks)


def conv_step(
    module: Any,
    convolve: tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]],
    carry: Carry,
    inputs: jax.Array,
    features: int,
    zoneout: Zoneout | None,
    deterministic: bool | None,
    draw_key: Callable[[], jax.Array],
    initializing: bool = False,
) -> tuple[Carry, jax.Array]:
    """One step of a convolutional LSTM with the settings of a module.

    Args:
      module: that of Linen or NNX.
      convolve: its convolutions, of inputs and of h, to four gates.
      carry, inputs: maps `[*batch, *map, features]`.
      features: C, of the carry.
    """
    name, shape = type(module).__name__, (*inputs.shape[:-1], features)
    given = jax.tree.map(jnp.shape, carry)
    if given != (shape, shape):
        raise ValueError(f"{name}: the carry must be two arrays {shape}, got {given}")
    gates = convolve[0](inputs) + convolve[1](carry[1])
    if gates.shape[:-1] != shape[:-1]:
        raise ValueError(
            f"{name}: convolutions must keep the size of maps {shape[:-1]}, got {gates.shape[:-1]};"
            " leave strides at 1 and padding at 'SAME'"
        )
    batch_dims = inputs.shape[: -module.num_feature_axes]
    units = math.prod(shape[len(batch_dims) :])
    cell = Maps(features, units, channels=features, param_dtype=module.param_dtype)
    mode = Mode.of(module, cell, zoneout, deterministic, initializing)
    if mode.zoneout.static and not mode.deterministic:
        raise ValueError(f"{name}: static masks in training: this cell draws masks step by step")
    carry = jax.tree.map(lambda leaf: leaf.reshape(*batch_dims, units), carry)
    gates = gates.astype(module.param_dtype).reshape(*batch_dims, 4 * units)
    carry, y, _ = run_step(module, cell, mode, {}, None, carry, gates, draw_key)
    return jax.tree.map(lambda leaf: leaf.reshape(shape), (carry, y))


def conv_carry(module: Any, input_shape: tuple[int, ...], features: int, key: jax.Array) -> Carry:
    """The carry before the first step, for inputs `[*batch, *map, F]`."""
    shape = (*input_shape[:-1], features)
    c, h = (module.carry_init(k, shape, module.param_dtype) for k in jax.random.split(key))
    return c, h
