"""Flax Linen modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(256))` takes the place of `nn.RNN(nn.OptimizedLSTMCell(256))`. The
modules only hold parameters, statistics and random streams; the equations are those of the pure
cells, `zoneout_jax.LSTM` and so on.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoneout_jax._cell import Activation, Carry, Cell, Output
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
    """What all cells have in common."""

    momentum = 0.99  # only batch-normalized cells have a field of it

    def pure(self, in_features: int) -> Cell:
        """The pure cell for inputs of F features."""
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
          carry: of the step before, arrays `[*batch, H]`.
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
        """`zoneout_jax.unroll` of inputs `[T, *batch, F]` with the cell's parameters."""
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
        """Runs the cell with its parameters, and keeps the statistics."""
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
        """The carry before the first step, zeros or drawn, for inputs `[*batch, F]`."""
        if self.learned_carry:
            raise ValueError("the initial carry is learned: leave initial_carry to ZoneoutRNN")
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
    """One step of any pure cell, for instance of one of your own.

    The carry is that of the pure cell. Parameters are made one by one, with the names and shapes of
    the pure cell's.

    In training the masks come from the random stream "zoneout"; those of an example do not depend
    on the batch around it. In evaluation, and while parameters are initialized, the masks are
    their expectations and no stream is needed. `nn.RNN` must be told to split the stream: it hands
    on only the streams that `split_rngs` lists, so that its defaults end in an InvalidRngError, and
    with False for this one every step would draw the same masks. `ZoneoutRNN` needs no such care,
    and is faster:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      cell: the pure cell.
      zoneout: rates and kinds of the masks. Rates may be traced values (but not under `nn.jit`,
        which hashes attributes).
      deterministic: False in training, True in evaluation. Not needed if nothing depends on it.
      momentum: of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: the masks are then those of the whole batch on a single device.

    Raises:
      ValueError: `deterministic` not given though something depends on it; static masks,
        `hidden_drop` or noise on the carry in a single step of training; a carry that does not fit
        the inputs; options as in the pure cell.
      flax.errors.InvalidRngError: training without the random stream "zoneout".
    """

    cell: Cell
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    momentum: float = 0.99
    carry_init: Initializer | None = None
    carry_noise: float = 0.0
    axis_name: AxisName | None = None

    def pure(self, in_features: int) -> Cell:
        """The pure cell."""
        return self.cell

    @property
    def learned_carry(self) -> bool:
        """Whether the initial carry is made of parameters."""
        return self.cell.learned_carry


class _AnyCell(_Base):
    """The options that all cells have whose input size shows in the first input."""

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
        """The pure cell for inputs of F features."""
        return _flax.make_cell(self.kind, self, in_features, self.features)


class _SizedCell(_AnyCell):
    """The further options of cells with a recurrent product."""

    activation_fn: Activation = "tanh"
    output: Output = "state"
    recurrent_kernel_init: Initializer | None = None
    bias_init: Initializer | None = None


class ZoneoutLSTMCell(_SizedCell):
    """One step of an LSTM with zoneout; `zoneout_jax.LSTM` has the equations.

    The carry is Flax's, (c, h). With `normalization="batch"` it ends with the number of the step,
    and the population statistics are variables of the collection "batch_stats", which training must
    make mutable. `nn.RNN` must carry it, `variable_carry="batch_stats"`, and cannot create what it
    carries: initialize by `ZoneoutRNN`, whose variables have the same names. It counts padding in
    the statistics.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name, momentum: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.LSTM`.

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
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.GRU`.
    """

    gate_fn: Activation = "sigmoid"
    reset_after: bool = True
    normalization: Literal["layer"] | None = None

    kind = GRU


