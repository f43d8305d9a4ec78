"""Optimizers against loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import permuted_mnist
from experiments.lib.optimizers import rmsprop
from experiments.lib.settings import OptimizerConfig

pytestmark = pytest.mark.usefixtures("standard_promotion")


def by_hand(gradients, learning_rate, decay, floor):
    """The updates of RMSProp, as Blocks has it."""
    square = np.zeros_like(gradients[0])
    for gradient in gradients:
        square = decay * square + (1 - decay) * gradient**2
        yield -learning_rate * gradient / np.maximum(np.sqrt(square), floor)


def updates(optimizer, gradients):
    """What an optimizer makes of gradients, one after the other."""
    state = optimizer.init(gradients[0])
    for gradient in gradients:
        update, state = optimizer.update(gradient, state, gradients[0])
        yield update


@pytest.mark.parametrize(("decay", "floor"), [(0.9, 1e-5), (0.5, 1e-5), (0.5, 0.1)])
def test_rmsprop(decay, floor, x64):
    """With gradients far below the floor, about as large, and far above it."""
    rng = np.random.default_rng(0)
    scales = 10.0 ** rng.integers(-8, 2, (20, 1, 30))
    gradients = rng.normal(size=(20, 3, 30)) * scales
    found = list(updates(rmsprop(0.01, decay, floor), [jnp.asarray(g) for g in gradients]))
    assert found[0].dtype == jnp.float64
    np.testing.assert_allclose(found, list(by_hand(gradients, 0.01, decay, floor)), rtol=1e-12)


def test_rmsprop_takes_a_schedule():
    gradients = [jnp.ones(3)] * 3
    found = list(updates(rmsprop(lambda step: 0.1 / (step + 1)), gradients))
    wanted = [u / (n + 1) for n, u in enumerate(by_hand([np.ones(3)] * 3, 0.1, 0.9, 1e-5))]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "rate", "decay"),
    [
        (OptimizerConfig(algorithm="rms_prop", clip_norm=None).build(0.1), 0.1, 0.9),
        (
            permuted_mnist.build(
                permuted_mnist.PRESETS["smoke"].replace(learning_rate=1e-3)
            ).optimizer,
            1e-3,
            0.5,
        ),
    ],
    ids=["language models", "permuted MNIST"],
)
def test_experiments_have_the_floor(optimizer, rate, decay):
    gradients = np.array([[1e-7, 3e-6, 2e-3], [2e-7, -1e-6, 1e-3]], np.float32)
    found = list(updates(optimizer, [{"w": jnp.asarray(g)} for g in gradients]))
    wanted = list(by_hand(gradients, rate, decay, 1e-5))
    np.testing.assert_allclose([f["w"] for f in found], wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"clip_norm": None}, optax.adam(0.1)),
        ({}, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))),
        ({"clip_by": "update"}, optax.chain(optax.adam(0.1), optax.clip_by_global_norm(1.0))),
        (
            {"weight_decay": 0.5},
            optax.chain(
                optax.add_decayed_weights(0.5),
                optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
            ),
        ),
    ],
)
def test_the_state_keeps_its_structure(settings, wanted):
    """Otherwise a run that has begun could not continue."""
    params = {"w": jnp.ones(3)}
    found = OptimizerConfig(**settings).build(0.1).init(params)
    assert jax.tree.structure(found) == jax.tree.structure(wanted.init(params))
