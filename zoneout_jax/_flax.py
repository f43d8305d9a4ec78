"""What the Linen and NNX modules share: batch dimensions, options of Flax's RNN, stacked layers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.recurrent import flip_sequences

from zoneout_jax.cells import Carry, Cell, Params
from zoneout_jax.normalization import Stats, update_stats
from zoneout_jax.unroll import unroll
from zoneout_jax.zoneout import Zoneout


def run_cell(
    cell: Cell,
    params: Params,
    stats: Stats | None,
    xs: jax.Array,
    carry: Carry | None,
    *,
    momentum: float,
    seq_lengths: jax.Array | None = None,
    **options: Any,
) -> tuple[Carry, jax.Array, Stats | None]:
    """`unroll` for inputs `[T, *batch, F]`; in training also moves the population statistics."""
    steps, *batch_dims, in_features = xs.shape
    batch = math.prod(batch_dims)
    if carry is not None:
        carry = _flatten_carry(carry, (*batch_dims, cell.hidden_features))
    if seq_lengths is not None:
        if jnp.shape(seq_lengths) != tuple(batch_dims):
            raise ValueError(
                f"seq_lengths must be {tuple(batch_dims)}, got {jnp.shape(seq_lengths)}"
            )
        seq_lengths = jnp.ravel(seq_lengths) if len(batch_dims) != 1 else seq_lengths
    carry, ys, *found = unroll(
        cell,
        params,
        xs.reshape(steps, batch, in_features),
        carry,
        stats=stats,
        seq_lengths=seq_lengths,
        **options,
    )
    if found:
        stats = update_stats(stats, *found, rate=1 - momentum)
    carry = jax.tree.map(lambda a: a.reshape(*batch_dims, -1) if a.ndim else a, carry)
    return carry, ys.reshape(steps, *batch_dims, -1), stats


def run_layers(
    layers: Sequence[Callable[..., tuple[Carry, jax.Array]]],
    inputs: jax.Array,
    initial_carry: Any,
    *,
    seq_lengths: jax.Array | None,
    return_carry: bool,
    time_major: bool,
    reverse: bool,
    keep_order: bool,
) -> jax.Array | tuple[Any, jax.Array]:
    """Layers on top of each other, with the options of Flax's `RNN`.

    Args:
      layers: functions `(xs, carry, seq_lengths, reverse) -> (carry, ys)`, time first. The carry
        of a single one is its own, that of several is a tuple.
    """
    if inputs.ndim < 2:
        raise ValueError(
            f"inputs must be [*batch, T, F] or, time first, [T, *batch, F]; got {inputs.shape}"
        )
    xs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
    single = len(layers) == 1
    initial = (initial_carry,) if single else initial_carry or (None,) * len(layers)
    if len(initial) != len(layers):
        raise ValueError(f"initial_carry must have {len(layers)} carries, got {len(initial)}")
    carries = []
    for layer, carry in zip(layers, initial, strict=True):
        carry, xs = layer(xs, carry, seq_lengths, reverse)
        carries.append(carry)
    if reverse and not keep_order:
        batch_axes = xs.ndim - 2
        xs = flip_sequences(xs, seq_lengths, num_batch_dims=batch_axes, time_major=True)
    ys = xs if time_major else jnp.moveaxis(xs, 0, -2)
    carry = carries[0] if single else tuple(carries)
    return (carry, ys) if return_carry else ys


def needs_key(zoneout: Zoneout, carry_noise: float) -> bool:
    """Whether training draws anything."""
    return zoneout.active or bool(carry_noise)


def check_deterministic(deterministic: bool | None) -> bool:
    """Raises ValueError unless it was said whether this is training or evaluation."""
    if deterministic is None:
        raise ValueError(
            "deterministic must be given where masks, noise or batch statistics depend on it:"
            " False in training (masks are sampled), True in evaluation (their expectation)"
        )
    return deterministic


def check_step(zoneout: Zoneout) -> None:
    """Raises ValueError for masks that a single step cannot have."""
    if zoneout.static:
        raise ValueError("a single step cannot have static masks; use ZoneoutRNN")


def _flatten_carry(carry: Carry, wanted: tuple[int, ...]) -> Carry:
    """The carry with a single batch dimension; the number of a step stays a scalar."""
    if any(jnp.shape(leaf) not in (wanted, ()) for leaf in jax.tree.leaves(carry)):
        shapes = jax.tree.map(jnp.shape, carry)
        raise ValueError(f"the arrays of a carry must be {wanted}, got {shapes}")
    rows = math.prod(wanted[:-1])
    return jax.tree.map(
        lambda leaf: jnp.reshape(leaf, (rows, wanted[-1])) if jnp.ndim(leaf) else leaf, carry
    )
