"""Recurrent batch normalization: statistics of steps, of the population, over devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.arrays import normal
from tests.test_cells import some_stats
from zoneout_jax import LSTM, RNN, Masks, Zoneout, linen, unroll, update_stats
from zoneout_jax import nnx as faces
from zoneout_jax._draw import add_noise

T, B, F, H = 6, 8, 3, 5
CELL = LSTM(F, H, normalization="batch", max_steps=T)
PARAMS = CELL.init(jax.random.key(0))
XS = normal(1, (T, B, F))


def population(stats, batches=1, xs=XS):
    for number in range(batches):
        found = unroll(CELL, PARAMS, xs)[2]
        stats = update_stats(stats, found, rate=1 / (number + 1))
    return stats


def test_initial_gain_is_a_tenth_and_there_is_one_bias():
    assert np.all(PARAMS["input_gamma"] == np.float32(0.1))
    assert np.all(PARAMS["recurrent_gamma"] == np.float32(0.1))
    assert np.all(PARAMS["cell_gamma"] == np.float32(0.1))
    assert not np.any(PARAMS["cell_beta"])
    assert {name for name in PARAMS if "beta" in name or "bias" in name} == {"bias", "cell_beta"}


def test_statistics_are_those_of_each_step():
    found = unroll(CELL, PARAMS, XS)[2]
    sizes = {"input": 4 * H, "recurrent": 4 * H, "cell": H}
    for name, size in sizes.items():
        assert found[f"{name}_mean"].shape == found[f"{name}_var"].shape == (T, size)
    np.testing.assert_array_equal(found["step"], np.arange(T))
    np.testing.assert_array_equal(found["count"], np.full(T, B))
    projected = np.asarray(XS, np.float64) @ np.asarray(PARAMS["input"], np.float64)
    np.testing.assert_allclose(found["input_mean"], projected.mean(1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["input_var"], projected.var(1), rtol=0, atol=1e-5)
    assert np.ptp(found["cell_mean"], axis=0).min() > 0  # each step has its own statistics


def test_population_of_one_batch_gives_that_batchs_outputs():
    # If one batch is the population, evaluation gives the outputs of training.
    carry, ys, _ = unroll(CELL, PARAMS, XS)
    stats = population(CELL.init_stats())
    again = unroll(CELL, PARAMS, XS, deterministic=True, stats=stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), again, (carry, ys)
    )


def test_moving_average_converges_to_the_batch():
    stats, found = CELL.init_stats(), unroll(CELL, PARAMS, XS)[2]
    distance = [np.abs(stats["cell_mean"] - found["cell_mean"]).max()]
    for _ in range(500):
        stats = update_stats(stats, found, rate=0.01)
    distance.append(np.abs(stats["cell_mean"] - found["cell_mean"]).max())
    assert distance[1] < 1.01 * 0.99**500 * distance[0] + 1e-5
    np.testing.assert_allclose(
        stats["cell_var"], found["cell_var"], rtol=0, atol=1.01 * 0.99**500 * 2
    )


def test_average_over_batches():
    found = [unroll(CELL, PARAMS, n * XS)[2] for n in (1.0, 2.0, 3.0)]
    stats = CELL.init_stats()
    for number, one in enumerate(found):
        stats = update_stats(stats, one, rate=1 / (number + 1))
    for name in stats:
        wanted = np.mean([one[name] for one in found], axis=0)
        np.testing.assert_allclose(stats[name], wanted, rtol=1e-5, atol=1e-6)


def test_evaluation_does_not_depend_on_the_batch():
    stats = population(CELL.init_stats())
    whole = unroll(CELL, PARAMS, XS, deterministic=True, stats=stats)[1]
    for b in range(B):
        alone = unroll(CELL, PARAMS, XS[:, b : b + 1], deterministic=True, stats=stats)[1]
        np.testing.assert_allclose(alone[:, 0], whole[:, b], rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", ["fused", "scan"])
def test_population_statistics_have_no_gradient(implementation):
    def loss(params, stats):
        options = {"deterministic": True, "implementation": implementation}
        return jnp.sum(jnp.square(unroll(CELL, params, XS, stats=stats, **options)[1]))

    of_params, of_stats = jax.grad(loss, (0, 1))(PARAMS, population(CELL.init_stats()))
    assert np.all(of_params["cell_gamma"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_stats))


def test_last_step_serves_longer_sequences():
    stats = population(CELL.init_stats())
    longer = jnp.concatenate([XS, XS])
    cut = {name: jnp.concatenate([s, jnp.repeat(s[-1:], T, 0)]) for name, s in stats.items()}
    wide = LSTM(F, H, normalization="batch", max_steps=2 * T)
    got = unroll(CELL, PARAMS, longer, deterministic=True, stats=stats)[1]
    wanted = unroll(wide, PARAMS, longer, deterministic=True, stats=cut)[1]
    np.testing.assert_array_equal(got, wanted)
    # Training on longer sequences does not make the population statistics longer.
    moved = update_stats(stats, unroll(CELL, PARAMS, longer)[2], rate=1.0)
    for name in stats:
        np.testing.assert_allclose(moved[name], stats[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_padding_changes_nothing_in_reverse(deterministic):
    # The statistics of a step must not depend on how far the batch is padded.
    lengths = jnp.array([6, 6, 4, 4, 2, 2, 2, 1])
    cell = LSTM(F, H, normalization="batch", max_steps=T + 3)
    stats = some_stats(cell, 9)
    # Only states have a mask, so that a flip of the mask changes the outputs.
    states = Zoneout(states=0.5).sample(jax.random.key(4), T, B, H).states
    options = {
        "deterministic": deterministic,
        "stats": stats if deterministic else None,
        "seq_lengths": lengths,
        "reverse": True,
    }
    padded = jnp.concatenate([XS, jnp.full((3, B, F), 7.0)])
    more = jnp.concatenate([states, jnp.ones((3, B, H), bool)])
    short = unroll(cell, PARAMS, XS, masks=Masks(states=states), **options)
    long = unroll(cell, PARAMS, padded, masks=Masks(states=more), **options)
    np.testing.assert_allclose(long[1][:T], short[1], rtol=0, atol=1e-6)
    assert not np.any(long[1][T:])
    np.testing.assert_allclose(long[0][1], short[0][1], rtol=0, atol=1e-6)
    if deterministic:
        for b, length in enumerate(lengths):
            _, alone = unroll(
                cell,
                PARAMS,
                XS[:length, b : b + 1],
                masks=Masks(states=states[:length, b : b + 1]),
                **options | {"seq_lengths": None},
            )
            np.testing.assert_allclose(alone[:, 0], short[1][:length, b], rtol=0, atol=1e-6)


def test_padding_counts_for_nothing():
    lengths = jnp.array([6, 6, 4, 4, 2, 2, 2, 0])
    noise = jnp.where(jnp.arange(T)[:, None, None] < lengths[:, None], XS, 100 * jnp.ones_like(XS))
    found = [unroll(CELL, PARAMS, xs, seq_lengths=lengths) for xs in (XS, noise)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    np.testing.assert_array_equal(found[0][2]["count"], [7, 7, 4, 4, 2, 2])
    # Steps that no example reaches do not change the population.
    short = unroll(CELL, PARAMS, XS, seq_lengths=jnp.full(B, 2))[2]
    stats = update_stats(CELL.init_stats(), short, rate=0.5)
    np.testing.assert_array_equal(stats["recurrent_var"][2:], 1)
    assert not np.any(stats["recurrent_mean"][2:])


@pytest.mark.parametrize("devices", [2, 8])
def test_devices_give_the_statistics_of_the_whole_batch(devices):
    options = {"zoneout": Zoneout(cells=0.5, states=0.2), "key": jax.random.key(3)}

    def loss(params, xs, axis_name=None):
        _, ys, found = unroll(CELL, params, xs, carry_noise=0.1, axis_name=axis_name, **options)
        return jnp.sum(jnp.square(ys)), found

    def on_device(xs):
        gradient, found = jax.grad(loss, has_aux=True)(PARAMS, xs, "data")
        return jax.lax.psum(gradient, "data"), found

    wanted = jax.grad(loss, has_aux=True)(PARAMS, XS)
    got = jax.pmap(on_device, axis_name="data")(jnp.stack(jnp.split(XS, devices, axis=1)))
    for device in range(devices):
        one = jax.tree.map(lambda a, d=device: a[d], got)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5), one, wanted)


@pytest.mark.parametrize("carry_noise", [0.0, 0.1])
def test_constant_input_gives_numbers(carry_noise):
    xs = jnp.zeros((T, B, F))

    def loss(params):
        ys = unroll(CELL, params, xs, carry_noise=carry_noise, key=jax.random.key(0))[1]
        return jnp.sum(ys), ys

    gradient, ys = jax.grad(loss, has_aux=True)(PARAMS)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradient, ys)))
    # Without noise all examples give the same outputs.
    assert np.any(np.ptp(ys, axis=1) > 1e-3) == (carry_noise > 0)


def test_noise_of_the_carry():
    cell = LSTM(1, 4000)
    params = {
        "input": jnp.zeros((1, 16000)),
        "recurrent": jnp.zeros((4000, 16000)),
        # These gates keep everything, so the carry of the last step is the noise itself.
        "bias": jnp.repeat(jnp.array([-100.0, 100.0, 0.0, -100.0]), 4000),
    }
    xs, key = jnp.zeros((1, 4, 1)), jax.random.key(0)
    (c, _), _ = unroll(cell, params, xs, carry_noise=0.1, key=key)
    count = c.size
    assert abs(c.mean()) < 4 * 0.1 / np.sqrt(count)
    assert abs(c.std() / 0.1 - 1) < 4 / np.sqrt(2 * count)
    assert abs(np.corrcoef(c)[0, 1]) < 4 / np.sqrt(c.shape[1])
    noisy = add_noise(cell, (jnp.zeros_like(c), jnp.zeros_like(c)), 0.1, key, 0)
    np.testing.assert_array_equal(noisy[0], c)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 4 / np.sqrt(count)
    half, _ = unroll(cell, params, xs[:, :2], carry_noise=0.1, key=key)
    np.testing.assert_array_equal(half[0], c[:2])
    zeros, hardware = jnp.zeros((4, 3)), jax.random.key(0, impl="rbg")
    plain = RNN(3, 3)
    np.testing.assert_array_equal(
        add_noise(plain, zeros, 1.0, hardware, 0)[2:], add_noise(plain, zeros[2:], 1.0, hardware, 2)
    )
    quiet, _ = unroll(cell, params, xs, carry_noise=0.1, deterministic=True)
    assert not np.any(quiet[0])


def test_noise_leaves_the_output_gate_alone():
    cell = LSTM(F, H, normalization="batch", max_steps=T, ogates_zoneout="paper")
    params = cell.init(jax.random.key(0))
    start = cell.initial_carry(params, B)
    c, h, gate = add_noise(cell, start, 0.1, jax.random.key(0), 0)
    assert np.all(c != 0) and np.all(h != 0)
    np.testing.assert_array_equal(gate, start[-1])


def test_faces_keep_population_statistics():
    options = {"normalization": "batch", "max_steps": T, "momentum": 0.5}
    xs = jnp.swapaxes(XS, 0, 1)
    in_nnx = faces.ZoneoutRNN(faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0), **options))
    params = in_nnx.cell.pure_params()
    wanted = update_stats(CELL.init_stats(), unroll(CELL, params, XS)[2], rate=0.5)
    layer = linen.ZoneoutRNN(linen.ZoneoutLSTMCell(H, **options))
    variables = layer.init(jax.random.key(0), xs)
    np.testing.assert_array_equal(variables["batch_stats"]["cell"]["cell_var"], 1)
    variables = {"params": {"cell": params}, "batch_stats": variables["batch_stats"]}
    _, moved = layer.apply(variables, xs, deterministic=False, mutable=["batch_stats"])
    in_nnx(xs)
    for got in (
        moved["batch_stats"]["cell"],
        {name: getattr(in_nnx.cell, name)[...] for name in wanted},
    ):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), dict(got), wanted
        )
    in_nnx.eval()
    by_nnx = in_nnx(xs)
    np.testing.assert_array_equal(
        in_nnx.cell.cell_mean[...], moved["batch_stats"]["cell"]["cell_mean"]
    )
    by_linen = layer.apply({"params": {"cell": params}, **moved}, xs, deterministic=True)
    np.testing.assert_allclose(by_nnx, by_linen, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="deterministic must be given"):
        layer.apply(variables, xs)


def test_under_the_rnns_of_flax():
    options = {"normalization": "batch", "max_steps": T, "momentum": 0.5}
    xs = jnp.swapaxes(XS, 0, 1)
    cell = linen.ZoneoutLSTMCell(H, deterministic=False, **options)
    stepped = nn.RNN(
        cell, variable_carry="batch_stats", split_rngs={"params": False, "zoneout": True}
    )
    whole = linen.ZoneoutRNN(cell)
    variables = whole.init(jax.random.key(0), xs)
    ys, moved = stepped.apply(variables, xs, mutable=["batch_stats"])
    wanted, wanted_moved = whole.apply(variables, xs, mutable=["batch_stats"])
    np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), moved, wanted_moved
    )
    in_nnx = faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0), **options)
    wanted = faces.ZoneoutRNN(nnx.clone(in_nnx))(xs)
    np.testing.assert_allclose(nnx.RNN(in_nnx)(xs), wanted, rtol=0, atol=1e-5)


def test_few_collectives():
    # Input products, recurrent products and cells each need two sums; the count needs one.
    def run(xs):
        return unroll(CELL, PARAMS, xs, axis_name="data", implementation="scan")[1]

    text = str(jax.make_jaxpr(jax.pmap(run, axis_name="data"))(jnp.stack([XS, XS])))
    assert text.count("psum") <= 7


def test_statistics_of_wide_and_narrow_types():
    cell = LSTM(
        F,
        H,
        normalization="batch",
        max_steps=T,
        param_dtype=jnp.bfloat16,
        kernel_init=_normal,
        recurrent_kernel_init=_normal,
    )
    params = cell.init(jax.random.key(0))
    xs = jnp.ones((T, 3001, F), jnp.bfloat16)
    carry, ys, found = unroll(cell, params, xs)
    assert ys.dtype == jnp.bfloat16 and found["cell_mean"].dtype == jnp.float32
    np.testing.assert_array_equal(found["count"], 3001)
    stats = update_stats(cell.init_stats(), found)
    assert unroll(cell, params, xs, deterministic=True, stats=stats)[1].dtype == jnp.bfloat16


def _normal(key, shape, dtype, blocks):
    return jax.random.normal(key, shape, dtype)


@pytest.mark.usefixtures("x64")
def test_statistics_in_float64_move_by_the_whole_rate():
    stats = {"cell_mean": jnp.zeros((1, 2), jnp.float64)}
    seen = {"cell_mean": jnp.ones((1, 2)), "step": jnp.array([0]), "count": jnp.array([9])}
    moved = update_stats(stats, seen, rate=0.1)["cell_mean"]
    np.testing.assert_array_equal(moved, np.full((1, 2), 0.1))
