"""Cells over time, with a backward pass of our own.

The derivative of `lax.scan` adds a product as large as a kernel to every weight gradient at every
step, and keeps whatever its rules ask for. Here the backward scan only passes on the gradients of
the products, dz_t, from the activated gates and carries that the forward scan kept; the gradient of
a kernel then is one product over time and batch, dW = Σ_t a_tᵀ dz_t, with a_t the operand (h_{t−1}
for most kernels).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.cells import Carry, Cell, Params, activate, add_projected, split_gates
from zoneout_jax.normalization import BatchNormalizer, Stats
from zoneout_jax.zoneout import Masks

SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "relu": lambda y: (y > 0).astype(y.dtype),
}
"""Derivatives of the activations, as functions of their values."""


class How(NamedTuple):
    """What is known before any array is: the cell, and how it is run.

    Attributes:
      cell: its functions.
      reverse: from the last element to the first.
      unroll: steps in one iteration of the loop.
      emit_carry: whether each step emits the pair (carry, output), not the output alone.
      axis_name: mapped axis over which the batch is spread, for batch statistics.
      transposed: arrays of a step are `[features, B]`, not `[B, features]`.
    """

    cell: Cell
    reverse: bool
    unroll: int
    emit_carry: bool
    axis_name: str | None
    transposed: bool

    @property
    def axis(self) -> int:
        """The axis of features in the arrays of a step."""
        return 0 if self.transposed else -1

    def product(self, operand: jax.Array, kernel: jax.Array) -> jax.Array:
        """The product of an operand with an oriented kernel."""
        product = self.cell.product
        return product(kernel, operand) if self.transposed else product(operand, kernel)

    def oriented(self, kernel: jax.Array) -> jax.Array:
        """A kernel `[in, out]` as `product` takes it."""
        kernel = kernel.astype(self.cell.operand_dtype)
        # Without the barrier, the product in a loop of one step takes over the transposition, and
        # XLA's CPU backend lacks the code for that in bfloat16.
        return jax.lax.optimization_barrier(kernel.T) if self.transposed else kernel

    def split(self, wide: jax.Array) -> tuple[jax.Array, ...]:
        """Cuts the gates apart."""
        return split_gates(wide, self.cell.hidden_features, self.axis)

    def join(self, parts: tuple[jax.Array, ...]) -> jax.Array:
        """Puts arrays of a step side by side, or of all steps."""
        axis = parts[0].ndim - 2 if self.transposed else -1
        return jnp.concatenate(parts, axis) if len(parts) > 1 else parts[0]

    def batch_first(self, arrays: Any) -> Any:
        """Arrays of a step or of all steps as `[…, B, features]`; or back."""
        return (
            jax.tree.map(lambda a: jnp.swapaxes(a, -1, -2), arrays) if self.transposed else arrays
        )

    def columns(self, steps: jax.Array) -> jax.Array:
        """Arrays of all steps as `[features, T·B]`."""
        if self.transposed:
            return jnp.moveaxis(steps, 1, 0).reshape(steps.shape[1], -1)
        return steps.reshape(-1, steps.shape[-1]).T


class Weights(NamedTuple):
    """Parameters of a step.

    Attributes:
      kernels: `cell.kernels`.
      gains: `cell.gains`.
      input: kernel of the inputs `[F, kH]` and bias of the gates `[kH]`, if each step multiplies
        its input itself; None if that was done before.
    """

    kernels: tuple[jax.Array, ...]
    gains: Params
    input: tuple[jax.Array, jax.Array] | None


class Inputs(NamedTuple):
    """What a step reads besides carry and weights; None is "nothing of the kind".

    Attributes:
      xs: `cell.project` of the inputs `[T, B, kH]`, or the inputs `[T, B, F]` themselves.
      masks: masks by name with a leading axis T.
      valid: booleans `[T, B, 1]`; where False the carry stands still and the output is zero.
    """

    xs: jax.Array
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


def _advance(how, gains, carry, projected, inputs, constants, multiply, activate):
    """All of a step but its products and activations."""
    cell, valid = how.cell, inputs.valid
    normalize = None
    if cell.init_stats:
        normalize = BatchNormalizer(carry[2], constants.stats, valid, how.axis_name)
    masks = Masks(**constants.masks, **inputs.masks)
    new, output = cell.advance(gains, carry, projected, masks, multiply, activate, normalize)
    if valid is not None:
        # The number of the step goes on: it is the whole batch's.
        new = jax.tree.map(lambda n, c: jnp.where(valid, n, c) if n.ndim else n, new, carry)
        output = jnp.where(valid, output, jnp.zeros_like(output))
    emitted = (new, output) if how.emit_carry else output
    return new, (emitted, normalize.found() if normalize else None)


def _forward(how, weights, carry, inputs, constants, save):
    """The scan, and if `save` what the backward pass needs.

    That is, of each step: the carry before it, products that are no mere summand of a gate, and
    activated gates.
    """
    additive = how.cell.additive
    kernels = list(weights.kernels)
    if weights.input:
        kernel, bias = weights.input
        kernels[0] = jnp.concatenate([kernels[0], kernel])
        bias = how.split(bias[:, None] if how.transposed else bias)
    kernels = [how.oriented(kernel) for kernel in kernels]

    def body(carry, inputs):
        products, gates = [], []
        projected = bias if weights.input else how.split(inputs.xs)

        def multiply(operand, number):
            if weights.input:
                operand = how.join((operand, inputs.xs))
            parts = how.split(how.product(operand, kernels[number]))
            added = 0 if number else additive
            products.append(parts[added:])
            return add_projected(parts, projected[:added])

        def activate_and_keep(names, values):
            gates.append(activate(names, values))
            return gates[-1]

        new, emitted = _advance(
            how, weights.gains, carry, projected, inputs, constants, multiply, activate_and_keep
        )
        return new, (emitted, (carry, products, gates) if save else None)

    return jax.lax.scan(body, carry, inputs, reverse=how.reverse, unroll=how.unroll)


def _scan_forward(how, weights, carry, inputs, constants):
    last, (emitted, saved) = _forward(how, weights, carry, inputs, constants, save=True)
    return (last, emitted), (weights, inputs, constants, saved)


def _scan_backward(how, residuals, cotangents):
    weights, inputs, constants, saved = residuals
    d_carry, d_emitted = cotangents
    cell, additive = how.cell, how.cell.additive
    # Masks of numbers have gradients, those of booleans do not.
    soft, hard = _soft_and_hard(constants.masks)
    soft_inputs, hard_inputs = _soft_and_hard(inputs.masks)
    kernels = [how.oriented(kernel.T) for kernel in weights.kernels]

    def body(state, step):
        d_carry, d_gains, d_soft = state
        d_emitted, (carry, products, gates), inputs, soft_inputs = step
        zero = jnp.zeros_like(cell.hidden(carry))
        projected = (zero,) * cell.gates if weights.input else how.split(inputs.xs)
        taps = [how.join((zero,) * (k.shape[1] // k.shape[0])) for k in weights.kernels]

        def advance(gains, carry, rest, taps, soft, soft_inputs):
            operands, known = [], iter(gates)

            def multiply(operand, number):
                operands.append(operand)
                # The sum in a gate that is activated next is of no use: the gate is known.
                values = (zero,) * (0 if number else additive) + products[number]
                return _replay_product(how, operand, kernels[number], values, taps[number])

            def activate(names, values):
                return _replay_activation(names, values, next(known))

            out = _advance(
                how,
                gains,
                carry,
                projected[:additive] + rest,
                inputs._replace(masks=inputs.masks | soft_inputs),
                constants._replace(masks=hard | soft),
                multiply,
                activate,
            )
            # The operand of the first kernel is in the carry, which is kept already.
            return out, tuple(operands[1:])

        _, pull, operands = jax.vjp(
            advance,
            weights.gains,
            carry,
            projected[additive:],
            taps,
            soft,
            soft_inputs,
            has_aux=True,
        )
        more_gains, d_carry, d_rest, d_products, more_soft, d_soft_inputs = pull(
            (d_carry, d_emitted)
        )
        add = functools.partial(jax.tree.map, jnp.add)
        state = d_carry, add(d_gains, more_gains), add(d_soft, more_soft)
        return state, (how.batch_first(d_products), d_rest, d_soft_inputs, operands)

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    (d_carry, d_gains, d_soft), (d_products, d_rest, d_soft_inputs, operands) = jax.lax.scan(
        body,
        (d_carry, zeros(weights.gains), zeros(soft)),
        (d_emitted, saved, inputs._replace(masks=hard_inputs), soft_inputs),
        reverse=not how.reverse,
        unroll=how.unroll,
    )

    # Over time and batch at once; all dz are [T, B, ·].
    rows = [dz.reshape(-1, dz.shape[-1]) for dz in d_products]
    operands = (cell.hidden(saved[0]), *operands)
    d_kernels = tuple(
        cell.product(how.columns(operand), dz) for operand, dz in zip(operands, rows, strict=True)
    )
    if weights.input:
        kernel, _ = weights.input
        d_input = cell.product(how.columns(inputs.xs), rows[0]), jnp.sum(rows[0], 0)
        d_xs = cell.product(rows[0], kernel.T).reshape(*d_products[0].shape[:2], len(kernel))
    else:
        d_input = None
        d_xs = d_products[0][..., : additive * cell.hidden_features]
    d_xs = how.join((how.batch_first(d_xs), *d_rest))

    none = dict.fromkeys
    return (
        Weights(d_kernels, d_gains, d_input),
        d_carry,
        Inputs(d_xs, none(hard_inputs) | d_soft_inputs, None),
        Constants(none(hard) | d_soft, None),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replay_product(how, operand, kernel, values, tap):
    """The gates of a product, known already; the gradient of all of them together goes to `tap`.

    `kernel` is that of the way back, from gates to operand.
    """
    del how, operand, kernel, tap
    return values


def _replay_product_backward(how, kernel, d_values):
    dz = how.join(d_values)
    return how.product(dz, kernel), None, None, dz


_replay_product.defvjp(
    lambda how, operand, kernel, values, tap: (values, kernel), _replay_product_backward
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _replay_activation(names, values, gates):
    """Activated gates, known already."""
    del names, values
    return gates


def _replay_activation_backward(names, gates, d_gates):
    slopes = [SLOPES[name](gate) for name, gate in zip(names, gates, strict=True)]
    return tuple(d * slope for d, slope in zip(d_gates, slopes, strict=True)), None


_replay_activation.defvjp(lambda names, values, gates: (gates, gates), _replay_activation_backward)


def _soft_and_hard(masks: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Masks that have gradients, and those of booleans or integers."""
    soft = {name: m for name, m in masks.items() if jnp.issubdtype(m.dtype, jnp.inexact)}
    return soft, {name: m for name, m in masks.items() if name not in soft}


scan_fused.defvjp(_scan_forward, _scan_backward)
