"""The Flax NNX modules."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.arrays import normal
from zoneout_jax import Zoneout, interop, linen
from zoneout_jax.nnx import ZoneoutGRUCell, ZoneoutLSTMCell, ZoneoutRNN, ZoneoutSimpleCell

B, T, F, H = 3, 6, 4, 5
SPEC = Zoneout(cells=0.5, states=0.3)
XS = normal(0, (B, T, F))
LENGTHS = jnp.array([6, 2, 4])


def layer(spec=SPEC, seed=0, **options):
    return ZoneoutRNN(ZoneoutLSTMCell(F, H, zoneout=spec, rngs=nnx.Rngs(seed)), **options)


@pytest.mark.parametrize(
    ("time_major", "return_carry", "reverse", "keep_order", "lengths"),
    list(itertools.product([False, True], repeat=5)),
)
def test_takes_the_place_of_nnx_rnn(time_major, return_carry, reverse, keep_order, lengths):
    options = {
        "time_major": time_major,
        "return_carry": return_carry,
        "reverse": reverse,
        "keep_order": keep_order,
    }
    seq_lengths = LENGTHS if lengths else None
    xs = jnp.swapaxes(XS, 0, 1) if time_major else XS
    ours = layer(Zoneout(), **options)
    theirs = nnx.RNN(nnx.OptimizedLSTMCell(F, H, rngs=nnx.Rngs(1)), **options)
    nnx.update(theirs.cell, interop.to_nnx(ours.cell.pure_params()))
    got, wanted = (rnn(xs, seq_lengths=seq_lengths) for rnn in (ours, theirs))
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


@pytest.mark.parametrize("kind", ["nnx.RNN", "ZoneoutRNN", "nnx.Bidirectional", "nnx.scan"])
def test_masks_differ_over_time_and_by_call(kind):
    # With a rate of 1/2 for states only, the outputs show which values are kept.
    spec = Zoneout(states=0.5)
    cells = [ZoneoutLSTMCell(F, H, zoneout=spec, rngs=nnx.Rngs(seed)) for seed in (0, 1)]

    def scanned(xs):
        @nnx.scan(in_axes=(nnx.StateAxes({...: nnx.Carry}), nnx.Carry, 1), out_axes=(nnx.Carry, 1))
        def step(cell, carry, x):
            return cell(carry, x)

        return step(cells[0], cells[0].initialize_carry((B, F)), xs)[1]

    run = {
        "nnx.RNN": lambda: nnx.RNN(cells[0]),
        "ZoneoutRNN": lambda: ZoneoutRNN(cells[0]),
        "nnx.Bidirectional": lambda: nnx.Bidirectional(*[ZoneoutRNN(cell) for cell in cells]),
        "nnx.scan": lambda: scanned,
    }[kind]()
    ys = [run(XS) for _ in range(2)]
    assert not np.array_equal(*ys)
    kept = np.asarray(ys[0][:, 1:, :H] == ys[0][:, :-1, :H])
    assert len({kept[:, t].tobytes() for t in range(T - 1)}) == T - 1
    assert 0.2 < kept.mean() < 0.8


def test_train_and_eval():
    rnn = layer()
    noisy = rnn(XS)
    rnn.eval()
    expected = rnn(XS)
    np.testing.assert_array_equal(expected, rnn(XS))
    np.testing.assert_allclose(nnx.RNN(rnn.cell)(XS), expected, rtol=0, atol=1e-6)
    rnn.train()
    assert not np.array_equal(noisy, rnn(XS))
    np.testing.assert_array_equal(rnn(XS, deterministic=True), expected)
    # The same seed gives the same run.
    np.testing.assert_array_equal(noisy, layer()(XS))


def test_rates_at_the_call_are_traced():
    rnn, traces = layer(), []

    @nnx.jit
    def run(rnn, spec):
        traces.append(spec)
        return rnn(XS, zoneout=spec, deterministic=True)

    outs = [run(rnn, Zoneout(cells=rate)) for rate in (0.0, 0.5)]
    assert len(traces) == 1 and np.abs(outs[0] - outs[1]).max() > 1e-3


def test_without_a_stream():
    cell = ZoneoutLSTMCell(F, H, zoneout=SPEC, rngs=nnx.Rngs(params=0))
    rnn = ZoneoutRNN(cell)
    assert rnn(XS, deterministic=True).shape == (B, T, H)
    with pytest.raises(ValueError, match='needs the random stream "zoneout"'):
        rnn(XS)


def test_a_carry_from_an_initializer_of_the_call():
    shape, init = (B, F), jax.nn.initializers.normal(1.0)
    cell, other = (
        ZoneoutGRUCell(F, H, carry_init=of_cell, rngs=nnx.Rngs(0)) for of_cell in (None, init)
    )
    wanted = other.initialize_carry(shape, nnx.Rngs(3))
    np.testing.assert_array_equal(cell.initialize_carry(shape, nnx.Rngs(3), init), wanted)
    assert np.abs(wanted).max() > 0.1
    learned = ZoneoutGRUCell(F, H, learned_carry=True, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="carry is learned: leave carry_init out"):
        learned.initialize_carry(shape, nnx.Rngs(3), init)


def test_learned_carry_is_trained():
    cell = ZoneoutGRUCell(F, H, learned_carry=True, rngs=nnx.Rngs(0))
    cell.initial_h = nnx.Param(jnp.arange(5.0))
    np.testing.assert_array_equal(cell.initialize_carry((B, F))[1], jnp.arange(5.0))
    rnn = ZoneoutRNN(cell)
    np.testing.assert_allclose(nnx.RNN(cell)(XS), rnn(XS), rtol=0, atol=1e-6)
    gradient = nnx.grad(lambda rnn: jnp.sum(rnn(XS)))(rnn)
    assert np.all(gradient["cell"]["initial_h"][...] != 0)


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_layers_have_masks_of_their_own(face, monkeypatch):
    drawn, sample = [], Zoneout.sample

    def record(self, *arguments, **options):
        drawn.append(sample(self, *arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(Zoneout, "sample", record)
    xs = jnp.ones((40, 20, 30))
    specs = [Zoneout(states=0.5), Zoneout(states=0.5), Zoneout(states=0.1)]
    if face == "nnx":
        rngs = nnx.Rngs(0)
        ZoneoutRNN([ZoneoutSimpleCell(30, 30, zoneout=s, rngs=rngs) for s in specs])(xs)
    else:
        rnn = linen.ZoneoutRNN([linen.ZoneoutSimpleCell(30, zoneout=s) for s in specs])
        variables = rnn.init(jax.random.key(0), xs, deterministic=True)
        rnn.apply(variables, xs, deterministic=False, rngs={"zoneout": jax.random.key(1)})
    one, two, rare = (np.asarray(masks.states, np.float64).ravel() for masks in drawn)
    assert abs(np.corrcoef(one, two)[0, 1]) < 4 / np.sqrt(one.size)
    assert abs(np.corrcoef(one, rare)[0, 1]) < 4 / np.sqrt(one.size)
    assert abs(rare.mean() - 0.1) < 4 * np.sqrt(0.09 / rare.size) + 2.0**-16


def test_any_batch_dimensions():
    rnn = layer(return_carry=True)
    xs = normal(1, (2, 3, T, F))
    carry, ys = rnn(xs, deterministic=True, seq_lengths=jnp.full((2, 3), 4))
    assert carry[0].shape == (2, 3, H) and ys.shape == (2, 3, T, H)
    wanted = rnn(xs[1], deterministic=True, seq_lengths=jnp.full(3, 4))[1]
    np.testing.assert_allclose(ys[1], wanted, rtol=0, atol=1e-6)
    assert rnn(XS[0], deterministic=True)[1].shape == (T, H)


@pytest.mark.parametrize("rate", [jnp.array(0.5), np.array(0.5)])
def test_rates_that_are_arrays_become_numbers(rate):
    rnn = layer(Zoneout(cells=rate, static=True))
    assert rnn.cell.zoneout == Zoneout(cells=0.5, static=True)
    assert isinstance(rnn.cell.zoneout.cells, float)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: layer(0.5), TypeError, "must be a Zoneout, such as Zoneout.cells=0.5.; got 0.5"),
        (
            lambda: ZoneoutRNN(nnx.GRUCell(F, H, rngs=nnx.Rngs(0))),
            TypeError,
            r"takes cells of that module, got flax\..*GRUCell",
        ),
        (lambda: layer()(XS, initial_carry=(XS, XS)), ValueError, "arrays of a carry must be"),
        (lambda: layer()(XS, seq_lengths=jnp.ones(2, int)), ValueError, "seq_lengths must be"),
        (lambda: layer()(XS, seq_lengths=np.full(3, 9)), ValueError, r"in \[0, 6\]"),
        (lambda: layer()(XS[0, 0]), ValueError, "inputs must be"),
        (
            lambda: nnx.RNN(layer(Zoneout(cells=0.5, static=True)).cell)(XS),
            ValueError,
            "use ZoneoutRNN",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("states", [0.1, 0.0])
def test_shared_masks_with_an_array_for_a_rate(states):
    """Shared masks use the rate of the cells, as in the pure functions."""
    spec = Zoneout(cells=jnp.array(0.1), states=states, shared=True)
    cell = ZoneoutLSTMCell(3, 4, zoneout=spec, deterministic=False, rngs=nnx.Rngs(0))
    assert cell.zoneout.cells == cell.zoneout.states == float(np.float32(0.1))
    ys = ZoneoutRNN(cell)(jnp.ones((2, 5, 3)), rngs=nnx.Rngs(1))
    assert ys.shape == (2, 5, 4)
