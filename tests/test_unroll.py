"""`unroll`: lengths, outputs of each step, empty arrays, bad arguments."""

import dataclasses
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from tests.arrays import normal
from tests.test_cells import BATCH, KEY, LENGTHS, B, F, H, T, build
from zoneout_jax import GRU, LSTM, RNN, Masks, MinGRU, Zoneout, _unroll, linen, unroll
from zoneout_jax import nnx as faces


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm batch norm"])
def test_nan_in_padding_reaches_nothing(name):
    cell, params, xs = build(name, jnp.float32)
    lengths = list(LENGTHS)  # a list is allowed
    padded = jnp.where((jnp.arange(T)[:, None] < jnp.array(LENGTHS))[..., None], xs, jnp.nan)

    def loss(params, xs):
        return jnp.sum(unroll(cell, params, xs, seq_lengths=lengths, reverse=True)[1])

    got, wanted = (jax.grad(loss)(params, x) for x in (padded, xs))
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8])
def test_lengths_of_narrow_types(dtype):
    # T is larger than both types can hold.
    cell = RNN(F, H)
    params, xs = cell.init(KEY), jnp.ones((300, 2, F))
    lengths = jnp.array([3, 120])
    run = jax.jit(lambda lengths: unroll(cell, params, xs, seq_lengths=lengths))
    got, wanted = run(lengths.astype(dtype)), run(lengths)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "lstm batch norm"])
def test_emit_of_any_rank_with_lengths(name, reverse):
    cell, params, xs = build(name, jnp.float32)
    xs = xs[:B]  # as many steps as examples, so axes of time and batch have the same size

    def run(emit, lengths, **options):
        options |= {"emit": emit, "seq_lengths": lengths, "reverse": reverse}
        return unroll(cell, params, xs, **options)[1]

    def emit(carry, y):
        return y, carry, y[:, 0], y[:, :, None] * y[:, None], jnp.float32(2)

    lengths = jnp.array([4, 2, 3, 0])
    ys, carry, first, squares, two = run(emit, lengths)
    np.testing.assert_array_equal(ys, run(None, lengths))
    np.testing.assert_array_equal(carry[1], ys)
    np.testing.assert_array_equal(first, ys[:, :, 0])
    np.testing.assert_allclose(squares, ys[..., None] * ys[:, :, None], rtol=1e-6)
    np.testing.assert_array_equal(two, np.full(B, 2))
    # Lengths of T give the same as no lengths.
    full, wanted = run(emit, jnp.full(B, B)), run(emit, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), full, wanted)
    with pytest.raises(ValueError, match=r"emit must return arrays .4, \.\.\..*got .5,."):
        run(lambda carry, y: y.sum(0), lengths)
    with pytest.raises(ValueError, match=r"emit must return arrays .4, \.\.\..*got .5,."):
        run(lambda carry, y: carry[1][0], None)  # the state of the first example only


@pytest.mark.parametrize("kind", [LSTM, MinGRU])
def test_a_second_call_outside_of_jit_compiles_nothing(kind, caplog):
    spec, xs = Zoneout(states=0.5), normal(1, (T, B, F))

    def gradient():
        cell = kind(F, H)  # equal to the cell of the first call, but another object
        params = cell.init(KEY)
        loss = jax.grad(lambda p: jnp.sum(unroll(cell, p, xs, zoneout=spec, key=KEY)[1]))
        return loss(params)

    first = gradient()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        second = gradient()
        assert not caplog.records
        jax.jit(lambda x: x + 1)(1.0)
        assert caplog.records
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_functions_of_the_user_may_change_between_calls():
    class Slope:
        value = 0.1

        def __call__(self, x):
            return self.value * x

    slope = Slope()
    cell, xs = RNN(F, H, activation_fn=slope), normal(1, (T, B, F))
    params = cell.init(KEY)
    before = unroll(cell, params, xs)[1]
    slope.value = 0.9
    fresh = unroll(RNN(F, H, activation_fn=lambda x: 0.9 * x), params, xs)[1]
    assert not np.array_equal(before, fresh)
    np.testing.assert_array_equal(unroll(cell, params, xs)[1], fresh)

    @dataclasses.dataclass(frozen=True)
    class Leaky(RNN):
        leak: float = dataclasses.field(default=0.0, compare=False)

        def update(self, params, carry, gates, *rest):
            h = self.leak * carry + (1 - self.leak) * gates[0]
            return h, h

    one, other = (unroll(Leaky(F, H, leak=leak), params, xs)[1] for leak in (0.1, 0.9))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("steps", "chunk"), [(1, 1), (9, 3), (10, 2), (11, 3)])
