"""The functions inside JAX: narrow parameters, strict ranks, exported shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.test_cells import (
    CELLS,
    FURTHER,
    KEY,
    LENGTHS,
    MASKS,
    SHAPES,
    B,
    F,
    H,
    T,
    build,
    marked,
    some_stats,
    spec_for,
)
from zoneout_jax import LSTM, RNN, Masks, Zoneout, _unroll, unroll

KINDS = ("lstm", "lstm layer norm", "lstm batch norm", "gru", "gru reset before", "rnn", *FURTHER)


@pytest.mark.parametrize(
    ("name", "masks"),
    [marked(n, "all", fast=n in SHAPES) for n in CELLS] + [("lstm", masks) for masks in MASKS],
)
def test_no_rank_is_promoted(name, masks):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, masks)
    if spec is None:
        pytest.skip("the cell has none of these masks")
    options = {"zoneout": spec, "seq_lengths": jnp.array(LENGTHS), "reverse": True}

    def loss(params, implementation):
        training = {"key": KEY, "carry_noise": 0.1, "implementation": implementation}
        return jnp.sum(unroll(cell, params, xs, **options, **training)[1])

    with jax.numpy_rank_promotion("raise"):
        for implementation in ("fused", "scan"):
            jax.make_jaxpr(jax.grad(loss), static_argnums=1)(params, implementation)
        stats = some_stats(cell, 9) or None
        jax.make_jaxpr(lambda p: unroll(cell, p, xs, deterministic=True, stats=stats, **options))(
            params
        )
        jax.make_jaxpr(lambda p: cell.step(p, cell.initial_carry(p, B), xs[0]))(params)


@pytest.mark.parametrize(
    ("name", "implementation", "chunk"),
    [
        marked(name, *how, fast=how == ("fused", None) and name in SHAPES)
        for name in CELLS
        for how in (("fused", None), ("fused", 3), ("scan", None))
    ],
)
def test_gradients_have_the_types_of_parameters(name, implementation, chunk):
    cell, params, xs = build(name, jnp.float32)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)

    def loss(params):
        return jnp.sum(unroll(cell, params, xs, chunk=chunk, implementation=implementation)[1])

    def accumulate(total, _):
        return jax.tree.map(jnp.add, total, jax.grad(loss)(narrow)), None

    total, _ = jax.eval_shape(lambda: jax.lax.scan(accumulate, narrow, None, 2))
    assert {gradient.dtype for gradient in total.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("form", [False, True])
def test_gradients_of_narrow_parameters(form, monkeypatch):
    monkeypatch.setattr(_unroll, "_multiplies_own_input", lambda cell: form)
    cell, params, xs = build("lstm", jnp.float32)
    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)

    def loss(params):
        return jnp.sum(jnp.sin(unroll(cell, params, xs)[1]))

    got = jax.grad(loss)(narrow)
    wanted = jax.grad(loss)(jax.tree.map(lambda p: p.astype(jnp.float32), narrow))
    for name, gradient in got.items():  # rounded once, to 8 bits
        np.testing.assert_array_equal(gradient, wanted[name].astype(jnp.bfloat16))


def test_a_carry_of_numpy_arrays():
    cell, params, xs = build("lstm", jnp.float32)
    zeros = np.zeros((B, H))
    assert zeros.dtype == np.float64
    got, wanted = unroll(cell, params, xs, (zeros, zeros)), unroll(cell, params, xs)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    with pytest.raises(ValueError, match="shapes and types"):
        unroll(cell, params, xs, (zeros.astype(int), zeros))


@pytest.mark.parametrize(
    ("name", "masks", "reverse"),
    [marked(n, *case) for n in KINDS for case in (("all", True), ("gaussian", False))],
)
def test_export_for_any_length_and_batch(name, masks, reverse):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, masks)
    lengths = jnp.array(LENGTHS)

    def gradient(params, xs, key, lengths):
        def loss(params):
            options = {"seq_lengths": lengths, "reverse": reverse}
            return jnp.sum(unroll(cell, params, xs, zoneout=spec, key=key, **options)[1])

        return jax.grad(loss)(params)

    time, batch = export.symbolic_shape("T, B")
    shapes = jax.eval_shape(lambda *a: a, params, xs, KEY, lengths)
    shapes = (
        shapes[0],
        jax.ShapeDtypeStruct((time, batch, F), xs.dtype),
        shapes[2],
        jax.ShapeDtypeStruct((batch,), lengths.dtype),
    )
    exported = export.export(jax.jit(gradient))(*shapes)
    if name in ("lstm", "gru"):
        got = exported.call(params, xs, KEY, lengths)
        wanted = jax.jit(gradient)(params, xs, KEY, lengths)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted
        )


@pytest.mark.parametrize(("steps", "batch"), [(0, 4), (1, 4), (7, 0), (7, 1), (1, 1), (0, 0)])
@pytest.mark.parametrize("name", ["lstm", "gru", "gru reset before", "lstm batch norm"])
def test_small_and_empty(name, steps, batch):
    cell, params, xs = build(name, jnp.float32)
    xs, spec = xs[:steps, :batch], spec_for(cell, "all")
    lengths = jnp.array(LENGTHS[:batch], int) % (steps + 1)

    def loss(params, key):
        out = unroll(cell, params, xs, zoneout=spec, key=key, seq_lengths=lengths)
        return jnp.sum(out[1]), out[1]

    keys = jax.random.split(KEY, 2)
    gradients, ys = jax.jit(jax.vmap(jax.grad(loss, has_aux=True), (None, 0)))(params, keys)
    assert ys.shape == (2, steps, batch, H)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((gradients, ys)))


class Unhashable:
    """An initializer that cannot be the key of a dict."""

    __hash__ = None

    def __call__(self, key, shape, dtype):
        return jnp.full(shape, 2, dtype)


def test_initializers_need_not_be_hashable():
    cell = RNN(F, H, kernel_init=Unhashable())
    params = cell.init(KEY)
    np.testing.assert_array_equal(params["input"], 2)
    assert jax.jit(unroll, static_argnums=0)(cell, params, jnp.ones((T, B, F)))[1].shape


def test_the_authors_output_gate_comes_after_the_states():
    """For h = 1, all else 0, both masks on, the authors' code gives f∘h = ½ (recurrent.py, 190)."""
    cell = LSTM(1, 1, ogates_zoneout="repository", forget_bias=0.0)
    params = jax.tree.map(jnp.zeros_like, cell.init(KEY))
    carry = jnp.zeros((1, 1)), jnp.ones((1, 1))
    masks = Masks(states=jnp.ones((1, 1), bool), update=jnp.zeros((1, 1), bool))
    (_, h), y = cell.step(params, carry, jnp.zeros((1, 1)), masks)
    assert h == y == 0.5
    # In evaluation u = ¾ and the states are ¼∘h, which gives ¾·¼ + ¼·½.
    spec = Zoneout(states=0.25, update_drop=0.25)
    (_, h), _ = unroll(cell, params, jnp.zeros((1, 1, 1)), carry, zoneout=spec, deterministic=True)
    np.testing.assert_allclose(h, 0.75 * 0.25 + 0.25 * 0.5)
