"""Semantic consistency: training against a loop in NumPy, the claim, bad settings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reproduce
from experiments import semantic_consistency as consistency

SMOKE = consistency.PRESETS["smoke"]
MAIN = consistency.EXPERIMENT.main


def trained(config):
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds, jnp.uint32))
    told = []
    losses, path = jax.jit(lambda keys: consistency.train(config, keys, told.append))(keys)
    jax.effects_barrier()
    return np.asarray(losses), np.asarray(path), [int(steps) for steps in told]


def gradient(w, start, masks):
    """Of Σ‖h_T − h_0‖² by w, with every vector of the batch taken through every step."""
    states = [start]
    for d in masks:
        states.append(d * states[-1] + (1 - d) * (states[-1] @ w))
    value, by_h, by_w = np.sum((states[-1] - start) ** 2), 2 * (states[-1] - start), 0.0
    for d, h in zip(masks[::-1], states[-2::-1], strict=True):
        by_product = (1 - d) * by_h
        by_w += h.T @ by_product
        by_h = d * by_h + by_product @ w.T
    return value, by_w


@pytest.mark.parametrize("units", [2, 3])
def test_a_hundred_steps_are_those_of_a_loop(units):
    config = SMOKE.replace(units=units, rates=(0.1, 0.0, 0.4), steps=100, points=100)
    losses, path, _ = trained(config)
    for n, seed in enumerate(config.seeds):
        init_key, data_key = jax.random.split(jax.random.key(seed))
        first = np.asarray(consistency.first_weights(config, init_key), np.float64)
        np.testing.assert_allclose(path[0, n], np.stack([first] * 3), rtol=1e-6)
        draw = jax.jit(
            lambda step, key=data_key: consistency.draw(config, jax.random.fold_in(key, step))
        )
        draws = [jax.tree.map(lambda x: np.asarray(x, np.float64), draw(s)) for s in range(100)]
        for r in range(3):
            w = first
            for step, (start, masks) in enumerate(draws):
                value, slope = gradient(w, start, masks[r])
                w = w - config.learning_rate * slope
                np.testing.assert_allclose(losses[step, n, r], value / 32, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(path[step + 1, n, r], w, rtol=1e-5, atol=1e-5)


def test_draws():
    """Means and variances within five standard deviations, one mask for a batch and a step."""
    config = SMOKE.replace(rates=(0.1, 0.0))
    keys = jax.random.split(jax.random.key(0), 2000)
    h, masks = jax.vmap(lambda key: consistency.draw(config, key))(keys)
    assert h.shape == (2000, 32, 2) and masks.shape == (2000, 2, 10, 2)
    assert abs(float(h.mean())) < 5 / h.size**0.5
    assert abs(float(h.var()) - 1) < 5 * (2 / h.size) ** 0.5
    kept = masks[:, 0]
    assert abs(float(kept.mean()) - 0.1) < 5 * (0.09 / kept.size) ** 0.5
    assert not masks[:, 1].any()


def test_solutions():
    """−I is one without zoneout alone, +I always."""
    h = jax.random.normal(jax.random.key(0), (32, 2))
    off, on = jnp.zeros((10, 2), bool), jnp.zeros((10, 2), bool).at[3, 0].set(True)
    for sign, masks, solved in ((-1, off, True), (-1, on, False), (1, off, True), (1, on, True)):
        assert bool(consistency.loss(sign * jnp.eye(2), h, masks) == 0) == solved


@pytest.mark.slow
def test_the_claim(tmp_path):
    config = consistency.PRESETS["laptop"].replace(out=tmp_path)
    rates = {rate["rate"]: rate for rate in consistency.measure(config)["rates"]}
    assert rates[0.1]["share at +I"] == 1 and rates[0.1]["share at −I"] == 0
    assert rates[0.0]["share at +I"] == 0 and rates[0.0]["share at −I"] == 1


def test_what_is_written(tmp_path, capsys):
    flags = ["semantic_consistency", "--preset=smoke", "--seeds", "4", "7", f"--out={tmp_path}"]
    reproduce.main(flags)
    result = json.loads((tmp_path / "semantic_consistency.json").read_text())
    assert result["settings"]["seeds"] == [4, 7]
    assert [rate["rate"] for rate in result["rates"]] == [0.1, 0.0]
    with np.load(tmp_path / "semantic_consistency.npz", allow_pickle=False) as arrays:
        assert arrays["w"].shape == arrays["eigenvalues"].shape[:1] + (2, 2, 2, 2)
        assert arrays["losses"].shape == (10, 2, 2) and arrays["steps"][-1] == 1000
    assert (tmp_path / "semantic_consistency.png").read_bytes().startswith(b"\x89PNG")
    assert "of 2 seeds at +I" in capsys.readouterr().out
    losses, path, told = trained(SMOKE.replace(seeds=(7,)))
    assert told == list(range(100, 1001, 100))
    with np.load(tmp_path / "semantic_consistency.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["w"][:, 1:], path, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("main", "flags", "complaint"),
    [
        (MAIN, ["--rates", "1"], "rates must be in [0, 1), got 1"),
        (MAIN, ["--rates", "0.1", "0.1"], "rates must be one or more distinct values"),
        (MAIN, ["--rates", "-0.1"], "rates must be in [0, 1), got -0.1"),
        (MAIN, ["--seeds"], "seeds must be one or more distinct values"),
        (MAIN, ["--units=0"], "units must be at least 1"),
        (MAIN, ["--steps=1001"], "steps must be a multiple of points, 10, got 1001"),
        (MAIN, ["--noise=nan"], "noise must be"),
        (reproduce.main, ["semantic_consistency", "--rows", "x"], "has no --rows"),
        (reproduce.main, ["semantic_consistency", "--epochs=1"], "has no --epochs"),
    ],
)
def test_bad_settings(main, flags, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*flags, "--preset=smoke", f"--out={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and complaint in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_diverges(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        MAIN(["--preset=smoke", "--learning_rate=1", f"--out={tmp_path / 'out'}"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 1 and error.startswith("error: W is not finite")
    assert list((tmp_path / "out").iterdir()) == []
