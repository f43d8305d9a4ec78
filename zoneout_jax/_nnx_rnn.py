"""The Flax NNX layer that runs cells over sequences."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike

from zoneout_jax import _flax, _stack
from zoneout_jax._cell import Carry
from zoneout_jax._lengths import Lengths
from zoneout_jax._nnx_cell import Streams, ZoneoutCell, carry_stream, mask_stream
from zoneout_jax._unroll import Chunk, Implementation
from zoneout_jax._zoneout import Zoneout


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
