"""The convolutional LSTM for Flax Linen."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry
from zoneout_jax._conv import conv_carry, conv_step
from zoneout_jax._flax import linen_key
from zoneout_jax._initializers import Initializer
from zoneout_jax._normalization import AxisName
from zoneout_jax._zoneout import Zoneout


class ZoneoutConvLSTMCell(nn.RNNCellBase):
    """One step of a convolutional LSTM with zoneout, on maps such as images.

        i, g, f, o = split(W_x * x + W_h * h + b)         * is a convolution
        ĉ = σ(f + 1)∘c + u∘σ(i)∘tanh(g)
        ĥ = σ(o)∘tanh(ĉ)
        c' = d_c∘c + (1 − d_c)∘ĉ
        h' = d_h∘h + (1 − d_h)∘ĥ

    Shi et al. 2015 (arXiv:1506.04214), section 3.1, without the peepholes. It replaces Flax's
    `nn.ConvLSTMCell`: arguments, parameters (`ih` and `hh`, with `kernel` and `bias`) and carry
    (c, h) are the same. Each element of a map has its own masks; with `per_layer`, all elements of
    an example share them. Masks come from the random stream "zoneout", and the masks of an example
    do not depend on the rest of the batch.

    `ZoneoutRNN` does not accept the cell; `nn.RNN` runs it over sequences `[*batch, T, *map, F]`:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      features: C, channels of the states.
      kernel_size: kernel size of both convolutions, an integer for each axis of a map.
      strides, padding: must keep the size of maps: strides of 1; padding "SAME", "CIRCULAR", or
        pairs whose sum is the kernel size minus 1.
      use_bias: True if both convolutions have a bias.
      dtype: type of the convolutions; by default the type of inputs and parameters.
      param_dtype: type of the parameters, the carry and the output.
      carry_init: initializer of the initial carry, zeros by default.
      zoneout, deterministic, axis_name: as for `ZoneoutCell`.

    Raises:
      ValueError: `deterministic` not given though masks depend on it; static masks in training; a
        carry that does not fit the inputs; convolutions that change the size of maps.
      flax.errors.InvalidRngError: training without the random stream "zoneout".

    Example:
      >>> cell = ZoneoutConvLSTMCell(4, (3, 3), zoneout=Zoneout(cells=0.5, states=0.05))
      >>> rnn = nn.RNN(cell.clone(deterministic=True))
      >>> x = jnp.ones((2, 7, 8, 8, 3))  # batch, time, height, width, channels
      >>> rnn.init_with_output(jax.random.key(0), x)[0].shape
      (2, 7, 8, 8, 4)
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    carry_init: Initializer = jax.nn.initializers.zeros
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    axis_name: AxisName | None = None

    carry_noise = 0.0

    @nn.compact
    def __call__(
        self,
        carry: Carry,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          carry: (c, h) of the previous step, maps `[*batch, *map, C]`.
          inputs: `[*batch, *map, F]`.
          deterministic, zoneout: override the attributes.

        Returns:
          The new carry and the output `[*batch, *map, C]`.
        """
        conv = functools.partial(
            nn.Conv,
            4 * self.features,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        return conv_step(
            self,
            (conv(name="ih"), conv(name="hh")),
            carry,
            inputs,
            self.features,
            zoneout,
            deterministic,
            lambda: linen_key(self),
            self.is_initializing(),
        )

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """Returns the initial carry for inputs `[*batch, *map, F]`."""
        return conv_carry(self, input_shape, self.features, self.carry_init, rng)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: axes of a map, and channels."""
        return len(self.kernel_size) + 1
