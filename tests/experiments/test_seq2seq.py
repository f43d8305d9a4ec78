"""Learning to add: training and answers against loops in NumPy, bad settings."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import reproduce, seq2seq
from experiments.lib.addition import AdditionConfig, draw_pairs, in_part
from tests.oracles import sigmoid
from zoneout_jax import weight_noise
from zoneout_jax.training import AXIS, Batch, Progress, Streams

EXPERIMENT = seq2seq.EXPERIMENT
pytestmark = pytest.mark.usefixtures("standard_promotion")
ZONEOUT = {"z_prob_cells": 0.5, "z_prob_states": 0.05}
GO = 0


def smoke(**changes):
    return EXPERIMENT.presets["smoke"].replace(**changes)


def one_hot(symbols):
    return np.eye(13)[np.asarray(symbols)]


def step(layer, carry, x, d_c, d_h):
    """A step of an LSTM, and what its derivative needs."""
    c, h = carry
    gates = x @ layer["input"] + h @ layer["recurrent"] + layer["bias"]
    i, f, g, o = np.split(gates, 4, -1)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    new_c = f * c + i * g
    new_h = o * np.tanh(new_c)
    kept = (d_c * c + (1 - d_c) * new_c, d_h * h + (1 - d_h) * new_h)
    return kept, new_h, (x, c, h, i, f, g, o, new_c, d_c, d_h)


def step_back(layer, grads, to_c, to_h, to_new_h, saved):
    """Adds to the gradients of a layer; returns the derivatives by x, c and h."""
    x, c, h, i, f, g, o, new_c, d_c, d_h = saved
    squashed = np.tanh(new_c)
    by_h = (1 - d_h) * to_h + to_new_h
    by_c = (1 - d_c) * to_c + by_h * o * (1 - squashed**2)
    by_gates = [
        by_c * g * i * (1 - i),
        by_c * c * f * (1 - f),
        by_c * i * (1 - g**2),
        by_h * squashed * o * (1 - o),
    ]
    by_gates = np.concatenate(by_gates, -1)
    grads["input"] += x.T @ by_gates
    grads["recurrent"] += h.T @ by_gates
    grads["bias"] += by_gates.sum(0)
    from_c = d_c * to_c + by_c * f
    from_h = d_h * to_h + by_gates @ layer["recurrent"].T
    return by_gates @ layer["input"].T, from_c, from_h


def networks(tree, questions, steps):
    """Of each step the layers: those of the encoder up to the question's end, if it has its own."""
    encoder = tree.get("encoder", tree)["layers"]
    return [encoder if t < questions.shape[-1] else tree["layers"] for t in range(steps)]


def loss_and_gradient(params, questions, answers, masks, output="state"):
    """Mean cross entropy of a symbol and its gradient, written from the equations.

    `masks` has of each layer a pair of arrays `[T, B, H]`: of cells and of states. A layer hands on
    its zoned-out state, or the candidate for it.
    """
    batch, length = answers.shape
    go = np.full((batch, 1), GO)
    xs = one_hot(np.concatenate([questions, go, answers[:, :-1]], 1)).transpose(1, 0, 2)
    readout = params["readout"]
    grads = jax.tree.map(np.zeros_like, params)
    layers, layer_grads = (networks(tree, questions, len(xs)) for tree in (params, grads))
    carries = [(np.zeros((batch, len(layer["recurrent"]))),) * 2 for layer in layers[0]]
    saved, tops = [], []
    for t, x in enumerate(xs):
        saved.append([])
        for n, layer in enumerate(layers[t]):
            d_c, d_h = masks[n][0][t], masks[n][1][t]
            carries[n], new_h, kept = step(layer, carries[n], x, d_c, d_h)
            saved[-1].append(kept)
            x = carries[n][1] if output == "state" else new_h
        tops.append(x)
    value = 0.0
    to_tops = [np.zeros_like(top) for top in tops]
    for place in range(length):
        t = questions.shape[1] + place
        logits = tops[t] @ readout["kernel"] + readout["bias"]
        logits -= logits.max(-1, keepdims=True)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        wanted = one_hot(answers[:, place])
        value -= np.sum(wanted * np.log(p)) / answers.size
        by_logits = (p - wanted) / answers.size
        grads["readout"]["kernel"] += tops[t].T @ by_logits
        grads["readout"]["bias"] += by_logits.sum(0)
        to_tops[t] = by_logits @ readout["kernel"].T
    by_carry = [[np.zeros_like(c), np.zeros_like(h)] for c, h in carries]
    for t in reversed(range(len(xs))):
        from_above = to_tops[t]
        for n in reversed(range(len(layers[t]))):
            to_c, to_h = by_carry[n]
            to_h, to_new_h = (to_h + from_above, 0) if output == "state" else (to_h, from_above)
            back = step_back(layers[t][n], layer_grads[t][n], to_c, to_h, to_new_h, saved[t][n])
            from_above, *by_carry[n] = back
    return value, grads


