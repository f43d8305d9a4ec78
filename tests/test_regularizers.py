"""Norm stabilizer and weight noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util

from zoneout_jax import LSTM, Zoneout, norm_stabilizer, unroll, weight_noise

T, B, H = 6, 3, 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lengths", [None, (6, 3, 1), (9, 3, 1)])
def test_norm_stabilizer_equals_a_loop(lengths):
    states = jax.random.normal(jax.random.key(0), (T, B, H), jnp.float64)
    total = 0.0
    for b in range(B):
        norms = [np.sqrt(np.sum(np.asarray(states[t, b]) ** 2)) for t in range(T)]
        norms = norms[: T if lengths is None else lengths[b]]
        changes = [(after - before) ** 2 for before, after in zip(norms, norms[1:], strict=False)]
        total += sum(changes) / len(changes) if changes else 0
    lengths = None if lengths is None else jnp.array(lengths)
    np.testing.assert_allclose(norm_stabilizer(states, lengths), total / B, rtol=1e-12)
    test_util.check_grads(lambda s: norm_stabilizer(s, lengths), (states,), 1, ["rev"], 1e-6, 1e-6)


def test_norm_stabilizer_of_zeros_has_a_gradient():
    gradient = jax.grad(norm_stabilizer)(jnp.zeros((T, B, H)).at[3:].set(1.0))
    assert np.all(np.isfinite(gradient))
    with pytest.raises(ValueError, match="T of at least 2"):
        norm_stabilizer(jnp.zeros((1, B, H)))


def test_memory_cells_by_emit():
    cell = LSTM(3, H)
    params = cell.init(jax.random.key(0))
    xs = jax.random.normal(jax.random.key(1), (T, B, 3))
    options = {"zoneout": Zoneout(cells=0.5), "key": jax.random.key(2)}
    lengths = jnp.array([6, 3, 0])
    carry, (ys, cells) = unroll(
        cell, params, xs, emit=lambda carry, y: (y, carry[0]), seq_lengths=lengths, **options
    )
    wanted_carry, wanted = unroll(cell, params, xs, seq_lengths=lengths, **options)
    np.testing.assert_array_equal(ys, wanted)
    for b, length in enumerate(lengths):
        assert not np.any(cells[length:, b])
        if length:
            np.testing.assert_array_equal(cells[length - 1, b], wanted_carry[0][b])
    for fused in ("fused", "scan"):
        gradient = jax.grad(
            lambda p, fused=fused: norm_stabilizer(
                unroll(
                    cell, p, xs, emit=lambda carry, y: carry[0], implementation=fused, **options
                )[1]
            )
        )(params)
        if fused == "fused":
            kept = gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), kept, gradient)


def test_weight_noise():
    params = {
        "kernel": jnp.ones((300, 200)),
        "other": jnp.ones((300, 200)),
        "bias": jnp.ones(200),
        "gain": jnp.ones(()),
        "table": jnp.ones((3, 2), int),
    }
    noisy = weight_noise(params, jax.random.key(0), 0.075)
    for name in ("bias", "gain", "table"):
        np.testing.assert_array_equal(noisy[name], params[name])
    noise = {name: np.asarray(noisy[name] - 1, np.float64) for name in ("kernel", "other")}
    for one in noise.values():
        assert abs(one.mean()) < 4 * 0.075 / np.sqrt(one.size)
        assert abs(one.var() / 0.075**2 - 1) < 4 * np.sqrt(2 / one.size)
    correlation = np.corrcoef(noise["kernel"].ravel(), noise["other"].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(60000)
    again = weight_noise(params, jax.random.key(1), 0.075)
    assert not np.any(again["kernel"] == noisy["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal, weight_noise(params, jax.random.key(0), 0.0), params
    )
    with pytest.raises(ValueError, match="at least 0, got -1"):
        weight_noise(params, jax.random.key(0), -1)
