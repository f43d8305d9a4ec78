"""Flax Linen modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(256))` replaces `nn.RNN(nn.OptimizedLSTMCell(256))`. The modules only
hold parameters, statistics and random streams. The equations are in the pure cells, such as
`zoneout_jax.LSTM`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoneout_jax._cell import Activation, Carry, Cell, Output, check_cell
from zoneout_jax._gru import GRU
from zoneout_jax._initializers import Initializer
from zoneout_jax._lengths import Lengths
from zoneout_jax._linear import LRU, RGLRU, MinGRU, MinLSTM
from zoneout_jax._lstm import LSTM
from zoneout_jax._needs import needs
from zoneout_jax._normalization import AxisName, Stats
from zoneout_jax._rnn import RNN, IndRNN
from zoneout_jax._unroll import Chunk, Implementation
from zoneout_jax._zoneout import Zoneout

with needs("zoneout_jax.linen", "flax"):
    import flax.linen as nn

    from zoneout_jax import _flax, _stack
    from zoneout_jax._conv_linen import ZoneoutConvLSTMCell

__all__ = [
    "ZoneoutCell",
    "ZoneoutConvLSTMCell",
    "ZoneoutGRUCell",
    "ZoneoutIndRNNCell",
    "ZoneoutLRUCell",
    "ZoneoutLSTMCell",
    "ZoneoutMinGRUCell",
    "ZoneoutMinLSTMCell",
    "ZoneoutRGLRUCell",
    "ZoneoutRNN",
    "ZoneoutSimpleCell",
]


class _Base(nn.RNNCellBase):
    """Base class of all cells."""

    momentum = 0.99  # a field only of cells that may have batch normalization

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell for inputs of F features."""
        raise NotImplementedError

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
          carry: carry of the previous step, arrays `[*batch, H]`.
          inputs: `[*batch, F]`.
          deterministic, zoneout: override the attributes.

        Returns:
          The new carry and the output `[*batch, H]`.
        """
        return self._apply(
            inputs, _flax.run_step, carry, inputs, deterministic=deterministic, zoneout=zoneout
        )

    def _run(
        self,
        xs: jax.Array,
        carry: Carry | None,
        *,
        init_key: jax.Array,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs `zoneout_jax.unroll` over inputs `[T, *batch, F]` with the cell's parameters."""
        if carry is None and self.carry_init is not None and not self.learned_carry:
            carry = self.initialize_carry(init_key, xs.shape[1:])
        return self._apply(
            xs,
            _flax.run_sequence,
            xs,
            carry,
            deterministic=deterministic,
            zoneout=zoneout,
            **options,
        )

    @nn.compact
    def _apply(
        self,
        inputs: jax.Array,
        run: Callable[..., tuple[Carry, Any, Stats | None]],
        *arguments: Any,
        deterministic: bool | None,
        zoneout: Zoneout | None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs the cell with its parameters and stores the new statistics."""
        _flax.check_carry_init(self, self.learned_carry)
        cell = self.pure(inputs.shape[-1])
        params = {
            name: self.param(name, init, shape, cell.param_dtype)
            for name, (init, shape) in cell.parameters().items()
        }
        variables = {
            name: self.variable("batch_stats", name, lambda value: value, value)
            for name, value in cell.init_stats().items()
        }
        stats = {name: variable.value for name, variable in variables.items()} or None
        mode = _flax.Mode.of(self, cell, zoneout, deterministic, self.is_initializing())
        carry, ys, moved = run(
            self, cell, mode, params, stats, *arguments, draw_key=self._key, **options
        )
        for name, value in (moved or {}).items():
            variables[name].value = value
        return carry, ys

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """Returns the initial carry, zeros or drawn, for inputs `[*batch, F]`."""
        if self.learned_carry:
            raise ValueError("the initial carry is learned: use ZoneoutRNN without initial_carry")
        *batch_dims, in_features = input_shape
        cell = self.pure(in_features)
        return _flax.start_carry(cell, {}, batch_dims, self.carry_init, lambda: rng)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    def _key(self) -> jax.Array:
        return _flax.linen_key(self)


class ZoneoutCell(_Base):
    """One step of any pure cell, for instance of a cell that you wrote.

    The carry is the pure cell's. Parameters are initialized one by one; their names and shapes are
    the pure cell's.

    In training the masks come from the random stream "zoneout". The masks of an example do not
    depend on the rest of the batch. In evaluation the masks are their expectations; while
    parameters are initialized there are no masks. Neither needs the stream. `ZoneoutRNN` passes the
    stream on. `nn.RNN`, which is slower, passes on only the streams in `split_rngs`: its default
    raises InvalidRngError, and with False for "zoneout" every step would draw the same masks. So
    write:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      cell: the pure cell.
      zoneout: rates and kinds of the masks. Rates may be traced values (but not under `nn.jit`,
        which hashes attributes).
      deterministic: False in training, True in evaluation. Not needed if nothing depends on it.
      momentum: momentum of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) that the batch is spread over, if
        any. Masks are then the same as for the whole batch on a single device.

    Raises:
      ValueError: `deterministic` not given though something depends on it; static masks,
        `hidden_drop` or noise on the carry in a single step of training; a carry that does not fit
        the inputs; options that the pure cell rejects.
      flax.errors.InvalidRngError: training without the random stream "zoneout".
    """

    cell: Cell
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    momentum: float = 0.99
    carry_init: Initializer | None = None
    carry_noise: float = 0.0
    axis_name: AxisName | None = None

    def __post_init__(self) -> None:
        check_cell(self.cell)
        super().__post_init__()

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell."""
        return self.cell

    @property
    def learned_carry(self) -> bool:
        """True if the initial carry is made of parameters."""
        return self.cell.learned_carry


