"""Flax NNX modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(32, 256, rngs=rngs))` takes the place of
`nnx.RNN(nnx.OptimizedLSTMCell(32, 256, rngs=rngs))`. The modules only hold parameters, statistics
and random streams; the equations are those of `zoneout_jax.lstm`, `zoneout_jax.gru` and
`zoneout_jax.rnn`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from zoneout_jax import cells
from zoneout_jax._needs import needs
from zoneout_jax.cells import Carry, Cell
from zoneout_jax.lstm_cell import lstm
from zoneout_jax.unroll import Lengths
from zoneout_jax.zoneout import Zoneout

with needs("zoneout_jax.nnx", "flax"):
    from flax import nnx

    from zoneout_jax._flax import check_cells, check_spec, expand_carry, run_cell, run_layers


class ZoneoutCell(nnx.RNNCellBase):
    """What all cells have in common; use one of its subclasses.

    Parameters (`nnx.Param`) have the names and shapes of the pure cell's, population statistics are
    `nnx.BatchStat`. `model.train()` and `model.eval()` set `deterministic`.

    In training the masks come from the stream "zoneout" of `rngs` (or its default stream), of which
    the cell keeps a fork, as `nnx.Dropout` does; those of an example do not depend on the batch
    around it.

    Args:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      zoneout: rates and kinds of the masks. Rates must be plain numbers or schedules (arrays of one
        known number become that number), for Flax keeps them apart from what it traces. Rates that
        change during training are given to the call of `ZoneoutRNN` instead.
      deterministic: False in training, True in evaluation.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis over which the batch is spread, if it is: the masks are
        then those of the whole batch on a single device.
      rngs: random streams: "params", and "zoneout" for the masks.
      options: options of the pure cell: `activation`, `output`, `kernel_init`, `recurrent_init`,
        `learned_carry`, `param_dtype`, `dtype`, and those of the subclass. Initializers are those
        of JAX and Flax, called for each gate with a key of its own, or have a parameter `blocks`.

    Raises:
      ValueError: training without a random stream; static masks or noise on the carry in a single
        step of training; a carry that does not fit the
        inputs; options as in the pure cell.
      TypeError: a `zoneout` that is no `Zoneout`.
    """

    momentum = 0.99  # only batch-normalized cells have one of their own

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        carry_noise: float = 0.0,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.in_features = in_features
        self.hidden_features = hidden_features
        check_spec(zoneout)
        rates: dict[str, Any] = {name: _plain(rate) for name, rate in zoneout.rates.items()}
        if zoneout.shared:
            rates["states"] = rates["cells"]  # that of the cells decides
        self.zoneout = dataclasses.replace(zoneout, **rates)
        self.deterministic = deterministic
        self.carry_noise = carry_noise
        self.axis_name = axis_name
        self.options = tuple(sorted(options.items()))
        cell = self.pure()
        params = cell.init(rngs.params())
        self.param_names = tuple(params)
        for name, value in params.items():
            setattr(self, name, nnx.Param(value))
        if cell.init_stats:
            stats = cell.init_stats()
            self.mean, self.var = nnx.BatchStat(stats["mean"]), nnx.BatchStat(stats["var"])
        # Without a stream, the cell serves as long as it need not draw.
        has_stream = "zoneout" in rngs or "default" in rngs
        self.rngs = rngs.zoneout.fork() if has_stream else None

    def pure(self) -> Cell:
        """The pure cell."""
        raise NotImplementedError("use a subclass, such as ZoneoutLSTMCell")

    def pure_params(self) -> dict[str, jax.Array]:
        """The parameters as those of the pure cell."""
        return {name: getattr(self, name)[...] for name in self.param_names}

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """The carry after inputs `[*batch, F]`, and the output `[*batch, H]`."""
        carry, ys = self.run(inputs[None], carry, single_step=True)
        return carry, ys[0]

    # Flax lets the caller choose an initializer as well; the carry is learned or zeros here.
    def initialize_carry(  # type: ignore[override]
        self, input_shape: tuple[int, ...], rngs: Any = None
    ) -> Carry:
        """The initial carry, learned or zeros, for inputs `[*batch, F]`; `rngs` are not used."""
        del rngs
        return expand_carry(self.pure().initial_carry(self.pure_params(), 1), input_shape[:-1])

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    def run(self, xs: jax.Array, carry: Carry | None, **options: Any) -> tuple[Carry, jax.Array]:
        """`zoneout_jax.unroll` of inputs `[T, *batch, F]` with the cell's parameters."""
        cell = self.pure()
        stats = None
        if cell.init_stats:
            stats = {"mean": self.mean[...], "var": self.var[...]}
        carry, ys, moved = run_cell(
            self, cell, self.pure_params(), stats, xs, carry, draw_key=self._key, **options
        )
        if moved:
            self.mean[...], self.var[...] = moved["mean"], moved["var"]
        return carry, ys

    def _key(self) -> jax.Array:
        if self.rngs is None:
            raise ValueError(
                'zoneout in training needs the random stream "zoneout": make the cell with'
                " rngs=nnx.Rngs(params=0, zoneout=1), or nnx.Rngs(0), which serves all streams"
            )
        return self.rngs()


