"""Flax NNX modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(32, 256, rngs=rngs))` replaces
`nnx.RNN(nnx.OptimizedLSTMCell(32, 256, rngs=rngs))`. The modules only hold parameters, statistics
and random streams. The equations are in the pure cells, such as `zoneout_jax.LSTM`.
"""

import dataclasses
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
    """One step of any pure cell, for instance of a cell that you wrote.

    Parameters are `nnx.Param`, with the names and shapes of the pure cell's; population statistics
    are `nnx.BatchStat`. `model.train()`, `model.eval()` and `nnx.view` set `deterministic`.

    In training the masks come from the stream "zoneout" of `rngs`, or from its default stream. The
    cell keeps a fork of that stream, as `nnx.Dropout` does. The masks of an example do not depend
    on the rest of the batch.

    Args:
      cell: the pure cell, which becomes the attribute `pure`.
      zoneout: rates and kinds of the masks. Rates must be plain numbers or schedules, because Flax
        treats them as static; an array of one known number becomes that number. Pass rates that
        change during training to the call instead.
      deterministic: False in training, True in evaluation.
      momentum: momentum of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis that the batch is spread over, if any. Masks are then the
        same as for the whole batch on a single device.
      rngs: random streams: "params" for the parameters, "zoneout" for the masks.

    Raises:
      ValueError: training without a random stream; static masks, `hidden_drop` or noise on the
        carry in a single step of training; a carry that does not fit the inputs; options that the
        pure cell rejects.
      TypeError: a `cell` that is not a pure cell; a `zoneout` that is not a `Zoneout`, or that
        holds a traced rate.
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
        check_cell(cell)
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
        """Returns the parameters in the form that the pure cell takes."""
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
          carry: carry of the previous step, arrays `[*batch, H]`.
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

    # Flax's method also takes an initializer; here it is the attribute `carry_init`.
    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None
    ) -> Carry:
        """Returns the initial carry for inputs `[*batch, F]`.

        Args:
          input_shape: shape of the inputs.
          rngs: random streams, of which `carry_init` uses "carry", or that stream alone;
            `nnx.Rngs(0)` by default.
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
        """Runs `zoneout_jax.unroll` over inputs `[T, *batch, F]` with the cell's parameters."""
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
        """Runs the cell with its parameters and stores the new statistics."""
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

    The carry is (c, h), as in Flax. With `normalization="batch"` the number of the step follows.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, momentum, carry_init, carry_noise, axis_name, rngs: as for
        `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LSTM`.

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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.GRU`.
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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.RNN`.
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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.IndRNN`.
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

    `ZoneoutRNN` runs all steps of this and the other linear cells at once.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.MinGRU`.
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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.MinLSTM`.
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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.RGLRU`.
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
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LRU`.
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
    """Runs a cell or a stack of cells over sequences, as `nnx.RNN` does.

    Arguments for the call and the layout are those of `nnx.RNN`. Its `state_axes`, `broadcast_rngs`
    and the constructor's `rngs` do not exist here: each cell has its own stream. The module also
    fits in `nnx.Bidirectional`. It runs `zoneout_jax.unroll` over the whole sequence, with one
    product for all inputs and one key of each cell's stream for all its masks. Two things differ
    from `nnx.RNN`: outputs past the end of a sequence are zero, and the final carry of a sequence
    of length zero is its initial carry.

    Args:
      cell: a cell, which becomes the attribute `cell`; or a sequence of cells, `cell_0`, `cell_1`
        and so on, each with its own rates: the outputs of one are the inputs of the next. Carries
        of a sequence are tuples, with one carry for each cell.
      backward: cells as in `zoneout_jax.linen.ZoneoutRNN`. They become the attribute `backward`, or
        `backward_0` and so on.
      dropout: rate of dropping outputs of each layer but the last in training, as in torch;
        `zoneout_jax.dropout` has the equation. Masks come from the stream of the layer's cell.
      other arguments: as in `zoneout_jax.linen.ZoneoutRNN`.

    Raises:
      TypeError: a cell of another kind.
      ValueError: carry, lengths, mask or resets that do not fit the inputs; resets of a cell with
        `carry_init` or batch normalization; residual connections between layers of different sizes;
        options that exclude each other.

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
        _stack.check_options(self, self.is_single, len(ways) > 1)

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
    ) -> jax.Array | Any:  # depends on `return_carry`, the argument or the attribute
        """Returns outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          deterministic: overrides the setting of every cell.
          rngs: streams to draw from instead of each cell's own: "zoneout" for the masks, "carry"
            for `carry_init`; or a key for the masks.
          other arguments: as in the call of `zoneout_jax.linen.ZoneoutRNN`.
        """
        if isinstance(rngs, jax.Array):  # a key, from which each cell draws its own
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
        """Returns the initial carry for inputs `[*batch, F]`, a tuple for several cells."""
        starts = carry_stream(rngs)

        def start(number, cell):
            batch_dims, params = input_shape[:-1], cell.pure_params()
            return _flax.start_carry(cell.pure, params, batch_dims, cell.carry_init, starts)

        return _stack.start_carries(self._layers(), self.is_single, start)

    def _layers(self) -> list[tuple[ZoneoutCell, ...]]:
        return [tuple(getattr(self, name) for name in names) for names in self.cell_names]


SHARED = "zoneout deterministic momentum carry_init carry_noise axis_name rngs".split()
"""Arguments that the subclasses of `ZoneoutCell` pass on to it."""


def _pure(kind: type[Cell], given: dict[str, Any]) -> Cell:
    """Makes the pure cell from the given arguments that are its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: given[name] for name in names if name in given})


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in SHARED if name in given}
