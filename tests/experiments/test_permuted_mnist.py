"""Permuted MNIST: its loss, its population statistics, and the same numbers on more devices."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import permuted_mnist, reproduce
from tests import oracles
from zoneout_jax import Masks, Zoneout, unroll, update_stats
from zoneout_jax.data import load_images, permutation
from zoneout_jax.training import AXIS, parse_preset

pytest.importorskip("sklearn", reason="needs scikit-learn's digits")
pytestmark = pytest.mark.usefixtures("standard_promotion")
SMOKE = permuted_mnist.PRESETS["smoke"]
STEPS = 64


def smoke(**changes):
    return dataclasses.replace(SMOKE, **changes)


def gradient(task, params, examples, devices=1, key=0):
    """Totals, counts and gradient of the training loss, summed over devices."""

    def summed(examples):
        grad = jax.value_and_grad(task.loss, has_aux=True)
        (total, count), grads = grad(params, data(task), examples, jax.random.key(key))
        return jax.lax.psum((total, count, grads), AXIS)

    run = jax.pmap(summed, axis_name=AXIS, devices=jax.devices()[:devices])
    return jax.tree.map(lambda x: np.asarray(x[0]), run(jnp.reshape(examples, (devices, -1))))


def data(task):
    """The training data on the device."""
    return jax.tree.map(jnp.asarray, task.data)


def shaken(task):
    """Parameters of which none is at a special value."""
    params = task.init(jax.random.key(1))
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    leaves = [x + rng.uniform(0.01, 0.2, x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, leaves)


def test_defaults_are_the_papers():
    config = permuted_mnist.Config()
    assert (config.hidden_features, config.batch_size, config.epochs) == (100, 100, 150)
    assert (config.learning_rate, config.clip_norm, config.dataset) == (1e-3, 1.0, "mnist")
    assert (config.initial_gamma, config.popstats) == (0.1, "reestimate")
    assert not config.zoneout().active and not config.batch_normalization


@pytest.mark.parametrize("summarize", [False, True])
@pytest.mark.parametrize("batch_normalization", [False, True])
def test_loss_in_numpy(batch_normalization, summarize):
    gain = {"initial_gamma": 0.4} if batch_normalization else {}
    task = permuted_mnist.build(
        smoke(batch_normalization=batch_normalization, summarize=summarize, **gain)
    )
    params = shaken(task)
    examples = np.array([5, -1, 17, 3, 40])
    total, count, _ = gradient(task, params, jnp.asarray(examples))

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

    sums = task.validation.loss(params, data(task), jnp.asarray(examples))
    if not batch_normalization:
        np.testing.assert_allclose(sums[0]["nats"], total, rtol=1e-4)
        wrong = logits.argmax(-1) != labels
        assert sums[0]["error"] == wrong[examples >= 0].sum() and sums[1] == 4


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
    params = shaken(quiet)

    def both(task):
        total, _, _ = gradient(task, params, examples, key=1)
        return total, task.validation.loss(params, data(task), examples)[0]["nats"]

    assert both(quiet)[0] != both(noisy)[0]
    assert both(quiet)[1] == both(noisy)[1]


def test_options_reach_the_cell():
    xs = jnp.ones((3, 2, 1))
    outputs = {}
    for activation in ("tanh", "relu"):
        cell = permuted_mnist.build_cell(smoke(activation=activation, hidden_features=5), 3)
        params = cell.init(jax.random.key(0))
        outputs[activation] = unroll(cell, params, xs, deterministic=True)[1]
        assert outputs[activation].shape == (3, 2, 5)
    assert not np.allclose(outputs["tanh"], outputs["relu"], atol=1e-3)


def test_moving_averages_are_those_of_update_stats():
    config = smoke(batch_normalization=True, z_prob_cells=0.3, z_prob_states=0.2)
    tasks = {
        popstats: permuted_mnist.build(dataclasses.replace(config, popstats=popstats))
        for popstats in ("ema", "reestimate")
    }
    params = shaken(tasks["ema"])
    examples = jnp.arange(16)
    found = {popstats: gradient(task, params, examples) for popstats, task in tasks.items()}
    (total, count, grads), (same_total, _, same_grads) = found["ema"], found["reestimate"]
    weights = {name: same_grads[name] for name in ("lstm", "readout")}

    # Neither the loss nor the gradient of a weight knows of the averages; two programs round
    # differently.
    np.testing.assert_allclose(total, same_total, rtol=1e-6)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    for name, wanted in weights.items():
        jax.tree.map(close, grads[name], wanted)

    # Nor does the update of a weight, clipped together as these are.
    updated = []
    for popstats, totals in (("ema", grads | weights), ("reestimate", same_grads)):
        task, means = tasks[popstats], jax.tree.map(lambda g: g / count, totals)
        updates, _ = task.optimizer.update(means, task.optimizer.init(params), params)
        updated.append(optax.apply_updates(params, updates))
    moved, kept = updated
    for name in weights:
        jax.tree.map(np.testing.assert_array_equal, moved[name], kept[name])

    cell = permuted_mnist.build_cell(config, STEPS)
    xs = tasks["ema"].data[0][np.arange(16)].T[..., None] / np.float32(16)
    mode = {"zoneout": config.zoneout(), "key": jax.random.key(0)}
    *_, batch = unroll(cell, params["lstm"], xs, **mode)
    wanted = update_stats(params["stats"], batch, permuted_mnist.EMA_RATE)
    for name in wanted:
        np.testing.assert_allclose(moved["stats"][name], wanted[name], rtol=1e-5, atol=1e-6)
        assert not np.allclose(moved["stats"][name], params["stats"][name], rtol=1e-4)
        np.testing.assert_array_equal(kept["stats"][name], params["stats"][name])


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
    params = shaken(task)
    calibration = task.calibration
    assert [list(row[row >= 0]) for row in calibration.rows] == [
        list(range(32)),
        list(range(32, 64)),
        list(range(64, 80)),
    ]
    run = jax.pmap(
        lambda row: calibration.sums(params, data(task), row),
        axis_name=AXIS,
        devices=jax.devices()[:1],
    )
    sums = [jax.tree.map(lambda x: np.asarray(x[0]), run(row[None])) for row in calibration.rows]
    total = jax.tree.map(lambda *x: sum(x), *(s for s, _ in sums))
    means = jax.tree.map(lambda x: x / sum(count for _, count in sums), total)
    fitted = calibration.apply(params, means)

    cell = permuted_mnist.build_cell(config, STEPS)
    pixels = task.data[0][:80].T[..., None] / np.float32(16)
    masks = Masks(cells=jnp.float32(0.5), states=jnp.float32(0.4), update=jnp.float32(0.7))
    parts = [(pixels[:, :32], 32), (pixels[:, 32:64], 32), (pixels[:, 64:], 16)]
    found = [(unroll(cell, params["lstm"], xs, masks=masks)[2], n) for xs, n in parts]
    for name in params["stats"]:
        wanted = sum(f[name] * n for f, n in found) / 80
        np.testing.assert_allclose(fitted["stats"][name], wanted, rtol=1e-4, atol=1e-5)
    # What comes of the inputs alone, in NumPy.
    gates = pixels @ np.asarray(params["lstm"]["input"])
    variance = sum(
        gates[:, start : start + n].var(1) * n for start, n in ((0, 32), (32, 32), (64, 16))
    )
    np.testing.assert_allclose(fitted["stats"]["input_var"], variance / 80, rtol=1e-4, atol=1e-6)
    assert fitted["lstm"] is params["lstm"]
    assert permuted_mnist.build(smoke(batch_normalization=True, popstats="ema")).calibration is None


@pytest.mark.parametrize("popstats", ["ema", "reestimate"])
def test_same_gradient_and_statistics_on_any_number_of_devices(popstats):
    config = smoke(
        batch_normalization=True, z_prob_cells=0.3, z_prob_states=0.2, popstats=popstats, noise=0.1
    )
    task = permuted_mnist.build(config)
    params = shaken(task)
    examples = jnp.arange(16).at[3].set(-1)
    one, eight = (gradient(task, params, examples, devices) for devices in (1, 8))
    assert one[1] == 15
    # Sums in another order round otherwise, and 64 normalizations over few examples enlarge that,
    # on some processors to 3e-5. Statistics of each device alone would change the first digits.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4), one, eight)
    if popstats == "ema":
        return

    def statistics(devices):
        run = jax.pmap(
            lambda row: jax.lax.psum(task.calibration.sums(params, data(task), row), AXIS),
            axis_name=AXIS,
            devices=jax.devices()[:devices],
        )
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
        (["--initial_gamma=0.5"], "initial_gamma has no effect"),
        (["--permutation_seed=1", "--unpermuted"], "unpermuted pixels"),
        (["--popstats=none"], "popstats"),
        (["--train_size=20"], "20 examples are fewer than one batch of 32"),
        (["--permutation_seed=-1"], "permutation_seed"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        permuted_mnist.main(["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_rows_of_the_table_are_flags_that_are_understood():
    for flags, published in permuted_mnist.ROWS.values():
        config = parse_preset(permuted_mnist.PRESETS, flags, "prog", "")
        assert isinstance(config.zoneout(), Zoneout)
        assert set(published) <= set(permuted_mnist.FIGURES)
    for name, preset in permuted_mnist.PRESETS.items():
        assert preset.preset == name
        assert json.loads(json.dumps(preset.identity())) == preset.identity()


def test_a_run_and_its_table(tmp_path, capsys):
    row = "zoneout + recurrent batch norm"
    options = reproduce.Options(
        experiment="permuted_mnist", preset="smoke", seeds=(0,), rows=(row,), epochs=1, out=tmp_path
    )
    table = reproduce.reproduce(options)
    figures = table["rows"][0]["figures"]
    assert figures["test_error"]["published"] == 0.041
    text = (tmp_path / "table.md").read_text()
    assert f"{figures['test_error']['mean']:.3f} (0.041)" in text
    assert "preset smoke, digits;" in text and "published, on MNIST." in text
    assert (tmp_path / "curves.png").exists()

    # The same run by its own command: it is done.
    workdir = tmp_path / f"{row.replace(' ', '_')}-seed0"
    flags = ("--preset=smoke", "--epochs=1", *permuted_mnist.ROWS[row][0])
    permuted_mnist.main([*flags, f"--workdir={workdir}"])
    result = json.loads((workdir / "result.json").read_text())
    assert result["images"] == {"train": 96, "validation": 300, "test": 300}
    for figure in permuted_mnist.FIGURES:
        wrong = result[figure] * 300
        np.testing.assert_allclose(wrong, round(wrong), atol=1e-4)
    assert f"{result['test_error']:.4f} test" in capsys.readouterr().out


def test_expected_masks_in_training():
    config = smoke(z_prob_cells=0.5, z_prob_states=0.3)
    task = permuted_mnist.build(config, sampled=False)
    params = shaken(task)
    examples = jnp.arange(16)
    totals = [gradient(task, params, examples, key=key)[0] for key in (0, 1)]
    wanted, _ = task.validation.loss(params, data(task), examples)
    assert totals[0] == totals[1]
    np.testing.assert_allclose(totals[0], wanted["nats"], rtol=1e-5)
    sampled = permuted_mnist.build(config)
    assert gradient(sampled, params, examples, key=0)[0] != totals[0]