def in_float64(params):
    return jax.tree.map(lambda x: np.array(x, np.float64), params)


def trained(task, state, noise, steps):
    """The parameters after steps on a single device, and their losses."""

    def mean_loss(params, key):
        def on_a_device(examples):
            return task.loss(params, state.model_state, Batch(task.data, examples), key)[0]

        total, count = jax.vmap(on_a_device, axis_name=AXIS)(task.epoch_indices(key)[:1])
        return total[0] / count[0]

    def update(carried, number):
        params, opt_state = carried
        key = jax.random.fold_in(noise, number)
        value, gradient = jax.value_and_grad(mean_loss)(params, key)
        updates, opt_state = task.optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    start = (state.params, state.opt_state)
    (params, _), losses = jax.jit(lambda s: jax.lax.scan(update, s, jnp.arange(steps)))(start)
    return params, losses


SETTINGS = [
    {"two_networks": False},
    {},
    {"two_networks": False, "output": "candidate"},
    {"output": "candidate"},
]


@pytest.mark.parametrize(
    "settings", [*(pytest.param(s, marks=pytest.mark.slow) for s in SETTINGS[:-1]), SETTINGS[-1]]
)
def test_a_hundred_steps_are_those_of_a_loop(settings):
    sizes = {"batches_per_epoch": 100, "batch_size": 4, "hidden_features": 6}
    config = smoke(**ZONEOUT, **sizes, **settings, learning_rate=2e-3)
    task, streams = seq2seq.build(config), Streams.from_seed(0)
    state = task.initial_state(streams.init)
    params = in_float64(state.params)

    ours, found_losses = trained(task, state, streams.noise, 100)

    # By hand, with the same pairs and masks.
    @jax.jit
    def draws(number):
        pair_key, noise_key = jax.random.split(jax.random.fold_in(streams.noise, number))
        pairs = draw_pairs(pair_key, jnp.arange(4), config.data.start_digits, "train")
        masks = []
        for layer in range(2):
            drawn = [
                config.zoneout.spec().sample(jax.random.fold_in(key, 2 * layer + 1), steps, 4, 6)
                for key, steps in zip(jax.random.split(noise_key), (13, 7), strict=True)
            ]
            pairs_of_masks = ([d.cells for d in drawn], [d.states for d in drawn])
            masks.append([jnp.concatenate(both).astype(float) for both in pairs_of_masks])
        return *AdditionConfig().encode(pairs), masks

    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    losses = []
    for number in range(100):
        questions, answers, masks = jax.tree.map(np.asarray, draws(number))
        value, grads = loss_and_gradient(params, questions, answers, masks, config.model.output)
        losses.append(value)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g**2, second, grads)
        means = jax.tree.map(lambda m, n=number: m / (1 - 0.9 ** (n + 1)), first)
        squares = jax.tree.map(lambda v, n=number: v / (1 - 0.999 ** (n + 1)), second)
        params = jax.tree.map(
            lambda p, m, v: p - 2e-3 * m / (np.sqrt(v) + 1e-8), params, means, squares
        )
    np.testing.assert_allclose(found_losses, losses, rtol=1e-5)
    found = in_float64(ours)
    jax.tree.map(lambda f, p: np.testing.assert_allclose(f, p, atol=1e-5), found, params)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("two_networks", [False, True])
