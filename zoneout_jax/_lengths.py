"""Where sequences end: lengths and padding; and where episodes begin inside them: resets."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Lengths = ArrayLike | Sequence[int]
"""Lengths of sequences, integers `[B]`."""


def check_lengths(seq_lengths: Lengths, steps: int, batch: int) -> jax.Array:
    """The lengths as an array; those that are not known yet are cut off at T."""
    if not isinstance(seq_lengths, jax.Array):
        seq_lengths = np.asarray(seq_lengths)
    if seq_lengths.shape != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {seq_lengths.shape}")
    if not isinstance(seq_lengths, jax.core.Tracer):
        lengths = np.asarray(seq_lengths)
        if lengths.min(initial=0) < 0 or lengths.max(initial=0) > steps:
            raise ValueError(f"seq_lengths must be in [0, {steps}], got {lengths.tolist()}")
    return clip_lengths(seq_lengths, steps)


def clip_lengths(seq_lengths: Lengths, steps: int) -> jax.Array:
    """Lengths of any integer type as integers in [0, T]."""
    seq_lengths = jnp.asarray(seq_lengths)
    if not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise TypeError(f"seq_lengths must be integers, got {seq_lengths.dtype}")
    # In a narrow type T itself may be too large, and would wrap.
    if seq_lengths.dtype.itemsize < 4:
        seq_lengths = seq_lengths.astype(jnp.int32)
    most = jnp.asarray(steps).astype(seq_lengths.dtype)  # T may be symbolic, for `jax.export`
    return jnp.clip(seq_lengths, 0, most).astype(int)


def lengths_of(name: str, mask: ArrayLike, shape: tuple[int, ...], axis: int) -> jax.Array:
    """The lengths of sequences whose mask, of a shape, is True along the axis and then False.

    Of a traced mask, whose order is not known, the True are counted.
    """
    mask = check_booleans(name, mask, shape)
    if not isinstance(mask, jax.core.Tracer):
        along = np.moveaxis(np.asarray(mask), axis, 0)
        if np.any(along[1:] & ~along[:-1]):
            raise ValueError(f"{name} must be True first and then False: padding comes last")
    return jnp.sum(mask, axis)


def first_steps(
    resets: ArrayLike, valid: jax.Array | None, shape: tuple[int, int], reverse: bool
) -> jax.Array:
    """The steps before which the carry is the initial one, booleans `[T, B, 1]`.

    Going on, these are the first elements of episodes; in reverse the last ones, which come before
    the first of the next. Padding has no steps.
    """
    resets = jnp.asarray(check_booleans("resets", resets, shape))[..., None]
    if valid is not None:
        resets &= valid
    return jax.lax.pad(resets, False, [(-1, 1, 0), (0, 0, 0), (0, 0, 0)]) if reverse else resets


def check_booleans(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array | np.ndarray:
    """The array; raises unless it holds booleans and has the shape."""
    given = array if isinstance(array, jax.Array) else np.asarray(array)
    for error, wrong in ((ValueError, given.shape != shape), (TypeError, given.dtype != bool)):
        if wrong:
            raise error(
                f"{name} must be booleans of the shape {shape}, got {given.dtype} of {given.shape}"
            )
    return given


def flip(tree: Any, lengths: jax.Array) -> Any:
    """Reverses each example of arrays `[T, B, ...]` within its length, and arrays `[T]` whole."""

    def flip_one(array):
        if array.ndim == 1:
            return array[::-1]
        time, ends = jnp.arange(array.shape[0])[:, None], lengths[None]
        source = jnp.where(time < ends, ends - 1 - time, time)
        source = source.reshape(source.shape + (1,) * (array.ndim - 2))
        array = jnp.broadcast_to(array, (*source.shape[:2], *array.shape[2:]))
        return jnp.take_along_axis(array, source, 0)

    return jax.tree.map(flip_one, tree)


def without_padding(y: jax.Array, valid: jax.Array) -> jax.Array:
    """What `emit` returned of each step, with zeros in place of padding."""
    if y.ndim == 1:
        return y  # it is the whole batch's
    if y.shape[:2] != valid.shape[:2]:
        raise ValueError(
            f"with seq_lengths, emit must return arrays [{valid.shape[1]}, ...], one row an"
            f" example, or scalars; got {y.shape[1:]}"
        )
    valid = valid.reshape(valid.shape[:2] + (1,) * (y.ndim - 2))
    return jnp.where(valid, y, jnp.zeros_like(y))