def test_chunks_of_the_root_of_the_steps(steps, chunk, monkeypatch):
    seen, run = [], _unroll._run_chunks
    monkeypatch.setattr(_unroll, "_run_chunks", lambda *a: seen.append(a[4]) or run(*a))
    cell = LSTM(F, H)
    params, xs = cell.init(KEY), normal(1, (steps, B, F))

    def loss(params, chunk):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, chunk=chunk)[1]))

    got, wanted = (jax.jit(jax.grad(loss), static_argnums=1)(params, c) for c in ("auto", None))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), got, wanted)
    assert seen == [chunk] * (steps > 1)
    layer = linen.ZoneoutRNN(linen.ZoneoutLSTMCell(H), time_major=True, chunk="auto")
    ys = layer.apply({"params": {"cell": params}}, xs)
    np.testing.assert_allclose(ys, unroll(cell, params, xs)[1], rtol=0, atol=1e-6)
    assert seen == [chunk] * 2 * (steps > 1)


@pytest.mark.parametrize("features", [1, F])  # with one feature, each step multiplies its own input
@pytest.mark.parametrize(("steps", "batch", "chunk"), [(0, B, None), (T, 0, None), (T, 0, 3)])
def test_empty_batches_and_sequences(steps, batch, chunk, features):
    xs, spec = jnp.ones((steps, batch, features)), Zoneout(states=0.5)
    options = {"time_major": True, "return_carry": True, "chunk": chunk}
    lengths = jnp.zeros(batch, int)
    in_linen = linen.ZoneoutLSTMCell(H, zoneout=spec, deterministic=True)
    layer = linen.ZoneoutRNN(in_linen, **options, reverse=True)
    variables = layer.init(jax.random.key(0), jnp.ones((T, B, features)))
    in_nnx = faces.ZoneoutLSTMCell(features, H, zoneout=spec, rngs=nnx.Rngs(0))
    in_nnx = faces.ZoneoutRNN(in_nnx, **options)

    def pure(params, xs):
        return unroll(in_nnx.cell.pure, params, xs, chunk=chunk)

    params = in_nnx.cell.pure_params()
    for carry, ys in (
        jax.jit(pure)(params, xs),
        jax.jit(layer.apply)(variables, xs, seq_lengths=lengths),
        nnx.jit(lambda layer, xs: layer(xs))(in_nnx, xs),
    ):
        assert ys.shape == (steps, batch, H)
        assert [leaf.shape for leaf in carry] == [(batch, H), (batch, H)]
    gradient = jax.jit(jax.grad(lambda *a: jnp.sum(pure(*a)[1]), (0, 1)))(params, xs)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: RNN(F, H, activation_fn="sine"),
            ValueError,
            "activation_fn must be one of 'sigmoid', 'tanh'",
        ),
        (lambda: LSTM(F, H, normalization="group"), ValueError, "normalization must be one of"),
        (lambda: LSTM(F, H, normalization="batch"), ValueError, "needs max_steps"),
        (lambda: LSTM(F, H, max_steps=3), ValueError, "max_steps is for"),
        (lambda: LSTM(F, H, output="gate"), ValueError, "output must be one of"),
        (lambda: LSTM(F, H, proj_size=0), ValueError, "proj_size must be at least 1, got 0"),
        (
            lambda: LSTM(F, H, proj_size=2, ogates_zoneout="repository"),
            ValueError,
            'proj_size does not go with ogates_zoneout="repository"',
        ),
        (
            lambda: GRU(F, H, normalization="batch"),
            ValueError,
            "normalization must be one of 'layer', None; got 'batch'",
        ),
        (
            lambda: GRU(F, H, normalization="layer", reset_after=False),
            ValueError,
            'normalization="layer" is for reset_after=True only',
        ),
        (
            lambda: call(
                functools.partial(LSTM, proj_size=2),
                zoneout=Zoneout(cells=0.5, states=0.5, shared=True),
                deterministic=True,
            ),
            ValueError,
            "a mask cannot be shared by 5 cells and 2 states; leave shared out",
        ),
        (
            lambda: call(functools.partial(LSTM, proj_size=2), masks=Masks(jnp.ones((T, B, 2)))),
            ValueError,
            r"mask of cells must have the axes .7 or 1, 4 or 1, 5 or 1. .*got .7, 4, 2.",
        ),
        (
            lambda: call(functools.partial(LSTM, proj_size=2), carry=(jnp.zeros((B, H)),) * 2),
            ValueError,
            r"carry must have the shapes and types .*\(4, 2\)",
        ),
        (lambda: GRU(0, H), ValueError, "in_features must be at least 1, got 0"),
        (lambda: call(RNN, zoneout=Zoneout(cells=0.5), key=KEY), ValueError, "no cells to mask"),
        (lambda: call(GRU, seq_lengths=np.array([8, 1, 1, 1])), ValueError, r"in \[0, 7\]"),
        (lambda: call(GRU, seq_lengths=np.array([-1, 1, 1, 1])), ValueError, r"in \[0, 7\]"),
        (lambda: call(GRU, chunk=0), ValueError, 'chunk must be at least 1, "auto" or None; got 0'),
        (lambda: call(GRU, chunk="sqrt"), ValueError, "chunk must be at least 1.*got 'sqrt'"),
        (lambda: export_of(chunk="auto"), ValueError, "chunk needs a known number of steps, and T"),
        (lambda: call(GRU, unroll=0), ValueError, "unroll must be at least 1"),
        (lambda: call(GRU, carry_noise=-1.0), ValueError, "carry_noise must be at least 0"),
        (lambda: call(GRU, seq_lengths=np.array([1.5, 1, 1, 1])), TypeError, "must be integers"),
        (lambda: call(GRU, zoneout=0.5), TypeError, "must be a Zoneout"),
        (
            lambda: call(GRU, zoneout=Zoneout(states=jnp.array([0.1, 0.2])), key=KEY),
            ValueError,
            "must be a single number",
        ),
        (lambda: call(GRU, carry=jnp.zeros((B, H), int)), ValueError, "shapes and types"),
        (lambda: call(GRU, masks=Masks(), zoneout=Zoneout(states=0.5)), ValueError, "not both"),
        (lambda: call(GRU, implementation="fast"), ValueError, "one of 'fused', 'scan'"),
        (lambda: call(GRU, carry_noise=0.1), ValueError, "noise in training needs a random key"),
        (
            lambda: call(GRU, zoneout=Zoneout(states=0.5), key=0),
            TypeError,
            r"such as jax.random.key\(0\); got 0",
        ),
        (
            lambda: call(LSTM, masks=Masks(cells=jnp.ones((B, H)))),
            ValueError,
            r"axes .7 or 1, 4 or 1, 5 or 1. .time first. or be a scalar, got .4, 5.",
        ),
        (lambda: call(GRU, masks=Masks(cells=1.0)), ValueError, "no cells to mask, only states"),
        (
            lambda: call(MinGRU, zoneout=Zoneout(hidden_drop=0.5), deterministic=True),
            ValueError,
            "MinGRU has no hidden to mask, only states and update",
        ),
        (
            lambda: GRU(F, H).step({}, None, None, Masks(cells=jnp.ones((B, H)))),
            ValueError,
            "no cells to mask, only states",
        ),
        (lambda: call(GRU, stats={"mean": 1}), ValueError, "batch-normalized cells only"),
        (
            lambda: call(functools.partial(LSTM, **BATCH), deterministic=True),
            ValueError,
            "needs its population stats",
        ),
        (
            lambda: call(GRU, zoneout=Zoneout(states=lambda step: 0.1), key=KEY),
            TypeError,
            r"spec.at\(step\)",
        ),
        (
            lambda: call(GRU, masks={"states": True}),
            TypeError,
            r"masks must be Masks, such as Masks\(cells=…\); got dict",
        ),
        (lambda: GRU(F, H).step({}, None, None, jnp.ones((B, H))), TypeError, "must be Masks"),
        (lambda: LSTM(F, H, initial_gamma=0.5), ValueError, "for a normalized cell only"),
        (lambda: unroll(GRU, {}, None), TypeError, r"such as LSTM\(3, 5\); got the class .*GRU$"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def export_of(**options):
    """Exports a run over sequences of any length."""
    cell = RNN(F, H)
    xs = jax.ShapeDtypeStruct((*export.symbolic_shape("T"), B, F), jnp.float32)
    params = cell.init(jax.random.key(0))
    return export.export(jax.jit(lambda xs: unroll(cell, params, xs, **options)))(xs)


def test_known_lengths_with_any_number_of_steps():
    lengths = jnp.array(LENGTHS)
    exported, cell = export_of(seq_lengths=lengths), RNN(F, H)
    xs = normal(1, (T + 2, B, F))
    params = cell.init(jax.random.key(0))
    wanted = unroll(cell, params, xs, seq_lengths=lengths)[1]
    np.testing.assert_allclose(exported.call(xs)[1], wanted, rtol=0, atol=1e-6)
    clipped = unroll(cell, params, xs[:2], seq_lengths=jnp.minimum(lengths, 2))[1]
    np.testing.assert_allclose(exported.call(xs[:2])[1], clipped, rtol=0, atol=1e-6)


def call(factory, **options):
    cell = factory(F, H)
    return unroll(cell, cell.init(jax.random.key(0)), jnp.ones((T, B, F)), **options)
