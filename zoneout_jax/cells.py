"""Recurrent cells as pure functions: what a cell is, the GRU and the plain RNN.

A cell is a `Cell` of functions over a plain dict of parameters; it holds no arrays and no state.
`unroll` runs it over time. The LSTM is in `zoneout_jax.lstm_cell`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoneout_jax.initializers import Initializer, block_orthogonal
from zoneout_jax.normalization import BatchNormalizer, Stats
from zoneout_jax.zoneout import Masks, zoneout

Params = dict[str, Any]
Carry = Any

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


class Cell(NamedTuple):
    """A recurrent cell.

    A step multiplies kernels with operands, squashes the results and does the rest elementwise.
    `advance` is handed the functions that multiply and squash, so that the runner decides how
    products are made, what is kept of a step, and how it is differentiated.

    Attributes:
      init: `init(key) -> params`, a dict of arrays.
      initial_carry: `initial_carry(params, batch) -> carry` before the first step.
      project: `project(params, xs)`: the part of a step that does not depend on the carry,
        `[…, kH]` for inputs `[…, F]` and k gates; it can be computed for a whole sequence at once.
      kernels: `kernels(params)`: the recurrent kernels `[H, ·]`; the first multiplies the hidden
        state.
      gains: `gains(params)`: the other parameters that a step needs; vectors.
      advance: `advance(gains, carry, projected, masks, multiply, activate, normalize) -> (carry,
        output)`: the rest of a step. `projected` is a tuple of gates. `multiply(operand, n)` is the
        tuple of products with kernel n, `activate(names, values)` applies functions of
        `ACTIVATIONS`, `normalize(row, values)` is batch normalization.
      hidden: `hidden(carry)`: the hidden state `[B, H]`.
      product: `product(x, kernel)`, the matrix product in the cell's types.
      operand_dtype: the type that it converts its operands to.
      masks: names of the masks that the cell understands.
      in_features: F.
      hidden_features: H.
      gates: k.
      additive: number of leading gates for which `projected` is only ever added to the product of
        the first kernel; `multiply` returns their sums. If any, all of a step is elementwise but
        for its products. If all, `project` is xs `params["input"]` + `params["bias"]`.
      init_stats: `init_stats()`, initial population statistics, if the cell is batch-normalized.
    """

    init: Callable[[jax.Array], Params]
    initial_carry: Callable[[Params, int], Carry]
    project: Callable[[Params, jax.Array], jax.Array]
    kernels: Callable[[Params], tuple[jax.Array, ...]]
    gains: Callable[[Params], Params]
    advance: Callable[..., tuple[Carry, jax.Array]]
    hidden: Callable[[Carry], jax.Array]
    product: Callable[[jax.Array, jax.Array], jax.Array]
    operand_dtype: Any
    masks: tuple[str, ...]
    in_features: int
    hidden_features: int
    gates: int
    additive: int
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
          stats: population statistics of a batch-normalized cell, without gradients; those of the
            batch by default.

        Returns:
          The new carry and the output `[B, H]`.

        Raises:
          ValueError: a mask that the cell has no use for.
        """
        masks = Masks(**self.known_masks(masks or Masks()))
        kernels = self.kernels(params)
        projected = tuple(jnp.split(self.project(params, x), self.gates, -1))

        def multiply(operand, number):
            parts = split_gates(self.product(operand, kernels[number]), self.hidden_features)
            return add_projected(parts, projected[: self.additive]) if number == 0 else parts

        normalize = BatchNormalizer(carry[2], stats) if self.init_stats else None
        return self.advance(
            self.gains(params), carry, projected, masks, multiply, activate, normalize
        )

    def known_masks(self, masks: Masks) -> dict[str, ArrayLike]:
        """The masks that are given, by name; ValueError if the cell has no use for one."""
        given = {name: mask for name, mask in masks._asdict().items() if mask is not None}
        for name in given:
            if name not in self.masks:
                known = " and ".join(self.masks)
                raise ValueError(f"this cell has no {name} to mask, only {known}; leave it None")
        return given


