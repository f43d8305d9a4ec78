"""Stacks of cells, in one or both directions of time, for `ZoneoutRNN` of Linen and of NNX."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.recurrent import flip_sequences
from jax.typing import ArrayLike

from zoneout_jax._cell import Carry
from zoneout_jax._checks import described
from zoneout_jax._flax import check_deterministic
from zoneout_jax._lengths import Lengths, check_booleans, clip_lengths, lengths_of
from zoneout_jax._regularizers import check_number, dropout
from zoneout_jax._zoneout import Zoneout, is_off

Layers = list[tuple[Any, ...]]
"""The cells of each layer: one, or a pair (forward, backward)."""


def pair_up(cell: Any, backward: Any, kind: type) -> tuple[Layers, bool]:
    """Returns the layers, and True if `cell` is a single cell; raises for cells not of `kind`."""
    is_single = not isinstance(cell, Sequence)
    cells, others = (one if isinstance(one, Sequence) else (one,) for one in (cell, backward))
    if not cells:
        raise ValueError("ZoneoutRNN needs at least one cell, got none")
    for one in (*cells, *(others if backward is not None else ())):
        if not isinstance(one, kind):
            if not isinstance(one, type) and getattr(one, "num_feature_axes", 1) > 1:
                raise TypeError(
                    f"ZoneoutRNN takes no {type(one).__name__}, whose inputs are maps; nn.RNN and"
                    " nnx.RNN do"
                )
            module = kind.__module__.replace("._", ".").removesuffix("_cell")  # the public one
            raise TypeError(
                f"ZoneoutRNN of {module} takes cells of that module, got {described(one)}"
            )
    given = (*cells, *(others if backward is not None else ()))
    if len({id(one) for one in given}) < len(given):
        raise ValueError(
            "ZoneoutRNN got the same cell more than once, which would share its weights; make a"
            " cell for each layer and direction"
        )
    if backward is None:
        return [(one,) for one in cells], is_single
    if is_single == isinstance(backward, Sequence) or len(cells) != len(others):
        what = "a cell, as cell is" if is_single else f"a sequence of {len(cells)}, as cell is"
        raise ValueError(f"ZoneoutRNN: backward must be {what}")
    return list(zip(cells, others, strict=True)), is_single


def start_carries(layers: Layers, is_single: bool, start: Callable[[int, Any], Carry]) -> Carry:
    """Returns the initial carries in the layout of `run_layers`."""
    carries = []
    for number, cells in enumerate(layers):
        pair = [start(number + way * len(layers), cell) for way, cell in enumerate(cells)]
        carries.append(tuple(pair) if len(pair) > 1 else pair[0])
    return carries[0] if is_single else tuple(carries)


def run_layers(
    rnn: Any,
    layers: Layers,
    is_single: bool,
    inputs: jax.Array,
    *,
    run: Callable[..., tuple[Carry, Any]],
    draw_key: Callable[[Any], jax.Array],
    initial_carry: Any,
    seq_lengths: Lengths | None,
    mask: ArrayLike | None,
    resets: ArrayLike | None,
    deterministic: bool | None,
    zoneout: Zoneout | Sequence[Zoneout] | None,
    emit: Callable[..., Any] | None,
    **overrides: bool | None,
) -> Any:
    """Runs stacked cells, with the options of Flax's `RNN`.

    Args:
      rnn: the Linen or NNX module; `overrides` that are not None override its attributes.
      layers: the cells of the module.
      is_single: True if there is one cell, whose carry is not in a tuple.
      run: `run(number, cell, xs, carry, zoneout=, …)` runs one cell. Backward cells are numbered
        after all forward cells.
      draw_key: `draw_key(cell)` returns a key for the dropout after the layer of a cell.
      deterministic: True for no dropout; None takes the setting of each cell.
      zoneout: one spec for all layers or one for each.
      emit: `emit` of the last layer.
    """
    if inputs.ndim < 2:
        raise ValueError(
            "ZoneoutRNN: inputs must be [*batch, T, F] or, time first, [T, *batch, F]; got"
            f" {inputs.shape}"
        )
    options = {
        name: getattr(rnn, name) if value is None else value for name, value in overrides.items()
    }
    both = len(layers[0]) > 1
    check_options(rnn, is_single, both)
    if both and options["reverse"]:
        raise ValueError(
            "ZoneoutRNN: reverse is for one direction, backward for both; leave one of them out"
        )
    if rnn.residual and emit is not None:
        raise ValueError(
            "ZoneoutRNN: emit gets the outputs of the last cell before residual adds to them;"
            " leave emit or residual out"
        )
    carries = (initial_carry,) if is_single else initial_carry
    carries = (None,) * len(layers) if carries is None else carries
    specs = zoneout if isinstance(zoneout, Sequence) else (zoneout,) * len(layers)
    for name, given in (("initial_carry", carries), ("zoneout", specs)):
        if not isinstance(given, Sequence) or len(given) != len(layers):
            what = f"{len(given)} of them" if isinstance(given, Sequence) else type(given).__name__
            raise ValueError(
                f"{name} must be a sequence of {len(layers)}, one for each cell; got {what}"
            )
    time_major = options["time_major"]
    xs: Any = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
    if mask is not None:
        if seq_lengths is not None:
            raise ValueError("ZoneoutRNN: mask and seq_lengths say the same; pass one of them")
        axis = 0 if time_major else -1
        seq_lengths = lengths_of("ZoneoutRNN: mask", mask, inputs.shape[:-1], axis)
    if resets is not None:
        resets = jnp.asarray(check_booleans("ZoneoutRNN: resets", resets, inputs.shape[:-1]))
        resets = resets if time_major else jnp.moveaxis(resets, -1, 0)
    last: list[Any] = []
    for number, (cells, carry, spec) in enumerate(zip(layers, carries, specs, strict=True)):
        top = number == len(layers) - 1
        ends, outputs = [], []
        for way, cell in enumerate(cells):
            try:
                end, ys = run(
                    number + way * len(layers),
                    cell,
                    xs,
                    _of_way(carry, way) if both else carry,
                    zoneout=spec,
                    seq_lengths=seq_lengths,
                    resets=resets,
                    reverse=options["reverse"] or way == 1,
                    emit=emit if top else None,
                    unroll=rnn.unroll,
                    chunk=rnn.chunk,
                    implementation=rnn.implementation,
                )
            except (TypeError, ValueError) as error:
                if is_single and not both or type(error) not in (TypeError, ValueError):
                    raise
                name = f"{'backward ' if way else ''}cell{'' if is_single else f' {number}'}"
                raise type(error)(f"{name} of ZoneoutRNN: {error}") from error
            ends.append(end)
            outputs.append(ys)
        last.append(tuple(ends) if both else ends[0])
        if top and emit is not None:
            xs = tuple(outputs) if both else outputs[0]
        else:
            ys = (rnn.merge_fn or _concatenate)(*outputs) if both else outputs[0]
            if not top:
                ys = _drop(rnn, cells[0], ys, deterministic, draw_key)
            xs = _add(number, xs, ys) if rnn.residual and number else ys
    axes = inputs.ndim - 2
    if options["reverse"] and not options["keep_order"]:
        if seq_lengths is not None:
            seq_lengths = clip_lengths(seq_lengths, inputs.shape[0 if time_major else -2])
        xs = jax.tree.map(
            lambda y: (
                flip_sequences(y, seq_lengths, num_batch_dims=axes, time_major=True)
                if y.ndim > 1
                else y[::-1]
            ),
            xs,
        )
    if not time_major:  # scalars that `emit` returns have only the axis of time
        xs = jax.tree.map(lambda y: jnp.moveaxis(y, 0, axes) if y.ndim > 1 else y, xs)
    carry = last[0] if is_single else tuple(last)
    return (carry, xs) if options["return_carry"] else xs


def check_options(rnn: Any, is_single: bool, both: bool) -> None:
    """Raises an error for attributes that exclude each other or have no effect."""
    if rnn.dropout is not None:
        check_number("dropout", rnn.dropout)
    for name, off in (("dropout", is_off(rnn.dropout)), ("residual", not rnn.residual)):
        if is_single and not off:
            raise ValueError(
                f"ZoneoutRNN: {name} acts between the cells of a sequence, but there is one cell"
            )
    if rnn.merge_fn is not None and not both:
        raise ValueError("ZoneoutRNN: merge_fn merges two directions; it needs backward")


def _of_way(carry: Any, way: int) -> Any:
    """Returns the initial carry of one direction."""
    if carry is None:
        return None
    if not isinstance(carry, Sequence) or len(carry) != 2:
        raise ValueError("an initial carry must be a pair, one for cell and one for backward")
    return carry[way]


def _concatenate(forward: jax.Array, backward: jax.Array) -> jax.Array:
    return jnp.concatenate([forward, backward], -1)


def _drop(
    rnn: Any, cell: Any, ys: jax.Array, deterministic: bool | None, draw_key: Callable[[Any], Any]
) -> jax.Array:
    """Applies dropout to outputs `[T, *batch, H]`, in training."""
    if is_off(rnn.dropout):
        return ys
    deterministic = cell.deterministic if deterministic is None else deterministic
    if check_deterministic(rnn, deterministic):
        return ys
    flat = ys.reshape(ys.shape[0], math.prod(ys.shape[1:-1]), ys.shape[-1])
    options = {"locked": rnn.locked_dropout, "axis_name": cell.axis_name}
    return dropout(flat, draw_key(cell), rnn.dropout, **options).reshape(ys.shape)


def _add(number: int, xs: jax.Array, ys: jax.Array) -> jax.Array:
    """Returns the residual sum; ValueError if the sizes differ."""
    if xs.shape != ys.shape:
        raise ValueError(
            f"cell {number} of ZoneoutRNN: residual adds its {xs.shape[-1]} inputs to its"
            f" {ys.shape[-1]} outputs; make both sizes equal"
        )
    return xs + ys
