"""Ends of sequences (lengths and padding), and episodes that begin inside sequences (resets)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Lengths = ArrayLike | Sequence[int]
"""Lengths of sequences, integers `[B]`."""


def check_lengths(seq_lengths: Lengths, steps: int, batch: int) -> jax.Array:
    """Returns the lengths as an array; raises if one is out of range, but clips traced lengths."""
    if not isinstance(seq_lengths, jax.Array):
        seq_lengths = np.asarray(seq_lengths)
    if seq_lengths.shape != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {seq_lengths.shape}")
    if not isinstance(seq_lengths, jax.core.Tracer):
        lengths = np.asarray(seq_lengths)
        # A symbolic T, for `jax.export`, cannot be compared.
        longest = steps if isinstance(steps, int) else np.inf
        if lengths.min(initial=0) < 0 or lengths.max(initial=0) > longest:
            raise ValueError(f"seq_lengths must be in [0, {steps}], got {lengths.tolist()}")
    return clip_lengths(seq_lengths, steps)


def clip_lengths(seq_lengths: Lengths, steps: int) -> jax.Array:
    """Clips lengths of any integer type to [0, T]."""
    seq_lengths = jnp.asarray(seq_lengths)
    if not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise TypeError(f"seq_lengths must be integers, got {seq_lengths.dtype}")
    # T may be too large for a narrow type, and would wrap.
    if seq_lengths.dtype.itemsize < 4:
        seq_lengths = seq_lengths.astype(jnp.int32)
    most = jnp.asarray(steps).astype(seq_lengths.dtype)  # T may be symbolic, for `jax.export`
    return jnp.clip(seq_lengths, 0, most).astype(int)


def lengths_of(name: str, mask: ArrayLike, shape: tuple[int, ...], axis: int) -> jax.Array:
    """Returns the lengths of sequences from a mask that is True first and then False along an axis.

    The order of a traced mask is unknown, so its True values are only counted.
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
    """Marks the steps before which the carry is reset, booleans `[T, B, 1]`.

    These are the first elements of episodes. In reverse they are the last elements, just before the
    first element of the next episode. No step of padding is marked.
    """
    resets = jnp.asarray(check_booleans("resets", resets, shape))[..., None]
    if valid is not None:
        resets &= valid
    return jax.lax.pad(resets, False, [(-1, 1, 0), (0, 0, 0), (0, 0, 0)]) if reverse else resets


def check_booleans(name: str, array: ArrayLike, shape: tuple[int, ...]) -> jax.Array | np.ndarray:
    """Returns the array; raises unless it holds booleans and has the given shape."""
    given = array if isinstance(array, jax.Array) else np.asarray(array)
    for error, wrong in ((ValueError, given.shape != shape), (TypeError, given.dtype != bool)):
        if wrong:
            raise error(
                f"{name} must be booleans of the shape {shape}, got {given.dtype} of {given.shape}"
            )
    return given


def flip(tree: Any, lengths: jax.Array) -> Any:
    """Reverses arrays `[T, B, ...]` within the length of each example, and arrays `[T]` fully."""

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
    """Sets the results of `emit` to zero in padding."""
    if y.ndim == 1:
        return y  # scalars belong to the whole batch
    valid = valid.reshape(valid.shape[:2] + (1,) * (y.ndim - 2))
    return jnp.where(valid, y, jnp.zeros_like(y))