def test_weight_noise_is_one_draw_for_question_and_answer(two_networks):
    adder = seq2seq.language_model_of(smoke(two_networks=two_networks, weight_noise=0.3))
    params = seq2seq.init(smoke(two_networks=two_networks), adder, jax.random.key(0))
    pairs = draw_pairs(jax.random.key(1), jnp.arange(4), 2, "train")
    key, encoded = jax.random.key(2), AdditionConfig().encode(pairs)
    noisy = weight_noise(params, jax.random.fold_in(key, 2**31), 0.3)
    found, wanted = (
        seq2seq.training_sums(adder, p, *encoded, key, noise)[0]
        for p, noise in ((params, 0.3), (noisy, 0.0))
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    quiet = seq2seq.training_sums(adder, params, *encoded, key)[0]
    assert abs(found - quiet) > 1e-2 * quiet


def by_hand(params, question, length, rates, output):
    """The answer of the likeliest symbols, one symbol after the other, masks by expectation."""
    carries = [(np.zeros(len(layer["recurrent"])),) * 2 for layer in params["layers"]]
    written = [*question, GO]
    for place, layers in enumerate(networks(params, question, len(question) + length)):
        x = one_hot(written[place])
        for n, layer in enumerate(layers):
            carries[n], new_h, _ = step(layer, carries[n], x, *rates)
            x = carries[n][1] if output == "state" else new_h
        if place >= len(question):
            scores = x @ params["readout"]["kernel"] + params["readout"]["bias"]
            written.append(int(np.argmax(scores)))
    return written[len(question) + 1 :]


@pytest.mark.parametrize("settings", SETTINGS)
def test_answers_are_those_of_an_independent_decoder(settings):
    config = smoke(**ZONEOUT, **settings)
    adder = seq2seq.language_model_of(config)
    params = random_params(seq2seq.build(config))
    rates, output = ZONEOUT.values(), config.model.output
    pairs = draw_pairs(jax.random.key(0), jnp.arange(50), 3, "validation")
    questions, _ = AdditionConfig().encode(pairs)

    @jax.jit
    def answers(questions):
        carry = seq2seq.read(adder, params, questions, deterministic=True)
        return seq2seq.write(adder, params, carry, 50, 7)

    params64 = in_float64(params)
    wanted = [by_hand(params64, q, 7, rates, output) for q in np.asarray(questions)]
    np.testing.assert_array_equal(answers(questions), wanted)
    assert len({tuple(answer) for answer in wanted}) > 5


def level_of(task, digits):
    """The model state at a number of digits."""
    return task.model_state(None) | {"digits": jnp.float32(digits)}


def evaluated(evaluation, params, level):
    """Means of an evaluation, and over how many additions."""
    losses = jax.jit(lambda row: evaluation.loss(params, level, Batch(evaluation.data, row)))
    totals, counts = jax.lax.map(losses, jnp.asarray(evaluation.rows))
    count = float(counts.sum())
    return {name: float(total.sum()) / count for name, total in totals.items()}, count


@pytest.mark.parametrize("digits", [2, 3])
def test_errors_are_counted_once(digits, monkeypatch):
    """With a model whose answer is always 20."""
    config = smoke(eval_size=1000, eval_batch_size=64)

    def twenty(adder, params, carry, batch, length, rates=None):
        return jnp.broadcast_to(jnp.array([4, 2] + [1] * (length - 2)), (batch, length))

    monkeypatch.setattr(seq2seq, "write", twenty)
    task = seq2seq.build(config)
    params, level = task.init(jax.random.key(0)), level_of(task, digits)
    metrics, count = evaluated(task.validation, params, level)
    wrong = np.mean(np.asarray(task.validation.data[:, digits - 2]).sum(1) != 20)
    assert count == 1000 and 0 < wrong < 1
    np.testing.assert_allclose(metrics["error"], wrong, rtol=1e-6)
    np.testing.assert_allclose(metrics["to_come"], wrong + 3 - digits, rtol=1e-6)
    assert metrics["digits"] == digits
    test = task.test_evaluations["test"]
    metrics, count = evaluated(test, params, level)
    wrong = np.mean(np.asarray(test.data).sum(1) != 20)
    assert count == len(test.data) == 4096 and 0 < wrong < 1
    np.testing.assert_allclose(metrics["error"], wrong, rtol=1e-6)


def test_additions_of_each_set_are_of_its_part_and_size():
    task = seq2seq.build(seq2seq.Config().replace(digits=3, hidden_features=4, eval_size=64))
    test = task.test_evaluations["test"].data
    assert in_part(test, "test").all() and 10**2 < test.max() <= 10**3
    assert task.validation.data.shape == (64, 2, 2)
    for digits, pairs in enumerate(jnp.moveaxis(task.validation.data, 1, 0), 2):
        assert in_part(pairs, "validation").all() and (pairs.max(1) > 10).all()
        assert 10 ** (digits - 1) < pairs.max() <= 10**digits


@pytest.mark.parametrize(("digits", "reverse"), [(2, False), (2, True), (3, False)])
def test_nats_are_those_of_a_loop(digits, reverse, monkeypatch):
    """With masks at their expectation."""
    monkeypatch.setattr(seq2seq, "TEST_SIZE", 20)
    config = smoke(**ZONEOUT, reverse=reverse, eval_size=20, eval_batch_size=16)
    task = seq2seq.build(config)
    params, level, test = random_params(task), level_of(task, digits), task.test_evaluations["test"]
    for evaluation, pairs in (
        (task.validation, task.validation.data[:, digits - 2]),
        (test, test.data),
    ):
        questions, answers = map(np.asarray, AdditionConfig(reverse=reverse).encode(pairs))
        rates = [[np.full((20, 20, 16), rate) for rate in ZONEOUT.values()]] * 2
        wanted, _ = loss_and_gradient(in_float64(params), questions, answers, rates)
        metrics, _ = evaluated(evaluation, params, level)
        np.testing.assert_allclose(metrics["nats"], wanted, rtol=1e-5)


def random_params(task):
    """Large weights, for answers that differ."""
    rng = np.random.default_rng(0)
    params = task.init(jax.random.key(0))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)


