"""Permuted MNIST: its loss, its population statistics, and the same numbers on more devices."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import permuted_mnist, reproduce
from experiments.lib.pixels import build_cell
from tests import oracles
from tests.experiments.test_command_line import listed
from zoneout_jax import Masks, Zoneout, unroll, update_stats
from zoneout_jax.data import load_images, permutation
from zoneout_jax.training import AXIS, Batch, parse_preset

pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
pytestmark = pytest.mark.usefixtures("standard_promotion")
EXPERIMENT = permuted_mnist.EXPERIMENT
STEPS = 64


def smoke(**changes):
    return EXPERIMENT.presets["smoke"].replace(**changes)


def gradient(task, params, state, examples, devices=1, key=0):
    """Total, count and gradient of the training loss over all devices, and the state after it."""

    def summed(examples):
        def loss(params):
            batch = Batch(data(task), examples)
            (total, count), after = task.loss(params, state, batch, jax.random.key(key))
            return total, (count, after)

        (total, (count, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return *jax.lax.psum((total, count, grads), AXIS), after

    run = jax.pmap(summed, axis_name=AXIS, devices=jax.devices()[:devices])
    found = jax.tree.map(np.asarray, run(jnp.reshape(examples, (devices, -1))))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.stack([x[0]] * devices)), found)
    return jax.tree.map(lambda x: x[0], found)


def evaluated(task, params, state, examples):
    """Totals and count of the validation's loss, of examples of the training data."""
    return task.validation.loss(params, state, Batch(data(task), examples))


def data(task):
    """The training data on the device."""
    return jax.tree.map(jnp.asarray, task.data)


def shaken(task):
    """Parameters and a model state of which no number is a special one."""
    params = task.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten((params, task.model_state(params)))
    rng = np.random.default_rng(2)
    leaves = [x + rng.uniform(0.01, 0.2, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, leaves)


def test_defaults_are_the_papers():
    config = permuted_mnist.Config()
    assert (config.run.batch_size, config.run.epochs, config.data.dataset) == (100, 150, "mnist")
    assert (config.optimizer.learning_rate, config.optimizer.clip_norm) == (1e-3, 1.0)
    model = config.model
    assert (model.hidden_features, model.initial_gamma, model.popstats) == (100, 0.1, "reestimate")
    assert not config.zoneout.spec().active and not model.batch_normalization


@pytest.mark.parametrize("summarize", [False, True])
@pytest.mark.parametrize("batch_normalization", [False, True])
def test_loss_in_numpy(batch_normalization, summarize):
    gain = {"initial_gamma": 0.4} if batch_normalization else {}
    task = permuted_mnist.build(
        smoke(batch_normalization=batch_normalization, summarize=summarize, **gain)
    )
    params, state = shaken(task)
    examples = np.array([5, -1, 17, 3, 40])
    total, count, _, _ = gradient(task, params, state, jnp.asarray(examples))

    images = load_images("digits")
    pixels = images.train.images.reshape(-1, STEPS)[:, permutation(0, STEPS)]
    labels = images.train.labels[examples]
    xs = pixels[examples].T[..., None] / 16
    weights, readout = params["lstm"], params["readout"]
    first = [np.tile(weights[n], (len(examples), 1)) for n in ("initial_c", "initial_h")]
    if summarize:
        first[1] = first[1] + xs.mean(0)
    lengths = np.where(examples >= 0, STEPS, 0)
    options = {"normalization": "batch"} if batch_normalization else {}
    carry, _ = oracles.run(
        "lstm", options, weights, xs, Masks(), lengths, carry=(*first, np.zeros_like(first[0]))
    )
    logits = carry[1] @ np.asarray(readout["kernel"]) + np.asarray(readout["bias"])
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
    assert count == 4
    np.testing.assert_allclose(total, nats[examples >= 0].sum(), rtol=1e-4)

    sums = evaluated(task, params, state, jnp.asarray(examples))
    if not batch_normalization:
        np.testing.assert_allclose(sums[0]["nats"], total, rtol=1e-4)
        wrong = logits.argmax(-1) != labels
        assert sums[0]["error"] == wrong[examples >= 0].sum() and sums[1] == 4


def test_blocks_of_a_linear_cell_in_numpy():
    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def apply(layer, xs):
        return xs @ layer["kernel"] + layer["bias"]

    settings = {"cell": "min_gru", "num_layers": 2, "z_prob_states": 0.3, "igate_drop": 0.1}
    task = permuted_mnist.build(smoke(**settings))
    params, state = shaken(task)
    examples = jnp.arange(5)
    pixels, labels = (np.asarray(array)[:5] for array in task.data)
    network = jax.tree.map(lambda x: np.asarray(x, np.float64), params["min_gru"])
    xs = apply(network["encoder"], pixels.T[..., None] / 16)
    for block in network["blocks"]:
        cell = block["cell"]
        normed = (xs - xs.mean(-1, keepdims=True)) / np.sqrt(xs.var(-1, keepdims=True) + 1e-5)
        h = np.tile(cell["initial_h"], (5, 1))
        ys = []
        for x in block["scale"] * normed:
            z, n = np.split(x @ cell["input"] + cell["bias"], 2, -1)
            new = (1 - sigmoid(z)) * h + sigmoid(z) * 0.9 * n
            h = 0.3 * h + 0.7 * new
            ys.append(h)
        ys = np.stack(ys)
        ys = ys / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (ys + 0.044715 * ys**3)))
        xs = xs + ys * sigmoid(apply(block["gate"], ys))
    logits = apply(params["readout"], xs.mean(0))
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(5), labels]
    totals, count = evaluated(task, params, state, examples)
    assert count == 5
    np.testing.assert_allclose(totals["nats"], nats.sum(), rtol=1e-4)
    sampled = [gradient(task, params, state, examples, key=key)[0] for key in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_pixels_in_order_and_of_a_part():
    whole = permuted_mnist.build(smoke(train_size=None, unpermuted=True))
    part = permuted_mnist.build(smoke(permutation_seed=3))
    pixels = load_images("digits").train.images.reshape(-1, STEPS)
    np.testing.assert_array_equal(whole.data[0], pixels)
    np.testing.assert_array_equal(part.data[0], pixels[:96, permutation(3, STEPS)])
    np.testing.assert_array_equal(
        part.validation.data[0],
        load_images("digits").validation.images.reshape(-1, STEPS)[:, permutation(3, STEPS)],
    )
    assert (whole.steps_per_epoch, part.steps_per_epoch) == (37, 3)


def test_initial_values():
    config = smoke(initialization="id", batch_normalization=True, initial_beta=0.3)
    params = permuted_mnist.build(config).init(jax.random.key(0))["lstm"]
    i, f, g, o = np.split(np.asarray(params["recurrent"]), 4, 1)
    np.testing.assert_array_equal(g, np.eye(8))
    gates = np.concatenate([i, f, o], 1)
    np.testing.assert_allclose(gates @ gates.T, np.eye(8), atol=1e-5)
    biases = np.repeat(np.float32([0.3, 1, 0.3, 0.3]), 8)
    np.testing.assert_array_equal(params["bias"], biases)
    np.testing.assert_array_equal(params["cell_beta"], biases[:8])
    params = permuted_mnist.build(smoke()).init(jax.random.key(0))["lstm"]
    for kernel in (np.asarray(params["input"]), np.asarray(params["recurrent"])):
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(len(kernel)), atol=1e-5)