def activate(names: tuple[str, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Applies to each value the function of its name."""
    return tuple(ACTIVATIONS[name](value) for name, value in zip(names, values, strict=True))


def split_gates(wide: jax.Array, features: int, axis: int = -1) -> tuple[jax.Array, ...]:
    """Cuts an array of kH features into the k gates."""
    return tuple(jnp.split(wide, wide.shape[axis] // features, axis))


def add_projected(
    parts: tuple[jax.Array, ...], projected: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Adds what comes of the inputs to the leading products."""
    sums = tuple(part + x for part, x in zip(parts, projected, strict=False))
    return sums + parts[len(sums) :]


P = ParamSpec("P")


def cached(make: Callable[P, Cell]) -> Callable[P, Cell]:
    """Gives the same cell for the same arguments, which compiled functions are then found by."""
    cell: Any = functools.cache(make)  # whose own type would hide the arguments
    return cell


@cached
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
    check_choice("activation", activation, ("tanh", "relu"))
    product = matrix_product(param_dtype, dtype)
    zeros = (("initial_h",) if learned_carry else ()) + (("recurrent_bias",) if reset_after else ())

    def init(key: jax.Array) -> Params:
        params = init_kernels(
            key, in_features, hidden_features, 3, kernel_init, recurrent_init, param_dtype
        )
        params["bias"] = jnp.zeros(3 * hidden_features, param_dtype)
        return params | {name: jnp.zeros(hidden_features, param_dtype) for name in zeros}

    def kernels(params: Params) -> tuple[jax.Array, ...]:
        recurrent = params["recurrent"]
        if reset_after:
            return (recurrent,)
        return recurrent[:, : 2 * hidden_features], recurrent[:, 2 * hidden_features :]

    def advance(
        gains: Params,
        h: Carry,
        projected: Any,
        masks: Masks,
        multiply: Any,
        activate: Any,
        normalize: Any,
    ) -> tuple[Carry, jax.Array]:
        del normalize
        r, z, *recurrent = multiply(h, 0)
        r, z = activate(("sigmoid", "sigmoid"), (r, z))
        if reset_after:
            recurrent = r * (recurrent[0] + gains["recurrent_bias"])
        else:
            (recurrent,) = multiply(r * h, 1)
        (n,) = activate((activation,), (projected[2] + recurrent,))
        candidate = z * h + scaled(masks.update, (1 - z) * n)
        new = zoneout(h, candidate, masks.states)
        return new, new if output == "state" else candidate

    return Cell(
        init=init,
        initial_carry=_initial_hidden(hidden_features, learned_carry, param_dtype),
        project=lambda params, xs: product(xs, params["input"]) + params["bias"],
        kernels=kernels,
        gains=lambda params: {n: params[n] for n in ("recurrent_bias",) if reset_after},
        advance=advance,
        hidden=lambda carry: carry,
        product=product,
        operand_dtype=dtype or param_dtype,
        masks=("states", "update"),
        in_features=in_features,
        hidden_features=hidden_features,
        gates=3,
        additive=2,
    )


@cached
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
    check_choice("activation", activation, ("tanh", "relu"))
    product = matrix_product(param_dtype, dtype)

    def init(key: jax.Array) -> Params:
        params = init_kernels(
            key, in_features, hidden_features, 1, kernel_init, recurrent_init, param_dtype
        )
        zeros = ("bias", "initial_h") if learned_carry else ("bias",)
        return params | {name: jnp.zeros(hidden_features, param_dtype) for name in zeros}

    def advance(
        gains: Params,
        h: Carry,
        projected: Any,
        masks: Masks,
        multiply: Any,
        activate: Any,
        normalize: Any,
    ) -> tuple[Carry, jax.Array]:
        del gains, projected, normalize
        (candidate,) = activate((activation,), multiply(h, 0))
        new = zoneout(h, candidate, masks.states)
        return new, new if output == "state" else candidate

    return Cell(
        init=init,
        initial_carry=_initial_hidden(hidden_features, learned_carry, param_dtype),
        project=lambda params, xs: product(xs, params["input"]) + params["bias"],
        kernels=lambda params: (params["recurrent"],),
        gains=lambda params: {},
        advance=advance,
        hidden=lambda carry: carry,
        product=product,
        operand_dtype=dtype or param_dtype,
        masks=("states",),
        in_features=in_features,
        hidden_features=hidden_features,
        gates=1,
        additive=1,
    )


def scaled(mask: ArrayLike | None, x: jax.Array) -> jax.Array:
    """The product with a mask of booleans or numbers; without one, `x`."""
    return x if mask is None else jnp.asarray(mask).astype(x.dtype) * x


def init_kernels(
    key: jax.Array,
    in_features: int,
    hidden_features: int,
    blocks: int,
    kernel_init: Initializer | None,
    recurrent_init: Initializer | None,
    dtype: Any,
) -> Params:
    """The parameters `input` and `recurrent`."""
    input_key, recurrent_key = jax.random.split(key)
    kernel_init = kernel_init or block_orthogonal()
    recurrent_init = recurrent_init or block_orthogonal()
    shapes = (in_features, hidden_features), (hidden_features, hidden_features)
    return {
        "input": _init_blocks(kernel_init, input_key, shapes[0], dtype, blocks),
        "recurrent": _init_blocks(recurrent_init, recurrent_key, shapes[1], dtype, blocks),
    }


def _init_blocks(
    init: Initializer, key: jax.Array, shape: tuple[int, int], dtype: Any, blocks: int
) -> jax.Array:
    """Blocks of a shape side by side, by an initializer of all of them or of a single one."""
    rows, columns = shape
    parameters = inspect.signature(init).parameters.values()
    if any(p.name == "blocks" or p.kind == p.VAR_KEYWORD for p in parameters):
        return init(key, (rows, blocks * columns), dtype, blocks=blocks)
    keys = jax.random.split(key, blocks)
    return jnp.concatenate([init(k, shape, dtype) for k in keys], -1)


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
