"""The base class of recurrent cells, and functions that cells share."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoneout_jax._checks import (
    check_choice,
    check_sizes,
    check_stats,
    check_step_mask,
    checked_carry,
    checked_pair,
    described,
)
from zoneout_jax._gates import ACTIVATIONS, Activation, Gates, as_row, combine, function, scaled
from zoneout_jax._initializers import Initializer, block_orthogonal, in_blocks
from zoneout_jax._normalization import BatchNormalizer, Stats, init_stats, statistics_dtype
from zoneout_jax._zoneout import Masks

Params = Mapping[str, Any]
Carry = Any


@dataclasses.dataclass(frozen=True)
class Cell:
    """A recurrent cell: settings, and pure functions of parameters, carry and inputs.

    A step is one matrix product and an elementwise part. With k blocks of H features,

        p = W x + b                          `project`
        q = R (m∘h)                          the product, computed by `advance` or `unroll`
        gate = activation(p + q)             for each block with an activation in `gates`
        carry', y = update(gates, rest)      for a block without one: its q in gates, its p in rest

    m is the mask `hidden` (1 when off); subclasses need not handle it.

    A subclass defines its gates and how they make the new carry. `unroll`, masks, lengths, chunks,
    the fused gradient and the Flax modules then work with it:

        @dataclasses.dataclass(frozen=True)
        class LeakyCell(Cell):
            gates = ("tanh",)

            def update(self, params, carry, gates, rest, masks):
                h = zoneout(carry, 0.9 * carry + 0.1 * gates[0], masks.states)
                return h, h

    Cells are equal if their settings other than initializers are equal, so that JAX can reuse
    compiled functions. So do not jit a function that calls `init` with the cell as a static
    argument: two cells with different initializers would get the same parameters.

    Attributes:
      in_features: F, size of the input.
      hidden_features: H, number of units.
      kernel_init: initializer of the input kernel: `init(key, shape, dtype)`, as in JAX and Flax,
        called for each block with a separate key; or `init(key, shape, dtype, blocks)`, called once
        for all blocks. Block orthogonal by default.
      recurrent_kernel_init: initializer of the recurrent kernel, called in the same way.
      bias_init: initializer of the bias.
      learned_carry: the initial carry is made of parameters, which start at 0; otherwise it is 0.
      param_dtype: type of the computation, the carry and the output, and of the parameters that
        `init` makes.
      dtype: type of the operands of matrix products, for instance `jnp.bfloat16`; the products are
        still summed in `param_dtype`. None means `param_dtype`.
      gates: the activation of each block, in order: "sigmoid", "tanh", "relu", another function, or
        None to pass the block on unchanged.
      carry_names: names of the arrays `[B, H]` of the carry; one must be "h", the hidden state.
        With one name the carry is the array, with several it is a tuple. ("h",) by default.
      output_features: P, the size of h and of the output, and the number of rows of the recurrent
        kernel; H unless a cell overrides it.
      mask_names: the fields of `Masks` that `update` uses, out of "cells", "states" and "update";
        ("states",) by default.
      elementwise: True if `update` and the activations treat each unit independently. Large layers
        then use transposed arrays on a CPU, which is faster. False by default.
      statistics: sizes of the quantities with batch statistics, by name.

    Raises:
      ValueError: a size below one, an unknown name of an activation, no "h" in `carry_names`.
      TypeError: a type that is not of real numbers, a size that is not an integer, an initializer
        that is not a function, names in a string.
    """

    in_features: int
    hidden_features: int
    _: dataclasses.KW_ONLY
    kernel_init: Initializer | None = dataclasses.field(default=None, compare=False, repr=False)
    recurrent_kernel_init: Initializer | None = dataclasses.field(
        default=None, compare=False, repr=False
    )
    bias_init: Initializer | None = dataclasses.field(default=None, compare=False, repr=False)
    learned_carry: bool = False
    param_dtype: Any = jnp.float32
    dtype: Any = None

    carry_names: ClassVar[tuple[str, ...]] = ("h",)
    mask_names: ClassVar[tuple[str, ...]] = ("states",)
    elementwise: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_sizes(in_features=self.in_features, hidden_features=self.hidden_features)
        for name in ("param_dtype", "dtype"):
            value = getattr(self, name)
            if value is not None and not jnp.issubdtype(value, jnp.floating):
                raise TypeError(f"{name} must be a type of real numbers, got {value!r}")
            # One form for each type, so that equal settings compare equal.
            object.__setattr__(self, name, None if value is None else jnp.dtype(value))
        for name in ("kernel_init", "recurrent_kernel_init", "bias_init"):
            value = getattr(self, name)
            if not (value is None or callable(value)):
                raise TypeError(
                    f"{name} must be a function init(key, shape, dtype), got {described(value)}"
                )
        for name in ("gates", "carry_names", "mask_names"):
            if isinstance(value := getattr(type(self), name), str):
                raise TypeError(f'{name} must be a tuple, such as ("{value}",); got {value!r}')
        if "h" not in self.carry_names:
            raise ValueError(f'carry_names must hold "h", the hidden state; got {self.carry_names}')

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the arrays of the carry that can start learned or noisy: all of them."""
        return self.carry_names

    @property
    def state_dtype(self) -> Any:
        """Type of the carry: `param_dtype` unless a cell overrides it."""
        return self.param_dtype

    @property
    def gates(self) -> tuple[Activation | None, ...]:
        """The activation of each block."""
        raise NotImplementedError("a cell must define gates, the activation of each block")

    @property
    def input_width(self) -> int:
        """Size of the last axis of the inputs: F unless `project` takes another."""
        return self.in_features

    @property
    def output_features(self) -> int:
        """Size of h, of its masks, and of the output."""
        return self.hidden_features

    def size(self, name: str) -> int:
        """Returns the size of an array of the carry or of a mask, by its name."""
        return self.output_features if name in ("h", "states", "hidden") else self.hidden_features

    @property
    def one_product(self) -> bool:
        """True if a step is one product and `update`: if `advance` and `product` are as here."""
        return type(self).advance is Cell.advance and type(self).product is Cell.product

    @property
    def drops_hidden(self) -> bool:
        """True if the cell can use the mask `hidden`, which `advance` applies to the operand."""
        return type(self).advance is Cell.advance

    @property
    def plain_projection(self) -> bool:
        """True if `project` is W x + b."""
        return type(self).project is Cell.project

    @property
    def statistics(self) -> dict[str, int]:
        """Sizes of the quantities that batch normalization normalizes, by name: none."""
        return {}

    def update(
        self, params: Params, carry: Carry, gates: Gates, rest: Gates, masks: Masks
    ) -> tuple[Carry, jax.Array]:
        """Computes the elementwise part of a step.

        Args:
          params: the parameters without the kernels; vectors are rows that broadcast.
          carry: carry of the previous step.
          gates: the k blocks `[B, H]`, activated; for a block without an activation, the product.
          rest: results of `project` for the blocks without an activation, in order.
          masks: masks of the step; None for a mask that is off.

        A cell with `statistics` takes one more argument: `normalize(name, parts)` normalizes the
        quantity of that name over the batch.

        Returns:
          The new carry and the output `[B, H]`.
        """
        raise NotImplementedError("a cell must define update, which makes the new carry")

    def parameters(self) -> dict[str, tuple[Initializer, tuple[int, ...]]]:
        """Returns the initializer `init(key, shape, dtype)` and the shape of each parameter."""
        blocks, hidden = len(self.gates), self.hidden_features
        kernels = {
            "input": (self.kernel_init, self.in_features),
            "recurrent": (self.recurrent_kernel_init, self.output_features),
        }
        made: dict[str, tuple[Initializer, tuple[int, ...]]] = {
            name: (in_blocks(init or block_orthogonal(), blocks), (rows, blocks * hidden))
            for name, (init, rows) in kernels.items()
        }
        made["bias"] = self.bias_init or jax.nn.initializers.zeros, (blocks * hidden,)
        learned = self.state_names if self.learned_carry else ()
        return made | {
            f"initial_{n}": (jax.nn.initializers.zeros, (self.size(n),)) for n in learned
        }

    def init_stats(self) -> Stats:
        """Returns initial population statistics of a batch-normalized cell; none for others."""
        dtype = statistics_dtype(self.param_dtype)
        return init_stats(self.statistics, getattr(self, "max_steps", None) or 0, dtype)

    def init(self, key: jax.Array) -> dict[str, jax.Array]:
        """Returns initial parameters, a dict of arrays."""
        parameters = self.parameters()
        keys = jax.random.split(key, len(parameters))
        return {
            name: init(k, shape, self.param_dtype)
            for k, (name, (init, shape)) in zip(keys, parameters.items(), strict=True)
        }

    def initial_carry(self, params: Params, batch: int) -> Carry:
        """Returns the initial carry, arrays `[B, H]`: learned or zeros, equal for all examples."""
        arrays = {
            name: jnp.zeros((batch, self.size(name)), self.state_dtype) for name in self.carry_names
        }
        for name in self.state_names if self.learned_carry else ():
            row = params[f"initial_{name}"].astype(self.param_dtype)
            arrays[name] = jnp.broadcast_to(row[None], arrays[name].shape)
        return tuple(arrays.values()) if len(arrays) > 1 else arrays["h"]

    def carry_shapes(self, params: Params, batch_dims: tuple[int, ...]) -> Carry:
        """Returns shapes and types of a carry `[*batch_dims, H]`, as `jax.ShapeDtypeStruct`."""
        if type(self).initial_carry is not Cell.initial_carry:
            one = jax.eval_shape(lambda p: self.initial_carry(p, 1), params)
            return jax.tree.map(
                lambda a: jax.ShapeDtypeStruct((*batch_dims, *a.shape[1:]), a.dtype), one
            )
        arrays = tuple(
            jax.ShapeDtypeStruct((*batch_dims, self.size(name)), self.state_dtype)
            for name in self.carry_names
        )
        return arrays if len(arrays) > 1 else arrays[0]

    def hidden(self, carry: Carry) -> jax.Array:
        """Returns the hidden state h of a carry."""
        return carry[self.carry_names.index("h")] if len(self.carry_names) > 1 else carry

    def operand(self, carry: Carry, mask: ArrayLike | None) -> jax.Array:
        """Returns the operand of the recurrent kernel: the masked hidden state."""
        return scaled(mask, self.hidden(carry))

    def product(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Computes a matrix product with operands of `dtype`, summed in `param_dtype`."""
        operand = self.dtype or self.param_dtype
        return jnp.matmul(
            x.astype(operand), kernel.astype(operand), preferred_element_type=self.param_dtype
        )

    def project(self, params: Params, xs: jax.Array) -> jax.Array:
        """Computes W x + b `[…, kH]` of inputs `[…, F]`, for a whole sequence at once."""
        bias = params["bias"].astype(self.param_dtype)
        return self.product(xs, params["input"]) + as_row(bias, xs.ndim)

    def advance(
        self,
        params: Params,
        carry: Carry,
        projected: jax.Array,
        masks: Masks,
        *normalize: BatchNormalizer,
    ) -> tuple[Carry, jax.Array]:
        """Runs a step, given the result of `project`."""
        blocks = len(self.gates)
        operand = self.operand(carry, masks.hidden)
        products = jnp.split(self.product(operand, params["recurrent"]), blocks, -1)
        values, rest = combine(self.gates, products, jnp.split(projected, blocks, -1))
        gates = tuple(
            value if activation is None else function(activation)(value)
            for activation, value in zip(self.gates, values, strict=True)
        )
        return self.update(vectors(params, self.param_dtype), carry, gates, rest, masks, *normalize)

    def step(
        self,
        params: Params,
        carry: Carry,
        x: jax.Array,
        masks: Masks | None = None,
        stats: Stats | None = None,
        number: ArrayLike = 0,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          params: parameters.
          carry: carry of the previous step.
          x: input `[B, F]`.
          masks: each `[B, H]` or broadcast to it; none by default.
          stats: population statistics of a batch-normalized cell, which get no gradient; by default
            the statistics of the batch.
          number: number of the step, counted from 0, which selects the statistics.

        Returns:
          The new carry and the output `[B, H]`.

        Raises:
          ValueError: inputs, carry, masks or statistics whose shapes or types do not fit; a mask
            that the cell does not use.
          TypeError: parameters that are not a dict; masks that are not `Masks`.
        """
        given = self.known_masks(Masks() if masks is None else masks)
        self.check_params(params)
        x = jnp.asarray(x)
        if x.shape[-1:] != (self.input_width,):
            raise ValueError(f"x must be [B, {self.input_width}], got {x.shape}")
        for name, mask in given.items():
            check_step_mask(name, mask, (*x.shape[:-1], self.size(name)))
        masks = Masks(**{name: jnp.asarray(mask) for name, mask in given.items()})
        carry = checked_carry(carry, self.carry_shapes(params, x.shape[:-1]))
        check_stats(self, stats)
        normalize = (BatchNormalizer(jnp.asarray(number), stats),) if self.statistics else ()
        new = self.advance(params, carry, self.project(params, x), masks, *normalize)
        return checked_pair(self, new)

    @property
    def _named_only(self) -> bool:
        """True if all functions in the settings are known to be elementwise."""
        fields = (getattr(self, field, "") for field in ("activation_fn", "gate_fn"))
        return all(isinstance(value, str) for value in fields)

    def _name_activations(self, *fields: str) -> None:
        """Checks these settings and replaces functions that have a name by that name."""
        names = {jax.nn.sigmoid: "sigmoid", jnp.tanh: "tanh", jax.nn.tanh: "tanh"}
        names[jax.nn.relu] = "relu"
        for field in fields:
            value = getattr(self, field)
            if not callable(value):
                check_choice(field, value, tuple(ACTIVATIONS))
            object.__setattr__(self, field, names.get(value, value))

    def check_params(self, params: Params) -> None:
        """Raises an error unless parameters have the names and shapes of `parameters`."""
        if not isinstance(params, Mapping):
            raise TypeError(
                f"params must be a dict of arrays, as {type(self).__name__}.init makes it; got"
                f" {described(params)}"
            )
        wanted = {name: shape for name, (_, shape) in self.parameters().items()}
        given = {name: jnp.shape(p) for name, p in params.items()}
        differing = [n for n in wanted | given if wanted.get(n) != given.get(n)]
        if differing:
            what = ", ".join(f"{n} {wanted.get(n)}, got {given.get(n)}" for n in differing)
            raise ValueError(f"parameters of {type(self).__name__} must have the shapes {what}")

    def known_masks(self, masks: Masks) -> dict[str, ArrayLike]:
        """Returns the given masks by name; raises an error if the cell cannot use one of them."""
        if not isinstance(masks, Masks):
            raise TypeError(f"masks must be Masks, such as Masks(cells=…); got {described(masks)}")
        given = {name: mask for name, mask in masks._asdict().items() if mask is not None}
        names = (*self.mask_names, *(("hidden",) if self.drops_hidden else ()))
        for name in given:
            if name not in names:
                option = {"update": "update_drop", "hidden": "hidden_drop"}.get(name, name)
                raise ValueError(
                    f"{type(self).__name__} has no {name} to mask, only {' and '.join(names)};"
                    f" leave {option} None"
                )
        return given


def check_cell(cell: Any) -> None:
    """Raises TypeError unless a value is a pure cell."""
    if not isinstance(cell, Cell):
        raise TypeError(
            f"cell must be a cell of zoneout_jax, such as LSTM(3, 5); got {described(cell)}"
        )


Output = Literal["state", "candidate"]
"""The output of a cell: its zoned-out state, or the candidate before zoneout."""


def vectors(params: Params, dtype: Any) -> dict[str, Any]:
    """Returns the parameters that `update` reads: no kernels, vectors as rows `[1, n]`."""
    rest = {name: p for name, p in params.items() if name not in ("input", "recurrent")}
    return jax.tree.map(lambda p: p.astype(dtype)[None] if jnp.ndim(p) == 1 else p, rest)
