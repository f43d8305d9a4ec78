"""Recurrent layers in JAX that `benchmarks.rnn` compares: ours, Flax's, a plain one, the bound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from zoneout_jax import Masks, Zoneout, lstm, unroll

SPEC = Zoneout(cells=0.5, states=0.05)
"""The rates of the paper's character-level model."""


class Shape(NamedTuple):
    """Sizes of a layer and its input.

    Attributes:
      batch, steps, inputs, units: B, T, F and H.
      input_gradient: the input is differentiated too, as that of an embedding must be.
    """

    batch: int
    steps: int
    inputs: int
    units: int
    input_gradient: bool = False


class Peer(NamedTuple):
    """Something to measure.

    Attributes:
      params: its parameters.
      forward: `forward(params, xs, key) -> outputs [T, B, H]`, of inputs `[T, B, F]`.
      backward: `backward(params, xs, key) -> gradients` of half the sum of the squared outputs.
    """

    params: Any
    forward: Callable[..., jax.Array]
    backward: Callable[..., Any]


def make_peers(shape: Shape) -> dict[str, Peer]:
    """All of them by name, for a shape."""
    _, _, inputs, units = shape[:4]
    key = jax.random.key(0)
    xs = jnp.zeros((shape.steps, shape.batch, inputs))

    def peer(params, forward):
        def loss(params, xs, key):
            return jnp.sum(jnp.square(forward(params, xs, key))) / 2

        return Peer(params, forward, jax.grad(loss, (0, 1) if shape.input_gradient else 0))

    def ours(spec, dtype=None):
        cell = lstm(inputs, units, dtype=dtype)

        def forward(params, xs, key):
            return unroll(cell, params, xs, zoneout=spec, key=key)[1]

        return peer(cell.init(key), forward)

    def plain():
        # What a user writes first: masks drawn at each step, derivatives left to JAX.
        cell = lstm(inputs, units)

        def forward(params, xs, key):
            def step(carry, inputs):
                x, key = inputs
                cells, states = jax.random.split(key)
                masks = Masks(
                    jax.random.bernoulli(cells, SPEC.cells, (shape.batch, units)),
                    jax.random.bernoulli(states, SPEC.states, (shape.batch, units)),
                )
                return cell.step(params, carry, x, masks)

            carry = cell.initial_carry(params, shape.batch)
            return jax.lax.scan(step, carry, (xs, jax.random.split(key, shape.steps)))[1]

        return peer(cell.init(key), forward)

    def in_linen(cell, dtype=None):
        layer = nn.RNN(cell(units, dtype=dtype), time_major=True)
        return peer(layer.init(key, xs), lambda params, xs, key: layer.apply(params, xs))

    def in_nnx(cell):
        layer = nnx.RNN(cell(inputs, units, rngs=nnx.Rngs(0)), time_major=True)
        graph, params, rest = nnx.split(layer, nnx.Param, ...)
        # Given a carry, the layer draws nothing, which it could not do inside `jax.jit`.
        zeros = (jnp.zeros((shape.batch, units)),) * 2

        def forward(params, xs, key):
            return nnx.merge(graph, params, rest)(xs, initial_carry=zeros)

        return peer(params, forward)

    return {
        "zoneout": ours(SPEC),
        "zoneout off": ours(None),
        "zoneout, bfloat16 products": ours(SPEC, jnp.bfloat16),
        "Flax Linen OptimizedLSTMCell": in_linen(nn.OptimizedLSTMCell),
        "Flax Linen OptimizedLSTMCell, bfloat16": in_linen(nn.OptimizedLSTMCell, jnp.bfloat16),
        "Flax Linen LSTMCell": in_linen(nn.LSTMCell),
        "Flax NNX OptimizedLSTMCell": in_nnx(nnx.OptimizedLSTMCell),
        "Flax NNX LSTMCell": in_nnx(nnx.LSTMCell),
        "plain scan, bernoulli masks": plain(),
        "matrix products alone": _products(shape, transposed=False),
        "matrix products alone, transposed": _products(shape, transposed=True),
    }


def _products(shape: Shape, transposed: bool) -> Peer:
    """The matrix products of an LSTM in the same scans, and next to nothing else.

    With arrays of a step `[B, features]`, or transposed.
    """
    steps, batch, units = shape.steps, shape.batch, shape.units
    key = jax.random.key(0)
    params = {
        "input": jax.random.normal(key, (shape.inputs, 4 * units)) / 100,
        "recurrent": jax.random.normal(key, (units, 4 * units)) / 100,
    }
    zeros = jnp.zeros((units, batch) if transposed else (batch, units))

    def turn(array):
        return jnp.swapaxes(array, -1, -2) if transposed else array

    def multiply(kernel):
        # Turned once, before the loop.
        kernel = jax.lax.optimization_barrier(turn(kernel))
        return lambda x: kernel @ x if transposed else x @ kernel

    def first(z):
        return z[:units] if transposed else z[:, :units]

    def run(params, xs):
        product = multiply(params["recurrent"])

        def step(h, x):
            z = x + product(h)
            return first(z), z

        return jax.lax.scan(step, zeros, turn(xs @ params["input"]))[1]

    def forward(params, xs, key):
        return turn(run(params, xs))[..., :units]

    def backward(params, xs, key):
        zs = run(params, xs)
        product = multiply(params["recurrent"].T)

        def step(dh, z):
            # The gradient of a step depends on that of the step after it, as it must.
            dz = z + (dh[:1] if transposed else dh[:, :1])
            return product(dz), turn(dz)

        _, dzs = jax.lax.scan(step, zeros, zs, reverse=True)
        rows = dzs.reshape(steps * batch, -1)
        hs = zs[:, :units].swapaxes(0, 1) if transposed else zs[..., :units]
        hs = hs.reshape(units, -1) if transposed else hs.reshape(-1, units).T
        gradients = {
            "input": xs.reshape(steps * batch, -1).T @ rows,
            "recurrent": hs @ rows,
        }
        if shape.input_gradient:
            gradients["xs"] = rows @ params["input"].T
        return gradients

    return Peer(params, forward, backward)
