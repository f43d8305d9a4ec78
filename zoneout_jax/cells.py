"""Recurrent cells as pure functions: what a cell is, the GRU and the plain RNN.

A cell is a `Cell` of functions over a plain dict of parameters; it holds no arrays and no state.
`unroll` runs it over time. The LSTM is in `zoneout_jax.lstm_cell`.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from zoneout_jax.initializers import Initializer, block_orthogonal
from zoneout_jax.normalization import BatchNormalizer, Stats
from zoneout_jax.zoneout import Masks, zoneout

Params = dict[str, Any]
Carry = Any

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


class Cell(NamedTuple):
    """A recurrent cell.

    A step multiplies kernels with operands and does the rest elementwise. `advance` is handed the
    function that multiplies, so that the runner decides how products are made, kept and
    differentiated.

    Attributes:
      init: `init(key) -> params`, a dict of arrays.
      initial_carry: `initial_carry(params, batch) -> carry` before the first step.
      project: `project(params, xs)`: the part of a step that does not depend on the carry, for
        inputs with any leading dimensions. It can be computed for a whole sequence at once.
      kernels: `kernels(params)`: the recurrent kernels `[H, H]`, a tuple of groups; those of one
        group multiply the same operand, those of the first the hidden state.
      gains: `gains(params)`: the other parameters that a step needs; vectors.
      advance: `advance(gains, carry, projected, masks, multiply, normalize) -> (carry, output)`:
        the rest of a step. `multiply(operand, group)` is the tuple of products of a group,
        `normalize(row, x)` batch normalization.
      hidden: `hidden(carry)`: the hidden state `[B, H]`.
      product: `product(x, kernel)`, the matrix product in the cell's types.
      masks: names of the masks that the cell understands.
      in_features: F.
      hidden_features: H.
      init_stats: `init_stats()`, initial population statistics, if the cell is batch-normalized.
    """

    init: Callable[[jax.Array], Params]
    initial_carry: Callable[[Params, int], Carry]
    project: Callable[[Params, jax.Array], Any]
    kernels: Callable[[Params], tuple[tuple[jax.Array, ...], ...]]
    gains: Callable[[Params], Params]
    advance: Callable[..., tuple[Carry, jax.Array]]
    hidden: Callable[[Carry], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    masks: tuple[str, ...]
    in_features: int
    hidden_features: int
    init_stats: Callable[[], Stats] | None = None

    def step(
        self,
        params: Params,
        carry: Carry,
        x: jax.Array,
        masks: Masks | None = None,
        stats: Stats | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          params: parameters.
          carry: carry of the step before.
          x: input `[B, F]`.
          masks: each `[B, H]` or broadcast to it; none by default.
          stats: population statistics of a batch-normalized cell; those of the batch by default.

        Returns:
          The new carry and the output `[B, H]`.
        """
        kernels = self.kernels(params)

        def multiply(operand, group):
            return tuple(self.product(operand, kernel) for kernel in kernels[group])

        normalize = BatchNormalizer(carry[2], stats) if self.init_stats else None
        projected, masks = self.project(params, x), masks or Masks()
        return self.advance(self.gains(params), carry, projected, masks, multiply, normalize)


# The same arguments give the same cell, which compiled functions are then found by.
@functools.cache
def gru(
    in_features: int,
    hidden_features: int,
    *,
    reset_after: bool = True,
    activation: str = "tanh",
    output: Literal["state", "candidate"] = "state",
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    learned_carry: bool = False,
    param_dtype: Any = jnp.float32,
    dtype: Any = None,
) -> Cell:
    """Gated recurrent unit with zoneout.

        r = σ(W_xr x + W_hr h + b_r)
        z = σ(W_xz x + W_hz h + b_z)
        n = tanh(W_xn x + b_n + r∘(W_hn h + b_hn))     if reset_after: Flax, torch, cuDNN
        n = tanh(W_xn x + b_n + W_hn (r∘h))            otherwise: Cho et al. 2014, the authors' code
        ĥ = z∘h + (1 − z)∘u∘n
        h' = d_h∘h + (1 − d_h)∘ĥ

    The carry is h', and so is the output. There are no memory cells: the masks are those of states
    and of the update.

    Args:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      reset_after: the reset gate multiplies the recurrent product, not the state before it.
      activation: "tanh" or "relu", where tanh stands above.
      output: "state" gives h', "candidate" gives ĥ.
      kernel_init, recurrent_init, param_dtype, dtype: as for `lstm`, with 3 blocks.
      learned_carry: the initial h is a parameter, which starts at 0; otherwise it is 0.

    Returns:
      A `Cell`. Its parameters are `input` [F, 3H], `recurrent` [H, 3H] and `bias` [3H] in the order
      r, z, n; `recurrent_bias` [H], b_hn, if reset_after; `initial_h` [H] with a learned carry.

    Raises:
      ValueError: a size below one, or an unknown option.
    """
    check_sizes(in_features=in_features, hidden_features=hidden_features)
    check_choice("output", output, ("state", "candidate"))
    squash = get_activation(activation)
    product = matrix_product(param_dtype, dtype)
    zeros = (("initial_h",) if learned_carry else ()) + (("recurrent_bias",) if reset_after else ())

    def init(key: jax.Array) -> Params:
        params = init_kernels(
            key, in_features, hidden_features, 3, kernel_init, recurrent_init, param_dtype
        )
        params["bias"] = jnp.zeros(3 * hidden_features, param_dtype)
        return params | {name: jnp.zeros(hidden_features, param_dtype) for name in zeros}

    def project(params: Params, xs: jax.Array) -> tuple[jax.Array, ...]:
        kernels, biases = jnp.split(params["input"], 3, -1), jnp.split(params["bias"], 3)
        return tuple(product(xs, k) + b for k, b in zip(kernels, biases, strict=True))

    def kernels(params: Params) -> tuple[tuple[jax.Array, ...], ...]:
        r, z, n = jnp.split(params["recurrent"], 3, -1)
        return ((r, z, n),) if reset_after else ((r, z), (n,))

    def advance(
        gains: Params, h: Carry, projected: Any, masks: Masks, multiply: Any, normalize: Any
    ) -> tuple[Carry, jax.Array]:
        del normalize
        products = multiply(h, 0)
        r = jax.nn.sigmoid(projected[0] + products[0])
        z = jax.nn.sigmoid(projected[1] + products[1])
        if reset_after:
            recurrent = r * (products[2] + gains["recurrent_bias"])
        else:
            (recurrent,) = multiply(r * h, 1)
        u = None if masks.update is None else jnp.asarray(masks.update).astype(h.dtype)
        candidate = z * h + scaled(u, (1 - z) * squash(projected[2] + recurrent))
        new = zoneout(h, candidate, masks.states)
        return new, new if output == "state" else candidate

    return Cell(
        init=init,
        initial_carry=_initial_hidden(hidden_features, learned_carry, param_dtype),
        project=project,
        kernels=kernels,
        gains=lambda params: {n: params[n] for n in ("recurrent_bias",) if reset_after},
        advance=advance,
        hidden=lambda carry: carry,
        product=product,
        masks=("states", "update"),
        in_features=in_features,
        hidden_features=hidden_features,
    )


