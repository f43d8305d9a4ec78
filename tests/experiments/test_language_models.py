"""The language models: their metrics, regularizers and training."""

import functools
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import char_ptb, text8, word_ptb
from experiments.lib.language_model import language_model
from experiments.lib.texts import carried_evaluation
from zoneout_jax import norm_stabilizer
from zoneout_jax.training import Batch

pytestmark = pytest.mark.usefixtures("standard_promotion")
CHAR, WORDS = char_ptb.EXPERIMENT, word_ptb.EXPERIMENT
EXPERIMENTS = {each.name: each for each in (CHAR, WORDS, text8.EXPERIMENT)}
each_experiment = pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)


def smoke(experiment, **changes):
    return experiment.presets["smoke"].replace(**changes)


def measured(task, evaluation, params):
    """A metric, and over how many predictions."""
    data, rows = jnp.asarray(evaluation.data), jnp.asarray(evaluation.rows)

    @jax.jit
    def run(params):
        return jax.lax.map(lambda row: evaluation.loss(params, {}, Batch(data, row)), rows)

    total, count = run(params)
    return task.to_metric(float(total.sum() / count.sum())), int(count.sum())


def blind(task, bias):
    """Parameters of a model that gives every symbol the same logits."""
    params = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
    params["readout"]["bias"] = jnp.asarray(bias, jnp.float32)
    return params


@each_experiment
def test_a_uniform_model(experiment):
    task = experiment.build(smoke(experiment))
    symbols = task.metadata["vocabulary"]
    wanted = {"bpc": math.log2(symbols), "perplexity": symbols}[task.metric]
    for evaluation in (task.validation, *task.test_evaluations.values()):
        metric, _ = measured(task, evaluation, blind(task, np.zeros(symbols)))
        # The nats are sums of float32: a few of its last bits are lost.
        bound = 2e-6 * (math.log(symbols) if task.metric == "perplexity" else 1)
        np.testing.assert_allclose(metric, wanted, rtol=bound)


@each_experiment
@pytest.mark.parametrize("size", [301, pytest.param(457, marks=pytest.mark.slow)])
def test_a_unigram_model_has_the_entropy_of_the_counts_and_counts_once(experiment, size):
    config = smoke(experiment, eval_size=size)
    task, corpus = experiment.build(config), config.data.load()
    counts = np.bincount(corpus.train, minlength=corpus.vocab_size) + 1.0
    surprise = np.log(counts.sum()) - np.log(counts)
    params = blind(task, -surprise)
    for name, evaluation in {"validation": task.validation, **task.test_evaluations}.items():
        text = (corpus.test if name == "test" else corpus.validation)[:size]
        predicted = text[1:]
        if name == "validation" and experiment is not WORDS:
            length = config.data.seq_length
            predicted = text[: size - size % length].reshape(-1, length)[:, 1:].ravel()
        metric, count = measured(task, evaluation, params)
        assert count == len(predicted)
        np.testing.assert_allclose(metric, task.to_metric(surprise[predicted].mean()), rtol=1e-5)


def long_unroll(words, params, text, streams=1):
    """Nats of each stream of a text that is read in one piece."""
    part = text.reshape(streams, -1).T
    inputs, targets = jnp.asarray(part[:-1], jnp.int32), jnp.asarray(part[1:], jnp.int32)
    weights = jnp.ones(inputs.shape)
    (total, count), _ = words.sums(params, inputs, targets, weights, deterministic=True)
    return float(total / count)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SRNN"])
def test_the_carried_metric_is_one_long_unroll(kind):
    config = smoke(WORDS, rnn_type=kind, num_layers=2, z_prob_states=0.3, hidden_features=8)
    words = language_model(config, 11, encoding="embedding")
    params = words.init(jax.random.key(1))
    text = np.random.default_rng(0).integers(0, 11, 734).astype(np.int32)
    evaluation = carried_evaluation(words, text, 3)
    batch = Batch(jnp.asarray(text), jnp.asarray(evaluation.rows[0]))
    total, count = evaluation.loss(params, {}, batch)
    assert count == 733
    np.testing.assert_allclose(total / count, long_unroll(words, params, text), rtol=1e-5)