class _AnyCell(_Base):
    """Options of all cells that read their input size from the first input."""

    features: int
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    kernel_init: Initializer | None = None
    carry_init: Initializer | None = None
    learned_carry: bool = False
    carry_noise: float = 0.0
    param_dtype: Any = jnp.float32
    dtype: Any = None
    axis_name: AxisName | None = None

    kind = Cell

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell for inputs of F features."""
        return _flax.make_cell(self.kind, self, in_features, self.features)


class _SizedCell(_AnyCell):
    """More options, of cells with recurrent weights."""

    activation_fn: Activation = "tanh"
    output: Output = "state"
    recurrent_kernel_init: Initializer | None = None
    bias_init: Initializer | None = None


class ZoneoutLSTMCell(_SizedCell):
    """One step of an LSTM with zoneout; `zoneout_jax.LSTM` has the equations.

    The carry is (c, h), as in Flax. With `normalization="batch"` the number of the step follows,
    and the population statistics are variables of the collection "batch_stats", which must be
    mutable in training. `nn.RNN` then needs `variable_carry="batch_stats"`, and its statistics
    include padding. It cannot create the variables that it carries: initialize with `ZoneoutRNN`,
    whose variables have the same names.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name, momentum: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LSTM`.

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05), deterministic=False)
      >>> x = jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = cell.init(jax.random.key(1), carry, x)
      >>> carry, y = cell.apply(variables, carry, x, rngs={"zoneout": jax.random.key(2)})
      >>> y.shape
      (2, 4)
    """

    gate_fn: Activation = "sigmoid"
    forget_bias: float = 1.0
    normalization: Literal["layer", "batch"] | None = None
    initial_gamma: float | None = None
    max_steps: int | None = None
    momentum: float = 0.99
    ogates_zoneout: Literal["paper", "repository"] | None = None
    proj_size: int | None = None

    kind = LSTM


class ZoneoutGRUCell(_SizedCell):
    """One step of a GRU with zoneout; `zoneout_jax.GRU` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.GRU`.
    """

    gate_fn: Activation = "sigmoid"
    reset_after: bool = True
    normalization: Literal["layer"] | None = None

    kind = GRU


class ZoneoutSimpleCell(_SizedCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.RNN` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.RNN`.
    """

    kind = RNN


class ZoneoutIndRNNCell(_SizedCell):
    """One step of an IndRNN with zoneout; `zoneout_jax.IndRNN` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.IndRNN`.
    """

    activation_fn: Activation = "relu"

    kind = IndRNN


