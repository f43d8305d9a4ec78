"""Flax Linen modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(256))` takes the place of `nn.RNN(nn.OptimizedLSTMCell(256))`. The
modules only hold parameters, statistics and random streams; the equations are those of
`zoneout_jax.lstm`, `zoneout_jax.gru` and `zoneout_jax.rnn`.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from zoneout_jax import cells
from zoneout_jax._needs import needs
from zoneout_jax.cells import Carry, Cell
from zoneout_jax.initializers import Initializer
from zoneout_jax.lstm_cell import lstm
from zoneout_jax.unroll import Lengths
from zoneout_jax.zoneout import Zoneout

with needs("zoneout_jax.linen", "flax"):
    import flax.linen as nn
    from flax.errors import InvalidRngError

    from zoneout_jax._flax import check_cells, expand_carry, run_cell, run_layers


class ZoneoutCell(nn.RNNCellBase):
    """What all cells have in common; use one of its subclasses.

    Carry and parameters are those of the pure cell.

    In training the masks come from the random stream "zoneout"; those of an example do not depend
    on the batch around it. In evaluation, and while parameters are initialized, the masks are
    their expectations and no stream is needed. `nn.RNN` must be told to split the stream: it hands
    on only the streams that `split_rngs` lists, so that its defaults end in an InvalidRngError, and
    with False for this one every step would draw the same masks. `ZoneoutRNN` needs no such care,
    and is faster:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      features: H, number of units.
      zoneout: rates and kinds of the masks. Rates may be traced values (but not under `nn.jit`,
        which hashes attributes).
      deterministic: False in training, True in evaluation. Not needed if nothing depends on it.
      activation: "tanh" or "relu".
      output: "state" gives the zoned-out state, "candidate" the one before zoneout.
      kernel_init: initializer of the input weights, `init(key, shape, dtype, blocks)`, with a block
        for each gate, or without `blocks`, as those of JAX and Flax, and then called for each gate
        with a key of its own. Block orthogonal if None.
      recurrent_init: initializer of the recurrent weights, likewise.
      learned_carry: the initial carry is made of parameters; needs `ZoneoutRNN`.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      param_dtype: type of parameters, carry and output.
      dtype: type of the operands of matrix products; `param_dtype` if None.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: the masks are then those of the whole batch on a single device.

    Raises:
      ValueError: `deterministic` not given though something depends on it; static masks or noise
        on the carry in a single step of training; a carry that does not fit the inputs; options as
        in the pure cell.
      flax.errors.InvalidRngError: training without the random stream "zoneout".
    """

    features: int
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    activation: str = "tanh"
    output: Literal["state", "candidate"] = "state"
    kernel_init: Initializer | None = None
    recurrent_init: Initializer | None = None
    learned_carry: bool = False
    carry_noise: float = 0.0
    param_dtype: Any = jnp.float32
    dtype: Any = None
    axis_name: str | None = None

    momentum = 0.99  # only batch-normalized cells have a field of it

    def pure(self, in_features: int) -> Cell:
        """The pure cell for inputs of F features."""
        raise NotImplementedError("use a subclass, such as ZoneoutLSTMCell")

    def __call__(self, carry: Carry, inputs: jax.Array) -> tuple[Carry, jax.Array]:
        """The carry after inputs `[*batch, F]`, and the output `[*batch, H]`."""
        carry, ys = self.run(inputs[None], carry, single_step=True)
        return carry, ys[0]

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """The carry of zeros for inputs `[*batch, F]`."""
        if self.learned_carry:
            raise ValueError("the initial carry is learned: leave initial_carry to ZoneoutRNN")
        *batch_dims, in_features = input_shape
        return expand_carry(self.pure(in_features).initial_carry({}, 1), batch_dims)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    @nn.compact
    def run(self, xs: jax.Array, carry: Carry | None, **options: Any) -> tuple[Carry, jax.Array]:
        """`zoneout_jax.unroll` of inputs `[T, *batch, F]` with the cell's parameters."""
        cell = self.pure(xs.shape[-1])
        params = self._params(cell)
        stats = None
        if cell.init_stats:
            variables = {
                name: self.variable("batch_stats", name, lambda value: value, value)
                for name, value in cell.init_stats().items()
            }
            stats = {name: variable.value for name, variable in variables.items()}
        carry, ys, moved = run_cell(
            self,
            cell,
            params,
            stats,
            xs,
            carry,
            draw_key=self._key,
            initializing=self.is_initializing(),
            **options,
        )
        if moved:
            for name, variable in variables.items():
                variable.value = moved[name]
        return carry, ys

    def _params(self, cell: Cell) -> dict[str, jax.Array]:
        made: dict[str, jax.Array] = {}

        def make(key, name):
            # All at once, of the key of the first.
            made.update(made or cell.init(key))
            return made[name]

        def check(key, name):
            # Flax compares the shapes of parameters that exist.
            return jnp.zeros(shapes[name].shape, shapes[name].dtype)

        shapes = jax.eval_shape(cell.init, jax.random.key(0))
        exist = self.has_variable("params", next(iter(shapes)))
        return {name: self.param(name, check if exist else make, name) for name in shapes}

    def _key(self) -> jax.Array:
        # Where a stream is missing, Flax would quietly take "params" if that one is there.
        if not self.has_rng("zoneout"):
            raise InvalidRngError(
                'zoneout in training needs the random stream "zoneout": pass'
                ' rngs={"zoneout": key} to apply; under nn.RNN also'
                ' split_rngs={"params": False, "zoneout": True}'
            )
        return self.make_rng("zoneout")

    def _common(self) -> dict[str, Any]:
        names = "activation output kernel_init recurrent_init learned_carry param_dtype dtype"
        return {name: getattr(self, name) for name in names.split()}