# The same arguments give the same cell, which compiled functions are then found by.
@functools.cache
def rnn(
    in_features: int,
    hidden_features: int,
    *,
    activation: str = "tanh",
    output: Literal["state", "candidate"] = "state",
    kernel_init: Initializer | None = None,
    recurrent_init: Initializer | None = None,
    learned_carry: bool = False,
    param_dtype: Any = jnp.float32,
    dtype: Any = None,
) -> Cell:
    """Plain (Elman) recurrent network with zoneout.

        ĥ = tanh(W_x x + W_h h + b)
        h' = d_h∘h + (1 − d_h)∘ĥ

    The carry is h', and so is the output. The only mask is that of the states.

    Args:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      activation: "tanh" or "relu", where tanh stands above.
      output: "state" gives h', "candidate" gives ĥ.
      kernel_init, recurrent_init, param_dtype, dtype: as for `lstm`, with one block.
      learned_carry: the initial h is a parameter, which starts at 0; otherwise it is 0.

    Returns:
      A `Cell`. Its parameters are `input` [F, H], `recurrent` [H, H] and `bias` [H], and with a
      learned carry `initial_h` [H].

    Raises:
      ValueError: a size below one, or an unknown option.
    """
    check_sizes(in_features=in_features, hidden_features=hidden_features)
    check_choice("output", output, ("state", "candidate"))
    squash = get_activation(activation)
    product = matrix_product(param_dtype, dtype)

    def init(key: jax.Array) -> Params:
        params = init_kernels(
            key, in_features, hidden_features, 1, kernel_init, recurrent_init, param_dtype
        )
        zeros = ("bias", "initial_h") if learned_carry else ("bias",)
        return params | {name: jnp.zeros(hidden_features, param_dtype) for name in zeros}

    def advance(
        gains: Params, h: Carry, projected: Any, masks: Masks, multiply: Any, normalize: Any
    ) -> tuple[Carry, jax.Array]:
        del gains, normalize
        candidate = squash(projected + multiply(h, 0)[0])
        new = zoneout(h, candidate, masks.states)
        return new, new if output == "state" else candidate

    return Cell(
        init=init,
        initial_carry=_initial_hidden(hidden_features, learned_carry, param_dtype),
        project=lambda params, xs: product(xs, params["input"]) + params["bias"],
        kernels=lambda params: ((params["recurrent"],),),
        gains=lambda params: {},
        advance=advance,
        hidden=lambda carry: carry,
        product=product,
        masks=("states",),
        in_features=in_features,
        hidden_features=hidden_features,
    )


def scaled(mask: jax.Array | None, x: jax.Array) -> jax.Array:
    """The product with a mask; without one, `x`."""
    return x if mask is None else mask * x


def init_kernels(key, in_features, hidden_features, blocks, kernel_init, recurrent_init, dtype):
    """The parameters `input` and `recurrent`."""
    input_key, recurrent_key = jax.random.split(key)
    kernel_init = kernel_init or block_orthogonal()
    recurrent_init = recurrent_init or block_orthogonal()
    width = blocks * hidden_features
    return {
        "input": kernel_init(input_key, (in_features, width), dtype, blocks=blocks),
        "recurrent": recurrent_init(recurrent_key, (hidden_features, width), dtype, blocks=blocks),
    }


def _initial_hidden(hidden_features: int, learned: bool, dtype: Any) -> Callable[..., Carry]:
    """`initial_carry` of a cell whose carry is its hidden state."""

    def initial_carry(params: Params, batch: int) -> Carry:
        shape = (batch, hidden_features)
        return jnp.broadcast_to(params["initial_h"], shape) if learned else jnp.zeros(shape, dtype)

    return initial_carry


def matrix_product(param_dtype: Any, dtype: Any) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Matrix product with operands in `dtype`, summed in `param_dtype`."""
    operand = dtype or param_dtype

    def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.matmul(
            x.astype(operand), kernel.astype(operand), preferred_element_type=param_dtype
        )

    return product


def get_activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """The function of a name; raises ValueError for an unknown one."""
    check_choice("activation", name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless the value is one of those allowed."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def check_sizes(**sizes: int) -> None:
    """Raises ValueError unless all sizes are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
