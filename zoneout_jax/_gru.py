"""The gated recurrent unit."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoneout_jax._cell import (
    Activation,
    Carry,
    Cell,
    Gates,
    Output,
    Params,
    function,
    scaled,
)
from zoneout_jax._checks import check_choice
from zoneout_jax._initializers import Initializer
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

    The carry is h', and so is the output. There are no memory cells: the masks are those of states
    and of the update. Parameters are `input` [F, 3H], `recurrent` [H, 3H] and `bias` [3H] in the
    order r, z, n; `recurrent_bias` [H], b_hn, if reset_after; `initial_h` [H] with a learned carry.

    Without `reset_after` a step has two products, one after the other; its derivatives are those
    that JAX finds.

    Attributes:
      reset_after: the reset gate multiplies the recurrent product, not the state before it.
      activation_fn: "tanh", "relu" or another function, where tanh stands above.
      gate_fn: "sigmoid" or another function, where σ stands above.
      output: "state" gives h', "candidate" gives ĥ.
      in_features, hidden_features, kernel_init, recurrent_kernel_init, bias_init, learned_carry,
        param_dtype, dtype: as for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.
    """

    reset_after: bool = True
    activation_fn: Activation = "tanh"
    gate_fn: Activation = "sigmoid"
    output: Output = "state"

    mask_names: ClassVar[tuple[str, ...]] = ("states", "update")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._name_activations("activation_fn", "gate_fn")
        check_choice("output", self.output, ("state", "candidate"))

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """True without functions that may not be elementwise."""
        return self._named_only

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activations of r and z; n takes its product as it is."""
        return self.gate_fn, self.gate_fn, None

    @property
    def one_product(self) -> bool:
        """Whether a step has a single product."""
        return self.reset_after and self.drops_hidden

    @property
    def drops_hidden(self) -> bool:
        """Whether the mask `hidden` is of use, in one product or two."""
        return type(self).advance is GRU.advance

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Initializer and shape of each parameter."""
        made = super().parameters()
        if self.reset_after:
            init = self.bias_init or jax.nn.initializers.zeros
            made["recurrent_bias"] = init, (self.hidden_features,)
        return made

    def advance(
        self, params: Params, carry: Carry, projected: jax.Array, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """A step from the result of `project` on."""
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
        """The equations of the class, for reset_after."""
        (r, z, product), (x,) = gates, rest
        return self._finish(carry, z, x + r * (product + params["recurrent_bias"]), masks)

    def _finish(
        self, h: jax.Array, z: jax.Array, n: jax.Array, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        candidate = z * h + scaled(masks.update, (1 - z) * function(self.activation_fn)(n))
        new = zoneout(h, candidate, masks.states)
        return new, new if self.output == "state" else candidate