class ZoneoutLSTMCell(ZoneoutCell):
    """One step of an LSTM with zoneout; `zoneout_jax.lstm` has the equations.

    The carry is Flax's, (c, h). With `normalization="batch"` the population statistics are `mean`
    and `var` of the collection "batch_stats", which training must make mutable. `nn.RNN` must carry
    it, `variable_carry="batch_stats"`, and cannot create what it carries: initialize by
    `ZoneoutRNN`, whose variables have the same names. It counts padding in the statistics.

    Attributes besides those of `ZoneoutCell`:
      forget_bias: initial value of the forget gate's bias.
      normalization: "layer", "batch" or None.
      initial_gamma: initial gain of the normalization; None means 1 for layers, 0.1 for batches.
      max_steps: steps with population statistics of their own, for "batch".
      momentum: of the moving averages of the population statistics.
      ogates_zoneout: "paper", "repository" or None.

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05), deterministic=False)
      >>> x = jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = cell.init(jax.random.key(1), carry, x)
      >>> carry, y = cell.apply(variables, carry, x, rngs={"zoneout": jax.random.key(2)})
      >>> y.shape
      (2, 4)
    """

    forget_bias: float = 1.0
    normalization: Literal["layer", "batch"] | None = None
    initial_gamma: float | None = None
    max_steps: int | None = None
    momentum: float = 0.99
    ogates_zoneout: Literal["paper", "repository"] | None = None

    def pure(self, in_features: int) -> Cell:
        """The pure cell for inputs of F features."""
        return lstm(
            in_features,
            self.features,
            forget_bias=self.forget_bias,
            normalization=self.normalization,
            initial_gamma=self.initial_gamma,
            max_steps=self.max_steps,
            ogates_zoneout=self.ogates_zoneout,
            **self._common(),
        )


class ZoneoutGRUCell(ZoneoutCell):
    """One step of a GRU with zoneout; `zoneout_jax.gru` has the equations.

    Attributes besides those of `ZoneoutCell`:
      reset_after: the reset gate multiplies the recurrent product (as in Flax and torch), not the
        state before it (as in the paper).
    """

    reset_after: bool = True

    def pure(self, in_features: int) -> Cell:
        """The pure cell for inputs of F features."""
        return cells.gru(in_features, self.features, reset_after=self.reset_after, **self._common())


class ZoneoutSimpleCell(ZoneoutCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.rnn` has the equations."""

    def pure(self, in_features: int) -> Cell:
        """The pure cell for inputs of F features."""
        return cells.rnn(in_features, self.features, **self._common())


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
        before them; None keeps everything.
      implementation: "fused", or "scan" for derivatives in forward mode.
      deterministic: False in training, True in evaluation; the cell's own if None.

    Raises:
      TypeError: another kind of cell.
      ValueError: `deterministic` not given though something depends on it; misfit carry or lengths.
      flax.errors.InvalidRngError: training without the random stream "zoneout".

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05))
      >>> x = jnp.ones((2, 7, 3))
      >>> variables = ZoneoutRNN(cell).init(jax.random.key(0), x)
      >>> rngs = {"zoneout": jax.random.key(1)}
      >>> ZoneoutRNN(cell).apply(variables, x, deterministic=False, rngs=rngs).shape
      (2, 7, 4)
    """

    cell: ZoneoutCell | Sequence[ZoneoutCell]
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    chunk: int | None = None
    implementation: Literal["fused", "scan"] = "fused"
    deterministic: bool | None = None

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: Carry | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: Lengths | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        deterministic: bool | None = None,
        zoneout: Zoneout | Sequence[Zoneout] | None = None,
    ) -> jax.Array | Any:  # `return_carry`, which may be the attribute, decides
        """Outputs `[*batch, T, H]` or `[T, *batch, H]`, or (final carry, outputs).

        Args:
          inputs: `[*batch, T, F]`, or `[T, *batch, F]` if `time_major`.
          initial_carry: arrays `[*batch, H]`; the cell's initial carry if None.
          init_key: not used; `nn.Bidirectional` passes it.
          seq_lengths: integers `[*batch]`; what lies beyond them is padding.
          return_carry, time_major, reverse, keep_order, deterministic: override the attributes.
          zoneout: overrides the spec of every cell, or, a sequence, that of each: for rates that
            change during training, such as `[cell.zoneout.at(step) for cell in cells]`.
        """
        del init_key
        stack = self.cell if isinstance(self.cell, Sequence) else (self.cell,)
        check_cells(stack, ZoneoutCell)
        return run_layers(
            self,
            stack,
            stack is not self.cell,
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            deterministic=self.deterministic if deterministic is None else deterministic,
            zoneout=zoneout,
            return_carry=return_carry,
            time_major=time_major,
            reverse=reverse,
            keep_order=keep_order,
        )
