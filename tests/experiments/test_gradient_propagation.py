"""Gradients through time: exact, of the state that they are said to be of, and told in one line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gradient_propagation as propagation
from experiments import permuted_mnist, reproduce
from experiments.lib.language_model import readout_init
from experiments.lib.pixels import build_cell
from tests import oracles
from zoneout_jax import LSTM, Masks, unroll
from zoneout_jax.training import AXIS, Batch, StopRequest, Streams, Trained

MAIN = propagation.EXPERIMENT.main
pytestmark = pytest.mark.usefixtures("standard_promotion")
STEPS, BATCH, HIDDEN = 7, 4, 5


def model(batch_normalization=False, rates=(None, None)):
    """A small cell in float64 with everything that `gradients` takes."""
    norm = {"normalization": "batch", "max_steps": STEPS} if batch_normalization else {}
    cell = LSTM(1, HIDDEN, learned_carry=True, param_dtype=jnp.float64, **norm)
    keys = jax.random.split(jax.random.key(0), 3)
    readout = readout_init(keys[1], (HIDDEN, 3), permuted_mnist.orthogonal)
    params = {"lstm": cell.init(keys[0]), "readout": readout}
    params = jax.tree.map(lambda x: x.astype(jnp.float64) + 0.03, params)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.uniform(size=(STEPS, BATCH, 1)))

    def mask(rate):
        return None if rate is None else jnp.asarray(rng.random((STEPS, BATCH, HIDDEN)) < rate)

    masks = Masks(cells=mask(rates[0]), update=mask(rates[1]))
    return cell, params, xs, jnp.asarray([0, 2, 1, 2]), masks


@pytest.mark.parametrize("batch_normalization", [False, True])
@pytest.mark.parametrize("rates", [(None, None), (0.5, None), (None, 0.5)])
def test_finite_differences(rates, batch_normalization, x64):
    arguments = model(batch_normalization, rates)
    zeros = propagation.probes(arguments[0], arguments[2])
    found = propagation.gradients(*arguments)
    loss = jax.jit(lambda probes: propagation.probed_loss(probes, *arguments))
    size = 1e-6
    for state in range(2):
        for place in np.ndindex(STEPS, BATCH, HIDDEN):
            ends = []
            for sign in (1, -1):
                probes = [*zeros]
                probes[state] = zeros[state].at[place].set(sign * size)
                ends.append(loss(tuple(probes)))
            slope = (ends[0] - ends[1]) / (2 * size)
            np.testing.assert_allclose(found[state][place], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("batch_normalization", [False, True])
@pytest.mark.parametrize("t", [0, 2, STEPS - 2])
def test_they_are_of_the_state_after_a_step(t, batch_normalization, x64):
    """The rest of a sequence, run by `unroll` from a state, has the same gradient."""
    cell, params, xs, labels, masks = model(batch_normalization, (0.5, None))
    found = propagation.gradients(cell, params, xs, labels, masks)
    part, rest = (Masks(cells=x) for x in (masks.cells[: t + 1], masks.cells[t + 1 :]))
    state, *_ = unroll(cell, params["lstm"], xs[: t + 1], masks=part)

    def loss(state):
        carry, *_ = unroll(cell, params["lstm"], xs[t + 1 :], state, masks=rest)
        logits = carry[1] @ params["readout"]["kernel"] + params["readout"]["bias"]
        return -jnp.sum(jax.nn.log_softmax(logits)[jnp.arange(BATCH), labels])

    wanted = jax.grad(loss)(state)
    for which in range(2):
        np.testing.assert_allclose(found[which][t], wanted[which], rtol=1e-7, atol=1e-12)
    assert not found[0][-1].any() and found[1][-1].any() and found[0][-2].any()


def test_probes_of_zero_leave_the_model_as_it_is(x64):
    cell, params, xs, labels, masks = model(rates=(0.5, None))
    loss = propagation.probed_loss(propagation.probes(cell, xs), cell, params, xs, labels, masks)
    start = [np.tile(params["lstm"][name], (BATCH, 1)) for name in ("initial_c", "initial_h")]
    carry, _ = oracles.run("lstm", {}, params["lstm"], xs, masks, carry=(*start, 0 * start[0]))
    logits = carry[1] @ np.asarray(params["readout"]["kernel"]) + params["readout"]["bias"]
    nats = np.log(np.exp(logits).sum(-1)) - logits[np.arange(BATCH), labels]
    np.testing.assert_allclose(loss, nats.sum(), rtol=1e-9)


@pytest.mark.parametrize(
    ("norms", "steps"),
    [
        ([1e-4, 1e-3, 1e-2, 0.1, 1], 4),
        ([0.9e-3, 0.9e-3, 1e-2, 0.1, 1], 3),
        ([1e-5, 2e-4, 1e-2, 0.1, 0], 4),
        ([1, 2, 3, 2, 1], None),
        ([5, 1e-9, 3, 2, 1], None),  # it grows on the way back
        ([1e-9, 5, 3, 2, 1], 4),
        ([0, 0, 0], None),
    ],
)
def test_reach(norms, steps):
    assert propagation.reach(np.array(norms)) == steps


@pytest.mark.slow
def test_measure(tmp_path, monkeypatch, capsys):
    flags = ["--preset=smoke", "--train_size=32", "--examples=8", f"--out={tmp_path}"]
    flags += ["--models", "static identity"]
    MAIN(flags)
    assert "static identity: steps before the end where the norm has" in capsys.readouterr().out
    result = json.loads((tmp_path / "gradient_norms.json").read_text())
    model = result["models"]["static identity"]
    first, trained = (np.array(model[stage]["c"]["norms"]) for stage in propagation.STAGES)
    assert len(first) == 64 and (first[:-1] > 0).all() and first[-1] == 0
    assert not np.allclose(trained[:-1], first[:-1], rtol=1e-3)

    # By hand: the mean over examples, with weights that nothing has trained.
    config = permuted_mnist.PRESETS["smoke"].replace(z_prob_cells=0.5)
    task = permuted_mnist.build(config)
    pixels, labels = (jnp.asarray(x[:8]) for x in task.validation.data)
    params = task.init(Streams.from_seed(0).init)
    cell = build_cell(config, 64)
    masks = Masks(cells=jnp.full((64, 1, 1), 0.5))
    xs = pixels.T[..., None].astype(jnp.float32) / 16
    by_c, by_h = propagation.gradients(cell, params, xs, labels.astype(jnp.int32), masks)
    for state, found in (("c", by_c), ("h", by_h)):
        norms = np.sqrt(np.square(np.asarray(found, np.float64)).sum(-1)).mean(1)
        np.testing.assert_allclose(model["initialization"][state]["norms"], norms, rtol=1e-4)
    for name in ("normalized.png", "norms.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    # A run that is done is not run again.
    monkeypatch.setattr("zoneout_jax.training.loop._Fit", None)
    MAIN(flags)
    assert json.loads((tmp_path / "gradient_norms.json").read_text())["models"] == result["models"]

    # Another model is added; other settings are not mixed with these.
    monkeypatch.undo()
    MAIN([*flags[:-1], "LSTM"])
    both = json.loads((tmp_path / "gradient_norms.json").read_text())["models"]
    assert list(both) == ["static identity", "LSTM"]
    assert both["static identity"] == result["models"]["static identity"]
    with pytest.raises(SystemExit):
        MAIN([*flags, "--epochs=2"])
    assert "has other settings" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["zoneout", "recurrent dropout", "static identity", "batch norm 0.5"]
)
def test_each_model_is_measured_as_it_is_trained(name, tmp_path, monkeypatch):
    """With weights of our own in the place of trained ones."""
    settings = propagation.MODELS[name]
    config = permuted_mnist.PRESETS["smoke"].replace(seed=3, **settings)
    task, streams = permuted_mnist.build(config), Streams.from_seed(3)
    weights = {"initialization": task.init(streams.init)}
    weights["trained"] = jax.tree.map(lambda w: 1.2 * w, weights["initialization"])
    fitted = []
    monkeypatch.setattr(propagation, "fit", lambda task, config, run, stop: fitted.append(task))
    model_state = task.model_state(weights["trained"])
    last, best = ((weights[stage], model_state) for stage in ("trained", "initialization"))
    kept = Trained(last, best)
    monkeypatch.setattr(propagation, "read_trained", lambda *which: kept)
    options = propagation.PRESETS["smoke"].replace(examples=6)
    found = propagation.measure_model(options, name, 3, tmp_path, StopRequest())

    images = config.data.load()[1]["validation"]
    pixels, labels = (jnp.asarray(x[:6]) for x in images)
    xs = pixels.T[..., None].astype(jnp.float32) / 16
    cell = build_cell(config, 64)
    drawn = config.zoneout.spec().sample(jax.random.fold_in(streams.noise, 2**31), 64, 6, 8)
    masks = {
        "zoneout": Masks(cells=drawn.cells),
        "recurrent dropout": Masks(update=drawn.update),
        "static identity": Masks(cells=jnp.full((64, 1, 1), 0.5)),
        "batch norm 0.5": Masks(),
    }[name]
    for stage, params in weights.items():
        by_hand = propagation.gradients(cell, params, xs, labels.astype(jnp.int32), masks)
        for state, gradient in zip("ch", by_hand, strict=True):
            norms = np.sqrt(np.square(np.asarray(gradient, np.float64)).sum(-1)).mean(1)
            np.testing.assert_allclose(found[stage][state], norms, rtol=1e-4)

    # The trained model began with the same weights and gains, and had the same kind of masks: with
    # sampled ones, a key makes a difference.
    (task,), examples = fitted, jnp.arange(6)
    first = task.init(streams.init)
    jax.tree.map(np.testing.assert_array_equal, first, weights["initialization"])
    gain = first["lstm"].get("recurrent_gamma", settings.get("initial_gamma"))
    assert gain is None or np.all(gain == np.float32(settings["initial_gamma"]))

    data = jax.tree.map(jnp.asarray, task.data)

    def loss(seed):
        def on_a_device(examples):
            batch, key = Batch(data, examples), jax.random.key(seed)
            return task.loss(weights["trained"], model_state, batch, key)[0][0]

        return jax.jit(jax.vmap(on_a_device, axis_name=AXIS))(examples[None])[0]

    assert (loss(0) != loss(1)) == (name in ("zoneout", "recurrent dropout"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--models", "GRU"], "unknown model 'GRU'; choose from LSTM, zoneout"),
        (["--models", "LSTM", "LSTM"], "one or more distinct values"),
        (["--seeds", "-1"], "seeds must be in [0, 4294967295]"),
        (["--epochs=0"], "epochs must be at least 1"),
        (["--examples=1"], "examples must be at least 2"),
        (["--examples=301"], "examples must be at most 300, got 301"),
        (["--preset=large"], "unknown preset 'large'"),
        (["--train_size=7"], "7 examples are fewer than one batch of 32"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, words, tmp_path, capsys):
    preset = [] if "--preset=large" in flags else ["--preset=smoke"]
    with pytest.raises(SystemExit) as end:
        MAIN([*preset, f"--out={tmp_path / 'out'}", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_reproduce_measures(tmp_path, monkeypatch):
    echo = dataclasses.replace(propagation.EXPERIMENT, measure=lambda options: options)
    monkeypatch.setattr(propagation, "EXPERIMENT", echo)
    options = reproduce.Options(experiment="gradient_propagation", preset="laptop", seeds=(3, 4))
    wanted = propagation.PRESETS["laptop"].replace(seeds=(3, 4))
    assert reproduce.reproduce(options) == wanted
    changes = {"rows": ("LSTM",), "epochs": 2, "out": tmp_path}
    wanted = wanted.replace(models=("LSTM",), epochs=2, out=tmp_path)
    assert reproduce.reproduce(options.replace(**changes)) == wanted