class ZoneoutMinGRUCell(_AnyCell):
    """One step of a minGRU with zoneout; `zoneout_jax.MinGRU` has the equations.

    `ZoneoutRNN` runs all steps of this and the other linear cells at once.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.MinGRU`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinGRU


class ZoneoutMinLSTMCell(_AnyCell):
    """One step of a minLSTM with zoneout; `zoneout_jax.MinLSTM` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.MinLSTM`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinLSTM


class ZoneoutRGLRUCell(_AnyCell):
    """One step of an RG-LRU with zoneout; `zoneout_jax.RGLRU` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.RGLRU`.
    """

    bias_init: Initializer | None = None

    kind = RGLRU


class ZoneoutLRUCell(_AnyCell):
    """One step of an LRU with zoneout; `zoneout_jax.LRU` has the equations.

    The carry is complex.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.LRU`.
    """

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.28

    kind = LRU


class ZoneoutRNN(nn.Module):
    """Runs a cell or a stack of cells over sequences, as `nn.RNN` does.

    Arguments for the call and the layout are those of `nn.RNN`. Its `split_rngs` and `variable_*`
    do not exist here: streams and collections need no settings. Parameters are the same
    as in `nn.RNN` around the same Zoneout cell; weights of Flax's cells need `interop.from_flax`.
    The module also fits in `nn.Bidirectional`. It runs `zoneout_jax.unroll` over the whole
    sequence, with one product for all inputs and one key of the random stream "zoneout" for all
    masks. Two things differ from
    `nn.RNN`: outputs past the end of a sequence are zero, and the final carry of a sequence of
    length zero is its initial carry.

    Attributes:
      cell: a cell, or a sequence of cells, each with its own rates: the outputs of one are the
        inputs of the next. The carry of such a stack is a tuple, one carry for each
        cell.
      time_major: inputs and outputs are `[T, *batch, features]` instead of
        `[*batch, T, features]`.
      return_carry: return the pair (final carry, outputs) instead of the outputs.
      reverse: run from the end of each sequence to its beginning. Outputs come in the order of
        computation; padding still comes last.
      keep_order: with `reverse`, return outputs in the order of the inputs.
      unroll: steps in one iteration of the compiled loop.
      chunk: number of steps whose intermediate values the backward pass computes again, from the
        carry before them; "auto" is about √T; None stores all values.
      implementation: "fused", "scan" or "associative", as for `zoneout_jax.unroll`; None takes the
        default of each cell.
      deterministic: False in training, True in evaluation; None takes the setting of each cell.
      backward: cells with their own weights that run from the end of each sequence to its
        beginning, one for each of `cell`. The outputs of both directions, in the order of the
        inputs, are merged before the next layer reads them. Carries are pairs (cell, backward).
      merge_fn: function `merge_fn(forward, backward)` that merges the outputs of both directions,
        for instance `jnp.add`; concatenation by default, as in `nn.Bidirectional` and torch.
      dropout: rate of dropping outputs of each layer but the last in training, as in torch;
        `zoneout_jax.dropout` has the equation. Masks come from the stream "zoneout".
      locked_dropout: use one dropout mask for all steps of a sequence.
      residual: add the inputs of each layer but the first to its outputs, x + dropout(layer(x)).

    Raises:
      TypeError: a cell of another kind.
      ValueError: `deterministic` not given though something depends on it; carry, lengths, mask or
        resets that do not fit the inputs; resets of a cell with `carry_init` or batch
        normalization; residual connections between layers of different sizes; options that exclude
        each other.
      flax.errors.InvalidRngError: training without the random stream "zoneout".

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05))
      >>> x = jnp.ones((2, 7, 3))
      >>> variables = ZoneoutRNN(cell).init(jax.random.key(0), x)
      >>> rngs = {"zoneout": jax.random.key(1)}
      >>> ZoneoutRNN(cell).apply(variables, x, deterministic=False, rngs=rngs).shape
      (2, 7, 4)

      An encoder of three bidirectional layers:

      >>> one, other = ([ZoneoutLSTMCell(4) for _ in range(3)] for _ in range(2))
      >>> encoder = ZoneoutRNN(one, backward=other, dropout=0.1, residual=True)
      >>> variables = encoder.init(jax.random.key(0), x)
      >>> encoder.apply(variables, x, deterministic=False, rngs=rngs).shape
      (2, 7, 8)
    """

    cell: _Base | Sequence[_Base]
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    chunk: Chunk = None
    implementation: Implementation | None = None
    deterministic: bool | None = None
    backward: _Base | Sequence[_Base] | None = None
    merge_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None
    dropout: float | jax.Array = 0.0
    locked_dropout: bool = False
    residual: bool = False

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: Lengths | None = None,
        mask: ArrayLike | None = None,
        resets: ArrayLike | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        zoneout: Zoneout | Sequence[Zoneout] | None = None,
        emit: Callable[[Carry, jax.Array], Any] | None = None,
    ) -> jax.Array | Any:  # depends on `return_carry`, the argument or the attribute
        """Returns outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: arrays `[*batch, H]`; the cell's initial carry if None.
          init_key: key for a cell's `carry_init`; `jax.random.key(0)` by default, as in `nn.RNN`.
          seq_lengths: integers `[*batch]`; elements beyond these lengths are padding.
          mask: instead of `seq_lengths`, booleans with the axes of the inputs but the last: True in
            each sequence, False in padding. A mask that is traced is not checked: the
            length is the number of its True values.
          resets: booleans with the same axes, True for the first step of each episode. Before that
            step the carry is the cell's initial carry, zeros or learned. See `zoneout_jax.unroll`.
          return_carry, time_major, reverse, keep_order, deterministic: override the attributes.
          zoneout: overrides the spec of every cell, or of each layer if a sequence. For rates that
            change during training, pass for instance `[cell.zoneout.at(step) for cell in cells]`.
          emit: function of each step of the last cell, whose result `emit(carry, y)` replaces the
            output y. It takes and returns arrays with the batch first and all batch axes in one.
            For instance, `lambda carry, y: (y, carry[0])` adds the memory cells. With `backward`,
            the results of both directions are a pair.
        """
        layers, is_single = _stack.pair_up(self.cell, self.backward, _Base)
        deterministic = self.deterministic if deterministic is None else deterministic

        def run(number, cell, *arguments, **options):
            key = jax.random.fold_in(jax.random.key(0) if init_key is None else init_key, number)
            options |= {"init_key": key, "deterministic": deterministic}
            return cell._run(*arguments, **options)

        return _stack.run_layers(
            self,
            layers,
            is_single,
            inputs,
            run=run,
            draw_key=lambda cell: _flax.linen_key(self),
            deterministic=self.is_initializing() or deterministic,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            zoneout=zoneout,
            emit=emit,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """Returns the initial carry for inputs `[*batch, F]`, a tuple for several cells."""
        layers, is_single = _stack.pair_up(self.cell, self.backward, _Base)

        def start(number, cell):  # only the batch axes of the shape matter
            return cell.initialize_carry(jax.random.fold_in(rng, number), input_shape)

        return _stack.start_carries(layers, is_single, start)
