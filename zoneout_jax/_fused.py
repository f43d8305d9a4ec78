"""Cells over time, with a backward pass of our own.

The derivative of `lax.scan` adds a product as large as a kernel to every weight gradient at every
step, and keeps whatever its rules ask for. Here the forward scan keeps the gates and carries, the
backward scan passes on dz_t, the gradients of the blocks before their activations,

    d_gates, d_carry = vjp of `update`,   dz = d_gates ∘ slope of the gate,   d_h += m ∘ (dz Rᵀ)

and the gradient of the kernel is one product over time and batch, dR = Σ_t (m ∘ h_{t−1})ᵀ dz_t,
where m is the mask of what enters the product, if there is one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax._cell import ACTIVATIONS, Carry, Cell, Gates, Params, combine, function, vectors
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
    """What is known before any array is: the cell, and how it is run.

    Attributes:
      cell: its functions.
      reverse: from the last element to the first.
      unroll: steps in one iteration of the loop.
      emit_carry: whether each step emits the pair (carry, output), not the output alone.
      axis_name: mapped axis over which the batch is spread, for batch statistics.
      transposed: arrays of a step are `[features, B]`, not `[B, features]`.
      own_input: each step multiplies its input too, as further rows of the recurrent kernel.
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
        """Arrays `[…, B, features]` as the steps have them, or back."""
        return jax.tree.map(_turn, tree) if self.transposed else tree

    def product(self, operand: jax.Array, kernel: jax.Array) -> jax.Array:
        """The product of an operand with an oriented kernel."""
        product = self.cell.product
        return product(kernel, operand) if self.transposed else product(operand, kernel)

    def oriented(self, kernel: jax.Array) -> jax.Array:
        """A kernel `[in, out]` as `product` takes it."""
        kernel = kernel.astype(self.cell.dtype or self.cell.param_dtype)
        # Without the barrier, the product in a loop of one step takes over the transposition, and
        # XLA's CPU backend lacks the code for that in bfloat16.
        return jax.lax.optimization_barrier(kernel.T) if self.transposed else kernel

    def split(self, wide: jax.Array) -> Gates:
        """Cuts the blocks apart."""
        return tuple(jnp.split(wide, len(self.cell.gates), self.axis))

    def join(self, parts: Any) -> jax.Array:
        """Puts arrays side by side."""
        return jnp.concatenate(parts, self.axis) if len(parts) > 1 else parts[0]


class Inputs(NamedTuple):
    """What a step reads besides carry and parameters; None is "nothing of the kind".

    Attributes:
      xs: `cell.project` of the inputs, `[T, B, kH]` or what else the cell makes of them; or the
        inputs `[T, B, F]` themselves.
      masks: masks by name with a leading axis T.
      valid: booleans `[T, B, 1]`; where False the carry stands still and the output is zero.
      resets: booleans `[T, B, 1]`; where True the carry before the step is `Constants.start`.
      number: numbers of the steps `[T]`, for a batch-normalized cell.
    """

    xs: Any
    masks: dict[str, jax.Array]
    valid: jax.Array | None
    resets: jax.Array | None
    number: jax.Array | None


class Constants(NamedTuple):
    """What serves every step: masks by name, population statistics, the carry at resets."""

    masks: dict[str, jax.Array]
    stats: Stats | None
    start: Carry | None


