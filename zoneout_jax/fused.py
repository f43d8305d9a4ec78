"""Cells over time with a backward pass that makes each weight gradient in one product.

The derivative of `lax.scan` adds a [H, H] product to every weight gradient at every step. Here the
backward scan only passes on the gradients of the products, dz_t, and the weight gradient is one
product over time and batch: dW = Σ_t h_{t−1}ᵀ dz_t.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from zoneout_jax.cells import Carry, Cell
from zoneout_jax.zoneout import Masks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def scan_cell(
    cell: Cell,
    reverse: bool,
    kernels: tuple[jax.Array, ...],
    carry: Carry,
    projected: Any,
    constant: dict[str, jax.Array],
    varying: dict[str, jax.Array],
    valid: jax.Array | None,
) -> tuple[Carry, jax.Array]:
    """Runs the recurrent part of a cell over time.

    Args:
      cell: its functions.
      reverse: from the last element to the first.
      kernels: recurrent kernels.
      carry: before the first step.
      projected: `cell.project` of the inputs, leading axis T.
      constant: masks by name that serve every step.
      varying: masks by name with a leading axis T.
      valid: booleans `[T, B, 1]`; where False the carry stands still and the output is zero.

    Returns:
      The last carry and the outputs `[T, B, H]`.
    """
    last, (outputs, _) = _forward(
        cell, reverse, kernels, carry, projected, constant, varying, valid, save=False
    )
    return last, outputs


def _advance(cell, carry, projected, products, constant, varying, valid):
    """All of a step but its products."""
    new, output = cell.activate(carry, projected, products, Masks(**constant, **varying))
    if valid is not None:
        new = jax.tree.map(lambda n, c: jnp.where(valid, n, c), new, carry)
        output = jnp.where(valid, output, jnp.zeros_like(output))
    return new, output


def _forward(cell, reverse, kernels, carry, projected, constant, varying, valid, save):
    """The scan, and if `save` what the backward pass needs: each step's carry and products."""

    def body(carry, inputs):
        projected, varying, valid = inputs
        products = tuple(cell.product(cell.hidden(carry), kernel) for kernel in kernels)
        new, output = _advance(cell, carry, projected, products, constant, varying, valid)
        return new, (output, (carry, products) if save else None)

    return jax.lax.scan(body, carry, (projected, varying, valid), reverse=reverse)


def _scan_forward(cell, reverse, kernels, carry, projected, constant, varying, valid):
    last, (outputs, saved) = _forward(
        cell, reverse, kernels, carry, projected, constant, varying, valid, save=True
    )
    return (last, outputs), (kernels, projected, constant, varying, valid, saved)


def _scan_backward(cell, reverse, residuals, cotangents):
    kernels, projected, constant, varying, valid, (carries, products) = residuals
    d_carry, d_outputs = cotangents
    # Masks of numbers have gradients, those of booleans do not.
    soft, hard = _split_masks(constant)
    soft_varying, hard_varying = _split_masks(varying)

    def body(state, inputs):
        d_carry, d_constant = state
        d_output, carry, projected, products, soft_varying, hard_varying, valid = inputs

        def advance(carry, projected, products, soft, soft_varying):
            masks = (hard | soft, hard_varying | soft_varying)
            return _advance(cell, carry, projected, products, *masks, valid)

        _, pull = jax.vjp(advance, carry, projected, products, soft, soft_varying)
        d_carry, d_projected, d_products, d_soft, d_varying = pull((d_carry, d_output))
        hidden, pull_hidden = jax.vjp(cell.hidden, carry)
        d_hidden = sum(
            _transposed(cell, hidden, kernel, dz)
            for kernel, dz in zip(kernels, d_products, strict=True)
        )
        d_carry = jax.tree.map(jnp.add, d_carry, pull_hidden(d_hidden)[0])
        d_constant = jax.tree.map(jnp.add, d_constant, d_soft)
        return (d_carry, d_constant), (d_projected, d_products, d_varying)

    inputs = (d_outputs, carries, projected, products, soft_varying, hard_varying, valid)
    start = (d_carry, jax.tree.map(jnp.zeros_like, soft))
    (d_carry, d_soft), (d_projected, d_products, d_varying) = jax.lax.scan(
        body, start, inputs, reverse=not reverse
    )
    hidden = jax.vmap(cell.hidden)(carries)
    hidden = hidden.reshape(-1, hidden.shape[-1])
    d_kernels = tuple(
        jax.vjp(functools.partial(cell.product, hidden), kernel)[1](
            dz.reshape(-1, dz.shape[-1])
        )[0]
        for kernel, dz in zip(kernels, d_products, strict=True)
    )
    none = dict.fromkeys
    return (
        d_kernels,
        d_carry,
        d_projected,
        none(hard) | d_soft,
        none(hard_varying) | d_varying,
        None,
    )


def _transposed(cell, hidden, kernel, dz):
    """Gradient dz Wᵀ, in the types of the cell's product."""
    return jax.vjp(lambda h: cell.product(h, kernel), hidden)[1](dz)[0]


def _split_masks(masks: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Masks of numbers and masks of booleans."""
    soft = {name: mask for name, mask in masks.items() if mask.dtype != bool}
    return soft, {name: mask for name, mask in masks.items() if mask.dtype == bool}


scan_cell.defvjp(_scan_forward, _scan_backward)
