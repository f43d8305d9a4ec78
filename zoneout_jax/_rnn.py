"""The plain recurrent network, and the independently recurrent network."""

import dataclasses
from typing import Any

import jax

from zoneout_jax._cell import Carry, Cell, Output, Params, vectors
from zoneout_jax._checks import check_choice
from zoneout_jax._gates import Activation, Gates, function
from zoneout_jax._initializers import Initializer
from zoneout_jax._zoneout import Masks, zoneout


@dataclasses.dataclass(frozen=True)
class RNN(Cell):
    """Plain (Elman) recurrent network with zoneout.

        ĥ = tanh(W_x x + W_h h + b)
        h' = d_h∘h + (1 − d_h)∘ĥ

    Carry and output are h'. The only mask is `states`. Parameters are `input` [F, H], `recurrent`
    [H, H] and `bias` [H]. A learned carry adds `initial_h` [H].

    Attributes:
      activation_fn: "tanh", "relu" or another function, where tanh stands above.
      output: "state" gives h', "candidate" gives ĥ.
      in_features, hidden_features, kernel_init, recurrent_kernel_init: as for `Cell`.
      bias_init, learned_carry, param_dtype, dtype: as for `Cell`.

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
        """True unless the activation function is unknown."""
        return self._named_only

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activation of ĥ."""
        return (self.activation_fn,)

    def update(
        self, params: Params, carry: Carry, gates: Gates, rest: Gates, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        """Computes the equations of the class."""
        new = zoneout(carry, gates[0], masks.states)
        return new, new if self.output == "state" else gates[0]


@dataclasses.dataclass(frozen=True)
class IndRNN(RNN):
    """Independently recurrent network with zoneout: each unit sees only its own state.

        ĥ = relu(W x + v∘h + b)
        h' = d_h∘h + (1 − d_h)∘ĥ

    Li et al. 2018 (arXiv:1803.04831), section 3. Carry and output are h'. The only mask is
    `states`. Parameters are `input` [F, H], `recurrent` [H], which is v, and `bias` [H]. A learned
    carry adds `initial_h` [H]. A step has no matrix product, because v is a vector, and JAX
    computes its derivatives. Units interact only in the next layer, so stack two or more layers.

    By default v starts uniform in [0, 1], so that units remember for different times. For sequences
    of T steps and relu, the authors' code draws v from [0, m] with m = 2^(1/T), and from [1/m, m]
    in the last layer if only its last output is used. It clips v to [−m, m] at each update, so that
    gradients do not explode: |v|^T ≤ 2.

        IndRNN(F, H, recurrent_kernel_init=jax.nn.initializers.uniform(2 ** (1 / T)))
        params["recurrent"] = jnp.clip(params["recurrent"], -m, m)

    Haste's IndRNN has tanh, and v starts uniform in [−1/2, 1/2].

    Attributes:
      activation_fn: "relu", "tanh" or another function, where relu stands above.
      recurrent_kernel_init: initializer of v, `init(key, shape, dtype)`.
      output, in_features, hidden_features, kernel_init: as for `RNN`.
      bias_init, learned_carry, param_dtype, dtype: as for `RNN`.

    Raises:
      ValueError: a size below one, or an unknown option.

    Example:
      >>> cell = IndRNN(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> params["recurrent"].shape
      (4,)
    """

    activation_fn: Activation = "relu"

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        init = self.recurrent_kernel_init or jax.nn.initializers.uniform(1.0)
        return super().parameters() | {"recurrent": (init, (self.hidden_features,))}

    def advance(
        self, params: Params, carry: Carry, projected: jax.Array, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """Runs a step, given the result of `project`."""
        recurrent = params["recurrent"].astype(self.param_dtype)[None]
        new = function(self.activation_fn)(projected + recurrent * carry)
        return self.update(vectors(params, self.param_dtype), carry, (new,), (), masks)
