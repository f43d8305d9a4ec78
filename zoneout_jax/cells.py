"""Recurrent cells as pure functions.

A cell is a `Cell` of functions over a plain dict of parameters; it holds no arrays and no state.
`unroll` runs it over time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.initializers import Initializer, block_orthogonal
from zoneout_jax.zoneout import Masks, zoneout

Params = dict[str, Any]
Carry = Any


class Cell(NamedTuple):
    """A recurrent cell.

    Attributes:
      init: `init(key) -> params`, a dict of arrays.
      initial_carry: `initial_carry(params, batch) -> carry` before the first step.
      step: `step(params, carry, x, masks=None) -> (carry, output)`, with x `[B, F]` and the
        output `[B, H]`.
      project: `project(params, xs)`: the part of a step that does not depend on the carry, for
        inputs with any leading dimensions. It can be computed for a whole sequence at once.
      kernels: `kernels(params)`: the recurrent kernels, a tuple of matrices `[H, ·]` that multiply
        the hidden state.
      activate: `activate(carry, projected, products, masks) -> (carry, output)`: the rest of a
        step, which is elementwise; products are those of the hidden state and the kernels.
      hidden: `hidden(carry)`: the hidden state `[B, H]`.
      product: `product(x, kernel)`, the matrix product in the cell's types.
      in_features: F.
      hidden_features: H.
    """

    init: Callable[[jax.Array], Params]
    initial_carry: Callable[[Params, int], Carry]
    step: Callable[..., tuple[Carry, jax.Array]]
    project: Callable[[Params, jax.Array], Any]
    kernels: Callable[[Params], tuple[jax.Array, ...]]
    activate: Callable[..., tuple[Carry, jax.Array]]
    hidden: Callable[[Carry], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    in_features: int
    hidden_features: int


def lstm(
    in_features: int,
    hidden_features: int,
    *,
    forget_bias: float = 1.0,
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    learned_carry: bool = False,
    param_dtype: Any = jnp.float32,
    dtype: Any = None,
) -> Cell:
    """Long short-term memory with zoneout.

        i, f, g, o = split(W_x x + W_h h + b)
        ĉ = σ(f)∘c + u∘σ(i)∘tanh(g)
        ĥ = σ(o)∘tanh(ĉ)
        c' = d_c∘c + (1 − d_c)∘ĉ
        h' = d_h∘h + (1 − d_h)∘ĥ

    Krueger et al. 2017, section 3.2. ĥ comes from the candidate cell ĉ, not from the zoned-out c'.
    The carry is (c, h), as in Flax; the output is h'.

    Args:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      forget_bias: initial value of the forget gate's bias; the other biases start at 0.
      kernel_init: initializer of the input weights, `init(key, shape, dtype, blocks)`; block
        orthogonal if None.
      recurrent_init: initializer of the recurrent weights, likewise.
      learned_carry: the initial c and h are parameters, which start at 0; otherwise they are 0.
      param_dtype: type of the parameters, and of carry and output.
      dtype: type of the operands of matrix products, for instance `jnp.bfloat16`; they are summed
        in `param_dtype` all the same. None means `param_dtype`.

    Returns:
      A `Cell`. Its parameters are `input` [F, 4H], `recurrent` [H, 4H] and `bias` [4H], gates in
      the order i, f, g, o, and with a learned carry `initial_c` [H] and `initial_h` [H].

    Raises:
      ValueError: a size below one.

    Example:
      >>> cell = lstm(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> carry, y = cell.step(params, cell.initial_carry(params, 2), jnp.ones((2, 3)))
      >>> y.shape
      (2, 4)
    """
    for name, size in (("in_features", in_features), ("hidden_features", hidden_features)):
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    kernel_init = kernel_init or block_orthogonal()
    recurrent_init = recurrent_init or block_orthogonal()

    def init(key: jax.Array) -> Params:
        input_key, recurrent_key = jax.random.split(key)
        width = 4 * hidden_features
        params = {
            "input": kernel_init(input_key, (in_features, width), param_dtype, blocks=4),
            "recurrent": recurrent_init(
                recurrent_key, (hidden_features, width), param_dtype, blocks=4
            ),
            "bias": jnp.repeat(jnp.array([0, forget_bias, 0, 0], param_dtype), hidden_features),
        }
        if learned_carry:
            params["initial_c"] = jnp.zeros(hidden_features, param_dtype)
            params["initial_h"] = jnp.zeros(hidden_features, param_dtype)
        return params

    def initial_carry(params: Params, batch: int) -> Carry:
        shape = (batch, hidden_features)
        if learned_carry:
            return tuple(jnp.broadcast_to(params[f"initial_{v}"], shape) for v in "ch")
        return jnp.zeros(shape, param_dtype), jnp.zeros(shape, param_dtype)

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        operand = dtype or param_dtype
        return jnp.matmul(
            x.astype(operand), kernel.astype(operand), preferred_element_type=param_dtype
        )

    # The gates stay separate arrays: cutting them out of one wide product at every step is dearer
    # than four products.
    def project(params: Params, xs: jax.Array) -> tuple[jax.Array, ...]:
        kernels, biases = jnp.split(params["input"], 4, -1), jnp.split(params["bias"], 4)
        return tuple(product(xs, k) + b for k, b in zip(kernels, biases, strict=True))

    def kernels(params: Params) -> tuple[jax.Array, ...]:
        return tuple(jnp.split(params["recurrent"], 4, -1))

    def activate(
        carry: Carry, projected: Any, products: Any, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        c, h = carry
        i, f, g, o = (x + y for x, y in zip(projected, products, strict=True))
        update = jax.nn.sigmoid(i) * jnp.tanh(g)
        if masks.update is not None:
            update = jnp.asarray(masks.update).astype(update.dtype) * update
        candidate_c = jax.nn.sigmoid(f) * c + update
        candidate_h = jax.nn.sigmoid(o) * jnp.tanh(candidate_c)
        h = zoneout(h, candidate_h, masks.states)
        return (zoneout(c, candidate_c, masks.cells), h), h

    def hidden(carry: Carry) -> jax.Array:
        return carry[1]

    def step(
        params: Params, carry: Carry, x: jax.Array, masks: Masks | None = None
    ) -> tuple[Carry, jax.Array]:
        products = tuple(product(hidden(carry), kernel) for kernel in kernels(params))
        return activate(carry, project(params, x), products, masks or Masks())

    return Cell(
        init,
        initial_carry,
        step,
        project,
        kernels,
        activate,
        hidden,
        product,
        in_features,
        hidden_features,
    )
