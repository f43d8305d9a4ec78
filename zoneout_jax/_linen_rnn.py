"""The Flax Linen layer that runs cells over sequences."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.typing import ArrayLike

from zoneout_jax import _flax, _stack
from zoneout_jax._cell import Carry
from zoneout_jax._lengths import Lengths
from zoneout_jax._linen_cell import BaseCell
from zoneout_jax._unroll import Chunk, Implementation
from zoneout_jax._zoneout import Zoneout


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

    cell: BaseCell | Sequence[BaseCell]
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    chunk: Chunk = None
    implementation: Implementation | None = None
    deterministic: bool | None = None
    backward: BaseCell | Sequence[BaseCell] | None = None
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
        layers, is_single = _stack.pair_up(self.cell, self.backward, BaseCell)
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
        layers, is_single = _stack.pair_up(self.cell, self.backward, BaseCell)

        def start(number, cell):  # only the batch axes of the shape matter
            return cell.initialize_carry(jax.random.fold_in(rng, number), input_shape)

        return _stack.start_carries(layers, is_single, start)
