"""The LSTM as pure functions, with its normalizations and output gates."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from zoneout_jax.cells import (
    ACTIVATIONS,
    Carry,
    Cell,
    Params,
    cached,
    check_choice,
    check_sizes,
    init_kernels,
    matrix_product,
    scaled,
)
from zoneout_jax.initializers import Initializer
from zoneout_jax.normalization import init_stats, layer_norm, statistics_dtype
from zoneout_jax.zoneout import Masks, zoneout


@cached
def lstm(
    in_features: int,
    hidden_features: int,
    *,
    activation: str = "tanh",
    normalization: Literal["layer", "batch"] | None = None,
    initial_gamma: float | None = None,
    max_steps: int | None = None,
    ogates_zoneout: Literal["paper", "repository"] | None = None,
    output: Literal["state", "candidate"] = "state",
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

    With `normalization`, γ_x∘N(W_x x) + γ_h∘N(W_h h) + b takes the place of W_x x + W_h h + b, and
    ĥ = σ(o)∘tanh(γ_c∘N(ĉ) + β_c). "layer" (Ba et al. 2016) normalizes each 4H-vector and ĉ over
    their features. "batch" (Cooijmans et al. 2016) normalizes each unit over the batch, at each
    step with statistics of its own; the carry is (c, h, t), t being the number of the step.

    With `ogates_zoneout`, the output of units whose update is dropped (u = 0) is held back too:
    "paper" keeps their output gates, o' = u∘σ(o) + (1 − u)∘o'₋₁ and ĥ = o'∘tanh(ĉ), with o' last in
    the carry; "repository" is the authors' code, ĥ = u∘σ(o)∘tanh(ĉ) + (1 − u)∘σ(f)∘h. (The equation
    printed in the paper has u the other way round, against its own words.)

    Args:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      activation: "tanh" or "relu", where tanh stands above.
      normalization: "layer", "batch" or None.
      initial_gamma: initial value of γ; None means 1 for layers and 0.1 for batches.
      max_steps: steps that have population statistics of their own, needed for "batch" only. Later
        steps use those of the last.
      ogates_zoneout: "paper", "repository" or None.
      output: "state" gives h', "candidate" gives ĥ, as models in the manner of Tacotron 2 expect.
      forget_bias: initial value of the forget gate's bias; the other biases start at 0.
      kernel_init: initializer of the input weights, `init(key, shape, dtype, blocks)`, or without
        `blocks`, as those of JAX and Flax, and then called for each gate with a key of its own.
        Block orthogonal if None.
      recurrent_init: initializer of the recurrent weights, likewise.
      learned_carry: the initial c and h are parameters, which start at 0; otherwise they are 0.
      param_dtype: type of the parameters, and of carry and output.
      dtype: type of the operands of matrix products, for instance `jnp.bfloat16`; they are summed
        in `param_dtype` all the same. None means `param_dtype`.

    Returns:
      A `Cell`. Its parameters are `input` [F, 4H], `recurrent` [H, 4H] and `bias` [4H], gates in
      the order i, f, g, o; with a learned carry `initial_c` [H] and `initial_h` [H]; with
      normalization `input_gamma` [4H], `recurrent_gamma` [4H], `cell_gamma` [H], `cell_beta` [H].

    Raises:
      ValueError: a size below one, or an unknown option.

    Example:
      >>> cell = lstm(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> carry, y = cell.step(params, cell.initial_carry(params, 2), jnp.ones((2, 3)))
      >>> y.shape
      (2, 4)
    """
    check_sizes(in_features=in_features, hidden_features=hidden_features)
    check_choice("normalization", normalization, ("layer", "batch", None))
    check_choice("ogates_zoneout", ogates_zoneout, ("paper", "repository", None))
    check_choice("output", output, ("state", "candidate"))
    check_choice("activation", activation, ("tanh", "relu"))
    squash = ACTIVATIONS[activation]
    batch_norm = normalization == "batch"
    stats = None
    if batch_norm:
        if max_steps is None:
            raise ValueError('normalization="batch" needs max_steps, the steps of a sequence')
        check_sizes(max_steps=max_steps)
        rows_dtype = statistics_dtype(param_dtype)
        stats = functools.partial(init_stats, max_steps, 9, hidden_features, rows_dtype)
    elif max_steps is not None:
        raise ValueError('max_steps is for normalization="batch" only')
    if initial_gamma is None:
        initial_gamma = 0.1 if batch_norm else 1.0
    product = matrix_product(param_dtype, dtype)
    learned = ("initial_c", "initial_h") if learned_carry else ()

    def init(key: jax.Array) -> Params:
        params = init_kernels(
            key, in_features, hidden_features, 4, kernel_init, recurrent_init, param_dtype
        )
        params["bias"] = jnp.repeat(jnp.array([0, forget_bias, 0, 0], param_dtype), hidden_features)
        params |= {name: jnp.zeros(hidden_features, param_dtype) for name in learned}
        if normalization:
            for name, blocks in (("input", 4), ("recurrent", 4), ("cell", 1)):
                params[f"{name}_gamma"] = jnp.full(
                    blocks * hidden_features, initial_gamma, param_dtype
                )
            params["cell_beta"] = jnp.zeros(hidden_features, param_dtype)
        return params

    def initial_carry(params: Params, batch: int) -> Carry:
        shape = (batch, hidden_features)
        zeros = jnp.zeros(shape, param_dtype)
        carry = tuple(jnp.broadcast_to(params[name], shape) for name in learned) or (zeros, zeros)
        if batch_norm:
            carry += (jnp.zeros((), jnp.float32),)
        return carry + (zeros,) if ogates_zoneout == "paper" else carry

    def project(params: Params, xs: jax.Array) -> jax.Array:
        gates = product(xs, params["input"])
        if batch_norm:  # gain and bias come after the normalization, in `advance`
            return gates
        if normalization == "layer":
            gates = params["input_gamma"] * layer_norm((gates,))[0]
        return gates + params["bias"]

    def gains(params: Params) -> Params:
        names = ["recurrent_gamma", "cell_gamma", "cell_beta"] if normalization else []
        names += ["input_gamma", "bias"] if batch_norm else []
        return {name: params[name] for name in names}

    def advance(
        gains: Params,
        carry: Carry,
        projected: Any,
        masks: Masks,
        multiply: Any,
        activate: Any,
        normalize: Any,
    ) -> tuple[Carry, jax.Array]:
        c, h = carry[:2]
        gates = multiply(h, 0)
        if normalization:
            if batch_norm:
                gamma, bias = jnp.split(gains["input_gamma"], 4), jnp.split(gains["bias"], 4)
                projected = normalize(0, projected)
                projected = tuple(gamma[k] * projected[k] + bias[k] for k in range(4))
            gates = normalize(4, gates) if batch_norm else layer_norm(gates)
            gammas = jnp.split(gains["recurrent_gamma"], 4)
            gates = tuple(projected[k] + gammas[k] * gates[k] for k in range(4))
        i, f, g, o = activate(("sigmoid", "sigmoid", activation, "sigmoid"), gates)

        u = None if masks.update is None else jnp.asarray(masks.update).astype(c.dtype)
        candidate_c = f * c + scaled(u, i * g)
        cell = candidate_c
        if normalization:
            (cell,) = normalize(8, (cell,)) if batch_norm else layer_norm((cell,))
            cell = gains["cell_gamma"] * cell + gains["cell_beta"]
        if ogates_zoneout == "paper" and u is not None:
            o = u * o + (1 - u) * carry[-1]
        candidate_h = o * squash(cell)
        if ogates_zoneout == "repository" and u is not None:
            candidate_h = u * candidate_h + (1 - u) * f * h

        new_h = zoneout(h, candidate_h, masks.states)
        new: tuple[Any, ...] = (zoneout(c, candidate_c, masks.cells), new_h)
        if batch_norm:
            new += (carry[2] + 1,)
        if ogates_zoneout == "paper":
            new += (o,)
        return new, new_h if output == "state" else candidate_h

    return Cell(
        init=init,
        initial_carry=initial_carry,
        project=project,
        kernels=lambda params: (params["recurrent"],),
        gains=gains,
        advance=advance,
        hidden=lambda carry: carry[1],
        product=product,
        operand_dtype=dtype or param_dtype,
        masks=("cells", "states", "update"),
        in_features=in_features,
        hidden_features=hidden_features,
        gates=4,
        additive=0 if normalization else 4,
        init_stats=stats,
    )