def scan(
    how: How, params: Params, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, Stats | None]]:
    """Runs the recurrent part of a cell over time.

    Returns:
      The last carry; what each step emitted, `[T, ...]`; and the batch statistics, if the cell is
      batch-normalized and has no population statistics to use.
    """

    def body(carry, inputs):
        own = params
        if explicit_sharding(jax.tree.leaves(inputs.xs)[0]):
            # JAX 0.12 does not find the gradient of a product with what a scan closes over there.
            own = jax.lax.optimization_barrier(params)
        carry = _restarted(carry, inputs, constants)
        advance = functools.partial(how.cell.advance, own, carry, inputs.xs)
        return _finish(how, advance, carry, inputs, constants)

    return jax.lax.scan(body, carry, inputs, reverse=how.reverse, unroll=how.unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def scan_fused(
    how: How, params: Params, carry: Carry, inputs: Inputs, constants: Constants
) -> tuple[Carry, tuple[Any, Stats | None]]:
    """`scan` with a backward pass of its own, and without a forward-mode derivative."""
    last, (emitted, _) = _forward(how, params, carry, inputs, constants, save=False)
    return last, emitted


def _restarted(carry, inputs, constants):
    """The carry before a step: the initial one where an episode begins."""
    if inputs.resets is None:
        return carry
    return jax.tree.map(lambda c, s: jnp.where(inputs.resets, s, c), carry, constants.start)


def _finish(how, update, carry, inputs, constants):
    """What `update(masks, *normalize)` makes of a step, with regard to padding."""
    valid, normalize = inputs.valid, []
    if how.cell.statistics:
        normalize = [BatchNormalizer(inputs.number, constants.stats, valid, how.axis_name)]
    new, output = update(Masks(**constants.masks, **inputs.masks), *normalize)
    _check_update(how.cell, new, carry)
    if valid is not None:
        new = jax.tree.map(lambda n, c: jnp.where(valid, n, c), new, carry)
        output = jnp.where(valid, output, jnp.zeros_like(output))
    emitted = (new, output) if how.emit_carry else output
    return new, (emitted, normalize[0].found() if normalize else None)


def _forward(how, params, carry, inputs, constants, save):
    """The scan, and if `save` what the way back needs of each step.

    That is the carry before it, its blocks (of a gate with a known slope the activated gate), and
    with `own_input` the rest.
    """
    cell, kernel, summed = how.cell, params["recurrent"], None not in how.cell.gates
    if how.own_input:
        input_kernel = how.oriented(params["input"])
        bias = how.split(how.turned(params["bias"][None]))
        if summed:
            kernel = jnp.concatenate([kernel, params["input"]])
    kernel = how.oriented(kernel)
    rows = how.turned(vectors(params, cell.param_dtype))

    def body(carry, inputs):
        carry = _restarted(carry, inputs, constants)
        operand = cell.operand(carry, (constants.masks | inputs.masks).get("hidden"))
        if how.own_input and summed:
            operand, projected = how.join((operand, inputs.xs)), bias
        elif how.own_input:
            products = how.split(how.product(inputs.xs, input_kernel))
            projected = tuple(p + b for p, b in zip(products, bias, strict=True))
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
    # Masks of numbers have gradients, those of booleans do not.
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
        for gradients in (more_soft, d_soft_inputs):  # `update` has no use for it
            gradients |= {"hidden": d_hidden} if "hidden" in gradients else {}
        if inputs.resets is not None:  # what `_restarted` chose has the gradient
            chosen = jax.tree.map(lambda d: jnp.where(inputs.resets, d, 0), d_carry)
            d_start = _add(d_start, chosen)
            d_carry = jax.tree.map(lambda d: jnp.where(inputs.resets, 0, d), d_carry)
        state = d_carry, _add(d_rows, more_rows), _add(d_soft, more_soft), d_start
        # Without a rest it is the same as dz.
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

    # Over time and batch at once: of rows [T·B, ·], which take no copy, or where devices may share
    # the batch, and would have to gather the rows, without merging the axes.
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
            out_sharding=explicit_sharding(params[name]),
        )

    gradient: dict[str, Any] = dict.fromkeys(params)  # None: they are not used here
    gradient |= {name: _like(d, params[name]) for name, d in how.turned(d_rows).items()}
    hidden = inputs.masks.get("hidden", constants.masks.get("hidden"))
    if hidden is not None and jnp.ndim(hidden) == 2:
        hidden = hidden[None]  # it serves every step
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


def _check_update(cell: Cell, new: Carry, carry: Carry) -> None:
    """Raises TypeError unless `update` returned a carry like the one that it got."""
    given, wanted = (
        jax.tree.map(lambda a: f"{a.dtype.name}{list(a.shape)}", tree) for tree in (new, carry)
    )
    if given != wanted:
        raise TypeError(f"{type(cell).__name__}.update must return a carry {wanted}, got {given}")


def _turn(array: jax.Array) -> jax.Array:
    """Swaps the last two axes of what is no scalar."""
    return jnp.swapaxes(array, -1, -2) if array.ndim else array


def _add(one: Any, other: Any) -> Any:
    return jax.tree.map(jnp.add, one, other)


def _like(gradient: Any, parameter: Any) -> Any:
    """The gradient of a vector from that of its row."""
    return jax.tree.map(lambda d, p: d.reshape(p.shape), gradient, parameter)


def _soft_and_hard(masks: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Masks that have gradients, and those of booleans or integers."""
    soft = {name: m for name, m in masks.items() if jnp.issubdtype(m.dtype, jnp.inexact)}
    return soft, {name: m for name, m in masks.items() if name not in soft}