@pytest.mark.parametrize("algorithm", [pytest.param("adam", marks=pytest.mark.slow), "momentum"])
def test_a_step_leaves_the_level_alone(algorithm):
    """The optimizer sees weights only, and the loss hands on what it was given."""
    task = seq2seq.build(smoke(algorithm=algorithm, weight_decay=0.1, clip_norm=1.0))
    state = task.initial_state(jax.random.key(0))
    assert set(state.params) == {"encoder", "layers", "readout"}

    def on_a_device(examples):
        batch = Batch(task.data, examples)
        return task.loss(state.params, state.model_state, batch, jax.random.key(1))[1]

    level = jax.vmap(on_a_device, axis_name=AXIS)(task.epoch_indices(None)[:1])
    wanted = jax.tree.map(lambda x: x[None], state.model_state)
    jax.tree.map(np.testing.assert_array_equal, level, wanted)
    params, _ = trained(task, state, jax.random.key(1), 3)
    assert params["readout"]["kernel"][0, 0] != state.params["readout"]["kernel"][0, 0]


def test_a_batch_is_the_same_on_any_devices():
    task = seq2seq.build(smoke(**ZONEOUT))
    state = task.initial_state(jax.random.key(0))

    @functools.partial(jax.jit, static_argnums=0)
    def sums(devices):
        def on_a_device(examples):
            batch = Batch(task.data, examples)
            return task.loss(state.params, state.model_state, batch, jax.random.key(1))[0]

        examples = task.epoch_indices(None)[0].reshape(devices, -1)
        total, count = jax.vmap(on_a_device, axis_name=AXIS)(examples)
        return total.sum(), count.sum()

    np.testing.assert_allclose(sums(4), sums(1), rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--digits=0"], "digits must be in [2, 8], got 0"),
        (["--digits=1"], "digits must be in [2, 8], got 1"),
        (["--digits=9"], "digits must be in [2, 8], got 9"),
        (["--start_digits=1"], "start_digits must be in [2, 8], got 1"),
        (["--input_length=8"], "input_length must be at least 9"),
        (["--target_length=3"], "target_length must be at least 4"),
        (["--digits=6"], "input_length must be at least 15 for numbers up to 10^6, got 13"),
        (["--z_prob_cells=1"], "z_prob_cells must be in [0, 1), got 1"),
        (["--z_prob_states=1"], "z_prob_states must be in [0, 1), got 1"),
        (["--drop_prob_igates=1"], "drop_prob_igates must be in [0, 1), got 1"),
        (["--good_error=2"], "good_error must be in [0, 1]"),
        (["--norm_cost_coeff=50"], "there is no --norm_cost_coeff"),
        (["--clip_by=update"], "clip_by=update has no effect without a clip_norm"),
        (["--momentum=0.5"], "momentum has no effect with algorithm adam"),
        (["--share_mask"], "share_mask needs masks"),
    ],
)
def test_bad_settings(flags, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        EXPERIMENT.main(["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and complaint in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digits", [2, 3])
def test_examples_shown_are_of_the_validation(digits):
    task = seq2seq.build(smoke(eval_size=3))
    found = task.describe(task.init(jax.random.key(0)), level_of(task, digits))
    for shown, (a, b) in zip(found.split("; "), task.validation.data[:, digits - 2], strict=True):
        assert shown.startswith(f"{a}+{b} = {a + b}, answered ")


@pytest.mark.slow
def test_examples_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Progress, "LINE_SECONDS", 0)
    EXPERIMENT.main(["--preset=smoke", "--eval_size=2", f"--workdir={tmp_path / 'run'}"])
    output = capsys.readouterr()
    assert re.search(r"\d\+\d+ = \d+, answered ", output.err)
    assert "seq2seq: validation digits 2.0000, validation error 1.0000, test error" in output.out


@pytest.mark.slow
def test_all_rows_again(tmp_path, capsys):
    flags = ["seq2seq", "--preset=smoke", "--seeds", "0", f"--out={tmp_path}"]
    reproduce.main(flags)
    table = (tmp_path / "table.md").read_text()
    assert "There are no published values." in table
    assert "| LSTM |" in table and "| zoneout |" in table and table in capsys.readouterr().out
    for name in ("curves.png", "curves-digits.png", "curves-error.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
