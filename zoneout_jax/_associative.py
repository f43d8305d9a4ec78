"""Linear cells over time, all steps at once.

    h_t = a_t∘h_{t−1} + b_t

is a system of linear equations in all h_t. An associative scan solves it, because two steps in a
row are again a step of the same form:

    (a, b) then (a', b')  =  (a'∘a, a'∘b + b')

The backward pass needs the transposed system, which the same scan solves from the other end. So
derivatives need only a and h of the forward pass, and no intermediate values of the scan.
"""

from typing import Any

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Params
from zoneout_jax._fused import Constants, How, Inputs
from zoneout_jax._sharding import vary_alike
from zoneout_jax._zoneout import Masks


def scan_associative(
    how: How, params: Params, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, None]]:
    """Runs a linear cell over time; see `_fused.scan`."""
    cell: Any = how.cell
    a, b, xs = inputs.xs
    constant = {name: mask[None] if mask.ndim else mask for name, mask in constants.masks.items()}
    # Under `shard_map`, constant coefficients would vary over other axes than the inputs.
    a, b = vary_alike(cell.zoned_out(a, b, Masks(**constant, **inputs.masks)))
    if inputs.valid is not None:
        a, b = jnp.where(inputs.valid, a, 1), jnp.where(inputs.valid, b, 0)
    if inputs.resets is not None and len(b):
        start: Any = constants.start
        b = jnp.where(inputs.resets, a * start[None] + b, b)
        a = jnp.where(inputs.resets, 0, a)  # the step no longer depends on earlier steps
        # Nor on a carry that is nan: 0 times nan would be nan.
        carry = jnp.where(inputs.resets[-1 if how.reverse else 0], start, carry)
    hs = linear_recurrence(a, b, carry, how.reverse)
    ys = cell.readout(params, hs, xs)
    if inputs.valid is not None:
        ys = jnp.where(inputs.valid, ys, jnp.zeros_like(ys))
    last = carry if not hs.shape[0] else hs[0 if how.reverse else -1]
    return last, ((hs, ys) if how.emit_carry else ys, None)


def linear_recurrence(
    a: jax.Array, b: jax.Array, start: jax.Array, reverse: bool = False
) -> jax.Array:
    """Computes the states h_t = a_t∘h_{t−1} + b_t, `[T, B, H]`.

    Args:
      a: `[T, B or 1, H or 1]`.
      b: `[T, B, H]`.
      start: the state before the first step, `[B, H]`.
      reverse: run from the last element to the first.
    """
    if not b.shape[0]:
        return b
    if reverse:
        b = jnp.concatenate([b[:-1], a[-1:] * start[None] + b[-1:]])
    else:
        b = jnp.concatenate([a[:1] * start[None] + b[:1], b[1:]])
    return jax.lax.custom_linear_solve(
        lambda h: h - a * _shifted(h, reverse),
        b,
        lambda _, b: _scan(a, b, reverse),
        lambda _, b: _scan(_shifted(a, not reverse), b, not reverse),
    )


def _shifted(array: jax.Array, reverse: bool) -> jax.Array:
    """Shifts an array so that each step sees the previous step; the first step sees zeros."""
    none = jnp.zeros_like(array[:1])
    return jnp.concatenate([array[1:], none] if reverse else [none, array[:-1]])


def _scan(a: jax.Array, b: jax.Array, reverse: bool) -> jax.Array:
    """Computes the states h_t = a_t∘h_{t−1} + b_t from an initial state of zero."""

    def join(one, other):
        return other[0] * one[0], other[0] * one[1] + other[1]

    return jax.lax.associative_scan(join, (a, b), reverse=reverse)[1]