def test_an_update_by_hand():
    """The gradient, clipped to norm 1, and then RMSProp."""
    task = permuted_mnist.build(smoke())
    params = {"weight": jnp.array([0.3, -0.2, 0.1])}
    state = task.optimizer.init(params)
    square, wanted = np.zeros(3), np.asarray(params["weight"], np.float64)
    for gradient in ([3.0, -4.0, 0.0], [0.3, 0.1, 1e-6]):
        updates, state = task.optimizer.update({"weight": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        clipped = np.array(gradient) / max(1, np.linalg.norm(gradient))
        square = 0.5 * square + 0.5 * clipped**2
        wanted = wanted - 1e-3 * clipped / np.sqrt(square + 1e-10)
        np.testing.assert_allclose(params["weight"], wanted, rtol=1e-5)


def test_noise_is_on_the_first_state_and_in_training_alone():
    examples = jnp.arange(32)
    quiet, noisy = (permuted_mnist.build(smoke(noise=noise)) for noise in (0.0, 0.5))
    params, state = shaken(quiet)

    def both(task):
        total, *_ = gradient(task, params, state, examples, key=1)
        return total, evaluated(task, params, state, examples)[0]["nats"]

    assert both(quiet)[0] != both(noisy)[0]
    assert both(quiet)[1] == both(noisy)[1]


def test_options_reach_the_cell():
    xs = jnp.ones((3, 2, 1))
    outputs = {}
    for activation in ("tanh", "relu"):
        cell = build_cell(smoke(activation=activation, hidden_features=5), 3)
        params = cell.init(jax.random.key(0))
        outputs[activation] = unroll(cell, params, xs, deterministic=True)[1]
        assert outputs[activation].shape == (3, 2, 5)
    assert not np.allclose(outputs["tanh"], outputs["relu"], atol=1e-3)


def test_moving_averages_are_those_of_update_stats():
    config = smoke(batch_normalization=True, z_prob_cells=0.3, z_prob_states=0.2)
    tasks = {
        popstats: permuted_mnist.build(config.replace(popstats=popstats))
        for popstats in ("ema", "reestimate")
    }
    params, state = shaken(tasks["ema"])
    examples = jnp.arange(16)
    found = {popstats: gradient(task, params, state, examples) for popstats, task in tasks.items()}
    total, _, grads, moved = found["ema"]
    same_total, _, same_grads, kept = found["reestimate"]

    # Neither the loss nor the gradient knows of the averages; two programs round differently.
    np.testing.assert_allclose(total, same_total, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, grads, same_grads)

    cell = build_cell(config, STEPS)
    xs = tasks["ema"].data[0][np.arange(16)].T[..., None] / np.float32(16)
    mode = {"zoneout": config.zoneout.spec(), "key": jax.random.key(0)}
    *_, batch = unroll(cell, params["lstm"], xs, **mode)
    stats = state["stats"]
    wanted = update_stats(stats, batch, permuted_mnist.EMA_RATE)
    assert moved["stats"].keys() == kept["stats"].keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(moved["stats"][name], wanted[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(moved["stats"][name], stats[name], rtol=1e-4)
        np.testing.assert_array_equal(kept["stats"][name], stats[name])


def test_reestimated_statistics_are_the_average_with_expected_masks():
    config = smoke(
        batch_normalization=True,
        z_prob_cells=0.5,
        z_prob_states=0.4,
        igate_drop=0.3,
        train_size=None,
        popstats_size=80,
    )
    task = permuted_mnist.build(config)
    params, state = shaken(task)
    calibration = task.calibration
    assert [list(row[row >= 0]) for row in calibration.rows] == [
        list(range(32)),
        list(range(32, 64)),
        list(range(64, 80)),
    ]
    run = jax.pmap(
        lambda row: calibration.loss(params, state, Batch(data(task), row)),
        axis_name=AXIS,
        devices=jax.devices()[:1],
    )
    sums = [jax.tree.map(lambda x: np.asarray(x[0]), run(row[None])) for row in calibration.rows]
    total = jax.tree.map(lambda *x: sum(x), *(s for s, _ in sums))
    means = jax.tree.map(lambda x: x / sum(count for _, count in sums), total)
    assert jax.tree.structure(means) == jax.tree.structure(state)
    fitted = means["stats"]

    cell = build_cell(config, STEPS)
    pixels = task.data[0][:80].T[..., None] / np.float32(16)
    masks = Masks(cells=jnp.float32(0.5), states=jnp.float32(0.4), update=jnp.float32(0.7))
    parts = [(pixels[:, :32], 32), (pixels[:, 32:64], 32), (pixels[:, 64:], 16)]
    found = [(unroll(cell, params["lstm"], xs, masks=masks)[2], n) for xs, n in parts]
    for name in fitted:
        wanted = sum(f[name] * n for f, n in found) / 80
        np.testing.assert_allclose(fitted[name], wanted, rtol=1e-4, atol=1e-5)
    # What comes of the inputs alone, in NumPy.
    gates = pixels @ np.asarray(params["lstm"]["input"])
    variance = sum(
        gates[:, start : start + n].var(1) * n for start, n in ((0, 32), (32, 32), (64, 16))
    )
    np.testing.assert_allclose(fitted["input_var"], variance / 80, rtol=1e-4, atol=1e-6)
    assert permuted_mnist.build(smoke(batch_normalization=True, popstats="ema")).calibration is None


@pytest.mark.parametrize("popstats", ["ema", "reestimate"])
def test_same_gradient_and_statistics_on_any_number_of_devices(popstats):
    config = smoke(
        batch_normalization=True, z_prob_cells=0.3, z_prob_states=0.2, popstats=popstats, noise=0.1
    )
    task = permuted_mnist.build(config)
    params, state = shaken(task)
    examples = jnp.arange(16).at[3].set(-1)
    one, eight = (gradient(task, params, state, examples, devices) for devices in (1, 8))
    assert one[1] == 15
    # Sums in another order round otherwise, and 64 normalizations over few examples enlarge that,
    # on some processors to 3e-5. Statistics of each device alone would change the first digits.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4), one, eight)
    if popstats == "ema":
        return

    def statistics(devices):
        def summed(row):
            batch = Batch(data(task), row)
            return jax.lax.psum(task.calibration.loss(params, state, batch), AXIS)

        run = jax.pmap(summed, axis_name=AXIS, devices=jax.devices()[:devices])
        total, count = run(examples.reshape(devices, -1))
        return jax.tree.map(lambda x: np.asarray(x[0] / count[0]), total)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5),
        statistics(1),
        statistics(8),
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset=cifar"], "dataset"),
        (["--z_prob_cells=1.5"], "z_prob_cells must be in [0, 1]"),
        (["--z_prob_cells=0.1", "--z_prob_states=0.2", "--share_mask"], "shared mask has one rate"),
        (["--noise=0.1", "--summarize"], "noise and summarize"),
        (["--initial_beta=nan"], "initial_beta must be finite"),
        (["--initial_gamma=0", "--batch_normalization"], "initial_gamma must be"),
        (["--initial_gamma=0.5"], "initial_gamma has no effect without batch_normalization"),
        (["--popstats=ema"], "popstats has no effect without batch_normalization"),
        (["--popstats_size=9"], "popstats_size has no effect without batch_normalization"),
        (
            ["--popstats_size=9", "--batch_normalization", "--popstats=ema"],
            "popstats_size has no effect without",
        ),
        (
            ["--popstats_size=97", "--batch_normalization"],
            "popstats_size is 97, but the data has only 96; give at most that",
        ),
        (["--share_mask"], "shared masks need a rate"),
        (["--permutation_seed=1", "--unpermuted"], "unpermuted pixels"),
        (["--popstats=none"], "popstats"),
        (["--train_size=20"], "20 examples are fewer than one batch of 32"),
        (["--permutation_seed=-1"], "permutation_seed"),
        (["--num_layers=2"], "cell lstm has no num_layers: leave it out"),
        (["--cell=lru", "--batch_normalization"], "cell lru has no batch_normalization"),
        (["--cell=lru", "--z_prob_cells=0.5"], "cell lru has no memory cells"),
        (["--cell=min_gru", "--sweep=z_prob_cells=0.5"], "cell min_gru has no memory cells"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        EXPERIMENT.main(["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_rows_of_the_table_are_flags_that_are_understood():
    for row in EXPERIMENT.rows.values():
        config = parse_preset(EXPERIMENT.presets, row.flags)
        assert isinstance(config.zoneout.spec(), Zoneout)
        assert set(EXPERIMENT.published(row)) <= set(EXPERIMENT.metrics)
    for name, preset in EXPERIMENT.presets.items():
        assert preset.preset == name
        assert json.loads(json.dumps(preset.identity())) == listed(preset.identity())


@pytest.mark.slow
def test_a_run_and_its_table(tmp_path, capsys):
    row = "zoneout + recurrent batch norm"
    options = reproduce.Options(
        experiment="permuted_mnist", preset="smoke", seeds=(0,), rows=(row,), epochs=1, out=tmp_path
    )
    table = reproduce.reproduce(options)
    metrics = table["rows"][0]["metrics"]
    assert metrics["test_error"]["published"] == 0.041
    text = (tmp_path / "table.md").read_text()
    # Nothing is beside it with which it cannot be compared.
    assert f"| {metrics['test_error']['mean']:.3f} |" in text
    assert "preset smoke, digits;" in text
    assert "Preset smoke has other settings than the paper." in text
    assert (tmp_path / "curves.png").exists()

    # The same run by its own command: it is done.
    workdir = tmp_path / f"{row.replace(' ', '_')}-seed0"
    flags = ("--preset=smoke", "--epochs=1", *EXPERIMENT.rows[row].flags)
    EXPERIMENT.main([*flags, f"--workdir={workdir}"])
    result = json.loads((workdir / "result.json").read_text())
    assert result["images"] == {"train": 96, "validation": 300, "test": 300}
    for metric in EXPERIMENT.metrics:
        wrong = result[metric] * 300
        np.testing.assert_allclose(wrong, round(wrong), atol=1e-4)
    validation, test = (f"{result[metric]:.4f}" for metric in EXPERIMENT.metrics)
    said = f"{row}, seed 0: validation error {validation}, test error {test}, of epoch 1\n"
    assert said in capsys.readouterr().out


def test_expected_masks_in_training():
    config = smoke(z_prob_cells=0.5, z_prob_states=0.3)
    task = permuted_mnist.build(config, sampled=False)
    params, state = shaken(task)
    examples = jnp.arange(16)
    totals = [gradient(task, params, state, examples, key=key)[0] for key in (0, 1)]
    wanted, _ = evaluated(task, params, state, examples)
    assert totals[0] == totals[1]
    np.testing.assert_allclose(totals[0], wanted["nats"], rtol=1e-5)
    sampled = permuted_mnist.build(config)
    assert gradient(sampled, params, state, examples, key=0)[0] != totals[0]
