"""The plain recurrent network."""

import dataclasses

import jax

from zoneout_jax._cell import (
    Activation,
    Carry,
    Cell,
    Gates,
    Output,
    Params,
)
from zoneout_jax._checks import check_choice
from zoneout_jax._zoneout import Masks, zoneout


@dataclasses.dataclass(frozen=True)
class RNN(Cell):
    """Plain (Elman) recurrent network with zoneout.

        ĥ = tanh(W_x x + W_h h + b)
        h' = d_h∘h + (1 − d_h)∘ĥ

    The carry is h', and so is the output. The only mask is that of the states. Parameters are
    `input` [F, H], `recurrent` [H, H] and `bias` [H], and with a learned carry `initial_h` [H].

    Attributes:
      activation_fn: "tanh", "relu" or another function, where tanh stands above.
      output: "state" gives h', "candidate" gives ĥ.
      in_features, hidden_features, kernel_init, recurrent_kernel_init, bias_init, learned_carry,
        param_dtype, dtype: as for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.
    """

    activation_fn: Activation = "tanh"
    output: Output = "state"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._name_activations("activation_fn")
        check_choice("output", self.output, ("state", "candidate"))

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """True without functions that may not be elementwise."""
        return self._named_only

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activation of ĥ."""
        return (self.activation_fn,)

    def update(
        self, params: Params, carry: Carry, gates: Gates, rest: Gates, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        """The equations of the class."""
        new = zoneout(carry, gates[0], masks.states)
        return new, new if self.output == "state" else gates[0]
