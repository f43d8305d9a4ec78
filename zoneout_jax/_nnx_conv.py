"""The convolutional LSTM for Flax NNX."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoneout_jax._cell import Carry
from zoneout_jax._conv import conv_carry, conv_step
from zoneout_jax._initializers import Initializer
from zoneout_jax._nnx_cell import NoisyCell, Streams, carry_stream, fork_stream, mask_stream
from zoneout_jax._normalization import AxisName
from zoneout_jax._zoneout import Zoneout


class ZoneoutConvLSTMCell(NoisyCell):
    """One step of a convolutional LSTM with zoneout, on maps such as images.

    `zoneout_jax.linen.ZoneoutConvLSTMCell` has the equations. The parameters have the same names;
    they belong to two `nnx.Conv`, `ih` and `hh`. `nnx.RNN` runs the cell over sequences
    `[*batch, T, *map, F]`; `ZoneoutRNN` does not accept it.

    Args:
      in_features, hidden_features: F and C, channels of inputs and states.
      kernel_size, strides, padding, use_bias, dtype, param_dtype, carry_init: as in Linen.
      zoneout, deterministic, axis_name, rngs: as for `ZoneoutCell`.

    Raises:
      ValueError: training without a random stream; static masks in training; a carry that does not
        fit the inputs; convolutions that change the size of maps.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> rnn = nnx.RNN(ZoneoutConvLSTMCell(3, 4, (3, 3), zoneout=spec, rngs=nnx.Rngs(0)))
      >>> rnn(jnp.ones((2, 7, 8, 8, 3))).shape  # batch, time, height, width, channels
      (2, 7, 8, 8, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        kernel_size: Sequence[int],
        strides: Sequence[int] | None = None,
        *,
        padding: str | Sequence[tuple[int, int]] = "SAME",
        use_bias: bool = True,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        carry_init: Initializer = jax.nn.initializers.zeros,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(
            nnx.Conv,
            out_features=4 * hidden_features,
            kernel_size=kernel_size,
            strides=strides,
            padding=padding,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.ih = conv(in_features)
        self.hh = conv(hidden_features)
        self.in_features = in_features
        self.hidden_features = hidden_features
        self.zoneout = zoneout
        self.deterministic = deterministic
        self.carry_init = carry_init
        self.carry_noise = 0.0
        self.param_dtype = param_dtype
        self.axis_name = axis_name
        self.rngs = fork_stream(rngs)

    def __call__(
        self,
        carry: Carry,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
        rngs: Streams | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          carry: (c, h) of the previous step, maps `[*batch, *map, C]`.
          inputs: `[*batch, *map, F]`.
          deterministic, zoneout: override the attributes.
          rngs: streams to draw from instead of the cell's own.

        Returns:
          The new carry and the output `[*batch, *map, C]`.
        """
        return conv_step(
            self,
            (self.ih, self.hh),
            carry,
            inputs,
            self.hidden_features,
            zoneout,
            deterministic,
            mask_stream(rngs) or self._key,
        )

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: axes of a map, and channels."""
        return len(self.ih.kernel_size) + 1

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Carry:
        """Returns the initial carry for inputs `[*batch, *map, F]`.

        Args:
          input_shape: shape of the inputs.
          rngs: random streams, of which the initializer uses "carry", or that stream alone;
            `nnx.Rngs(0)` by default.
          carry_init: initializer; by default the attribute.
        """
        init = carry_init or self.carry_init
        return conv_carry(self, input_shape, self.hidden_features, init, carry_stream(rngs)())
