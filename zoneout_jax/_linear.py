"""Cells whose steps are linear in the state, so that all steps can run at once."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from zoneout_jax._cell import Carry, Cell, Params
from zoneout_jax._gates import Activation, Gates, as_row, function, scaled
from zoneout_jax._initializers import Initializer, in_blocks, wide
from zoneout_jax._zoneout import Masks, zoneout


@dataclasses.dataclass(frozen=True)
class LinearCell(Cell):
    """A recurrent cell whose step is linear in the state.

        a, b = coefficients(x)
        ĥ = a∘h + u∘b
        h' = d∘h + (1 − d)∘ĥ
           = (d + (1 − d)∘a)∘h + (1 − d)∘u∘b
        y = readout(h', x)

    a and b depend only on the input, so the step is also linear with zoneout. `unroll` then runs
    all steps at once, by an associative scan. The masks of evaluation give the exact mean over the
    masks of training, provided that each step draws new masks.

    A subclass defines a and b. Its method can call `blocks`, which computes W x + b and applies the
    activations in `gates`. A cell that needs other parameters lists them in `parameters`.

        @dataclasses.dataclass(frozen=True)
        class Accumulator(LinearCell):
            gates = ("sigmoid", "tanh")

            def coefficients(self, params, xs):
                keep, new = self.blocks(params, xs)
                return keep, new

    The carry is h'; the output is h' too, unless `readout` is overridden. The masks are `states`
    and `update`. Parameters are `input` [F, kH] and `bias` [kH] for k blocks. A learned carry adds
    `initial_h` [H].

    Attributes:
      in_features, hidden_features, kernel_init, bias_init, learned_carry, param_dtype, dtype: as
        for `Cell`.
      recurrent_kernel_init: must stay None, because there is no recurrent kernel.

    Raises:
      ValueError: a size below one, an initializer of something that the cell does not have, or
        coefficients of another shape.
      TypeError: coefficients whose type is not the type of the state.
    """

    mask_names: ClassVar[tuple[str, ...]] = ("states", "update")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._has_no("recurrent_kernel_init")

    def coefficients(self, params: Params, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the coefficients a and b of inputs `[…, F]`, of the type of the state.

        Returns:
          Arrays with as many axes as the inputs, `[…, H]`; axes over which they are constant may
          have size 1.
        """
        raise NotImplementedError("a linear cell must define coefficients, which returns a and b")

    def readout(self, params: Params, hs: jax.Array, xs: jax.Array) -> jax.Array:
        """Returns the outputs `[…, H]` of states `[…, H]` and inputs `[…, F]`: the states."""
        return hs

    def blocks(self, params: Params, xs: jax.Array) -> Gates:
        """Returns the blocks `[…, H]` of W x + b, with the activations in `gates`."""
        parts = jnp.split(super().project(params, xs), len(self.gates), -1)
        return tuple(
            part if activation is None else function(activation)(part)
            for activation, part in zip(self.gates, parts, strict=True)
        )

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        made = super().parameters()
        del made["recurrent"]
        return made

    def project(self, params: Params, xs: jax.Array) -> Any:
        """Returns what steps need of inputs `[…, F]`: a, b, and the inputs for `readout`."""
        a, b = self.coefficients(params, xs)
        if not a.dtype == b.dtype == self.state_dtype:
            raise TypeError(
                f"{type(self).__name__}.coefficients must return arrays of {self.state_dtype}, got"
                f" {a.dtype} and {b.dtype}"
            )
        shape = (*xs.shape[:-1], self.hidden_features)
        for given in (a, b):
            fits = given.ndim == xs.ndim
            if not fits or not all(m in (1, n) for m, n in zip(given.shape, shape, strict=True)):
                raise ValueError(
                    f"{type(self).__name__}.coefficients must return arrays {shape}, or 1 in place"
                    f" of a size; got {a.shape} and {b.shape}"
                )
        # The first axis may be time, along which a scan cuts both into steps.
        a = jnp.broadcast_to(a, (*xs.shape[:1], *a.shape[1:]))
        return a, jnp.broadcast_to(b, shape), xs

    def zoned_out(self, a: jax.Array, b: jax.Array, masks: Masks) -> tuple[jax.Array, jax.Array]:
        """Returns the coefficients of the step with zoneout."""
        b = scaled(masks.update, b)
        kept = zoneout(jnp.ones_like(a), a, masks.states)
        return kept, zoneout(jnp.zeros_like(b), b, masks.states)

    def advance(
        self, params: Params, carry: Carry, projected: Any, masks: Masks, *normalize: Any
    ) -> tuple[Carry, jax.Array]:
        """Runs a step, given the result of `project`."""
        a, b, x = projected
        a, b = self.zoned_out(a, b, masks)
        h = a * carry + b
        return h, self.readout(params, h, x)

    def _has_no(self, name: str) -> None:
        """Raises ValueError if an initializer is given for something that the cell lacks."""
        if getattr(self, name) is not None:
            what = name.removesuffix("_init").replace("_", " ")
            raise ValueError(f"{type(self).__name__} has no {what}: leave {name} out")


@dataclasses.dataclass(frozen=True)
class _Minimal(LinearCell):
    """Base class of minGRU and minLSTM."""

    activation_fn: Activation | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.activation_fn is not None:
            self._name_activations("activation_fn")


@dataclasses.dataclass(frozen=True)
class MinGRU(_Minimal):
    """Minimal gated recurrent unit with zoneout.

        z = σ(W_z x + b_z)
        n = W_n x + b_n
        ĥ = (1 − z)∘h + z∘u∘n
        h' = d_h∘h + (1 − d_h)∘ĥ

    Feng et al. 2024 (arXiv:2410.01201), section 3.1. Carry and output are h'. Parameters are
    `input` [F, 2H] and `bias` [2H], with blocks in the order z, n. A learned carry adds `initial_h`
    [H].

    Attributes:
      activation_fn: "tanh", "relu" or another function of n; None for none. The paper's form in
        logarithms (appendix B) has g(x) = x + 1/2 for x ≥ 0, σ(x) otherwise.
      in_features, hidden_features, kernel_init, bias_init, learned_carry, param_dtype, dtype: as
        for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.

    Example:
      >>> cell = MinGRU(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> xs, spec = jnp.ones((7, 2, 3)), Zoneout(states=0.1)
      >>> carry, ys = unroll(cell, params, xs, zoneout=spec, key=jax.random.key(1))
      >>> ys.shape
      (7, 2, 4)
    """

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activations of z and n."""
        return "sigmoid", self.activation_fn

    def coefficients(self, params: Params, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the equations of the class."""
        z, n = self.blocks(params, xs)
        return 1 - z, z * n


@dataclasses.dataclass(frozen=True)
class MinLSTM(_Minimal):
    """Minimal long short-term memory with zoneout.

        f = σ(W_f x + b_f)
        i = σ(W_i x + b_i)
        n = W_n x + b_n
        ĥ = f/(f + i)∘h + i/(f + i)∘u∘n
        h' = d_h∘h + (1 − d_h)∘ĥ

    Feng et al. 2024 (arXiv:2410.01201), section 3.2. There are no memory cells; carry and output
    are h'. Parameters are `input` [F, 3H] and `bias` [3H], with blocks in the order f, i, n. A
    learned carry adds `initial_h` [H].

    Attributes:
      activation_fn: as for `MinGRU`.
      in_features, hidden_features, kernel_init, bias_init, learned_carry, param_dtype, dtype: as
        for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.
    """

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activation of n; f and i have none, they stay log-odds."""
        return None, None, self.activation_fn

    def coefficients(self, params: Params, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the equations of the class."""
        f, i, n = self.blocks(params, xs)
        # σ(log f − log i) is f/(f + i) even where both gates round to 0.
        keep = jax.nn.sigmoid(jax.nn.softplus(-i) - jax.nn.softplus(-f))
        return keep, (1 - keep) * n


@dataclasses.dataclass(frozen=True)
class RGLRU(LinearCell):
    """Real-gated linear recurrent unit with zoneout.

        r = σ(W_r x + b_r)
        i = σ(W_i x + b_i)
        a = σ(Λ)^(8r)
        ĥ = a∘h + √(1 − a²)∘i∘u∘x
        h' = d_h∘h + (1 − d_h)∘ĥ

    De et al. 2024, "Griffin" (arXiv:2402.19427), section 2.4. Carry and output are h'. If F ≠ H,
    W_x x + b_x replaces x in the equation of ĥ, like the linear layer before the unit in the
    paper's recurrent block. Parameters are `input` [F, 2H] or [F, 3H] and `bias` [2H] or [3H], with
    blocks in the order r, i, x, and `decay` [H], which is Λ. A learned carry adds `initial_h` [H].
    LeCun's initializer makes the kernel; σ(Λ)^8 starts uniform in [0.9, 0.999].

    This is the paper's unit. The authors' library, recurrentgemma, differs: its gates are block
    diagonal; σ(Λ) itself starts in [0.9, 0.999], uniform in its square; and at the first step of a
    document 1 replaces √(1 − a²).

    Attributes:
      in_features, hidden_features, kernel_init, bias_init, learned_carry, param_dtype, dtype: as
        for `Cell`.

    Raises:
      ValueError: a size below one, or an unknown option.
    """

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activations of r and i, and of x where it is projected."""
        projected = self.in_features != self.hidden_features
        return ("sigmoid", "sigmoid", None) if projected else ("sigmoid", "sigmoid")

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        made = super().parameters()
        kernel_init = self.kernel_init or jax.nn.initializers.lecun_normal()
        made["input"] = in_blocks(kernel_init, len(self.gates)), made["input"][1]
        return made | {"decay": (_init_decay, (self.hidden_features,))}

    def coefficients(self, params: Params, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the equations of the class."""
        r, i, *projected = self.blocks(params, xs)
        x = projected[0] if projected else xs.astype(self.param_dtype)
        decay = as_row(params["decay"].astype(self.param_dtype), xs.ndim)
        log_a = -8 * r * jax.nn.softplus(-decay)
        # The square root has no derivative at 0, which occurs where r rounds to 0.
        rest = jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(self.param_dtype).tiny)
        return jnp.exp(log_a), jnp.sqrt(rest) * i * x


