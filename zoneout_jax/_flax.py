"""What the Linen and NNX modules share: batch dimensions, options of Flax's RNN, stacked layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.recurrent import flip_sequences

from zoneout_jax.cells import Carry, Cell, Params
from zoneout_jax.normalization import Stats, update_stats
from zoneout_jax.unroll import Lengths, clip_lengths, unroll
from zoneout_jax.zoneout import Zoneout


def run_cell(
    module: Any,
    cell: Cell,
    params: Params,
    stats: Stats | None,
    xs: jax.Array,
    carry: Carry | None,
    *,
    draw_key: Callable[[], jax.Array],
    deterministic: bool | None = None,
    zoneout: Zoneout | None = None,
    initializing: bool = False,
    single_step: bool = False,
    seq_lengths: Lengths | None = None,
    **options: Any,
) -> tuple[Carry, jax.Array, Stats | None]:
    """`unroll` for inputs `[T, *batch, F]` with the settings of a cell's module.

    Args:
      module: the Linen or NNX cell.
      draw_key: gives a random key; called only if one is needed.
      deterministic, zoneout: override the module's.
      initializing: nothing is drawn, and no statistics move.
      single_step: the step is one of many that the caller takes.

    Returns:
      The carry, the outputs, and in training the moved population statistics, if there are any.
    """
    zoneout = module.zoneout if zoneout is None else zoneout
    deterministic = module.deterministic if deterministic is None else deterministic
    check_spec(zoneout)
    if initializing:
        zoneout = Zoneout()
    draws = zoneout.active or bool(module.carry_noise)
    if initializing or not (draws or stats):
        deterministic = True
    if deterministic is None:
        raise ValueError(
            "deterministic must be given where masks, noise or batch statistics depend on it:"
            " False in training (masks are sampled), True in evaluation (their expectation)"
        )
    if single_step and not deterministic:
        for what, given in (("static masks", zoneout.static), ("carry_noise", module.carry_noise)):
            if given:
                raise ValueError(f"{what} in training: a single step cannot; use ZoneoutRNN")
    if single_step:
        options["implementation"] = "scan"  # has all derivatives, and nothing to gain from fusing

    steps, *batch_dims, in_features = xs.shape
    batch = math.prod(batch_dims)
    if carry is not None:
        carry = _flatten_carry(carry, (*batch_dims, cell.hidden_features))
    if seq_lengths is not None:
        seq_lengths = jnp.asarray(seq_lengths)
        if seq_lengths.shape != tuple(batch_dims):
            raise ValueError(f"seq_lengths must be {tuple(batch_dims)}, got {seq_lengths.shape}")
        seq_lengths = jnp.ravel(seq_lengths) if len(batch_dims) != 1 else seq_lengths
    found: list[Stats]
    carry, ys, *found = unroll(
        cell,
        params,
        xs.reshape(steps, batch, in_features),
        carry,
        zoneout=zoneout,
        key=draw_key() if draws and not deterministic else None,
        deterministic=deterministic,
        stats=stats,
        carry_noise=module.carry_noise,
        seq_lengths=seq_lengths,
        axis_name=module.axis_name,
        **options,
    )
    moved = None
    if stats is not None and found:
        moved = update_stats(stats, found[0], rate=1 - module.momentum)
    shape = (*batch_dims, cell.hidden_features)
    carry = jax.tree.map(lambda a: a.reshape(shape) if a.ndim else a, carry)
    return carry, ys.reshape(steps, *shape), moved


def expand_carry(carry: Carry, batch_dims: Sequence[int]) -> Carry:
    """The carry of a batch of one example for other batch dimensions."""
    return jax.tree.map(
        lambda a: jnp.broadcast_to(a[0], (*batch_dims, a.shape[-1])) if a.ndim else a, carry
    )


def run_layers(
    rnn: Any,
    stack: Sequence[Any],
    is_single: bool,
    inputs: jax.Array,
    *,
    initial_carry: Any,
    seq_lengths: Lengths | None,
    deterministic: bool | None,
    zoneout: Zoneout | Sequence[Zoneout] | None,
    **overrides: bool | None,
) -> Any:
    """Cells on top of each other, with the options of Flax's `RNN`.

    Args:
      rnn: the Linen or NNX module, whose attributes the overrides override if they are not None.
      stack: its cells.
      is_single: whether carries are that of the only cell, and no tuple.
      zoneout: one spec for all cells or one for each.
    """
    if inputs.ndim < 2:
        raise ValueError(
            f"inputs must be [*batch, T, F] or, time first, [T, *batch, F]; got {inputs.shape}"
        )
    options = {
        name: getattr(rnn, name) if value is None else value for name, value in overrides.items()
    }
    carries = (initial_carry,) if is_single else initial_carry
    carries = (None,) * len(stack) if carries is None else carries
    specs = zoneout if isinstance(zoneout, Sequence) else (zoneout,) * len(stack)
    for name, given in (("initial_carry", carries), ("zoneout", specs)):
        if not isinstance(given, Sequence) or len(given) != len(stack):
            what = f"{len(given)} of them" if isinstance(given, Sequence) else type(given).__name__
            raise ValueError(f"{name} must be a sequence of {len(stack)}, one a cell; got {what}")
    xs = inputs if options["time_major"] else jnp.moveaxis(inputs, -2, 0)
    last = []
    for cell, carry, spec in zip(stack, carries, specs, strict=True):
        carry, xs = cell.run(
            xs,
            carry,
            deterministic=deterministic,
            zoneout=spec,
            seq_lengths=seq_lengths,
            reverse=options["reverse"],
            unroll=rnn.unroll,
            chunk=rnn.chunk,
            implementation=rnn.implementation,
        )
        last.append(carry)
    if options["reverse"] and not options["keep_order"]:
        if seq_lengths is not None:
            seq_lengths = clip_lengths(seq_lengths, len(xs))
        xs = flip_sequences(xs, seq_lengths, num_batch_dims=xs.ndim - 2, time_major=True)
    ys = xs if options["time_major"] else jnp.moveaxis(xs, 0, -2)
    carry = last[0] if is_single else tuple(last)
    return (carry, ys) if options["return_carry"] else ys


def check_spec(zoneout: Any) -> None:
    """Raises TypeError unless it is a `Zoneout`."""
    if not isinstance(zoneout, Zoneout):
        raise TypeError(f"zoneout must be a Zoneout, as Zoneout(cells=0.5); got {zoneout!r}")


def check_cells(cells: Sequence[Any], kind: type) -> None:
    """Raises unless there are cells, all of a kind."""
    if not cells:
        raise ValueError("ZoneoutRNN needs at least one cell, got none")
    for cell in cells:
        if not isinstance(cell, kind):
            raise TypeError(f"cell must be a {kind.__name__}, got {type(cell).__name__}")


def _flatten_carry(carry: Carry, wanted: tuple[int, ...]) -> Carry:
    """The carry with a single batch dimension; the number of a step stays a scalar."""
    if any(jnp.shape(leaf) not in (wanted, ()) for leaf in jax.tree.leaves(carry)):
        shapes = jax.tree.map(jnp.shape, carry)
        raise ValueError(f"the arrays of a carry must be {wanted}, got {shapes}")
    rows = math.prod(wanted[:-1])
    return jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (rows, wanted[-1])) if jnp.ndim(leaf) else leaf, carry
    )