class ZoneoutSimpleCell(_SizedCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.RNN` has the equations.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.RNN`.
    """

    kind = RNN


class ZoneoutIndRNNCell(_SizedCell):
    """One step of an IndRNN with zoneout; `zoneout_jax.IndRNN` has the equations.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.IndRNN`.
    """

    activation_fn: Activation = "relu"

    kind = IndRNN


class ZoneoutMinGRUCell(_AnyCell):
    """One step of a minGRU with zoneout; `zoneout_jax.MinGRU` has the equations.

    `ZoneoutRNN` runs the steps of this and the other linear cells all at once.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.MinGRU`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinGRU


class ZoneoutMinLSTMCell(_AnyCell):
    """One step of a minLSTM with zoneout; `zoneout_jax.MinLSTM` has the equations.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.MinLSTM`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinLSTM


class ZoneoutRGLRUCell(_AnyCell):
    """One step of an RG-LRU with zoneout; `zoneout_jax.RGLRU` has the equations.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.RGLRU`.
    """

    bias_init: Initializer | None = None

    kind = RGLRU


class ZoneoutLRUCell(_AnyCell):
    """One step of an LRU with zoneout; `zoneout_jax.LRU` has the equations.

    The carry is complex.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.LRU`.
    """

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.28

    kind = LRU


class ZoneoutRNN(nn.Module):
    """Runs cells over sequences, as `nn.RNN` does; several cells are stacked.

    Arguments are those of `nn.RNN` for the call and the layout; its `split_rngs` and `variable_*`
    do not exist here, for streams and collections need no care.
    Parameters are those of `nn.RNN` around the same cell, so variables of one serve the other.
    The whole sequence goes through `zoneout_jax.unroll`: one product for all inputs, one key of
    the random stream "zoneout" for all masks. It fits in `nn.Bidirectional`. Two things differ
    from `nn.RNN`: outputs past the end of a sequence are zero, and the final carry of a sequence
    of length zero is its initial carry.

    Attributes:
      cell: a cell; or a sequence of them, the outputs of each being the inputs of the next. Each
        has rates of its own. Carries of a sequence are tuples, with one carry for each cell.
      time_major: inputs and outputs are `[T, *batch, features]` instead of
        `[*batch, T, features]`.
      return_carry: return the pair (final carry, outputs) instead of the outputs.
      reverse: run from the end of each sequence to its beginning. Outputs come in the order of
        the computation, with padding at the end all the same.
      keep_order: with `reverse`, outputs come in the order of the inputs.
      unroll: steps in one iteration of the compiled loop.
      chunk: steps whose intermediate values are computed anew in the backward pass, from the carry
        before them; "auto" is about √T; None keeps everything.
      implementation: "fused", "scan" or "associative", as for `zoneout_jax.unroll`; each cell's
        own if None.
      deterministic: False in training, True in evaluation; the cell's own if None.
      backward: cells with weights of their own that run from the end of each sequence to its
        beginning, one for each of `cell`. The outputs of both, in the order of the inputs, are
        merged before the next layer reads them. Carries are pairs, of cell and backward.
      merge_fn: merges the outputs of the two, `merge_fn(forward, backward)`, for instance
        `jnp.add`; concatenates them by default, as `nn.Bidirectional` and torch.
      dropout: rate of dropping outputs of each layer but the last, as in torch, in training;
        `zoneout_jax.dropout` has the equation. Masks are from the stream "zoneout".
      locked_dropout: one mask of it for all steps of a sequence.
      residual: adds its inputs to the outputs of each layer but the first, x + dropout(layer(x)).

    Raises:
      TypeError: another kind of cell.
      ValueError: `deterministic` not given though something depends on it; misfit carry, lengths,
        mask or resets; resets of a cell with `carry_init` or batch normalization; residual
        connections between layers of different sizes; options that do not go together.
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
    ) -> jax.Array | Any:  # `return_carry`, which may be the attribute, decides
        """Outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: arrays `[*batch, H]`; the cell's initial carry if None.
          init_key: for a cell's `carry_init`; `jax.random.key(0)` by default, as in `nn.RNN`.
          seq_lengths: integers `[*batch]`; what lies beyond them is padding.
          mask: booleans, laid out as the inputs without their last axis, that say the same: True
            up to the end of each sequence, False in padding. If traced, the True are counted.
          resets: booleans, laid out likewise, True for the first step of each episode: before it
            the carry is the cell's initial one, zeros or learned. `zoneout_jax.unroll` has more.
          return_carry, time_major, reverse, keep_order, deterministic: override the attributes.
          zoneout: overrides the spec of every cell, or, a sequence, that of each layer: for rates
            that change during training, such as `[cell.zoneout.at(step) for cell in cells]`.
          emit: `emit(carry, y)`, what to return of each step of the last cell instead of the
            output y: arrays with the batch first, all batch axes in one. `lambda carry, y:
            (y, carry[0])` adds the memory cells. With `backward`, the pair of both directions'.
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
        """The carry before the first step for inputs `[*batch, F]`; a tuple for several cells."""
        layers, is_single = _stack.pair_up(self.cell, self.backward, _Base)

        def start(number, cell):  # of the shape, that of the batch alone matters
            return cell.initialize_carry(jax.random.fold_in(rng, number), input_shape)

        return _stack.start_carries(layers, is_single, start)
