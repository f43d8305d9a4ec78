"""The Flax Linen modules."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from tests.arrays import normal
from zoneout_jax import LSTM, Zoneout, unroll
from zoneout_jax.linen import ZoneoutLSTMCell, ZoneoutRNN

B, T, F, H = 3, 6, 4, 5
SPEC = Zoneout(cells=0.5, states=0.3)
SPLIT = {"params": False, "zoneout": True}
XS = normal(0, (B, T, F))
LENGTHS = jnp.array([6, 2, 4])


def flax_variables(variables):
    """Converts the parameters to the layout of Flax's OptimizedLSTMCell."""
    p = variables["params"]["cell"]
    split = {n: jnp.split(p[n], 4, -1) for n in ("input", "recurrent", "bias")}
    gates = {f"i{g}": {"kernel": split["input"][n]} for n, g in enumerate("ifgo")}
    for n, g in enumerate("ifgo"):
        gates[f"h{g}"] = {"kernel": split["recurrent"][n], "bias": split["bias"][n]}
    return {"params": {"cell": gates}}


@pytest.mark.parametrize(
    ("time_major", "return_carry", "reverse", "keep_order", "lengths"),
    list(itertools.product([False, True], repeat=5)),
)
def test_takes_the_place_of_nn_rnn(time_major, return_carry, reverse, keep_order, lengths):
    options = {
        "time_major": time_major,
        "return_carry": return_carry,
        "reverse": reverse,
        "keep_order": keep_order,
    }
    seq_lengths = LENGTHS if lengths else None
    xs = jnp.swapaxes(XS, 0, 1) if time_major else XS
    ours = ZoneoutRNN(ZoneoutLSTMCell(H), **options)
    theirs = nn.RNN(nn.OptimizedLSTMCell(H), **options)
    variables = ours.init(jax.random.key(1), xs)
    got = ours.apply(variables, xs, seq_lengths=seq_lengths)
    wanted = theirs.apply(flax_variables(variables), xs, seq_lengths=seq_lengths)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    if return_carry:
        for one, other in zip(got[0], wanted[0], strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
        got, wanted = got[1], wanted[1]
    if time_major:
        got, wanted = jnp.swapaxes(got, 0, 1), jnp.swapaxes(wanted, 0, 1)
    for b in range(B):
        end = int(LENGTHS[b]) if lengths else T
        np.testing.assert_allclose(got[b, :end], wanted[b, :end], rtol=0, atol=1e-6)
        assert not np.any(got[b, end:])


@pytest.mark.parametrize("time_major", [False, True])
def test_reverse_takes_any_lengths(time_major):
    # Lengths are a list, of narrow types, or traced; lengths above T count as T.
    rnn = ZoneoutRNN(ZoneoutLSTMCell(H), time_major=time_major, reverse=True)
    xs = jnp.swapaxes(XS, 0, 1) if time_major else XS
    variables = rnn.init(jax.random.key(1), xs)

    def run(lengths):
        return rnn.apply(variables, xs, seq_lengths=lengths)

    wanted = run(LENGTHS)
    for lengths in ([6, 2, 4], LENGTHS.astype(jnp.uint8)):
        np.testing.assert_array_equal(run(lengths), wanted)
    got = jax.jit(run)(jnp.array([9, 2, 4]))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


def test_equals_the_pure_functions():
    rnn = ZoneoutRNN(ZoneoutLSTMCell(H, zoneout=SPEC))
    variables = rnn.init(jax.random.key(1), XS, deterministic=True)
    params = variables["params"]["cell"]
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes == {"input": (F, 4 * H), "recurrent": (H, 4 * H), "bias": (4 * H,)}
    _, wanted = unroll(LSTM(F, H), params, jnp.swapaxes(XS, 0, 1), zoneout=SPEC, deterministic=True)
    got = rnn.apply(variables, XS, deterministic=True)
    np.testing.assert_allclose(got, jnp.swapaxes(wanted, 0, 1), rtol=0, atol=1e-6)
    cell = ZoneoutLSTMCell(H, zoneout=SPEC, deterministic=True)
    stepped = nn.RNN(cell, split_rngs=SPLIT).apply(variables, XS)
    np.testing.assert_allclose(stepped, got, rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", ["nn.RNN", "ZoneoutRNN", "nn.Bidirectional", "of ZoneoutRNN"])
def test_masks_differ_over_time_and_by_key(layer):
    # With a rate of 1/2 for states only, the outputs show which values are kept.
    cell = ZoneoutLSTMCell(H, zoneout=Zoneout(states=0.5), deterministic=False)
    rnn = {
        "nn.RNN": lambda: nn.RNN(cell, split_rngs=SPLIT),
        "ZoneoutRNN": lambda: ZoneoutRNN(cell),
        "nn.Bidirectional": lambda: nn.Bidirectional(
            nn.RNN(cell, split_rngs=SPLIT), nn.RNN(cell.clone(), split_rngs=SPLIT)
        ),
        "of ZoneoutRNN": lambda: nn.Bidirectional(ZoneoutRNN(cell), ZoneoutRNN(cell.clone())),
    }[layer]()
    variables = rnn.init({"params": jax.random.key(1), "zoneout": jax.random.key(2)}, XS)
    ys = [rnn.apply(variables, XS, rngs={"zoneout": jax.random.key(k)}) for k in (3, 3, 4)]
    np.testing.assert_array_equal(ys[0], ys[1])
    assert not np.array_equal(ys[0], ys[2])
    kept = np.asarray(ys[0][:, 1:, :H] == ys[0][:, :-1, :H])
    patterns = {kept[:, t].tobytes() for t in range(T - 1)}
    assert len(patterns) == T - 1
    assert 0.2 < kept.mean() < 0.8


def test_directions_have_masks_of_their_own():
    cell = ZoneoutLSTMCell(50, zoneout=Zoneout(states=0.5), deterministic=False)
    rnn = nn.Bidirectional(ZoneoutRNN(cell), ZoneoutRNN(cell.clone()))
    xs = normal(0, (20, 30, F))
    variables = rnn.init({"params": jax.random.key(1), "zoneout": jax.random.key(2)}, xs)
    ys = np.asarray(rnn.apply(variables, xs, rngs={"zoneout": jax.random.key(3)}))
    forward = ys[:, 1:-1, :50] == ys[:, :-2, :50]
    backward = ys[:, 1:-1, 50:] == ys[:, 2:, 50:]
    for other in (backward, backward[:, ::-1]):
        correlation = np.corrcoef(forward.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(forward.size)


def test_chunks_and_unroll_change_no_numbers():
    cell = ZoneoutLSTMCell(H, zoneout=SPEC, learned_carry=True)
    variables = ZoneoutRNN(cell).init(jax.random.key(1), XS)
    assert variables["params"]["cell"]["initial_h"].shape == (H,)
    variables = jax.tree.map(lambda p: p + 0.1, variables)

    def gradient(**options):
        def loss(variables):
            rnn = ZoneoutRNN(cell, deterministic=False, **options)
            ys = rnn.apply(variables, XS, rngs={"zoneout": jax.random.key(0)})
            return jnp.sum(jnp.square(ys)), ys

        return jax.grad(loss, has_aux=True)(variables)

    plain = gradient()
    assert np.all(plain[0]["params"]["cell"]["initial_h"])
    for options in ({"chunk": 4}, {"unroll": 3}):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5),
            gradient(**options),
            plain,
        )


def test_axis_name_serves_devices_and_needs_none_elsewhere():
    cell = ZoneoutLSTMCell(H, zoneout=SPEC, axis_name="data")
    xs = normal(0, (4, T, F))
    rngs = {"zoneout": jax.random.key(3)}
    variables = ZoneoutRNN(cell).init(jax.random.key(1), xs)
    ZoneoutRNN(cell).apply(variables, xs, deterministic=True)
    wanted = ZoneoutRNN(cell.clone(axis_name=None)).apply(
        variables, xs, deterministic=False, rngs=rngs
    )
    got = jax.pmap(
        lambda xs: ZoneoutRNN(cell).apply(variables, xs, deterministic=False, rngs=rngs),
        axis_name="data",
    )(xs.reshape(2, 2, T, F))
    np.testing.assert_allclose(got.reshape(wanted.shape), wanted, rtol=0, atol=1e-6)


def test_a_spec_for_each_cell_at_the_call():
    specs = [Zoneout(), Zoneout(states=lambda step: 0.1 * step)]
    cells = [ZoneoutLSTMCell(H, zoneout=spec) for spec in specs]
    rnn = ZoneoutRNN(cells, return_carry=True)
    variables = rnn.init(jax.random.key(1), XS)
    now = [spec.at(5) for spec in specs]
    carries, ys = rnn.apply(variables, XS, zoneout=now, deterministic=True)
    fixed = ZoneoutRNN([cells[0], ZoneoutLSTMCell(H, zoneout=Zoneout(states=0.5))])
    np.testing.assert_array_equal(ys, fixed.apply(variables, XS, deterministic=True))
    assert len(carries) == 2
    # A list of one cell gives a tuple of one carry.
    one = ZoneoutRNN(cells[:1], return_carry=True)
    assert len(one.apply(one.init(jax.random.key(0), XS), XS)[0]) == 1


def test_parameters_are_made_once():
    made = []

    def init(key, shape, dtype, blocks):
        made.append(shape)
        return jnp.zeros(shape, dtype)

    cell = ZoneoutLSTMCell(H, kernel_init=init, recurrent_kernel_init=init)
    with jax.disable_jit():
        ZoneoutRNN(cell).init(jax.random.key(0), XS)
    assert made.count((F, 4 * H)) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda v: ZoneoutRNN([]).init(jax.random.key(0), XS), "at least one cell"),
        (
            lambda v: ZoneoutRNN([ZoneoutLSTMCell(H), ZoneoutLSTMCell(H)]).init(
                jax.random.key(0), XS, initial_carry=jnp.zeros((B, H))
            ),
            "initial_carry must be a sequence of 2",
        ),
        (
            lambda v: ZoneoutRNN(ZoneoutLSTMCell(H)).apply(v, XS, zoneout=[SPEC, SPEC]),
            "zoneout must be a sequence of 1, one for each cell; got 2",
        ),
        (
            lambda v: nn.RNN(ZoneoutLSTMCell(H, carry_noise=0.1, deterministic=False)).apply(v, XS),
            "a single step of training cannot have carry_noise",
        ),
    ],
)
def test_errors(call, message):
    variables = ZoneoutRNN(ZoneoutLSTMCell(H)).init(jax.random.key(1), XS)
    with pytest.raises(ValueError, match=message):
        call(variables)


