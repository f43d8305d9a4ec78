"""Flax Linen modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(256))` takes the place of `nn.RNN(nn.OptimizedLSTMCell(256))`. Both
modules only hold parameters and random streams; the equations are those of `zoneout_jax.lstm`.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import InvalidRngError
from flax.linen.recurrent import flip_sequences

from zoneout_jax.cells import Carry, Cell, Params, lstm
from zoneout_jax.initializers import Initializer
from zoneout_jax.unroll import unroll
from zoneout_jax.zoneout import Zoneout


class ZoneoutLSTMCell(nn.RNNCellBase):
    """One step of an LSTM with zoneout; `zoneout_jax.lstm` has the equations.

    The carry is Flax's, (c, h), and parameters are those of the pure cell: `input` [F, 4H],
    `recurrent` [H, 4H] and `bias` [4H], gates in the order i, f, g, o.

    In training the masks come from the random stream "zoneout"; those of an example do not depend
    on the batch around it. In evaluation, and while parameters are initialized, the masks are
    their expectations and no stream is needed. `nn.RNN` must split the stream, or every step would
    draw the same masks; `ZoneoutRNN` needs no such care, and is faster:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      features: H, number of units.
      zoneout: rates and kinds of the masks. Rates may be traced values (but not under `nn.jit`,
        which hashes attributes).
      deterministic: False in training, True in evaluation. Not needed if no rate is given.
      forget_bias: initial value of the forget gate's bias.
      kernel_init: initializer of the input weights, `init(key, shape, dtype, blocks)` with 4
        blocks, one for each gate; block orthogonal if None.
      recurrent_init: initializer of the recurrent weights, likewise.
      param_dtype: type of parameters, carry and output.
      dtype: type of the operands of matrix products; `param_dtype` if None.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: the masks are then those of the whole batch on a single device.

    Raises:
      ValueError: `deterministic` not given though there are rates; static masks, which a single
        step cannot have; a carry that does not fit the inputs.
      flax.errors.InvalidRngError: training without the random stream "zoneout".

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05), deterministic=False)
      >>> x = jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = cell.init(jax.random.key(1), carry, x)
      >>> carry, y = cell.apply(variables, carry, x, rngs={"zoneout": jax.random.key(2)})
      >>> y.shape
      (2, 4)
    """

    features: int
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    forget_bias: float = 1.0
    kernel_init: Initializer | None = None
    recurrent_init: Initializer | None = None
    param_dtype: Any = jnp.float32
    dtype: Any = None
    axis_name: str | None = None

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """The carry (c, h) after inputs `[*batch, F]`, and the output; each `[*batch, H]`."""
        if self.zoneout.static:
            raise ValueError("a single step cannot have static masks; use ZoneoutRNN")
        batch_dims = inputs.shape[:-1]
        batch = math.prod(batch_dims)
        cell, params = self.bind_weights(inputs.shape[-1])
        key = self.mask_key(self.deterministic)
        if key is None:
            masks = self.zoneout.expected()
        else:
            offset = 0 if self.axis_name is None else jax.lax.axis_index(self.axis_name) * batch
            sampled = self.zoneout.sample(key, 1, batch, self.features, offset)
            masks = jax.tree.map(lambda mask: mask[0], sampled)
        carry = _flatten_carry(carry, batch_dims, self.features)
        step = cell.step(params, carry, inputs.reshape(batch, inputs.shape[-1]), masks)
        return jax.tree.map(lambda leaf: leaf.reshape(*batch_dims, self.features), step)

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """The carry (c, h) of zeros, each `[*batch, H]`, for inputs `[*batch, F]`."""
        zeros = jnp.zeros((*input_shape[:-1], self.features), self.param_dtype)
        return zeros, zeros

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    @nn.compact
    def bind_weights(self, in_features: int) -> tuple[Cell, Params]:
        """The pure cell for inputs of F features, and its parameters."""
        cell = lstm(
            in_features,
            self.features,
            forget_bias=self.forget_bias,
            kernel_init=self.kernel_init,
            recurrent_init=self.recurrent_init,
            param_dtype=self.param_dtype,
            dtype=self.dtype,
        )

        def initial(key: jax.Array, name: str) -> jax.Array:
            return cell.init(key)[name]

        return cell, {n: self.param(n, initial, n) for n in ("input", "recurrent", "bias")}

    def mask_key(self, deterministic: bool | None) -> jax.Array | None:
        """A new key for masks, or None where they are not sampled but expected."""
        if not self.zoneout.active or self.is_initializing():
            return None
        if deterministic is None:
            raise ValueError(
                "zoneout has rates, so deterministic must be given: False samples masks"
                " (training), True takes their expectation (evaluation)"
            )
        if deterministic:
            return None
        # Where a stream is missing, Flax would quietly take "params" if that one is there.
        if not self.has_rng("zoneout"):
            raise InvalidRngError(
                'zoneout in training needs the random stream "zoneout": pass'
                ' rngs={"zoneout": key} to apply; under nn.RNN also'
                ' split_rngs={"params": False, "zoneout": True}'
            )
        return self.make_rng("zoneout")


class ZoneoutRNN(nn.Module):
    """Runs a `ZoneoutLSTMCell` over sequences, with the arguments of `nn.RNN`.

    Parameters are those of `nn.RNN` around the same cell, so variables of one serve the other.
    The whole sequence goes through `zoneout_jax.unroll`: one product for all inputs, one key of
    the random stream "zoneout" for all masks. It fits in `nn.Bidirectional`. Two things differ
    from `nn.RNN`: outputs past the end of a sequence are zero, and the final carry of a sequence
    of length zero is its initial carry.

    Attributes:
      cell: the cell.
      time_major: inputs and outputs are `[T, *batch, features]` instead of
        `[*batch, T, features]`.
      return_carry: return the pair (final carry, outputs) instead of the outputs.
      reverse: run from the end of each sequence to its beginning. Outputs come in the order of
        the computation, with padding at the end all the same.
      keep_order: with `reverse`, outputs come in the order of the inputs.
      deterministic: False in training, True in evaluation; the cell's own if None.

    Raises:
      TypeError: another kind of cell.
      ValueError: `deterministic` not given though there are rates; misfit carry or lengths.
      flax.errors.InvalidRngError: training without the random stream "zoneout".

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05))
      >>> x = jnp.ones((2, 7, 3))
      >>> variables = ZoneoutRNN(cell).init(jax.random.key(0), x)
      >>> rngs = {"zoneout": jax.random.key(1)}
      >>> ZoneoutRNN(cell).apply(variables, x, deterministic=False, rngs=rngs).shape
      (2, 7, 4)
    """

    cell: ZoneoutLSTMCell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    deterministic: bool | None = None

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
    ) -> jax.Array | tuple[Carry, jax.Array]:
        """Outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: (c, h), each `[*batch, H]`; the cell's initial carry if None.
          init_key: key for the cell's `initialize_carry`, which makes no use of it.
          seq_lengths: integers `[*batch]`; what lies beyond them is padding.
          return_carry, time_major, reverse, keep_order, deterministic: override the attributes.
        """
        if not isinstance(self.cell, ZoneoutLSTMCell):
            raise TypeError(f"cell must be a ZoneoutLSTMCell, got {type(self.cell).__name__}")
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        deterministic = self.deterministic if deterministic is None else deterministic
        deterministic = self.cell.deterministic if deterministic is None else deterministic

        xs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
        steps, batch_dims, features = xs.shape[0], xs.shape[1:-1], self.cell.features
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, xs.shape[1:])
        if seq_lengths is not None:
            seq_lengths = jnp.asarray(seq_lengths)
            if seq_lengths.shape != batch_dims:
                raise ValueError(f"seq_lengths must be {batch_dims}, got {seq_lengths.shape}")
            seq_lengths = seq_lengths.ravel()

        cell, params = self.cell.bind_weights(xs.shape[-1])
        key = self.cell.mask_key(deterministic)
        carry, ys = unroll(
            cell,
            params,
            xs.reshape(steps, math.prod(batch_dims), xs.shape[-1]),
            _flatten_carry(initial_carry, batch_dims, features),
            zoneout=self.cell.zoneout,
            key=key,
            deterministic=key is None,
            seq_lengths=seq_lengths,
            reverse=reverse,
            axis_name=self.cell.axis_name,
        )
        if reverse and not keep_order:
            ys = flip_sequences(ys, seq_lengths, num_batch_dims=1, time_major=True)
        ys = ys.reshape(steps, *batch_dims, features)
        ys = ys if time_major else jnp.moveaxis(ys, 0, -2)
        carry = jax.tree.map(lambda leaf: leaf.reshape(*batch_dims, features), carry)
        return (carry, ys) if return_carry else ys


def _flatten_carry(carry: Carry, batch_dims: tuple[int, ...], features: int) -> Carry:
    """The carry with a single batch dimension. Raises ValueError if its shapes do not fit."""
    wanted = (*batch_dims, features)
    if any(jnp.shape(leaf) != wanted for leaf in jax.tree.leaves(carry)):
        shapes = jax.tree.map(jnp.shape, carry)
        raise ValueError(f"carry must be (c, h), each {wanted}, got {shapes}")
    return jax.tree.map(lambda leaf: jnp.reshape(leaf, (math.prod(batch_dims), features)), carry)
