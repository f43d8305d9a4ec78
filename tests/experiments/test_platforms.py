"""Training steps lower for platforms that are not there: CPU, CUDA and TPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from experiments import (
    char_ptb,
    gradient_propagation,
    permuted_mnist,
    semantic_consistency,
    seq2seq,
    text8,
    word_ptb,
)
from experiments.lib.pixels import build_cell
from zoneout_jax import _unroll
from zoneout_jax.training import parallel

pytestmark = pytest.mark.usefixtures("standard_promotion")
PLATFORMS = ("cpu", "cuda", "tpu")
ZONEOUT = {"z_prob_cells": 0.5, "z_prob_states": 0.05}
# So large that on a CPU the arrays of a step are transposed.
LARGE = {"hidden_features": 512, "batch_size": 16 * jax.local_device_count(), "train_size": 4000}
CHAR, WORDS, DIGITS = char_ptb.EXPERIMENT, word_ptb.EXPERIMENT, permuted_mnist.EXPERIMENT
CASES = {
    "char_ptb": (CHAR, ZONEOUT),
    "char_ptb, bfloat16": (CHAR, ZONEOUT | {"precision": "bfloat16"} | LARGE),
    "char_ptb, GRU": (CHAR, {"rnn_type": "GRU", "z_prob_states": 0.15}),
    "char_ptb, plain RNN": (CHAR, {"rnn_type": "SRNN", "z_prob_states": 0.15}),
    "text8": (text8.EXPERIMENT, ZONEOUT | {"weight_noise": 0.075, "norm_cost_coeff": 50.0}),
    "word_ptb": (WORDS, ZONEOUT | {"dropout": 0.65, "embedding": True, "num_layers": 2}),
    "word_ptb, repository": (WORDS, ZONEOUT),
    "permuted_mnist": (DIGITS, ZONEOUT),
    "permuted_mnist, batch norm": (DIGITS, ZONEOUT | {"batch_normalization": True}),
    "seq2seq": (seq2seq.EXPERIMENT, ZONEOUT),
    "seq2seq, one network": (seq2seq.EXPERIMENT, {"two_networks": False, "output": "candidate"}),
}


@pytest.fixture(
    params=[pytest.param(True, marks=pytest.mark.slow), False], ids=["as on a CPU", "as elsewhere"]
)
def choices(request, monkeypatch):
    """Makes the choices of `unroll` that depend on the backend."""
    monkeypatch.setattr(_unroll, "_on_cpu", lambda: request.param)


def lowered(function, *arguments):
    """Asserts that a function lowers for arguments of these shapes."""
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS


@pytest.mark.skipif(
    jax.__version_info__ < (0, 8), reason="`pmap` is not made of `jit` yet, and is not exported"
)
@pytest.mark.usefixtures("choices")
@pytest.mark.parametrize("case", CASES)
def test_training_steps(case):
    experiment, changes = CASES[case]
    task = experiment.build(experiment.presets["smoke"].replace(**changes))
    devices = jax.local_device_count()
    run = parallel.train_steps(task.loss, task.optimizer, parallel.Placement(), 1)

    def placed(array):
        return jax.ShapeDtypeStruct((devices, 1, *array.shape), array.dtype)

    state = jax.tree.map(placed, jax.eval_shape(task.initial_state, jax.random.key(0)))
    data = jax.tree.map(lambda a: jax.ShapeDtypeStruct((devices, *np.shape(a)), a.dtype), task.data)
    indices = jax.eval_shape(task.epoch_indices, jax.random.key(0))
    steps, batch, *others = indices.shape
    rows = placed(indices.update(shape=(steps, batch // devices, *others)))
    key, going = placed(jax.random.key(0)), placed(jnp.ones((), bool))
    number = jax.ShapeDtypeStruct((), jnp.int32)
    lowered(run, state, data, rows, number, number, key, going, number)


def test_gradients_over_time():
    config = DIGITS.presets["smoke"].replace(**gradient_propagation.MODELS["zoneout"])
    xs = jnp.zeros((6, 4, 1))
    cell = build_cell(config, len(xs))
    params = DIGITS.build(config).init(jax.random.key(0))
    masks = config.zoneout.spec().sample(jax.random.key(0), 6, 4, config.model.hidden_features)

    def gradients(params, xs, labels, masks):
        return gradient_propagation.gradients(cell, params, xs, labels, masks)

    lowered(gradients, params, xs, jnp.zeros(4, jnp.int32), masks)


def test_semantic_consistency():
    config = semantic_consistency.PRESETS["smoke"]

    def slopes(key):
        h, masks = semantic_consistency.draw(config, key)
        w = semantic_consistency.first_weights(config, key)
        return jax.vmap(jax.grad(semantic_consistency.loss), (None, None, 0))(w, h, masks)

    lowered(slopes, jax.random.key(0))