def test_errors_and_old_keys():
    rnn = ZoneoutRNN(ZoneoutLSTMCell(H, zoneout=SPEC))
    variables = rnn.init(jax.random.key(1), XS)
    with pytest.raises(ValueError, match="deterministic must be given"):
        rnn.apply(variables, XS)
    with pytest.raises(InvalidRngError, match="zoneout"):
        rnn.apply(variables, XS, deterministic=False)
    ys = rnn.apply(variables, XS, deterministic=False, rngs={"zoneout": jax.random.PRNGKey(0)})
    assert ys.shape == (B, T, H)

    def cell_of(spec):
        return ZoneoutLSTMCell(H, zoneout=spec, deterministic=False)

    static = cell_of(Zoneout(cells=0.5, static=True))
    stepped = nn.RNN(static, split_rngs=SPLIT)
    with pytest.raises(ValueError, match="cannot have static masks; use ZoneoutRNN"):
        stepped.apply(variables, XS, rngs={"zoneout": jax.random.key(0)})
    of_sequences = nn.RNN(cell_of(Zoneout(hidden_drop=0.5)), split_rngs=SPLIT)
    with pytest.raises(ValueError, match="a single step of training cannot have hidden_drop"):
        of_sequences.apply(variables, XS, rngs={"zoneout": jax.random.key(0)})
    # A static mask has the same expectation as any other mask.
    stepped = nn.RNN(static.clone(deterministic=True), split_rngs=SPLIT).apply(variables, XS)
    wanted = ZoneoutRNN(ZoneoutLSTMCell(H, zoneout=Zoneout(cells=0.5))).apply(
        variables, XS, deterministic=True
    )
    np.testing.assert_allclose(stepped, wanted, rtol=0, atol=1e-6)


def test_rates_are_traced_and_gradients_are_finite():
    traces = []

    @jax.jit
    def grads(variables, spec, key):
        traces.append(spec)

        def loss(variables):
            rnn = ZoneoutRNN(ZoneoutLSTMCell(H, zoneout=spec))
            return jnp.sum(rnn.apply(variables, XS, deterministic=False, rngs={"zoneout": key}))

        return jax.grad(loss)(variables)

    variables = ZoneoutRNN(ZoneoutLSTMCell(H)).init(jax.random.key(1), XS)
    found = [
        grads(variables, Zoneout(cells=rate, states=rate), jax.random.key(0))
        for rate in (0.0, 0.5, 1.0)
    ]
    assert len(traces) == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(found))
    assert np.any(found[0]["params"]["cell"]["recurrent"])
    assert not np.any(found[2]["params"]["cell"]["recurrent"])
