"""Models as users write them learn in some training steps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoneout_jax import Zoneout
from zoneout_jax import linen as zl
from zoneout_jax import nnx as zn

pytestmark = pytest.mark.usefixtures("standard_promotion")
SPEC = Zoneout(cells=0.1, states=0.1)


def assert_learns(losses):
    """Checks that the last losses are less than half of the first; the tasks are easy."""
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


class Tagger(nn.Module):
    """Marks tokens whose successor is larger, which needs the backward direction."""

    deterministic: bool

    @nn.compact
    def __call__(self, tokens, lengths):
        def direction():
            cell = zl.ZoneoutLSTMCell(32, zoneout=SPEC, deterministic=self.deterministic)
            return nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

        x = nn.Embed(10, 16)(tokens)
        x = nn.Bidirectional(direction(), direction())(x, seq_lengths=lengths)
        return nn.Dense(2)(x)


def test_linen_tagger_with_lengths():
    keys = iter(jax.random.split(jax.random.key(0), 99))
    tokens = jax.random.randint(next(keys), (16, 12), 0, 10)
    lengths = jax.random.randint(next(keys), (16,), 3, 13)
    tags = (jnp.roll(tokens, -1, 1) > tokens).astype(jnp.int32)
    counted = (jnp.arange(12) < lengths[:, None] - 1).astype(jnp.float32)
    params = Tagger(deterministic=True).init(next(keys), tokens, lengths)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            logits = Tagger(deterministic=False).apply(
                params, tokens, lengths, rngs={"zoneout": key}
            )
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, tags)
            return jnp.sum(counted * nats) / jnp.sum(counted)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for _ in range(60):
        params, state, value = step(params, state, next(keys))
        losses.append(float(value))
    assert_learns(losses)
    evaluate = jax.jit(Tagger(deterministic=True).apply)
    logits = evaluate(params, tokens, lengths)
    # Values after the end of a sequence do not change the outputs before it.
    padded = jnp.where(jnp.arange(12) < lengths[:, None], tokens, 0)
    inside = (jnp.arange(12) < lengths[:, None])[..., None]
    np.testing.assert_allclose(
        jnp.where(inside, evaluate(params, padded, lengths), 0),
        jnp.where(inside, logits, 0),
        rtol=0,
        atol=1e-6,
    )
    right = (logits.argmax(-1) == tags) * counted
    assert right.sum() / counted.sum() > 0.9


class Translator(nnx.Module):
    """Copies a sequence, with two layers in the encoder and in the decoder."""

    def __init__(self, rngs):
        def layers():
            sizes = ((8, 48), (48, 48))
            cells = [zn.ZoneoutGRUCell(*s, zoneout=Zoneout(states=0.05), rngs=rngs) for s in sizes]
            return zn.ZoneoutRNN(cells, return_carry=True)

        self.embed = nnx.Embed(6, 8, rngs=rngs)
        self.encoder, self.decoder = layers(), layers()
        self.readout = nnx.Linear(48, 6, rngs=rngs)

    def __call__(self, source, target):
        carries, _ = self.encoder(self.embed(source))
        shifted = jnp.pad(target, ((0, 0), (1, 0)))[:, :-1]
        carries, ys = self.decoder(self.embed(shifted), initial_carry=carries)
        return self.readout(ys), carries


def test_nnx_sequence_to_sequence():
    model = Translator(nnx.Rngs(0))
    source = jax.random.randint(jax.random.key(0), (32, 4), 1, 6)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss(model):
        logits, _ = model(source, source)
        return optax.softmax_cross_entropy_with_integer_labels(logits, source).mean()

    @nnx.jit
    def step(model, optimizer):
        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    assert_learns([float(step(model, optimizer)) for _ in range(80)])
    model.eval()
    logits, carries = model(source, source)
    np.testing.assert_array_equal(logits, model(source, source)[0])
    assert [carry.shape for carry in carries] == [(32, 48), (32, 48)]
    model.train()
    assert np.abs(logits - model(source, source)[0]).max() > 1e-3


class Decoder(nn.Module):
    """Computes each frame from the previous one, as in Tacotron."""

    deterministic: bool

    @nn.compact
    def __call__(self, frames):
        def cell(name):
            return zl.ZoneoutLSTMCell(
                32, zoneout=SPEC, deterministic=self.deterministic, output="candidate", name=name
            )

        def step(module, carry, frame):
            first, second = cell("first"), cell("second")
            one, y = first(carry[0], nn.relu(nn.Dense(16, name="prenet")(frame)))
            two, y = second(carry[1], y)
            return (one, two), nn.Dense(4, name="readout")(y)

        scan = nn.scan(
            step,
            variable_broadcast="params",
            split_rngs={"params": False, "zoneout": True},
            in_axes=1,
            out_axes=1,
        )
        zeros = jnp.zeros((frames.shape[0], 32))
        return scan(self, ((zeros, zeros), (zeros, zeros)), frames)[1]


def test_tacotron_style_decoder():
    time = jnp.linspace(0, 6, 20)[None, :, None] + jnp.arange(4) + jnp.arange(8)[:, None, None]
    frames = jnp.sin(time)
    before, after = frames[:, :-1], frames[:, 1:]
    params = Decoder(deterministic=True).init(jax.random.key(0), before)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, state, key):
        def loss(params):
            out = Decoder(deterministic=False).apply(params, before, rngs={"zoneout": key})
            return jnp.mean(jnp.square(out - after))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, losses = optimizer.init(params), []
    for number in range(60):
        params, state, value = step(params, state, jax.random.key(number))
        losses.append(float(value))
    assert_learns(losses)
    evaluate = jax.jit(Decoder(deterministic=True).apply)
    out = evaluate(params, before)
    np.testing.assert_array_equal(out, evaluate(params, before))
    assert jnp.mean(jnp.square(out - after)) < 0.5 * losses[0]
