"""The curriculum of learning to add: digits, step sizes, restarts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import seq2seq
from zoneout_jax.training import parse_preset

pytestmark = pytest.mark.usefixtures("standard_promotion")


def small(**changes):
    """The task with a small model."""
    return seq2seq.build(seq2seq.Config().replace(hidden_features=4, eval_size=8, **changes))


@pytest.mark.parametrize(
    ("flags", "digits"),
    [([], 2), (["--start_digits=3"], 3), (["--start_digits=4", "--digits=3"], 3)],
)
def test_the_curriculum_starts_with_some_digits_or_all_there_are(flags, digits):
    config = parse_preset(seq2seq.PRESETS, [*flags, "--eval_size=8"])
    task = seq2seq.build(config.replace(hidden_features=4))
    assert task.initial_state(jax.random.key(0)).model_state["digits"] == digits


@pytest.mark.parametrize(
    ("digits", "last", "error", "next_digits", "factor"),
    [
        (2, 0.5, 0.2, 2, 1),
        (2, 0.1, 0.2, 2, 1),  # it rises, but not at the top
        (2, 0.5, 0.09, 3, 1),
        (2, 0.5, 0.1, 2, 1),
        (5, 0.5, 0.4, 5, 1),
        (5, 0.4, 0.5, 5, 0.95),
        (5, 0.05, 0.06, 5, 0.95),
        (5, 0.5, 0.01, 5, 1),
    ],
)
def test_the_curriculum(digits, last, error, next_digits, factor):
    task = small()
    state = task.initial_state(jax.random.key(0))
    level = {"digits": jnp.float32(digits), "last_error": jnp.float32(last)}
    before = state._replace(model_state=state.model_state | level)
    after = task.end_epoch(before, {"error": jnp.float32(error)}, jax.random.key(1))
    assert after.model_state["digits"] == next_digits
    rate = after.opt_state.hyperparams["learning_rate"]
    np.testing.assert_allclose(rate, 0.01 * factor, rtol=1e-6)
    assert after.model_state["last_error"] == np.float32(error)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.params)


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("epochs", "error"), [(16, 0.9), (17, 0.9), (18, 0.9), (17, 0.84)])
def test_restarts_when_stuck_in_the_17th_epoch(epochs, error, restart):
    task = small(restart=restart)
    state = first = task.initial_state(jax.random.key(0))
    end_epoch = jax.jit(task.end_epoch)
    for epoch in range(epochs):
        assert state.params["layers"][0]["input"][0, 0] == first.params["layers"][0]["input"][0, 0]
        metrics = {"error": jnp.float32(error if epoch == epochs - 1 else 0.8)}
        state = end_epoch(state, metrics, jax.random.key(epoch))
    anew = state.params["layers"][0]["input"][0, 0] != first.params["layers"][0]["input"][0, 0]
    assert anew == (restart and (epochs, error) == (17, 0.9))
    assert state.model_state["digits"] == first.model_state["digits"]


def test_a_restart_is_of_all_but_the_curriculum():
    """And there can be another, as long after it as the first one after the start."""
    task = small(restart=True)
    fresh = state = task.initial_state(jax.random.key(0))
    state = state._replace(model_state=state.model_state | {"digits": jnp.float32(3)})
    end_epoch = jax.jit(task.end_epoch)
    used = jax.tree.map(jnp.ones_like, state.opt_state)
    for key in jax.random.split(jax.random.key(1)):
        weights = state.params["layers"][0]["input"]
        state = state._replace(opt_state=used)
        for epoch in range(17):
            metrics = {"error": jnp.float32(0.86 + 0.001 * epoch)}
            state = end_epoch(state, metrics, jax.random.fold_in(key, epoch))
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, fresh.opt_state)
        level = state.model_state
        assert level["age"] == 0 and level["digits"] == 3
        np.testing.assert_allclose(level["last_error"], 0.875, rtol=1e-6)
        assert not np.array_equal(state.params["layers"][0]["input"], weights)