def _init_decay(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns the log-odds of v^(1/8), with v uniform in [0.9, 0.999]."""
    log_a = jnp.log(jax.random.uniform(key, shape, wide(dtype), 0.9, 0.999)) / 8
    return (log_a - jnp.log(-jnp.expm1(log_a))).astype(dtype)


@dataclasses.dataclass(frozen=True)
class LRU(LinearCell):
    """Linear recurrent unit with a complex state, with zoneout.

        λ = exp(−exp(ν) + i exp(θ))
        ĥ = λ∘h + exp(γ)∘u∘(B x)
        h' = d_h∘h + (1 − d_h)∘ĥ
        y = Re(C h') + D x

    Orvieto et al. 2023 (arXiv:2303.06349), section 3. The carry is h', H complex numbers, each with
    its own mask: `complex64`, or `complex128` for parameters of 64 bits. The output is y, H real
    numbers. Parameters are real, and there is no bias: `input` [F, 2H] holds the real and imaginary
    parts of B side by side, `output` [H, 2H] those of C, `skip` [F, H] is D, and `diagonal` [3H]
    holds ν, θ and γ. A learned carry adds `initial_h` [2H], real and imaginary parts.

    λ starts uniform on a ring of the complex plane, and exp(γ) = √(1 − |λ|²). B, C and D start
    normal, with variances 1/(2F), 1/H and 1/F. (Appendix A of the paper has a diagonal D. Here D is
    a matrix, as in the paper's equations, because F and H may differ.)

    Attributes:
      r_min, r_max: radii of the ring, 0 ≤ r_min ≤ r_max ≤ 1, r_max above 0, r_min below 1 (where
        λ does not decay, inputs are scaled by 0).
      max_phase: largest angle of λ, in radians.
      kernel_init: initializer of each part of `input`.
      in_features, hidden_features, learned_carry, param_dtype, dtype: as for `Cell`.
      bias_init: must stay None.

    Raises:
      ValueError: a size below one, radii or an angle out of bounds, or an unknown option.
    """

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.28

    gates: ClassVar[tuple[None, None]] = (None, None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._has_no("bias_init")
        if not 0 <= self.r_min <= self.r_max <= 1 or self.r_max == 0 or self.r_min == 1:
            raise ValueError(
                "radii must be 0 ≤ r_min ≤ r_max ≤ 1, r_max above 0, r_min below 1; got"
                f" r_min={self.r_min}, r_max={self.r_max}"
            )
        if self.max_phase <= 0:
            raise ValueError(f"max_phase must be above 0, got {self.max_phase}")

    @property
    def state_dtype(self) -> Any:
        """Type of the carry: complex numbers."""
        return jnp.dtype(jnp.complex128 if self.param_dtype == jnp.float64 else jnp.complex64)

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer and the shape of each parameter."""
        features, hidden = self.in_features, self.hidden_features
        normal = jax.nn.initializers.variance_scaling
        half, whole = normal(0.5, "fan_in", "normal"), normal(1.0, "fan_in", "normal")
        made: dict[str, tuple[Initializer, tuple[int, ...]]] = {
            "input": (in_blocks(self.kernel_init or half, 2), (features, 2 * hidden)),
            "diagonal": (self._init_diagonal, (3 * hidden,)),
            "output": (in_blocks(whole, 2), (hidden, 2 * hidden)),
            "skip": (whole, (features, hidden)),
        }
        if self.learned_carry:
            made["initial_h"] = jax.nn.initializers.zeros, (2 * hidden,)
        return made

    def initial_carry(self, params: Params, batch: int) -> Carry:
        """Returns the initial carry, `[B, H]`: learned or zeros."""
        shape = batch, self.hidden_features
        if not self.learned_carry:
            return jnp.zeros(shape, self.state_dtype)
        row = self._complex(*jnp.split(params["initial_h"], 2))
        return jnp.broadcast_to(row[None], shape)

    def coefficients(self, params: Params, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Computes the equations of the class."""
        nu, theta, gamma = jnp.split(params["diagonal"], 3)
        decay = jnp.exp(self._complex(-jnp.exp(nu), jnp.exp(theta)))
        parts = jnp.split(self.product(xs, params["input"]), 2, -1)
        scale = as_row(jnp.exp(gamma), xs.ndim).astype(self.param_dtype)
        return as_row(decay, xs.ndim), self._complex(*(scale * part for part in parts))

    def readout(self, params: Params, hs: jax.Array, xs: jax.Array) -> jax.Array:
        """Returns the outputs Re(C h) + D x."""
        real, imaginary = jnp.split(params["output"], 2, -1)
        kernel, parts = jnp.concatenate([real, -imaginary]), jnp.concatenate([hs.real, hs.imag], -1)
        return self.product(parts, kernel) + self.product(xs, params["skip"])

    def _complex(self, real: jax.Array, imaginary: jax.Array) -> jax.Array:
        """Makes complex numbers of the type of the state."""
        part = jnp.finfo(self.state_dtype).dtype
        return jax.lax.complex(real.astype(part), imaginary.astype(part))

    def _init_diagonal(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Draws the initial ν, θ and γ side by side, because γ needs ν."""
        kind = wide(dtype)
        # Above 0, so that the logarithms are finite.
        one, other = jax.random.uniform(key, (2, shape[0] // 3), kind, jnp.finfo(kind).tiny)
        squared = one * (self.r_max**2 - self.r_min**2) + self.r_min**2
        nu = jnp.log(-0.5 * jnp.log(squared))
        theta = jnp.log(self.max_phase * other)
        return jnp.concatenate([nu, theta, 0.5 * jnp.log1p(-squared)]).astype(dtype)
