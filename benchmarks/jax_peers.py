"""Recurrent layers in JAX to compare: ours, Flax's, cuDNN's, a plain scan, bare products."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoneout_jax import GRU, LSTM, RNN, Masks, Zoneout, unroll

SPEC = Zoneout(cells=0.5, states=0.05)
"""The rates of the paper's character-level model."""


class Kind(NamedTuple):
    """A type of cell: ours and its peers.

    Attributes:
      make: our cell.
      linen: Flax Linen's cell, with all gates in one product if there is such a cell.
      nnx: Flax NNX's cell, likewise.
      others: Flax's cells with a product for each gate, by name.
      gates: number of gates.
      spec: our masks.
    """

    make: Callable
    linen: Callable
    nnx: Callable
    others: dict[str, Callable]
    gates: int
    spec: Zoneout


KINDS = {
    "LSTM": Kind(
        LSTM,
        nn.OptimizedLSTMCell,
        nnx.OptimizedLSTMCell,
        {"Flax Linen, a product a gate": nn.LSTMCell, "Flax NNX, a product a gate": nnx.LSTMCell},
        4,
        SPEC,
    ),
    "GRU": Kind(GRU, nn.GRUCell, nnx.GRUCell, {}, 3, Zoneout(states=SPEC.states)),
}


class Shape(NamedTuple):
    """Sizes of a layer and its input.

    Attributes:
      batch, steps, inputs, units: B, T, F and H.
      input_gradient: True if the gradient of the input is needed, as after an embedding.
      kind: a name in `KINDS`.
    """

    batch: int
    steps: int
    inputs: int
    units: int
    input_gradient: bool = False
    kind: str = "LSTM"


class Peer(NamedTuple):
    """A layer to measure.

    Attributes:
      params: parameters of the layer.
      forward: `forward(params, xs, key) -> outputs [T, B, H]`, of inputs `[T, B, F]`.
      backward: `backward(params, xs, key) -> gradients` of half the sum of the squared outputs.
    """

    params: Any
    forward: Callable[..., jax.Array]
    backward: Callable[..., Any]


def make_peers(shape: Shape) -> dict[str, Peer]:
    """Makes the layers for a shape, by name."""
    kind = KINDS[shape.kind]
    others = {
        name: (in_linen if "Linen" in name else in_nnx)(shape, cell)
        for name, cell in kind.others.items()
    }
    return {
        "zoneout": ours(shape),
        "zoneout off": ours(shape, spec=None),
        "zoneout, bfloat16 products": ours(shape, dtype=jnp.bfloat16),
        "Flax Linen": in_linen(shape, kind.linen),
        "Flax Linen, bfloat16": in_linen(shape, kind.linen, jnp.bfloat16),
        "Flax NNX": in_nnx(shape, kind.nnx),
        **others,
        "plain scan, bernoulli masks": plain(shape),
        "matrix products alone": products(shape, gates=kind.gates),
        "matrix products alone, transposed": products(shape, transposed=True, gates=kind.gates),
    }


def peer(shape: Shape, params: Any, forward: Callable[..., jax.Array]) -> Peer:
    """Makes a peer from its forward pass."""

    def loss(params, xs, key):
        return jnp.sum(jnp.square(forward(params, xs, key))) / 2

    return Peer(params, forward, jax.grad(loss, (0, 1) if shape.input_gradient else 0))


def some_params(init: Callable[..., Any], *arguments: Any) -> Any:
    """Makes small random parameters with the shapes of `init(key, …)`.

    Times do not depend on the values; orthogonal ones would take seconds to compile and compute.
    """
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    return jax.tree.map(
        lambda p: jnp.asarray(0.02 * rng.standard_normal(p.shape, np.float32), p.dtype), shapes
    )


def ours(shape: Shape, dtype: Any = None, **options) -> Peer:
    """Makes our layer, with options of `unroll`; by default with zoneout."""
    kind = KINDS[shape.kind]
    cell = kind.make(shape.inputs, shape.units, dtype=dtype)
    spec = options.pop("spec", kind.spec)

    def forward(params, xs, key):
        return unroll(cell, params, xs, zoneout=spec, key=key, **options)[1]

    return peer(shape, some_params(cell.init), forward)


def plain(shape: Shape) -> Peer:
    """Makes the layer that a user writes first: masks drawn in each step, derivatives by JAX."""
    kind = KINDS[shape.kind]
    cell = kind.make(shape.inputs, shape.units)
    rates = {name: rate for name, rate in kind.spec.rates.items() if rate is not None}

    def forward(params, xs, key):
        def step(carry, inputs):
            x, key = inputs
            keys = jax.random.split(key, len(rates))
            drawn = {
                name: jax.random.bernoulli(k, rate, (shape.batch, shape.units))
                for k, (name, rate) in zip(keys, rates.items(), strict=True)
            }
            return cell.step(params, carry, x, Masks(**drawn))

        carry = cell.initial_carry(params, shape.batch)
        return jax.lax.scan(step, carry, (xs, jax.random.split(key, shape.steps)))[1]

    return peer(shape, some_params(cell.init), forward)


