"""The gated recurrent unit."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Cell, Output, Params
from zoneout_jax._checks import check_choice
from zoneout_jax._gates import Activation, Gates, as_row, function, scaled
from zoneout_jax._initializers import Initializer
from zoneout_jax._normalization import normalized
from zoneout_jax._zoneout import Masks, zoneout


@dataclasses.dataclass(frozen=True)
class GRU(Cell):
    """Gated recurrent unit with zoneout.

        r = σ(W_xr x + W_hr h + b_r)
        z = σ(W_xz x + W_hz h + b_z)
        n = tanh(W_xn x + b_n + r∘(W_hn h + b_hn))     if reset_after: Flax, torch, cuDNN
        n = tanh(W_xn x + b_n + W_hn (r∘h))            otherwise: Cho et al. 2014, the authors' code
        ĥ = z∘h + (1 − z)∘u∘n
        h' = d_h∘h + (1 − d_h)∘ĥ

    Carry and output are h'. There are no memory cells; the masks are `states` and `update`.
    Parameters are `input` [F, 3H], `recurrent` [H, 3H] and `bias` [3H], with blocks in the order r,
    z, n. `reset_after` adds `recurrent_bias` [H], b_hn. A learned carry adds `initial_h` [H].

    Without `reset_after`, a step has two products, one after the other, and JAX computes its
    derivatives.

    With `normalization="layer"` (Ba et al. 2016), γ_x∘N(W_x x) replaces W_x x and γ_h∘N(W_h h)
    replaces W_h h. N normalizes over the features of all three blocks together, as in Haste's
    LayerNormGRU. (The authors' code normalizes r and z separately from n.) This adds the parameters
    `input_gamma` [3H] and `recurrent_gamma` [3H], which start at 1.

    Attributes:
      reset_after: True if the reset gate multiplies the recurrent product, False if it multiplies
        the state before that product.
      activation_fn: "tanh", "relu" or another function, where tanh stands above.
      gate_fn: "sigmoid" or another function, where σ stands above.
      output: "state" gives h', "candidate" gives ĥ.
      normalization: "layer" or None; with reset_after only, as in the paper.
      in_features, hidden_features, kernel_init, recurrent_kernel_init: as for `Cell`.
      bias_init, learned_carry, param_dtype, dtype: as for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.
    """

    reset_after: bool = True
    activation_fn: Activation = "tanh"
    gate_fn: Activation = "sigmoid"
    output: Output = "state"
    normalization: Literal["layer"] | None = None

    mask_names: ClassVar[tuple[str, ...]] = ("states", "update")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._name_activations("activation_fn", "gate_fn")
        check_choice("output", self.output, ("state", "candidate"))
        check_choice("normalization", self.normalization, ("layer", None))
        if self.normalization and not self.reset_after:
            raise ValueError('normalization="layer" is for reset_after=True only')

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """True unless there are normalization or unknown activation functions."""
        return self.normalization is None and self._named_only

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activations of r and z; `update` applies that of n, with normalization all three."""
        gate_fn = None if self.normalization else self.gate_fn
        return gate_fn, gate_fn, None

    @property
    def one_product(self) -> bool:
        """True if a step has a single product."""
        return self.reset_after and self.drops_hidden and type(self).product is Cell.product

    @property
    def drops_hidden(self) -> bool:
        """True if the cell can use the mask `hidden`, with one product or with two."""
        return type(self).advance is GRU.advance

    @property
    def plain_projection(self) -> bool:
        """True if `project` is W x + b, so not with normalization."""
        return self.normalization is None and type(self).project is GRU.project

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        made, hidden = super().parameters(), self.hidden_features
        if self.reset_after:
            made["recurrent_bias"] = self.bias_init or jax.nn.initializers.zeros, (hidden,)
        for name in ("input", "recurrent") if self.normalization else ():
            made[f"{name}_gamma"] = jax.nn.initializers.ones, (3 * hidden,)
        return made

    def project(self, params: Params, xs: jax.Array) -> jax.Array:
        """Computes W_x x + b; with normalization γ_x∘N(W_x x) + b."""
        if not self.normalization:
            return super().project(params, xs)
        names = ("input_gamma", "bias")
        rows = {name: as_row(params[name].astype(self.param_dtype), xs.ndim) for name in names}
        parts = jnp.split(self.product(xs, params["input"]), 3, -1)
        return jnp.concatenate(normalized(rows, "input", parts), -1) + rows["bias"]

    def advance(
        self, params: Params, carry: Carry, projected: jax.Array, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """Runs a step, given the result of `project`."""
        if self.reset_after:
            return super().advance(params, carry, projected, masks)
        outer, inner = jnp.split(params["recurrent"], [2 * self.hidden_features], -1)
        x_r, x_z, x_n = jnp.split(projected, 3, -1)
        operand = self.operand(carry, masks.hidden)
        q_r, q_z = jnp.split(self.product(operand, outer), 2, -1)
        r, z = function(self.gate_fn)(x_r + q_r), function(self.gate_fn)(x_z + q_z)
        return self._finish(carry, z, x_n + self.product(r * operand, inner), masks)

    def update(
        self, params: Params, carry: Carry, gates: Gates, rest: Gates, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        """Computes the equations of the class, for reset_after."""
        r, z, product = gates
        if self.normalization:
            r, z, product = normalized(params, "recurrent", gates)
            r, z = (function(self.gate_fn)(x + q) for x, q in zip(rest[:2], (r, z), strict=True))
        x = rest[-1]
        return self._finish(carry, z, x + r * (product + params["recurrent_bias"]), masks)

    def _finish(
        self, h: jax.Array, z: jax.Array, n: jax.Array, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        candidate = z * h + scaled(masks.update, (1 - z) * function(self.activation_fn)(n))
        new = zoneout(h, candidate, masks.states)
        return new, new if self.output == "state" else candidate