def test_training_carries_the_state_and_rolls_it_between_epochs(tmp_path):
    """Without learning, an epoch is one long unroll, and the next one goes on where it ended."""
    # So few steps, and so large weights, that the state at the start of an epoch matters.
    changes = {"num_layers": 2, "init_width": 2.0, "train_size": 170, "seq_length": 7}
    flags = ["--preset=smoke", "--learning_rate=1e-30", f"--workdir={tmp_path}"]
    flags += [f"--{name}={value}" for name, value in changes.items()]
    WORDS.main(flags)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line)["train_perplexity"] for line in lines]
    config = smoke(WORDS, **changes)
    corpus = config.data.load()
    words = WORDS.model(config, corpus)
    params = words.init(jax.random.fold_in(jax.random.key(0), 0))
    streams, chunk, size = config.run.batch_size, config.data.seq_length, config.data.train_size
    part = (size - 1) // chunk // streams * chunk
    starts = part * np.arange(streams)
    positions = starts + np.arange(part)[:, None]
    text = corpus.train[:size]
    inputs, targets = (jnp.asarray(text[positions + n], jnp.int32) for n in (0, 1))

    @jax.jit
    def epoch(carry):
        weights = jnp.ones(inputs.shape)
        (total, count), carry = words.sums(
            params, inputs, targets, weights, carry, deterministic=True
        )
        return jnp.exp(total / count), carry

    zero = words.initial_carry(params, streams)
    first, carry = epoch(zero)
    rolled, _ = epoch(jax.tree.map(lambda c: jnp.roll(c, 1, 0), carry))
    np.testing.assert_allclose(found, [first, rolled], rtol=1e-5)
    for other in (epoch(zero)[0], epoch(carry)[0]):
        assert abs(other / rolled - 1) > 1e-3