def in_linen(shape: Shape, cell: Callable, dtype: Any = None) -> Peer:
    """Makes a layer from a cell of Flax Linen."""
    layer = nn.RNN(cell(shape.units, dtype=dtype), time_major=True)
    xs = jax.ShapeDtypeStruct((shape.steps, shape.batch, shape.inputs), jnp.float32)
    params = some_params(layer.init, xs)
    return peer(shape, params, lambda params, xs, key: layer.apply(params, xs))


def in_nnx(shape: Shape, cell: Callable) -> Peer:
    """Makes a layer from a cell of Flax NNX."""
    layer = nnx.RNN(cell(shape.inputs, shape.units, rngs=nnx.Rngs(0)), time_major=True)
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    # With a given carry the layer draws no random numbers, which fails inside `jax.jit`.
    zeros = jnp.zeros((shape.batch, shape.units))
    zeros = (zeros, zeros) if shape.kind == "LSTM" else zeros

    def forward(params, xs, key):
        return nnx.merge(graph, params, rest)(xs, initial_carry=zeros)

    return peer(shape, params, forward)


def in_cudnn(shape: Shape, precision: jax.lax.Precision) -> Peer:
    """Makes cuDNN's LSTM, through JAX; HIGHEST is float32, HIGH is TensorFloat-32."""
    # Experimental, and of no use to the other peers.
    from jax.experimental import rnn as cudnn

    sizes = (shape.inputs, shape.units, 1)  # one layer
    zeros = jnp.zeros((1, shape.batch, shape.units))
    lengths = jnp.full(shape.batch, shape.steps, jnp.int32)

    def forward(params, xs, key):
        options = (*sizes, 0.0, False, precision)  # no dropout, one direction
        ys, _, _ = cudnn.lstm(xs.swapaxes(0, 1), zeros, zeros, params, lengths, *options)
        return ys.swapaxes(0, 1)

    params = some_params(lambda key: cudnn.init_lstm_weight(key, *sizes, False))
    return peer(shape, params, forward)


def products(
    shape: Shape, transposed: bool = False, gates: int = 4, dtype: Any = jnp.float32
) -> Peer:
    """Makes the matrix products of an LSTM in the same scans, and almost nothing else.

    The arrays of a step are `[B, features]`, or transposed. The number of gates and the type of the
    operands can be those of other cells.
    """
    steps, batch, units = shape.steps, shape.batch, shape.units
    matmul = RNN(shape.inputs, units, dtype=dtype).product
    params = some_params(
        lambda key: {
            "input": jnp.zeros((shape.inputs, gates * units)),
            "recurrent": jnp.zeros((units, gates * units)),
        }
    )
    zeros = jnp.zeros((units, batch) if transposed else (batch, units))

    def turn(array):
        return jnp.swapaxes(array, -1, -2) if transposed else array

    def multiply(kernel):
        # Transposed and rounded once, before the loop.
        kernel = jax.lax.optimization_barrier(turn(kernel).astype(dtype))
        return lambda x: matmul(kernel, x) if transposed else matmul(x, kernel)

    def first(z):
        return z[:units] if transposed else z[:, :units]

    def run(params, xs):
        product = multiply(params["recurrent"])

        def step(h, x):
            z = x + product(h)
            return first(z), z

        return jax.lax.scan(step, zeros, turn(matmul(xs, params["input"])))[1]

    def forward(params, xs, key):
        return turn(run(params, xs))[..., :units]

    def backward(params, xs, key):
        zs = run(params, xs)
        product = multiply(params["recurrent"].T)

        def step(dh, z):
            # As in an LSTM, the gradient of a step depends on the gradient of the next step.
            dz = z + (dh[:1] if transposed else dh[:, :1])
            return product(dz), turn(dz)

        _, dzs = jax.lax.scan(step, zeros, zs, reverse=True)
        rows = dzs.reshape(steps * batch, -1)
        hs = zs[:, :units].swapaxes(0, 1) if transposed else zs[..., :units]
        hs = hs.reshape(units, -1) if transposed else hs.reshape(-1, units).T
        gradients = {
            "input": matmul(xs.reshape(steps * batch, -1).T, rows),
            "recurrent": matmul(hs, rows),
        }
        if shape.input_gradient:
            gradients["xs"] = matmul(rows, params["input"].T)
        return gradients

    return Peer(params, forward, backward)