class ZoneoutLSTMCell(ZoneoutCell):
    """One step of an LSTM with zoneout; `zoneout_jax.lstm` has the equations.

    The carry is Flax's, (c, h). With `normalization="batch"` the population statistics are the
    `nnx.BatchStat`s `mean` and `var`.

    Args:
      in_features, hidden_features, **common: as for `ZoneoutCell`.
      momentum: of the moving averages of the population statistics.
      options: of `ZoneoutCell`, and `forget_bias`, `normalization`, `initial_gamma`, `max_steps`,
        `ogates_zoneout` of the pure cell.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> cell = ZoneoutLSTMCell(3, 4, zoneout=spec, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> carry, y = cell(cell.initialize_carry(x.shape), x)
      >>> y.shape
      (2, 4)
    """

    def __init__(
        self, in_features: int, hidden_features: int, *, momentum: float = 0.99, **common: Any
    ):
        self.momentum = momentum
        super().__init__(in_features, hidden_features, **common)

    def pure(self) -> Cell:
        """The pure cell."""
        return lstm(self.in_features, self.hidden_features, **dict(self.options))


class ZoneoutGRUCell(ZoneoutCell):
    """One step of a GRU with zoneout; `zoneout_jax.gru` has the equations.

    Options besides those of `ZoneoutCell`: `reset_after`, True by default as in Flax and torch.
    """

    def pure(self) -> Cell:
        """The pure cell."""
        return cells.gru(self.in_features, self.hidden_features, **dict(self.options))


class ZoneoutSimpleCell(ZoneoutCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.rnn` has the equations."""

    def pure(self) -> Cell:
        """The pure cell."""
        return cells.rnn(self.in_features, self.hidden_features, **dict(self.options))


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
      time_major: inputs and outputs are `[T, *batch, features]` instead of
        `[*batch, T, features]`.
      return_carry: return the pair (final carry, outputs) instead of the outputs.
      reverse: run from the end of each sequence to its beginning. Outputs come in the order of
        the computation, with padding at the end all the same.
      keep_order: with `reverse`, outputs come in the order of the inputs.
      unroll: steps in one iteration of the compiled loop.
      chunk: steps whose intermediate values are computed anew in the backward pass, from the carry
        before them; None keeps everything.
      implementation: "fused", or "scan" for derivatives in forward mode.

    Raises:
      TypeError: another kind of cell.
      ValueError: misfit carry or lengths.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> rnn = ZoneoutRNN(ZoneoutLSTMCell(3, 4, zoneout=spec, rngs=nnx.Rngs(0)))
      >>> rnn(jnp.ones((2, 7, 3)), deterministic=True).shape
      (2, 7, 4)
    """

    def __init__(
        self,
        cell: ZoneoutCell | Sequence[ZoneoutCell],
        *,
        time_major: bool = False,
        return_carry: bool = False,
        reverse: bool = False,
        keep_order: bool = False,
        unroll: int = 1,
        chunk: int | None = None,
        implementation: Literal["fused", "scan"] = "fused",
    ):
        stack = cell if isinstance(cell, Sequence) else (cell,)
        check_cells(stack, ZoneoutCell)
        self.cell_names = (
            tuple(f"cell_{n}" for n in range(len(stack))) if cell is stack else ("cell",)
        )
        for name, one in zip(self.cell_names, stack, strict=True):
            setattr(self, name, one)
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
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        zoneout: Zoneout | Sequence[Zoneout] | None = None,
        rngs: Any = None,
    ) -> jax.Array | Any:  # `return_carry`, which may be the attribute, decides
        """Outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: arrays `[*batch, H]`; the cell's initial carry if None.
          seq_lengths: integers `[*batch]`; what lies beyond them is padding.
          return_carry, time_major, reverse, keep_order: override the attributes.
          deterministic: overrides that of every cell.
          zoneout: overrides the spec of every cell, or, a sequence, that of each: for rates that
            change during training, such as `[cell.zoneout.at(step) for cell in cells]`.
          rngs: not used; `nnx.Bidirectional` passes it. Each cell has its own stream.
        """
        del rngs
        return run_layers(
            self,
            [getattr(self, name) for name in self.cell_names],
            self.cell_names == ("cell",),
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            deterministic=deterministic,
            zoneout=zoneout,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )


def _plain(rate: Any) -> Any:
    """The number that an array of one known number holds; everything else as it is."""
    known = isinstance(rate, jax.Array | np.ndarray) and not isinstance(rate, jax.core.Tracer)
    return float(rate) if known and rate.ndim == 0 else rate
