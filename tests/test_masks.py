"""The zoneout operator, its spec, and the distribution of the masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoneout_jax import LSTM, Zoneout, unroll, zoneout

T, B, H = 50, 40, 60


def within_four_sigma(values, mean, variance):
    """Tells whether the average of independent values is within 4 sigma of its mean."""
    return abs(values.mean() - mean) <= 4 * np.sqrt(variance / values.size) + 2.0**-16


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.15, 0.5, 0.9, 1.0])
def test_frequencies(rate):
    spec = Zoneout(cells=rate, states=rate, update_drop=rate)
    masks = spec.sample(jax.random.key(1), T, B, H)
    assert spec.active == (rate > 0)
    for mask, mean in ((masks.cells, rate), (masks.states, rate), (masks.update, 1 - rate)):
        assert mask.shape == (T, B, H) and mask.dtype == bool
        mask = np.asarray(mask, np.float64)
        if rate in (0.0, 1.0):
            assert np.all(mask == mean)
        assert within_four_sigma(mask, mean, rate * (1 - rate))
        # So must every unit, example and step: 150 averages, so 5 sigma.
        for axes in ((0, 1), (0, 2), (1, 2)):
            size = np.prod([mask.shape[axis] for axis in axes])
            bound = 5 * np.sqrt(rate * (1 - rate) / size) + 2.0**-16
            assert np.all(np.abs(mask.mean(axis=axes) - mean) <= bound)


def correlation_in_sigmas(a, b):
    """Correlation of two arrays whose pairs are independent, in standard deviations."""
    return np.corrcoef(a.ravel(), b.ravel())[0, 1] * np.sqrt(a.size)


@pytest.mark.parametrize("gaussian", [False, True])
def test_independence(gaussian):
    spec = Zoneout(cells=0.5, states=0.3, update_drop=0.4, gaussian=gaussian)
    masks = [np.asarray(m, np.float64) for m in spec.sample(jax.random.key(2), T, B, H)[:3]]
    cells, states, update = masks
    for one, other in ((cells, states), (cells, update), (states, update)):
        assert abs(correlation_in_sigmas(one, other)) < 4
    for mask in masks:
        for axis in range(3):
            left = np.take(mask, range(mask.shape[axis] - 1), axis)
            right = np.take(mask, range(1, mask.shape[axis]), axis)
            assert abs(correlation_in_sigmas(left, right)) < 4
    other = Zoneout(cells=0.5).sample(jax.random.key(3), T, B, H).cells
    assert abs(correlation_in_sigmas(cells, np.asarray(other, np.float64))) < 4


def test_gaussian_moments():
    masks = Zoneout(cells=0.5, states=0.05, gaussian=True).sample(jax.random.key(4), T, B, H)
    for mask, rate in ((masks.cells, 0.5), (masks.states, 0.05)):
        mask, variance = np.asarray(mask, np.float64), rate * (1 - rate)
        assert within_four_sigma(mask, rate, variance)
        assert abs(mask.var() / variance - 1) <= 4 * np.sqrt(2 / mask.size)


VARIANTS = {
    "bernoulli": {},
    "shared": {"shared": True},
    "static": {"static": True},
    "stochastic depth": {"per_layer": True},
    "static stochastic depth": {"static": True, "per_layer": True},
    "gaussian": {"gaussian": True},
    "gaussian static": {"gaussian": True, "static": True},
    "gaussian stochastic depth, shared": {"gaussian": True, "per_layer": True, "shared": True},
}


@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, rate):
    """Masks have the right mean and variance, and are independent along axes not shared."""
    kinds = VARIANTS[name]
    shape = (1 if "static" in kinds else T, 400, 1 if "per_layer" in kinds else H)
    spec = Zoneout(cells=rate, states=rate, update_drop=rate, **kinds)
    masks = spec.sample(jax.random.key(5), T, 400, H)
    drawn = {"cells": (masks.cells, rate), "update": (masks.update, 1 - rate)}
    if "shared" in kinds:
        assert masks.states is masks.cells
    else:
        drawn["states"] = masks.states, rate
    variance = rate * (1 - rate)
    arrays = []
    for mask, mean in drawn.values():
        assert mask.shape == shape
        assert mask.dtype == (jnp.float32 if "gaussian" in kinds else bool)
        mask = np.asarray(mask, np.float64)
        arrays.append(mask)
        assert within_four_sigma(mask, mean, variance)
        # The variance of (x − mean)² follows from the fourth moment.
        fourth = 3 * variance**2
        if "gaussian" not in kinds:
            fourth = variance * (1 - 3 * variance)
        spread = np.sqrt((fourth - variance**2) / mask.size)
        assert abs(np.mean((mask - mean) ** 2) - variance) <= 4 * spread + 2.0**-15
        for axis in range(3):
            if mask.shape[axis] > 1:
                left = np.take(mask, range(mask.shape[axis] - 1), axis)
                right = np.take(mask, range(1, mask.shape[axis]), axis)
                assert abs(correlation_in_sigmas(left, right)) < 4
    for one in range(len(arrays)):
        for other in range(one):
            assert abs(correlation_in_sigmas(arrays[one], arrays[other])) < 4


@pytest.mark.parametrize("kind", [{}, {"per_layer": True}, {"gaussian": True}])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.9])
def test_the_mask_of_variational_dropout(rate, kind):
    """Each sequence and unit has one rescaled mask, of mean 1 and variance p/(1 − p)."""
    spec = Zoneout(cells=0.5, states=0.5, update_drop=0.5, hidden_drop=rate, **kind)
    masks = spec.sample(jax.random.key(8), T, 400, H)
    assert masks.hidden.shape == (1, 400, H) and spec.expected().hidden is None
    kept = np.asarray(masks.hidden[0], np.float64)
    assert {*np.unique(kept)} == {0, np.float32(1 / np.float32(1 - np.float32(rate)))}
    variance = rate / (1 - rate)
    assert abs(kept.mean() - 1) <= 4 * np.sqrt(variance / kept.size) + 2.0**-16 / (1 - rate)
    for axis in (0, 1):  # for each unit and each example: 460 averages, so 5 sigma
        bound = 5 * np.sqrt(variance / kept.shape[axis]) + 2.0**-16 / (1 - rate)
        assert np.all(np.abs(kept.mean(axis) - 1) <= bound)
    # Examples and units are independent of each other, and of the other masks.
    pairs = [(kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1])]
    if "per_layer" not in kind:
        pairs += [(kept, np.asarray(mask[0], np.float64)) for mask in masks[:3]]
    for one, other in pairs:
        assert abs(correlation_in_sigmas(one, other)) < 4
    # It does not change the other masks.
    alone = Zoneout(cells=0.5, states=0.5, update_drop=0.5, **kind)
    for one, other in zip(masks[:3], alone.sample(jax.random.key(8), T, 400, H)[:3], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("rate", "value"), [(0.0, 1), (1.0, 0)])
def test_variational_dropout_of_nothing_and_of_all(rate, value):
    def mean(rate):
        return Zoneout(hidden_drop=rate).sample(jax.random.key(0), T, B, H).hidden.mean()

    assert mean(rate) == value and np.isfinite(jax.grad(mean)(rate))
    assert Zoneout(hidden_drop=rate).active == (rate > 0)


def test_schedules():
    spec = Zoneout(cells=lambda step: 0.1 * step, states=0.05)

    @jax.jit
    def frequency(step):
        masks = spec.at(step).sample(jax.random.key(0), T, B, H)
        return masks.cells.mean(), masks.states.mean()

    for step in (0, 3, 10):
        cells, states = frequency(step)
        assert abs(cells - 0.1 * step) <= 4 * np.sqrt(0.25 / (T * B * H)) * (step % 10 > 0) + 1e-4
        assert abs(states - 0.05) < 4 * np.sqrt(0.05 / (T * B * H))


def test_masks_belong_to_examples():
    spec = Zoneout(cells=0.5, states=0.5, update_drop=0.5, hidden_drop=0.5)
    whole = spec.sample(jax.random.key(6), T, 8, H)
    for part, masks in (
        (slice(0, 3), spec.sample(jax.random.key(6), T, 3, H)),
        (slice(4, 8), spec.sample(jax.random.key(6), T, 4, H, offset=4)),
    ):
        for of_whole, of_part in zip(whole, masks, strict=True):
            np.testing.assert_array_equal(of_whole[:, part], of_part)


def test_rates_of_narrow_types():
    for dtype in (jnp.bfloat16, jnp.float16):
        rate = dtype(0.05)
        masks = Zoneout(cells=rate, update_drop=rate).sample(jax.random.key(0), T, B, H)
        for mask, wanted in ((masks.cells, float(rate)), (masks.update, 1 - float(rate))):
            share = np.asarray(mask, np.float64).mean()
            assert abs(share - wanted) < 4 * np.sqrt(0.05 / mask.size)


def test_expectation_is_the_mean_of_samples():
    previous, candidate = jnp.full((1, 1), -1.0), jnp.full((1, 1), 2.0)
    spec = Zoneout(cells=0.3)
    sampled = zoneout(previous, candidate, spec.sample(jax.random.key(7), T, B, H).cells)
    expected = zoneout(previous, candidate, spec.expected().cells)
    np.testing.assert_allclose(expected, 0.3 * -1 + 0.7 * 2, rtol=1e-6)
    assert within_four_sigma(np.asarray(sampled), float(expected[0, 0]), 9 * 0.21)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cells": 1.5}, ValueError, "cells must be in .0, 1., got 1.5"),
        ({"states": -0.1}, ValueError, "states must be in"),
        ({"update_drop": float("nan")}, ValueError, "update_drop must be in .0, 1., got nan"),
        ({"cells": np.array([0.5, 2.0])}, ValueError, "cells must be in"),
        ({"cells": "0.5"}, TypeError, "must be a number"),
        ({"cells": True}, TypeError, "must be a number"),
        ({"cells": jnp.array(1.5)}, ValueError, "cells must be in"),
        ({"cells": jnp.array(True)}, TypeError, "must be a number"),
        ({"cells": np.array("a")}, TypeError, "must be a number"),
        ({"cells": {}}, TypeError, "must be a number"),
        ({"cells": 1j}, TypeError, "must be a number"),
        ({"cells": 0.5, "shared": True}, ValueError, "both cells and states"),
        ({"cells": 0.5, "states": 0.1, "shared": True}, ValueError, "one rate"),
    ],
)
def test_bad_rates(arguments, error, message):
    with pytest.raises(error, match=message):
        Zoneout(**arguments)


def test_a_shared_mask_has_the_rate_of_the_cells_in_evaluation_too():
    # Rates that are arrays may be traced, so they are not compared.
    spec = Zoneout(cells=jnp.array(0.5), states=jnp.array(0.1), shared=True)
    assert spec.expected().states == spec.expected().cells == 0.5
    masks = spec.sample(jax.random.key(0), T, B, H)
    assert masks.states is masks.cells


def test_trees_made_from_a_spec_are_not_taken_for_rates():
    cell = LSTM(2, 3)
    params, xs = cell.init(jax.random.key(0)), jnp.ones((4, 2, 2))

    def loss(spec):
        return 1e3 * jnp.sum(unroll(cell, params, xs, zoneout=spec, deterministic=True)[1])

    spec = Zoneout(cells=0.5, states=0.1, static=True)
    gradient = jax.grad(loss)(spec)
    assert gradient.static and gradient.update_drop is None
    above, below = loss(Zoneout(cells=0.5, states=0.11)), loss(Zoneout(cells=0.5, states=0.09))
    np.testing.assert_allclose(gradient.states, (above - below) / 0.02, rtol=1e-2)
    assert abs(gradient.states) > 1
    assert jax.tree.map(bool, spec).cells is True
    specs = jax.tree.map(lambda rate: jnp.array([0.0, rate]), spec)
    swept = jax.vmap(loss, in_axes=(jax.tree.map(lambda rate: -1, spec),))(specs)
    np.testing.assert_allclose(swept[1], loss(spec), rtol=1e-5)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(spec)]
    assert paths == [".cells", ".states"]


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(
    ("cells", "states"), [(0.0, jnp.array(0.9)), (jnp.array(0.5), 0.0), (0.5, jnp.array(0.0))]
)
def test_a_shared_mask_with_a_rate_of_zero(cells, states, deterministic):
    cell = LSTM(2, 3)
    params, xs, key = cell.init(jax.random.key(0)), jnp.ones((4, 2, 2)), jax.random.key(1)

    def run(spec):
        return unroll(cell, params, xs, zoneout=spec, key=key, deterministic=deterministic)

    spec = Zoneout(cells=cells, states=states, shared=True)
    assert spec.active == bool(cells != 0)
    wanted = run(Zoneout(cells=cells, states=cells, shared=True))
    jax.tree.map(np.testing.assert_array_equal, run(spec), wanted)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_gaussian_masks_have_a_gradient_everywhere(rate):
    def mean(rate):
        return Zoneout(cells=rate, gaussian=True).sample(jax.random.key(0), 3, 2, 4).cells.mean()

    assert np.isfinite(jax.grad(mean)(rate))
