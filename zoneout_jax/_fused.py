"""Cells over time, with a custom backward pass.

At every step, the derivative of `lax.scan` adds a product as large as the kernel to each weight
gradient; it also stores all values that its rules need. Here the forward scan stores gates and
carries. The backward scan computes dz_t, the gradients of the blocks before their activations:

    d_gates, d_carry = vjp of `update`,   dz = d_gates ∘ slope of the gate,   d_h += m ∘ (dz Rᵀ)

The gradient of the kernel is then one product over time and batch, dR = Σ_t (m ∘ h_{t−1})ᵀ dz_t,
where m is the mask `hidden`, if there is one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Cell, Params, vectors
from zoneout_jax._checks import checked_pair
from zoneout_jax._gates import ACTIVATIONS, Gates, combine, function
from zoneout_jax._normalization import AxisName, BatchNormalizer, Stats
from zoneout_jax._sharding import explicit_sharding
from zoneout_jax._zoneout import Masks

SLOPES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y * y,
    "relu": lambda y: (y > 0).astype(y.dtype),
}
"""Derivatives of the activations, as functions of their values."""


class How(NamedTuple):
    """The static settings of a run: the cell, and how it runs.

    Attributes:
      cell: the cell.
      reverse: run from the last element to the first.
      unroll: steps in one iteration of the loop.
      emit_carry: True if each step emits the pair (carry, output), False for the output alone.
      axis_name: mapped axis that the batch is spread over, for batch statistics.
      transposed: True if arrays of a step are `[features, B]`, False if `[B, features]`.
      own_input: True if each step multiplies its own input. If all blocks have an activation, the
        input kernel is appended to the rows of the recurrent kernel.
    """

    cell: Cell
    reverse: bool
    unroll: int
    emit_carry: bool
    axis_name: AxisName | None
    transposed: bool = False
    own_input: bool = False

    @property
    def axis(self) -> int:
        """The axis of features in the arrays of a step."""
        return -2 if self.transposed else -1

    def turned(self, tree: Any) -> Any:
        """Converts arrays `[…, B, features]` to the layout of the steps, or back."""
        return jax.tree.map(_turn, tree) if self.transposed else tree

    def product(self, operand: jax.Array, kernel: jax.Array) -> jax.Array:
        """Computes the product of an operand with an oriented kernel."""
        product = self.cell.product
        return product(kernel, operand) if self.transposed else product(operand, kernel)

    def oriented(self, kernel: jax.Array) -> jax.Array:
        """Converts a kernel `[in, out]` to the form that `product` takes."""
        kernel = kernel.astype(self.cell.dtype or self.cell.param_dtype)
        # Without the barrier, XLA merges the transposition into the product of a loop of one step,
        # and its CPU backend has no code for that in bfloat16.
        return jax.lax.optimization_barrier(kernel.T) if self.transposed else kernel

    def split(self, wide: jax.Array) -> Gates:
        """Splits an array into the blocks of the gates."""
        return tuple(jnp.split(wide, len(self.cell.gates), self.axis))

    def join(self, parts: Any) -> jax.Array:
        """Concatenates arrays along the features."""
        return jnp.concatenate(parts, self.axis) if len(parts) > 1 else parts[0]


class Inputs(NamedTuple):
    """The inputs of each step other than carry and parameters; None for a missing kind.

    Attributes:
      xs: `cell.project` of the inputs, `[T, B, kH]` or another form that the cell makes; or the
        inputs `[T, B, F]` themselves.
      masks: masks by name, with a leading axis T.
      valid: booleans `[T, B, 1]`; where False, the carry does not change and the output is zero.
      resets: booleans `[T, B, 1]`; where True, the carry before the step is `Constants.start`.
      number: numbers of the steps `[T]`, for a batch-normalized cell.
    """

    xs: Any
    masks: dict[str, jax.Array]
    valid: jax.Array | None
    resets: jax.Array | None
    number: jax.Array | None


class Constants(NamedTuple):
    """Inputs that serve every step: masks by name, population statistics, the carry at resets."""

    masks: dict[str, jax.Array]
    stats: Stats | None
    start: Carry | None


def scan(
    how: How, params: Params, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, Stats | None]]:
    """Runs the recurrent part of a cell over time.

    Returns:
      The last carry; the emitted values of all steps, `[T, ...]`; and the batch statistics, if the
      cell is batch-normalized and no population statistics are given.
    """

    def body(carry, inputs):
        own = params
        if explicit_sharding(jax.tree.leaves(inputs.xs)[0]):
            # On an explicit mesh, JAX 0.12 finds no gradient of a product with a closed-over array.
            own = jax.lax.optimization_barrier(params)
        carry = _restarted(carry, inputs, constants)
        advance = functools.partial(how.cell.advance, own, carry, inputs.xs)
        return _finish(how, advance, carry, inputs, constants)

    return jax.lax.scan(body, carry, inputs, reverse=how.reverse, unroll=how.unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_fused(
    how: How, params: Params, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, Stats | None]]:
    """Runs `scan` with a custom backward pass, and without a forward-mode derivative."""
    last, (emitted, _) = _forward(how, params, carry, inputs, constants, save=False)
    return last, emitted


def _restarted(carry, inputs, constants):
    """Returns the carry before a step: the initial carry where an episode begins."""
    if inputs.resets is None:
        return carry
    return jax.tree.map(lambda c, s: jnp.where(inputs.resets, s, c), carry, constants.start)


def _finish(how, update, carry, inputs, constants):
    """Calls `update(masks, *normalize)`; in padding, keeps the carry and sets outputs to zero."""
    valid, normalize = inputs.valid, []
    if how.cell.statistics:
        normalize = [BatchNormalizer(inputs.number, constants.stats, valid, how.axis_name)]
    result = update(Masks(**constants.masks, **inputs.masks), *normalize)
    new, output = _checked_result(how.cell, result, carry)
    if valid is not None:
        new = jax.tree.map(lambda n, c: jnp.where(valid, n, c), new, carry)
        output = jnp.where(valid, output, jnp.zeros_like(output))
    emitted = (new, output) if how.emit_carry else output
    return new, (emitted, normalize[0].found() if normalize else None)


def _forward(how, params, carry, inputs, constants, save):
    """Runs the scan; with `save`, also returns what the backward pass needs of each step.

    This is the carry before the step, its blocks (activated if the slope of the activation is
    known), and with `own_input` the projections of blocks without an activation.
    """
    cell, kernel, summed = how.cell, params["recurrent"], None not in how.cell.gates
    if how.own_input:
        input_kernel = how.oriented(params["input"])
        bias = how.turned(params["bias"][None])
        biases = how.split(bias)
        if summed:
            kernel = jnp.concatenate([kernel, params["input"]])
    kernel = how.oriented(kernel)
    rows = how.turned(vectors(params, cell.param_dtype))

    def body(carry, inputs):
        carry = _restarted(carry, inputs, constants)
        operand = cell.operand(carry, (constants.masks | inputs.masks).get("hidden"))
        if how.own_input and summed:
            operand, projected = how.join((operand, inputs.xs)), biases
        elif how.own_input:
            projected = how.split(how.product(inputs.xs, input_kernel) + bias)
        else:
            projected = how.split(inputs.xs)
        values, rest = combine(cell.gates, how.split(how.product(operand, kernel)), projected)
        values = tuple(
            ACTIVATIONS[name](value) if name in SLOPES else value
            for name, value in zip(cell.gates, values, strict=True)
        )
        update = functools.partial(cell.update, rows, carry, _activated(cell, values), rest)
        new, emitted = _finish(how, update, carry, inputs, constants)
        return new, (emitted, (carry, values, rest if how.own_input else ()) if save else None)

    return jax.lax.scan(body, carry, inputs, reverse=how.reverse, unroll=how.unroll)


def _activated(cell: Cell, values: Gates) -> Gates:
    """Applies the activations that have no known slope."""
    return tuple(
        value if name is None or name in SLOPES else function(name)(value)
        for name, value in zip(cell.gates, values, strict=True)
    )


def _scan_forward(how, params, carry, inputs, constants):
    last, (emitted, saved) = _forward(how, params, carry, inputs, constants, save=True)
    return (last, emitted), (params, inputs, constants, saved)


def _scan_backward(how, residuals, cotangents):
    params, inputs, constants, saved = residuals
    d_carry, d_emitted = cotangents
    cell = how.cell
    rows = how.turned(vectors(params, cell.param_dtype))
    kernel = how.oriented(params["recurrent"].T)
    # Masks of numbers have gradients, masks of booleans do not.
    soft, hard = _soft_and_hard(constants.masks)
    soft_inputs, hard_inputs = _soft_and_hard(inputs.masks)

    def body(state, step):
        d_carry, d_rows, d_soft, d_start = state
        d_emitted, (carry, values, rest), inputs, soft_inputs = step
        if not how.own_input:
            blocks = zip(cell.gates, how.split(inputs.xs), strict=True)
            rest = tuple(x for name, x in blocks if name is None)

        def update(rows, carry, values, rest, soft, soft_inputs):
            update = functools.partial(cell.update, rows, carry, _activated(cell, values), rest)
            return _finish(
                how,
                update,
                carry,
                inputs._replace(masks=inputs.masks | soft_inputs),
                constants._replace(masks=hard | soft),
            )

        _, pull = jax.vjp(update, rows, carry, values, rest, soft, soft_inputs)
        more_rows, d_carry, d_values, d_rest, more_soft, d_soft_inputs = pull((d_carry, d_emitted))
        dz = [
            d * SLOPES[name](value) if name in SLOPES else d
            for name, d, value in zip(cell.gates, d_values, values, strict=True)
        ]
        more = iter(d_rest)
        d_projected = [
            next(more) if name is None else d for name, d in zip(cell.gates, dz, strict=True)
        ]
        dz = how.join(dz)
        hidden = (hard | soft | inputs.masks | soft_inputs).get("hidden")
        _, pull_operand = jax.vjp(cell.operand, carry, hidden)
        d_more, d_hidden = pull_operand(how.product(dz, kernel))
        d_carry = _add(d_carry, d_more)
        for gradients in (more_soft, d_soft_inputs):  # `update` does not use the mask `hidden`
            gradients |= {"hidden": d_hidden} if "hidden" in gradients else {}
        if inputs.resets is not None:  # the gradient goes to the carry that `_restarted` chose
            chosen = jax.tree.map(lambda d: jnp.where(inputs.resets, d, 0), d_carry)
            d_start = _add(d_start, chosen)
            d_carry = jax.tree.map(lambda d: jnp.where(inputs.resets, 0, d), d_carry)
        state = d_carry, _add(d_rows, more_rows), _add(d_soft, more_soft), d_start
        # Without a rest, d_projected equals dz.
        out = dz, how.join(d_projected) if d_rest else None
        return state, (how.turned(out), d_soft_inputs)

    zeros = functools.partial(jax.tree.map, jnp.zeros_like)
    (d_carry, d_rows, d_soft, d_start), ((dz, d_projected), d_soft_inputs) = jax.lax.scan(
        body,
        (d_carry, zeros(rows), zeros(soft), zeros(constants.start)),
        (d_emitted, saved, inputs._replace(masks=hard_inputs), soft_inputs),
        reverse=not how.reverse,
        unroll=how.unroll,
    )

    # One product over time and batch, of rows [T·B, ·], which needs no copy. With several devices
    # the axes are not merged, because devices that share the batch would have to gather the rows.
    def kernel_gradient(name, operand, dz):
        one, other = (a.astype(cell.dtype or cell.param_dtype) for a in (operand, dz))
        axes: Any = ((0, 2) if how.transposed else (0, 1), (0, 1))
        if jax.device_count() == 1 and not how.transposed:
            one, other = (a.reshape(-1, a.shape[-1]) for a in (one, other))
            axes = (0,), (0,)
        return jax.lax.dot_general(
            one,
            other,
            (axes, ((), ())),
            preferred_element_type=cell.param_dtype,
            out_sharding=explicit_sharding(params[name]) or _replicated(one),
        )

    gradient: dict[str, Any] = dict.fromkeys(params)  # None for parameters not used here
    gradient |= {name: _like(d, params[name]) for name, d in how.turned(d_rows).items()}
    hidden = inputs.masks.get("hidden", constants.masks.get("hidden"))
    if hidden is not None and jnp.ndim(hidden) == 2:
        hidden = hidden[None]  # this mask serves every step
    gradient["recurrent"] = kernel_gradient("recurrent", cell.operand(saved[0], hidden), dz)
    d_projected = dz if d_projected is None else d_projected
    if how.own_input:
        gradient["input"] = kernel_gradient("input", inputs.xs, d_projected)
        gradient["bias"] = gradient["bias"] + jnp.sum(d_projected, (0, 1))
        d_xs = how.turned(cell.product(d_projected, params["input"].T))
    else:
        d_xs = how.turned(d_projected)
    none = dict.fromkeys
    return (
        gradient,
        d_carry,
        Inputs(d_xs, none(hard_inputs) | d_soft_inputs, None, None, None),
        Constants(none(hard) | d_soft, None, d_start),
    )


scan_fused.defvjp(_scan_forward, _scan_backward)


def _checked_result(cell: Cell, result: Any, carry: Carry) -> tuple[Carry, Any]:
    """Returns the new carry and the output; raises TypeError unless `update` returned both."""
    new, output = checked_pair(cell, result)
    given, wanted = (
        jax.tree.map(lambda a: f"{a.dtype.name}{list(a.shape)}", tree) for tree in (new, carry)
    )
    if given != wanted:
        raise TypeError(f"{type(cell).__name__}.update must return a carry {wanted}, got {given}")
    return new, output


def _replicated(operand: jax.Array) -> jax.sharding.NamedSharding | None:
    """Returns the sharding of a matrix that is whole on every device of an explicit mesh."""
    sharding = explicit_sharding(operand)
    return sharding and jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())


def _turn(array: jax.Array) -> jax.Array:
    """Swaps the last two axes of an array, unless it is a scalar."""
    return jnp.swapaxes(array, -1, -2) if array.ndim else array


def _add(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


def _like(gradient: Any, parameter: Any) -> Any:
    """Returns gradients of rows in the shapes of the parameters."""
    return jax.tree.map(lambda d, p: d.reshape(p.shape), gradient, parameter)


def _soft_and_hard(masks: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits masks into masks with gradients and masks of booleans or integers."""
    soft = {name: m for name, m in masks.items() if jnp.issubdtype(m.dtype, jnp.inexact)}
    return soft, {name: m for name, m in masks.items() if name not in soft}
