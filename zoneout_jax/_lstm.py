"""The LSTM, with normalization, zoneout of output gates, and projection."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Cell, Output, Params
from zoneout_jax._checks import check_choice, check_sizes
from zoneout_jax._gates import Activation, Gates, function, scaled
from zoneout_jax._initializers import Initializer, block_orthogonal, in_blocks, on_arrays
from zoneout_jax._normalization import BatchNormalizer, normalized
from zoneout_jax._zoneout import Masks, zoneout


@dataclasses.dataclass(frozen=True)
class LSTM(Cell):
    """Long short-term memory with zoneout.

        i, f, g, o = split(W_x x + W_h h + b)
        ĉ = σ(f)∘c + u∘σ(i)∘tanh(g)
        ĥ = σ(o)∘tanh(ĉ)
        c' = d_c∘c + (1 − d_c)∘ĉ
        h' = d_h∘h + (1 − d_h)∘ĥ

    Krueger et al. 2017, section 3.2. ĥ comes from the candidate cell ĉ, not from the zoned-out c'.
    The carry is (c, h), as in Flax; the output is h'. Parameters are `input` [F, 4H], `recurrent`
    [H, 4H] and `bias` [4H], with gates in the order i, f, g, o. A learned carry adds `initial_c`
    [H] and `initial_h` [H].

    With `normalization`, γ_x∘N(W_x x) + γ_h∘N(W_h h) + b replaces W_x x + W_h h + b, and
    ĥ = σ(o)∘tanh(γ_c∘N(ĉ) + β_c). This adds the parameters `input_gamma` [4H], `recurrent_gamma`
    [4H], `cell_gamma` [H] and `cell_beta` [H]. "layer" (Ba et al. 2016) normalizes both vectors of
    4H features, and ĉ, over their features. "batch" (Cooijmans et al. 2016) normalizes each unit
    over the batch, with separate statistics for each step.

    With `ogates_zoneout`, units whose update the mask `update` drops (u = 0) also hold back their
    output. "paper" keeps their output gates, o' = u∘σ(o) + (1 − u)∘o'₋₁ and ĥ = o'∘tanh(ĉ); o' is
    then the last array of the carry. (The equation printed in the paper has u the other way round,
    which contradicts the paper's text.) "repository" is the authors' code,
    h' = u∘h* + (1 − u)∘σ(f)∘h, where h* is the h' of the equations above.

    With `proj_size` P (Sak et al. 2014, section 2; as in torch), ĥ = W_p (σ(o)∘tanh(ĉ)) has P
    features, and so do h', its masks and the output. `recurrent` is then [P, 4H] and `initial_h`
    [P]. The parameter `projection` [H, P] is W_p.

    Attributes:
      activation_fn: "tanh", "relu" or another function, where tanh stands above.
      gate_fn: "sigmoid" or another function, where σ stands above.
      forget_bias: constant that is added to the initial bias of the forget gate.
      normalization: "layer", "batch" or None.
      initial_gamma: initial value of γ; None means 1 for "layer" and 0.1 for "batch".
      max_steps: number of steps with their own population statistics, for "batch" only, which needs
        it. Later steps use the statistics of the last of them.
      ogates_zoneout: "paper", "repository" or None.
      output: "state" gives h'; "candidate" gives ĥ, as models like Tacotron 2 expect.
      proj_size: P, or None for h of H features; not with ogates_zoneout="repository", which mixes
        the gates of cells into h'. `recurrent_kernel_init` also initializes the projection.
      in_features, hidden_features, kernel_init, recurrent_kernel_init: as for `Cell`.
      bias_init, learned_carry, param_dtype, dtype: as for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.

    Example:
      >>> cell = LSTM(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> carry, y = cell.step(params, cell.initial_carry(params, 2), jnp.ones((2, 3)))
      >>> y.shape
      (2, 4)
    """

    activation_fn: Activation = "tanh"
    gate_fn: Activation = "sigmoid"
    forget_bias: float = 1.0
    normalization: Literal["layer", "batch"] | None = None
    initial_gamma: float | None = None
    max_steps: int | None = None
    ogates_zoneout: Literal["paper", "repository"] | None = None
    output: Output = "state"
    proj_size: int | None = None

    mask_names: ClassVar[tuple[str, ...]] = ("cells", "states", "update")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._name_activations("activation_fn", "gate_fn")
        check_choice("normalization", self.normalization, ("layer", "batch", None))
        check_choice("ogates_zoneout", self.ogates_zoneout, ("paper", "repository", None))
        check_choice("output", self.output, ("state", "candidate"))
        if not self.normalization and self.initial_gamma is not None:
            raise ValueError("initial_gamma is for a normalized cell only")
        if self.normalization != "batch" and self.max_steps is not None:
            raise ValueError('max_steps is for normalization="batch" only')
        if self.normalization == "batch":
            if self.max_steps is None:
                raise ValueError('normalization="batch" needs max_steps, the steps of a sequence')
            check_sizes(max_steps=self.max_steps)
        if self.proj_size is not None:
            check_sizes(proj_size=self.proj_size)
            if self.ogates_zoneout == "repository":
                raise ValueError('proj_size does not go with ogates_zoneout="repository"')

    @property
    def carry_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the states c and h, and of the output gate o if it is kept."""
        return ("c", "h", "o") if self.ogates_zoneout == "paper" else ("c", "h")

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states c and h; the output gate always starts at 0."""
        return ("c", "h")

    @property
    def output_features(self) -> int:
        """Size of h, of its masks, and of the output: P or H."""
        return self.hidden_features if self.proj_size is None else self.proj_size

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        """True unless there are normalization, projection or unknown activation functions."""
        return self.normalization is None and self.proj_size is None and self._named_only

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activations of i, f, g and o; with normalization, `update` applies them instead."""
        if self.normalization:
            return (None,) * 4
        return self.gate_fn, self.gate_fn, self.activation_fn, self.gate_fn

    @property
    def plain_projection(self) -> bool:
        """True if `project` is W x + b, so not with normalization."""
        return self.normalization is None and type(self).project is LSTM.project

    @property
    def statistics(self) -> dict[str, int]:
        """Sizes of what batch normalization normalizes: products of x and of h, and the cells."""
        wide = 4 * self.hidden_features
        sizes = {"input": wide, "recurrent": wide, "cell": self.hidden_features}
        return sizes if self.normalization == "batch" else {}

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        made, hidden = super().parameters(), self.hidden_features
        inner, shape = made["bias"]

        def init_bias(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
            forget = jnp.repeat(jnp.array([0, self.forget_bias, 0, 0], dtype), hidden)
            return on_arrays(lambda bias: bias + forget, inner(key, shape, dtype))

        made["bias"] = init_bias, shape
        if self.normalization:
            default = 0.1 if self.normalization == "batch" else 1.0
            gamma = default if self.initial_gamma is None else self.initial_gamma
            for name, size in (("input", 4 * hidden), ("recurrent", 4 * hidden), ("cell", hidden)):
                made[f"{name}_gamma"] = jax.nn.initializers.constant(gamma), (size,)
            made["cell_beta"] = jax.nn.initializers.zeros, (hidden,)
        if self.proj_size is not None:
            init = self.recurrent_kernel_init or block_orthogonal()
            made["projection"] = in_blocks(init, 1), (hidden, self.proj_size)
        return made

    def project(self, params: Params, xs: jax.Array) -> jax.Array:
        """Computes W_x x + b; with normalization W_x x alone."""
        return (
            self.product(xs, params["input"]) if self.normalization else super().project(params, xs)
        )

    def update(
        self,
        params: Params,
        carry: Carry,
        gates: Gates,
        rest: Gates,
        masks: Masks,
        normalize: BatchNormalizer | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Computes the equations of the class."""
        c, h = carry[:2]
        squash = function(self.activation_fn)
        if self.normalization:
            gates = self._normalized(params, gates, rest, normalize)
        i, f, g, o = gates
        u = None if masks.update is None else jnp.asarray(masks.update).astype(c.dtype)

        new_c = f * c + scaled(u, i * g)
        if self.ogates_zoneout == "paper" and u is not None:
            o = u * o + (1 - u) * carry[2]
        new_h = o * squash(self._normalized_cell(params, new_c, normalize))
        if self.proj_size is not None:
            # Unlike the recurrent product, its gradient is summed step by step.
            new_h = self.product(new_h, params["projection"])
        kept_c, kept_h = zoneout(c, new_c, masks.cells), zoneout(h, new_h, masks.states)
        if self.ogates_zoneout == "repository" and u is not None:
            new_h, kept_h = (u * state + (1 - u) * f * h for state in (new_h, kept_h))

        new = (kept_c, kept_h, o) if self.ogates_zoneout == "paper" else (kept_c, kept_h)
        return new, kept_h if self.output == "state" else new_h

    def _normalized(
        self, params: Params, products: Gates, projected: Gates, normalize: BatchNormalizer | None
    ) -> Gates:
        """Returns the gates γ_x∘N(W_x x) + γ_h∘N(W_h h) + b, activated."""
        xs = normalized(params, "input", projected, normalize)
        qs = normalized(params, "recurrent", products, normalize)
        biases = jnp.split(params["bias"], 4, -1)
        functions = self.gate_fn, self.gate_fn, self.activation_fn, self.gate_fn
        return tuple(
            function(name)(x + q + b)
            for name, x, q, b in zip(functions, xs, qs, biases, strict=True)
        )

    def _normalized_cell(
        self, params: Params, cell: jax.Array, normalize: BatchNormalizer | None
    ) -> jax.Array:
        """Returns γ_c∘N(ĉ) + β_c, or ĉ without normalization."""
        if not self.normalization:
            return cell
        (cell,) = normalized(params, "cell", (cell,), normalize)
        return cell + params["cell_beta"]
