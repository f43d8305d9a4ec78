"""The parts of the convolutional LSTM that Linen and NNX share."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Params
from zoneout_jax._flax import Mode, run_step
from zoneout_jax._initializers import Initializer
from zoneout_jax._lstm import LSTM
from zoneout_jax._zoneout import Masks, Zoneout


@dataclasses.dataclass(frozen=True)
class Maps(LSTM):
    """An LSTM whose units are the elements of flattened maps `[*map, C]`.

    Its inputs are the sums of both convolutions, flattened maps `[*map, 4C]`, with gates in Flax's
    order i, g, f, o. The forget gate is σ(f + 1).

    Attributes:
      channels: C.
    """

    channels: int = 1

    @property
    def input_width(self) -> int:
        """Size of the last axis of the inputs: four gates for each unit."""
        return 4 * self.hidden_features

    def parameters(self) -> dict[str, Any]:
        """Returns no parameters: the modules hold the convolutions."""
        return {}

    def project(self, params: Params, xs: jax.Array) -> jax.Array:
        """Returns the inputs unchanged."""
        return xs

    def advance(
        self, params: Params, carry: Carry, projected: jax.Array, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """Computes the LSTM's equations."""
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
    """Runs one step of a convolutional LSTM with the settings of a module.

    Args:
      module: the Linen or NNX module.
      convolve: its convolutions of inputs and of h, each to four gates.
      carry, inputs: maps `[*batch, *map, features]`.
      features: C, channels of the carry.
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
    if mode.zoneout.hidden_drop is not None:
        raise ValueError(f"{name} has no product with h to drop from: leave hidden_drop out")
    if mode.zoneout.static and not mode.deterministic:
        raise ValueError(f"{name}: no static masks in training, as each step draws its own masks")
    carry = jax.tree.map(lambda leaf: leaf.reshape(*batch_dims, units), carry)
    gates = gates.astype(module.param_dtype).reshape(*batch_dims, 4 * units)
    carry, y, _ = run_step(module, cell, mode, {}, None, carry, gates, draw_key)
    return jax.tree.map(lambda leaf: leaf.reshape(shape), (carry, y))


def conv_carry(
    module: Any,
    input_shape: tuple[int, ...],
    features: int,
    carry_init: Initializer,
    key: jax.Array,
) -> Carry:
    """Returns the initial carry for inputs `[*batch, *map, F]`."""
    shape = (*input_shape[:-1], features)
    c, h = (carry_init(k, shape, module.param_dtype) for k in jax.random.split(key))
    return c, h
