"""The LSTM over time equals a NumPy loop, torch and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from tests import oracles
from tests.arrays import normal, shaken
from zoneout_jax import LSTM, Masks, Zoneout, unroll

T, B, F, H = 7, 3, 4, 5
BY_DIFFERENCES = {"order": 1, "modes": ["rev"], "atol": 1e-6, "rtol": 1e-6, "eps": 1e-5}


def model(learned_carry=False, dtype=jnp.float64):
    """Returns a cell, parameters unlike their special initial values, and inputs."""
    cell = LSTM(F, H, learned_carry=learned_carry, param_dtype=dtype)
    return cell, shaken(1, cell.init(jax.random.key(0))), normal(2, (T, B, F), dtype)


SPECS = {
    "plain": Zoneout(),
    "cells": Zoneout(cells=0.5),
    "states": Zoneout(states=0.3),
    "both": Zoneout(cells=0.5, states=0.3),
    "update": Zoneout(update_drop=0.4),
    "all": Zoneout(cells=0.5, states=0.3, update_drop=0.4),
    "shared": Zoneout(cells=0.4, states=0.4, shared=True),
    "static": Zoneout(cells=0.5, states=0.3, static=True),
    "per layer": Zoneout(cells=0.5, states=0.3, per_layer=True),
    "gaussian": Zoneout(cells=0.5, states=0.3, update_drop=0.4, gaussian=True),
    "gaussian static": Zoneout(cells=0.5, states=0.3, gaussian=True, static=True),
}


def oracle(params, xs, masks, carry=None):
    (c, h, _), ys = oracles.run("lstm", {}, params, np.asarray(xs), masks, carry=carry)
    return (c, h), ys


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPECS)
def test_learned_carry_equals_numpy_loop(name):
    cell, params, xs = model(learned_carry=True)
    key = jax.random.key(7)
    carry, ys = unroll(cell, params, xs, zoneout=SPECS[name], key=key)
    start = tuple(np.broadcast_to(params[f"initial_{part}"], (B, H)) for part in "ch")
    masks = SPECS[name].sample(key, T, B, H)
    wanted_carry, wanted = oracle(params, xs, masks, (*start, np.zeros((B, H))))
    np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-10)
    for ours, theirs in zip(carry, wanted_carry, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", SPECS)
def test_evaluation_equals_loop_with_rates(name):
    cell, params, xs = model()
    spec = SPECS[name]
    drop = None if spec.update_drop is None else 1 - np.float64(np.float32(spec.update_drop))
    _, ys = unroll(cell, params, xs, zoneout=spec, deterministic=True)
    _, wanted = oracle(params, xs, Masks(spec.cells, spec.states, drop))
    # The expected update is computed in float32.
    np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-10 if drop is None else 1e-7)


@pytest.mark.usefixtures("x64")
def test_two_halves_are_the_whole():
    cell, params, xs = model()
    masks = SPECS["all"].sample(jax.random.key(3), T, B, H)
    whole_carry, whole = unroll(cell, params, xs, masks=masks)
    first, second = (jax.tree.map(lambda m, s=s: m[s], masks) for s in (slice(4), slice(4, None)))
    carry, head = unroll(cell, params, xs[:4], masks=first)
    carry, tail = unroll(cell, params, xs[4:], carry, masks=second)
    np.testing.assert_array_equal(jnp.concatenate([head, tail]), whole)
    np.testing.assert_array_equal(carry, whole_carry)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["plain", "all", "gaussian", "gaussian static"])
@pytest.mark.parametrize("lengths", [None, (7, 2, 4)])
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_by_finite_differences(name, lengths, reverse):
    cell, params, xs = model()
    masks = SPECS[name].sample(jax.random.key(3), T, B, H)
    carry = tuple(normal(n, (B, H), jnp.float64) for n in (3, 4))
    lengths = None if lengths is None else jnp.array(lengths)

    def run(params, xs, carry):
        return unroll(cell, params, xs, carry, masks=masks, seq_lengths=lengths, reverse=reverse)

    test_util.check_grads(run, (params, xs, carry), **BY_DIFFERENCES)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(), (1, B, H), (T, B, H)])
def test_gradients_through_masks_by_finite_differences(shape):
    cell, params, xs = model()
    masks = Masks(*jnp.asarray(np.random.default_rng(5).uniform(size=(3, *shape))))

    def run(masks):
        return unroll(cell, params, xs, masks=masks)[1]

    test_util.check_grads(run, (masks,), **BY_DIFFERENCES)


def test_torch_with_copied_weights():
    torch = pytest.importorskip("torch")
    cell, params, xs = model(dtype=jnp.float32)
    theirs = torch.nn.LSTM(F, H)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(torch.tensor(np.array(params["input"].T)))
        theirs.weight_hh_l0.copy_(torch.tensor(np.array(params["recurrent"].T)))
        theirs.bias_ih_l0.copy_(torch.tensor(np.array(params["bias"])))
        theirs.bias_hh_l0.zero_()
        wanted, (h, c) = theirs(torch.tensor(np.array(xs)))
    carry, ys = unroll(cell, params, xs)
    np.testing.assert_allclose(ys, wanted.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(carry[0], c[0].numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(carry[1], h[0].numpy(), rtol=0, atol=1e-5)


def test_rates_are_traced():
    cell, params, xs = model(dtype=jnp.float32)
    traces = []

    @jax.jit
    def run(spec):
        traces.append(spec)
        return unroll(cell, params, xs, zoneout=spec, key=jax.random.key(0))

    plain = unroll(cell, params, xs)[1]
    zero = run(Zoneout(cells=0.0, states=0.0))[1]
    np.testing.assert_allclose(zero, plain, rtol=0, atol=1e-6)
    assert np.abs(run(Zoneout(cells=0.5, states=0.5))[1] - plain).max() > 0.01
    carry, ys = run(Zoneout(cells=1.0, states=1.0))
    assert not np.any(ys) and not np.any(carry[0])
    assert len(traces) == 1


def test_devices_draw_the_masks_of_the_whole_batch():
    cell = LSTM(F, H)
    params = cell.init(jax.random.key(0))
    xs = normal(1, (T, 8, F))
    spec, key = SPECS["all"], jax.random.key(2)
    wanted = unroll(cell, params, xs, zoneout=spec, key=key)[1]
    for devices in (2, 4, 8):
        parts = jnp.stack(jnp.split(xs, devices, axis=1))
        ys = jax.pmap(
            lambda x: unroll(cell, params, x, zoneout=spec, key=key, axis_name="data")[1],
            axis_name="data",
        )(parts)
        np.testing.assert_allclose(jnp.concatenate(list(ys), axis=1), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zoneout": Zoneout(cells=0.5)}, "needs a random key"),
        ({"carry": (np.zeros((2, H)), np.zeros((B, H)))}, "carry must have the shapes"),
        ({"seq_lengths": np.array([1, 2])}, r"seq_lengths must be \[3\]"),
        ({"masks": Masks(cells=np.zeros((T, B, H + 1)))}, "mask of cells must have the axes"),
        ({"xs": np.zeros((T, B, F + 1), np.float32)}, "time first"),
        ({"xs": np.zeros((B, F), np.float32)}, "time first"),
    ],
)
def test_bad_arguments(arguments, message):
    cell, params, xs = model(dtype=jnp.float32)
    with pytest.raises(ValueError, match=message):
        unroll(cell, params, **({"xs": xs} | arguments))
