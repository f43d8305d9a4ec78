"""Flax NNX modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(32, 256, rngs=rngs))` takes the place of
`nnx.RNN(nnx.OptimizedLSTMCell(32, 256, rngs=rngs))`. The modules only hold parameters, statistics
and random streams; the equations are those of the pure cells, `zoneout_jax.LSTM` and so on.
"""

import dataclasses
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

with needs("zoneout_jax.nnx", "flax"):
    from flax import nnx

    from zoneout_jax import _flax, _stack
    from zoneout_jax._conv_nnx import ZoneoutConvLSTMCell
    from zoneout_jax._nnx_cell import NoisyCell, Streams, carry_stream, fork_stream, mask_stream

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


class ZoneoutCell(NoisyCell):
    """One step of any pure cell, for instance of one of your own.

    Parameters (`nnx.Param`) have the names and shapes of the pure cell's, population statistics are
    `nnx.BatchStat`. `model.train()` and `model.eval()` set `deterministic`, and so does `nnx.view`.

    In training the masks come from the stream "zoneout" of `rngs` (or its default stream), of which
    the cell keeps a fork, as `nnx.Dropout` does; those of an example do not depend on the batch
    around it.

    Args:
      cell: the pure cell; it becomes the attribute `pure`.
      zoneout: rates and kinds of the masks. Rates must be plain numbers or schedules (arrays of one
        known number become that number), for Flax keeps them apart from what it traces. Rates that
        change during training are given to the call instead.
      deterministic: False in training, True in evaluation.
      momentum: of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis over which the batch is spread, if it is: the masks are
        then those of the whole batch on a single device.
      rngs: random streams: "params", and "zoneout" for the masks.

    Raises:
      ValueError: training without a random stream; static masks, `hidden_drop` or noise on the
        carry in a single step of training; a carry that does not fit the inputs; options as in the
        pure cell.
      TypeError: a `zoneout` that is no `Zoneout`, or holds a traced rate.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        momentum: float = 0.99,
        carry_init: Initializer | None = None,
        carry_noise: float = 0.0,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        self.pure = cell
        self.in_features = cell.in_features
        self.hidden_features = cell.hidden_features
        self.zoneout = zoneout
        self.deterministic = deterministic
        self.momentum = momentum
        self.carry_init = carry_init
        self.carry_noise = carry_noise
        self.axis_name = axis_name
        _flax.check_carry_init(self, cell.learned_carry)
        for name, (init, shape) in cell.parameters().items():
            setattr(self, name, nnx.Param(init(rngs.params(), shape, cell.param_dtype)))
        for name, value in cell.init_stats().items():
            setattr(self, name, nnx.BatchStat(value))
        self.rngs = fork_stream(rngs)

    def pure_params(self) -> dict[str, jax.Array]:
        """The parameters as those of the pure cell."""
        return {name: getattr(self, name)[...] for name in self.pure.parameters()}

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
          carry: of the step before, arrays `[*batch, H]`.
          inputs: `[*batch, F]`.
          deterministic, zoneout: override the attributes.
          rngs: streams to draw from instead of the cell's own.

        Returns:
          The new carry and the output `[*batch, H]`.
        """
        return self._apply(
            _flax.run_step,
            carry,
            inputs,
            deterministic=deterministic,
            zoneout=zoneout,
            rngs=rngs,
        )

    # Flax lets the caller choose an initializer as well; `carry_init` is an attribute here.
    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None
    ) -> Carry:
        """The carry before the first step, for inputs `[*batch, F]`.

        Args:
          input_shape: shape of the inputs.
          rngs: streams for `carry_init`, of which "carry" is used, or that stream; `nnx.Rngs(0)` by
            default.
        """
        return _flax.start_carry(
            self.pure, self.pure_params(), input_shape[:-1], self.carry_init, carry_stream(rngs)
        )

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    def _run(
        self, xs: jax.Array, carry: Carry | None, *, starts: Callable[[], jax.Array], **options: Any
    ) -> tuple[Carry, Any]:
        """`zoneout_jax.unroll` of inputs `[T, *batch, F]` with the cell's parameters."""
        if carry is None and self.carry_init is not None:
            carry = _flax.start_carry(self.pure, {}, xs.shape[1:-1], self.carry_init, starts)
        return self._apply(_flax.run_sequence, xs, carry, **options)

    def _apply(
        self,
        run: Callable[..., tuple[Carry, Any, Stats | None]],
        *arguments: Any,
        deterministic: bool | None,
        zoneout: Zoneout | None,
        rngs: Streams | None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs the cell with its parameters, and keeps the statistics."""
        stats = {name: getattr(self, name)[...] for name in self.pure.init_stats()} or None
        mode = _flax.Mode.of(self, self.pure, zoneout, deterministic)
        options |= {"draw_key": mask_stream(rngs) or self._key}
        carry, ys, moved = run(
            self, self.pure, mode, self.pure_params(), stats, *arguments, **options
        )
        for name, value in (moved or {}).items():
            getattr(self, name)[...] = value
        return carry, ys


class ZoneoutLSTMCell(ZoneoutCell):
    """One step of an LSTM with zoneout; `zoneout_jax.LSTM` has the equations.

    The carry is Flax's, (c, h). With `normalization="batch"` it ends with the number of the step.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, momentum, carry_init, carry_noise, axis_name, rngs: as for
        `ZoneoutCell`.
      the rest: as for `zoneout_jax.LSTM`.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> cell = ZoneoutLSTMCell(3, 4, zoneout=spec, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> carry, y = cell(cell.initialize_carry(x.shape), x)
      >>> y.shape
      (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "tanh",
        gate_fn: Activation = "sigmoid",
        output: Output = "state",
        forget_bias: float = 1.0,
        normalization: Literal["layer", "batch"] | None = None,
        initial_gamma: float | None = None,
        max_steps: int | None = None,
        momentum: float = 0.99,
        ogates_zoneout: Literal["paper", "repository"] | None = None,
        proj_size: int | None = None,
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(LSTM, given), **_shared(given))


class ZoneoutGRUCell(ZoneoutCell):
    """One step of a GRU with zoneout; `zoneout_jax.GRU` has the equations.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.GRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        reset_after: bool = True,
        activation_fn: Activation = "tanh",
        gate_fn: Activation = "sigmoid",
        output: Output = "state",
        normalization: Literal["layer"] | None = None,
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(GRU, given), **_shared(given))


class ZoneoutSimpleCell(ZoneoutCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.RNN` has the equations.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.RNN`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "tanh",
        output: Output = "state",
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(RNN, given), **_shared(given))


class ZoneoutIndRNNCell(ZoneoutCell):
    """One step of an IndRNN with zoneout; `zoneout_jax.IndRNN` has the equations.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.IndRNN`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "relu",
        output: Output = "state",
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(IndRNN, given), **_shared(given))


class ZoneoutMinGRUCell(ZoneoutCell):
    """One step of a minGRU with zoneout; `zoneout_jax.MinGRU` has the equations.

    `ZoneoutRNN` runs the steps of this and the other linear cells all at once.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.MinGRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation | None = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(MinGRU, given), **_shared(given))


class ZoneoutMinLSTMCell(ZoneoutCell):
    """One step of a minLSTM with zoneout; `zoneout_jax.MinLSTM` has the equations.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.MinLSTM`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation | None = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(MinLSTM, given), **_shared(given))


class ZoneoutRGLRUCell(ZoneoutCell):
    """One step of an RG-LRU with zoneout; `zoneout_jax.RGLRU` has the equations.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.RGLRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(RGLRU, given), **_shared(given))


class ZoneoutLRUCell(ZoneoutCell):
    """One step of an LRU with zoneout; `zoneout_jax.LRU` has the equations.

    The carry is complex.

    Args:
      in_features, hidden_features: F and H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      the rest: as for `zoneout_jax.LRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
        kernel_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(LRU, given), **_shared(given))


class ZoneoutRNN(nnx.Module):
    """Runs cells over sequences, as `nnx.RNN` does; several cells are stacked.

    Arguments are those of `nnx.RNN` for the call and the layout. `state_axes`, `broadcast_rngs` and
    the constructor's `rngs` do not exist here: each cell has its own stream.
    The whole sequence goes through `zoneout_jax.unroll`: one product for all inputs, one key of
    each cell's stream for all its masks. It fits in `nnx.Bidirectional`. Two things differ from
    `nnx.RNN`: outputs past the end of a sequence are zero, and the final carry of a sequence of
    length zero is its initial carry.

    Args:
      cell: a cell; or a sequence of them, the outputs of each being the inputs of the next. Each
        has rates of its own. Carries of a sequence are tuples, with one carry for each cell. A cell
        becomes the attribute `cell`, those of a sequence `cell_0`, `cell_1` and so on.
      backward: cells with weights of their own that run from the end of each sequence to its
        beginning, one for each of `cell`; they become `backward`, or `backward_0` and so on. The
        outputs of both, in the order of the inputs, are merged before the next layer reads them.
        Carries are pairs, of cell and backward.
      merge_fn: merges the outputs of the two, `merge_fn(forward, backward)`, for instance
        `jnp.add`; concatenates them by default, as `nnx.Bidirectional` and torch.
      dropout: rate of dropping outputs of each layer but the last, as in torch, in training;
        `zoneout_jax.dropout` has the equation. Masks are from the stream of the layer's cell.
      locked_dropout: one mask of it for all steps of a sequence.
      residual: adds its inputs to the outputs of each layer but the first, x + dropout(layer(x)).
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

    Raises:
      TypeError: another kind of cell.
      ValueError: misfit carry, lengths, mask or resets; resets of a cell with `carry_init` or batch
        normalization; residual connections between layers of different sizes; options that do not
        go together.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> rnn = ZoneoutRNN(ZoneoutLSTMCell(3, 4, zoneout=spec, rngs=nnx.Rngs(0)))
      >>> rnn(jnp.ones((2, 7, 3)), deterministic=True).shape
      (2, 7, 4)

      An encoder of three bidirectional layers:

      >>> rngs = nnx.Rngs(0)
      >>> one, other = ([ZoneoutLSTMCell(f, 4, rngs=rngs) for f in (3, 8, 8)] for _ in range(2))
      >>> encoder = ZoneoutRNN(one, backward=other, dropout=0.1, residual=True)
      >>> encoder(jnp.ones((2, 7, 3))).shape
      (2, 7, 8)
    """

    def __init__(
        self,
        cell: ZoneoutCell | Sequence[ZoneoutCell],
        *,
        backward: ZoneoutCell | Sequence[ZoneoutCell] | None = None,
        merge_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        dropout: float = 0.0,
        locked_dropout: bool = False,
        residual: bool = False,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        chunk: Chunk = None,
        implementation: Implementation | None = None,
    ):
        layers, self.is_single = _stack.pair_up(cell, backward, ZoneoutCell)
        ways = ("cell", "backward")[: len(layers[0])]
        self.cell_names = tuple(
            tuple(way if self.is_single else f"{way}_{number}" for way in ways)
            for number in range(len(layers))
        )
        for names, cells in zip(self.cell_names, layers, strict=True):
            for name, one in zip(names, cells, strict=True):
                setattr(self, name, one)
        self.merge_fn = merge_fn
        self.dropout = dropout
        self.locked_dropout = locked_dropout
        self.residual = residual
        self.time_major = time_major
        self.return_carry = return_carry
        self.reverse = reverse
        self.keep_order = keep_order
        self.unroll = unroll
        self.chunk = chunk
        self.implementation = implementation

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
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
        rngs: Streams | None = None,
    ) -> jax.Array | Any:  # `return_carry`, which may be the attribute, decides
        """Outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: arrays `[*batch, H]`; the cell's initial carry if None.
          seq_lengths: integers `[*batch]`; what lies beyond them is padding.
          mask: booleans, laid out as the inputs without their last axis, that say the same: True
            up to the end of each sequence, False in padding. If traced, the True are counted.
          resets: booleans, laid out likewise, True for the first step of each episode: before it
            the carry is the cell's initial one, zeros or learned. `zoneout_jax.unroll` has more.
          return_carry, time_major, reverse, keep_order: override the attributes.
          deterministic: overrides that of every cell.
          zoneout: overrides the spec of every cell, or, a sequence, that of each layer: for rates
            that change during training, such as `[cell.zoneout.at(step) for cell in cells]`.
          emit: `emit(carry, y)`, what to return of each step of the last cell instead of the
            output y: arrays with the batch first, all batch axes in one. `lambda carry, y:
            (y, carry[0])` adds the memory cells. With `backward`, the pair of both directions'.
          rngs: streams to draw from instead of each cell's own: "zoneout" for the masks, "carry"
            for `carry_init`; or a key for the masks.
        """
        if isinstance(rngs, jax.Array):  # a key: each cell draws one of its own from it
            rngs = nnx.RngStream(rngs, tag="zoneout")
        starts = carry_stream(rngs)

        def run(number, cell, *arguments, **options):
            options |= {"deterministic": deterministic, "rngs": rngs, "starts": starts}
            return cell._run(*arguments, **options)

        return _stack.run_layers(
            self,
            self._layers(),
            self.is_single,
            inputs,
            run=run,
            draw_key=lambda cell: (mask_stream(rngs) or cell._key)(),
            deterministic=deterministic,
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

    def initialize_carry(self, input_shape: tuple[int, ...], rngs: Any = None) -> Carry:
        """The carry before the first step for inputs `[*batch, F]`; a tuple for several cells."""
        starts = carry_stream(rngs)

        def start(number, cell):
            batch_dims, params = input_shape[:-1], cell.pure_params()
            return _flax.start_carry(cell.pure, params, batch_dims, cell.carry_init, starts)

        return _stack.start_carries(self._layers(), self.is_single, start)

    def _layers(self) -> list[tuple[ZoneoutCell, ...]]:
        return [tuple(getattr(self, name) for name in names) for names in self.cell_names]


SHARED = "zoneout deterministic momentum carry_init carry_noise axis_name rngs".split()
"""Arguments of `ZoneoutCell` that its subclasses hand on."""


def _pure(kind: type[Cell], given: dict[str, Any]) -> Cell:
    """The pure cell of the arguments that are its own."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: given[name] for name in names if name in given})


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in SHARED if name in given}