@pytest.mark.parametrize("sum_over_steps", [True, False])
def test_the_gradient_of_a_sum_over_steps(sum_over_steps):
    """Clipped after it is one: a mean of 0.4 over 35 steps is a sum of 14."""
    config = smoke(
        WORDS,
        algorithm="sgd",
        learning_rate=0.5,
        clip_by="gradient",
        clip_norm=10.0,
        seq_length=35,
        train_size=300,
        sum_over_steps=sum_over_steps,
    )
    optimizer = WORDS.build(config).optimizer
    params = {"weight": jnp.zeros(2)}
    updates, _ = optimizer.update({"weight": jnp.array([0.4, 0.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["weight"], [-5.0 if sum_over_steps else -0.2, 0], rtol=1e-6)


def test_which_loss_is_that_of_a_preset():
    assert WORDS.presets["paper"].optimizer.sum_over_steps
    assert not WORDS.presets["repository"].optimizer.sum_over_steps


@pytest.mark.skipif("ZONEOUT_RAW_DATA" not in os.environ, reason="needs the Penn Treebank")
@pytest.mark.parametrize(
    ("experiment", "wanted"), [(CHAR, math.log2(50)), (WORDS, 10_000)], ids=["char", "word"]
)
def test_a_uniform_model_of_the_real_corpus(experiment, wanted):
    sizes = {"train_size": 2_000, "eval_size": 300}
    task = experiment.build(smoke(experiment, dataset="ptb", **sizes))
    symbols = task.metadata["vocabulary"]
    for evaluation in (task.validation, *task.test_evaluations.values()):
        metric, _ = measured(task, evaluation, blind(task, np.zeros(symbols)))
        np.testing.assert_allclose(metric, wanted, rtol=2e-5)


def test_perplexity_of_a_model_that_diverged():
    assert word_ptb.perplexity(math.log(120)) == pytest.approx(120)
    assert word_ptb.perplexity(1e6) == word_ptb.perplexity(math.inf) == math.inf


def test_the_step_size_falls():
    rate = WORDS.presets["paper"].optimizer.schedule(steps_per_epoch=10)
    epochs = [1, 14, 15, 16, 17, 55]
    wanted = [1, 1, 1, 1 / 1.15, 1 / 1.15**2, 1 / 1.15**40]
    found = [[float(rate(jnp.int32(10 * epoch - k))) for k in (10, 1)] for epoch in epochs]
    np.testing.assert_allclose(found, np.repeat(wanted, 2).reshape(-1, 2), rtol=1e-5)


@pytest.mark.parametrize("penalty", ["hids", "cells"])
def test_the_norm_stabilizer_is_in_the_gradient_and_not_in_the_metric(penalty):
    config = smoke(WORDS, norm_cost_coeff=5.0, penalty=penalty, num_layers=2)
    plain = language_model(config.replace(norm_cost_coeff=0.0, penalty="hids"), 7)
    words = language_model(config, 7)
    params = words.init(jax.random.key(0))
    inputs = jax.random.randint(jax.random.key(1), (6, 3), 0, 7)
    weights = jnp.ones((6, 3))

    def loss(words, params):
        return words.sums(params, inputs, inputs, weights, key=jax.random.key(2))[0][0]

    def by_hand(params):
        """The nats and the penalty of every layer, from one step after another."""
        carry = plain.initial_carry(params, 3)
        steps = []
        for step in inputs:
            _, carry = plain.sums(
                params, step[None], step[None], jnp.ones((1, 3)), carry, deterministic=True
            )
            steps.append([c[1 if penalty == "hids" else 0] for c in carry])
        layers = [jnp.stack([s[n] for s in steps]) for n in range(2)]
        cost = sum(map(norm_stabilizer, layers))
        return loss(plain, params) + 18 * 5.0 * cost

    np.testing.assert_allclose(loss(words, params), loss(plain, params), rtol=1e-6)
    found = jax.jit(jax.grad(functools.partial(loss, words)))(params)
    wanted = jax.jit(jax.grad(by_hand))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), found, wanted)


def test_weight_noise_is_for_training_alone():
    words = language_model(smoke(WORDS, weight_noise=0.5), 7, encoding="embedding")
    params = words.init(jax.random.key(0))
    inputs, weights = jnp.zeros((5, 2), jnp.int32), jnp.ones((5, 2))

    def total(**mode):
        return float(words.sums(params, inputs, inputs, weights, **mode)[0][0])

    quiet = language_model(smoke(WORDS), 7, encoding="embedding")
    (wanted, _), _ = quiet.sums(params, inputs, inputs, weights, deterministic=True)
    assert total(deterministic=True) == float(wanted)
    draws = {total(key=jax.random.key(n)) for n in range(3)}
    assert len(draws) == 3 and float(wanted) not in draws


def test_tied_weights_are_one_matrix():
    config = smoke(WORDS, tied=True, embedding=True)
    words = WORDS.model(config, config.data.load())
    assert set(words.init(jax.random.key(0))["readout"]) == {"bias"}
    with pytest.raises(ValueError, match="tied weights need encoding 'embedding', got 'one_hot'"):
        language_model(config, 7, tied=True)


def test_tied_logits_are_those_of_the_transposed_embedding():
    config = smoke(WORDS)
    tied, free = (language_model(config, 7, encoding="embedding", tied=t) for t in (True, False))
    params = tied.init(jax.random.key(0))
    params["readout"]["bias"] = jnp.arange(7.0)
    readout = {"kernel": params["embedding"].T, "bias": params["readout"]["bias"]}
    inputs = jnp.array([[0, 3], [6, 1], [2, 5]])
    found, _ = tied.logits(params, inputs, tied.initial_carry(params, 2))
    apart = params | {"readout": readout}
    wanted, _ = free.logits(apart, inputs, free.initial_carry(apart, 2))
    np.testing.assert_array_equal(found, wanted)

    def total(params, model):
        weights = jnp.ones(inputs.shape)
        return model.sums(params, inputs, inputs, weights, deterministic=True)[0][0]

    both, one = jax.grad(total)(params, tied), jax.grad(total)(apart, free)
    wanted = one["embedding"] + one["readout"]["kernel"].T
    np.testing.assert_allclose(both["embedding"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "SRNN"])
def test_rows_that_are_looked_up_are_products_with_one_hot_vectors(kind):
    config = smoke(WORDS, rnn_type=kind, num_layers=2, z_prob_states=0.3)
    looked_up, multiplied = (
        language_model(config, 7, encoding=way, input_drop=0.4) for way in ("rows", "one_hot")
    )
    params = looked_up.init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, params, multiplied.init(jax.random.key(0)))
    inputs = jax.random.randint(jax.random.key(1), (6, 3), 0, 7)

    def total(params, model):
        weights = jnp.ones(inputs.shape)
        return model.sums(params, inputs, inputs, weights, key=jax.random.key(2))[0][0]

    gradient = jax.jit(jax.value_and_grad(total), static_argnums=1)
    found, wanted = (gradient(params, m) for m in (looked_up, multiplied))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, wanted)


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        (CHAR, {}),
        (CHAR, {"rnn_type": "GRU"}),
        (CHAR, {"rnn_type": "SRNN"}),
        (CHAR, {"z_prob_cells": 0.1, "z_prob_states": 0.05, "num_layers": 2}),
        pytest.param(WORDS, {"hidden_features": 32}, marks=pytest.mark.slow),
    ],
    ids=["LSTM", "GRU", "SRNN", "two layers with zoneout", "words"],
)
def test_updates_lower_the_loss(experiment, settings):
    """To less than half of what the best guess has that does not look at the symbols before."""
    config = smoke(experiment, **settings)
    model = experiment.model(config, config.data.load())
    symbols = jnp.tile(jnp.array([1, 2, 3, 2]), 5)[:, None]
    inputs, targets = symbols[:-1], symbols[1:]
    optimizer = optax.adam(0.01)

    def loss(params, **mode):
        (total, count), _ = model.sums(params, inputs, targets, jnp.ones(targets.shape), **mode)
        return total / count

    @jax.jit
    def trained(params):
        def step(state, key):
            params, opt_state = state
            updates, opt_state = optimizer.update(jax.grad(loss)(params, key=key), opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        keys = jax.random.split(jax.random.key(1), 1000)
        state = (params, optimizer.init(params))
        params = jax.lax.scan(step, state, keys)[0][0]
        return loss(params, deterministic=True)

    counts = np.bincount(np.ravel(targets))
    shares = counts[counts > 0] / counts.sum()
    assert trained(model.init(jax.random.key(0))) < -np.sum(shares * np.log(shares)) / 2


@pytest.mark.parametrize("algorithm", ["adam", "rms_prop", "momentum", "sgd"])
@pytest.mark.parametrize("clip_by", ["gradient", "update"])
def test_optimizers_go_downhill_and_clip(algorithm, clip_by):
    config = smoke(CHAR, algorithm=algorithm, clip_by=clip_by, clip_norm=0.5)
    optimizer = config.optimizer.build(0.1)
    grads = {"w": jnp.linspace(1.0, 100.0, 50)}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    norm = float(jnp.linalg.norm(updates["w"]))
    assert jnp.all(updates["w"] < 0)
    if clip_by == "update":
        np.testing.assert_allclose(norm, 0.5, rtol=1e-5)
    elif algorithm in ("momentum", "sgd"):
        np.testing.assert_allclose(norm, 0.1 * 0.5, rtol=1e-5)
