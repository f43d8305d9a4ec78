"""What users write: type checkers must take the right lines, and refuse those of `wrong`.

A line is refused where the type checker misses a `type: ignore` that it would call unused.
"""

from typing import Any, assert_type

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from zoneout_jax import (
    GRU,
    LSTM,
    RNN,
    IndRNN,
    Masks,
    Zoneout,
    activation_regularization,
    dropout,
    norm_stabilizer,
    temporal_activation_regularization,
    unroll,
    weight_drop,
    weight_noise,
)
from zoneout_jax import nnx as zoneout_nnx
from zoneout_jax.linen import ZoneoutConvLSTMCell, ZoneoutLSTMCell, ZoneoutRNN

SPEC = Zoneout(cells=0.5, states=0.05)
XS = np.ones((5, 2, 3), np.float32)


def pure() -> float:
    cell = LSTM(3, 4, normalization="layer")
    params = cell.init(jax.random.key(0))

    def loss(params: dict[str, Any], key: jax.Array) -> jax.Array:
        noisy = weight_drop(weight_noise(params, key, 0.075), key, 0.5)
        xs = dropout(jnp.asarray(XS), key, 0.3, locked=True)
        carry, ys = unroll(cell, noisy, xs, zoneout=SPEC, key=key, seq_lengths=[5, 3], chunk="auto")
        assert_type(ys, jax.Array)
        penalty = activation_regularization(ys) + temporal_activation_regularization(ys)
        return jnp.mean(ys**2) + 50 * norm_stabilizer(ys) + penalty

    gradient = jax.grad(loss)(params, jax.random.key(1))
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    _, (ys, cells) = unroll(
        cell, params, XS, deterministic=True, zoneout=SPEC, emit=lambda carry, y: (y, carry[0])
    )
    assert_type(ys, jax.Array)
    carry, y = cell.step(params, cell.initial_carry(params, 2), jnp.asarray(XS[0]), Masks(0.5))
    return float(ys.mean() + cells.mean() + y.mean())


class Tagger(nn.Module):
    features: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        one, other = (
            [ZoneoutLSTMCell(self.features, zoneout=SPEC) for _ in range(2)] for _ in range(2)
        )
        layers = ZoneoutRNN(one, backward=other, dropout=0.1, residual=True, merge_fn=jnp.add)
        return nn.Dense(10)(jax.nn.relu(layers(x, deterministic=deterministic)))


def linen() -> float:
    x = jnp.ones((2, 5, 3))
    variables = Tagger().init(jax.random.key(0), x, deterministic=True)
    rngs = {"zoneout": jax.random.key(1)}
    logits = Tagger().apply(variables, x, deterministic=False, rngs=rngs)
    movies = nn.RNN(ZoneoutConvLSTMCell(4, (3, 3), zoneout=SPEC, deterministic=True))
    ys, _ = movies.init_with_output(jax.random.key(2), jnp.ones((2, 5, 8, 8, 1)))
    return float(jnp.mean(jnp.asarray(logits)) + jnp.mean(jnp.asarray(ys)))


def with_nnx() -> float:
    cell = zoneout_nnx.ZoneoutGRUCell(3, 4, zoneout=Zoneout(states=0.1), rngs=nnx.Rngs(0))
    layer = zoneout_nnx.ZoneoutRNN(cell)
    ys = layer(jnp.ones((2, 5, 3)))
    carry, last = layer(jnp.ones((2, 5, 3)), return_carry=True)
    return float(ys.mean() + last.mean())


def wrong() -> None:
    cell = LSTM(3, "x", nonsense=4)  # type: ignore[call-arg, arg-type]
    GRU(3)  # type: ignore[call-arg]
    RNN(3, 4, output="outcome")  # type: ignore[arg-type]
    IndRNN(3, 4, gate_fn="tanh")  # type: ignore[call-arg]
    GRU(3, 4, normalization="batch")  # type: ignore[arg-type]
    ZoneoutConvLSTMCell(4)  # type: ignore[call-arg]
    Zoneout(cell=0.5)  # type: ignore[call-arg]
    _, ys = unroll(cell, {}, XS, implementation="fast")  # type: ignore[arg-type]
    unroll(cell, {}, XS, chunk="all")  # type: ignore[arg-type]
    ys.shpae()  # type: ignore[attr-defined]
    ZoneoutLSTMCell(4, normalization="layers")  # type: ignore[arg-type]
    ZoneoutRNN(ZoneoutLSTMCell(4), times=3)  # type: ignore[call-arg]
    zoneout_nnx.ZoneoutGRUCell(3)  # type: ignore[call-arg]
    # Right where the cell is batch-normalized: see `unroll`.
    _, ys, found = unroll(cell, {}, XS)  # type: ignore[misc]


if __name__ == "__main__":
    print(pure(), linen(), with_nnx())
