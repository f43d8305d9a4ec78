"""If `jit` splits a batch over devices, each device does its part and nothing is gathered."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoneout_jax import GRU, LSTM, RNN, Zoneout, _fused, _unroll, linen, unroll

T, B, F, H = 20, 32, 8, 64
CELLS = {
    "lstm": LSTM(F, H),
    "gru": GRU(F, H),
    "gru reset before": GRU(F, H, reset_after=False),
    "rnn": RNN(F, H, learned_carry=True),
    "lstm layer norm": LSTM(F, H, normalization="layer"),
    "lstm projected": LSTM(F, H, proj_size=16),
}
XS = np.random.default_rng(0).standard_normal((T, B, F), np.float32)
KEY = jax.random.key(1)
WHOLE = P()


def gradient(cell, implementation, gathered=None):
    """Returns the gradient as a function of parameters and inputs."""
    spec = Zoneout(states=0.5, cells=0.3 if "cells" in cell.mask_names else None)

    def loss(params, xs):
        if gathered is not None:
            params = jax.lax.with_sharding_constraint(params, gathered)
        ys = unroll(cell, params, xs, zoneout=spec, key=KEY, implementation=implementation)[1]
        return jnp.sum(jnp.square(ys))

    return jax.grad(loss)


def compiled(cell, mesh, batch, kernels=WHOLE, implementation="fused", gather=False):
    """Returns the compiled gradient on a mesh, and its result."""
    params = {
        name: jax.device_put(p, NamedSharding(mesh, kernels if p.ndim == 2 else P()))
        for name, p in cell.init(jax.random.key(0)).items()
    }
    xs = jax.device_put(XS, NamedSharding(mesh, P(None, batch, None)))
    gathered = NamedSharding(mesh, P()) if gather else None
    run = jax.jit(gradient(cell, implementation, gathered)).lower(params, xs).compile()
    return run, run(params, xs)


def gathers(run):
    """Lists the shapes of the arrays that the program gathers."""
    return re.findall(r"= \w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", run.as_text())


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("implementation", ["fused", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "lstm projected" else n for n in CELLS]
)
def test_data_parallel(name, implementation, kind):
    alone, eight = (
        compiled(CELLS[name], jax.make_mesh((n,), ("data",), axis_types=(kind,)), "data",
                 implementation=implementation)
        for n in (1, 8)
    )  # fmt: skip
    assert not gathers(eight[0])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), alone[1], eight[1]
    )
    operations, memory = (
        [measure(run) for run, _ in (alone, eight)]
        for measure in (
            lambda run: run.cost_analysis()["flops"],
            lambda run: run.memory_analysis().temp_size_in_bytes,
        )
    )
    # One eighth, plus memory for the kernels on every device.
    assert operations[1] < operations[0] / 7
    assert memory[1] < memory[0] / 8 + 4 * 4 * (F + H) * 4 * H


def test_parameters_that_were_made_outside_the_mesh():
    mesh, cell = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)), CELLS["gru"]
    params, xs = (
        cell.init(jax.random.key(0)),
        jax.device_put(XS, NamedSharding(mesh, P(None, "data", None))),
    )
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        got = jax.jit(gradient(cell, "fused"))(params, xs)
    wanted = jax.jit(gradient(cell, "fused"))(params, XS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, wanted)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("batch", ["data", ("data", "model")])
def test_two_axes(batch, kind):
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    assert not gathers(compiled(CELLS["lstm"], mesh, batch)[0])


def test_kernels_that_are_spread_are_gathered_once():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    run, _ = compiled(CELLS["lstm"], mesh, "data", kernels=P(None, "data"), gather=True)
    shapes = {tuple(map(int, shape.split(","))) for shape in gathers(run)}
    kernels = {(F, 4 * H), (H, 4 * H), (4 * H, H), (4 * H, F), (H + F, 4 * H), (4 * H, H + F)}
    assert shapes and shapes <= kernels


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_the_form_for_a_single_device(name, transposed, monkeypatch):
    monkeypatch.setattr(_unroll, "_is_better_transposed", lambda cell, batch: transposed)
    params = CELLS[name].init(jax.random.key(0))
    wanted = jax.jit(gradient(CELLS[name], "fused"))(params, XS)
    monkeypatch.setattr(_fused.jax, "device_count", lambda: 1)
    got = jax.jit(gradient(CELLS[name], "fused"))(params, XS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, wanted)


@pytest.mark.slow
def test_equal_masks_on_every_device_are_refused():
    cell = CELLS["lstm"]
    params = cell.init(jax.random.key(0))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    def run(xs, key, **options):
        return unroll(cell, params, xs, zoneout=Zoneout(states=0.5), key=key, **options)[1]

    def spread(f):
        specs = P(None, "data")
        return jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(specs, P()), out_specs=specs))

    xs = jnp.ones((T, 16, F))
    with pytest.raises(ValueError, match="all devices would draw the same masks"):
        spread(run)(xs, KEY)
    whole = run(xs, KEY)
    named = spread(lambda xs, key: run(xs, key, axis_name="data"))(xs, KEY)
    np.testing.assert_allclose(named, whole, rtol=0, atol=1e-6)

    def folded(xs, key):
        return run(xs, jax.random.fold_in(key, jax.lax.axis_index("data")))

    ys = np.asarray(spread(folded)(xs, KEY))
    assert len({ys[:, example].tobytes() for example in range(16)}) == 16
    with pytest.raises(ValueError, match="axis_name='data' is not mapped here"):
        run(xs, KEY, axis_name="data")
    # An unused key may be the same on all devices; the key of noise on the carry may not.
    spread(lambda xs, key: unroll(cell, params, xs, key=key)[1])(xs, KEY)
    with pytest.raises(ValueError, match="all devices would draw the same"):
        spread(lambda xs, key: unroll(cell, params, xs, key=key, carry_noise=0.1)[1])(xs, KEY)
    layer = linen.ZoneoutRNN(
        linen.ZoneoutGRUCell(H, carry_init=jax.nn.initializers.normal(1.0)), time_major=True
    )
    variables = layer.init(KEY, xs)
    ys = np.asarray(spread(lambda xs, key: layer.apply(variables, xs, init_key=key))(xs, KEY))
    assert len({ys[:, example].tobytes() for example in range(16)}) == 16
    two = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    specs = P(None, ("data", "model"))
    for names, error in (("data", "over the mapped axis model"), (("data", "model"), None)):
        with pytest.raises(ValueError, match=error) if error else contextlib.nullcontext():
            f = jax.shard_map(
                lambda xs, names=names: run(xs, KEY, axis_name=names),
                mesh=two,
                in_specs=specs,
                out_specs=specs,
            )
            np.testing.assert_allclose(jax.jit(f)(xs), whole, rtol=0, atol=1e-6)


def test_batch_statistics_need_the_axis():
    cell = LSTM(F, H, normalization="batch", max_steps=T)
    with pytest.raises(ValueError, match="axis_name='data' is not mapped here"):
        unroll(cell, cell.init(KEY), jnp.ones((T, 4, F)), axis_name="data")


def test_a_single_step_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    cell = linen.ZoneoutGRUCell(H, zoneout=Zoneout(states=0.5), deterministic=False)
    x = jax.device_put(jnp.ones((16, F)), NamedSharding(mesh, P("data", None)))
    carry = jax.device_put(jnp.ones((16, H)), NamedSharding(mesh, P("data", None)))
    variables = cell.init(jax.random.key(0), jnp.ones((16, H)), jnp.ones((16, F)))
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
        got = jax.jit(cell.apply)(variables, carry, x, rngs={"zoneout": KEY})[1]
    wanted = cell.apply(variables, jnp.ones((16, H)), jnp.ones((16, F)), rngs={"zoneout": KEY})[1]
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
