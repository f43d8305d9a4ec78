"""Cells over time with a backward pass that makes each weight gradient in one product.

The derivative of `lax.scan` adds a [H, H] product to every weight gradient at every step. Here the
backward scan only passes on the gradients of the products, dz_t, and the weight gradient is one
product over time and batch: dW = Σ_t a_tᵀ dz_t, with a_t the operand (h_{t−1}, for most kernels).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.cells import Carry, Cell, Params
from zoneout_jax.normalization import BatchNormalizer, Stats
from zoneout_jax.zoneout import Masks


class How(NamedTuple):
    """What is known before any array is: the cell, and how it is run.

    Attributes:
      cell: its functions.
      reverse: from the last element to the first.
      unroll: steps in one iteration of the loop.
      emit: `emit(carry, output)`: what to keep of each step.
      axis_name: mapped axis over which the batch is spread, for batch statistics.
    """

    cell: Cell
    reverse: bool
    unroll: int
    emit: Callable[[Carry, jax.Array], Any]
    axis_name: str | None


class Weights(NamedTuple):
    """Parameters of a step: recurrent kernels in groups, and the others."""

    kernels: tuple[tuple[jax.Array, ...], ...]
    gains: Params


class Inputs(NamedTuple):
    """What a step reads besides carry and weights; None is "nothing of the kind".

    Attributes:
      projected: `cell.project` of the inputs, leading axis T.
      masks: masks by name with a leading axis T.
      valid: booleans `[T, B, 1]`; where False the carry stands still and what is emitted is zero.
    """

    projected: Any
    masks: dict[str, jax.Array]
    valid: jax.Array | None


class Constants(NamedTuple):
    """What serves every step: masks by name, population statistics."""

    masks: dict[str, jax.Array]
    stats: Stats | None


def scan(
    how: How, weights: Weights, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, Stats | None]]:
    """Runs the recurrent part of a cell over time.

    Returns:
      The last carry; what each step emitted, `[T, ...]`; and the batch statistics, if the cell is
      batch-normalized and has no population statistics to use.
    """
    last, (emitted, _) = _forward(how, weights, carry, inputs, constants, save=False)
    return last, emitted


scan_fused = jax.custom_vjp(scan, nondiff_argnums=(0,))
"""`scan` with a backward pass of its own, and without a forward-mode derivative."""


def _advance(how, gains, carry, inputs, constants, multiply):
    """All of a step but its products."""
    cell, valid = how.cell, inputs.valid
    normalize = None
    if cell.init_stats:
        normalize = BatchNormalizer(carry[2], constants.stats, valid, how.axis_name)
    masks = Masks(**constants.masks, **inputs.masks)
    new, output = cell.advance(gains, carry, inputs.projected, masks, multiply, normalize)
    emitted = how.emit(new, output)
    if valid is not None:
        # The number of the step goes on: it is the whole batch's.
        new = jax.tree.map(lambda n, c: jnp.where(valid, n, c) if n.ndim else n, new, carry)
        emitted = jax.tree.map(lambda e: jnp.where(valid, e, jnp.zeros_like(e)), emitted)
    return new, (emitted, normalize.found() if normalize else None)


def _forward(how, weights, carry, inputs, constants, save):
    """The scan, and if `save` what the backward pass needs: each step's carry and products."""

    def body(carry, inputs):
        products = []

        def multiply(operand, group):
            products.append(tuple(how.cell.product(operand, k) for k in weights.kernels[group]))
            return products[-1]

        new, emitted = _advance(how, weights.gains, carry, inputs, constants, multiply)
        return new, (emitted, (carry, tuple(products)) if save else None)

    return jax.lax.scan(body, carry, inputs, reverse=how.reverse, unroll=how.unroll)


def _scan_forward(how, weights, carry, inputs, constants):
    last, (emitted, saved) = _forward(how, weights, carry, inputs, constants, save=True)
    return (last, emitted), (weights, inputs, constants, saved)


def _scan_backward(how, residuals, cotangents):
    weights, inputs, constants, (carries, products) = residuals
    d_carry, d_emitted = cotangents
    # Masks of numbers have gradients, those of booleans do not.
    soft, hard = _split_masks(constants.masks)
    soft_inputs, hard_inputs = _split_masks(inputs.masks)

    def body(state, step):
        d_carry, d_gains, d_soft = state
        d_emitted, carry, products, inputs, soft_inputs = step

        def advance(gains, carry, projected, products, soft, soft_inputs):
            operands = []

            def multiply(operand, group):
                operands.append(operand)
                pairs = zip(weights.kernels[group], products[group], strict=True)
                return tuple(_replay(how.cell.product, operand, *pair) for pair in pairs)

            step_inputs = inputs._replace(projected=projected, masks=inputs.masks | soft_inputs)
            step_constants = constants._replace(masks=hard | soft)
            out = _advance(how, gains, carry, step_inputs, step_constants, multiply)
            # The operand of the first group is in the carry, which is kept already.
            return out, tuple(operands[1:])

        projected = inputs.projected
        _, pull, operands = jax.vjp(
            advance, weights.gains, carry, projected, products, soft, soft_inputs, has_aux=True
        )
        more_gains, d_carry, d_projected, d_products, more_soft, d_soft_inputs = pull(
            (d_carry, d_emitted)
        )
        add = functools.partial(jax.tree.map, jnp.add)
        state = d_carry, add(d_gains, more_gains), add(d_soft, more_soft)
        return state, (d_projected, d_products, d_soft_inputs, operands)

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    (d_carry, d_gains, d_soft), (d_projected, d_products, d_soft_inputs, operands) = jax.lax.scan(
        body,
        (d_carry, zeros(weights.gains), zeros(soft)),
        (d_emitted, carries, products, inputs._replace(masks=hard_inputs), soft_inputs),
        reverse=not how.reverse,
        unroll=how.unroll,
    )
    operands = (jax.vmap(how.cell.hidden)(carries), *operands)
    d_kernels = tuple(
        tuple(_weight_gradient(how.cell, *pair, operand) for pair in zip(kernels, dzs, strict=True))
        for kernels, dzs, operand in zip(weights.kernels, d_products, operands, strict=True)
    )
    none = dict.fromkeys
    return (
        Weights(d_kernels, d_gains),
        d_carry,
        Inputs(d_projected, none(hard_inputs) | d_soft_inputs, None),
        Constants(none(hard) | d_soft, None),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replay(product, operand, kernel, value):
    """`product(operand, kernel)`, known already; its gradient dz is passed on to `value` too."""
    del product, operand, kernel
    return value


def _replay_backward(product, residuals, dz):
    operand, kernel = residuals
    (d_operand,) = jax.vjp(lambda operand: product(operand, kernel), operand)[1](dz)
    return d_operand, None, dz


_replay.defvjp(lambda product, a, kernel, value: (value, (a, kernel)), _replay_backward)


def _weight_gradient(cell, kernel, dz, operand):
    """Σ over time and batch of operandᵀ dz, in the types of the cell's product."""
    rows, dz = (a.reshape(-1, a.shape[-1]) for a in (operand, dz))
    return jax.vjp(functools.partial(cell.product, rows), kernel)[1](dz)[0]


def _split_masks(masks: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Masks of numbers and masks of booleans."""
    soft = {name: mask for name, mask in masks.items() if mask.dtype != bool}
    return soft, {name: mask for name, mask in masks.items() if mask.dtype == bool}


scan_fused.defvjp(_scan_forward, _scan_backward)
