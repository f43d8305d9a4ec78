"""With resets, no state passes between episodes, in every way to run over time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, test_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.arrays import normal, normal_like, shaken
from tests.test_cells import KEY, sample, spec_for
from tests.test_faces import XS, InLinen, InNNX, both
from zoneout_jax import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    RNN,
    IndRNN,
    Masks,
    MinGRU,
    MinLSTM,
    Zoneout,
    linen,
    unroll,
)
from zoneout_jax import _unroll as module

T, B, F, H = 7, 4, 3, 5
RESETS = np.zeros((T, B), bool)
for example, firsts in enumerate(([0, 3], [2, 5], [], [1, 2, 6])):
    RESETS[firsts, example] = True
LENGTHS = (7, 5, 4, 3)  # some resets come right after the end, some later

CELLS = {
    "lstm": (LSTM, {}),
    "lstm output gate": (LSTM, {"ogates_zoneout": "paper"}),
    "lstm layer norm": (LSTM, {"normalization": "layer"}),
    "gru": (GRU, {}),
    "gru reset before": (GRU, {"reset_after": False}),
    "rnn": (RNN, {}),
    "min_gru": (MinGRU, {}),
    "min_lstm": (MinLSTM, {}),
    "rg_lru": (RGLRU, {}),
    "lru": (LRU, {}),
    "lstm projected": (LSTM, {"proj_size": 2}),
    "gru layer norm": (GRU, {"normalization": "layer"}),
    "indrnn": (IndRNN, {}),
}
FURTHER = ("lstm projected", "gru layer norm", "indrnn")
LINEAR = ("min_gru", "min_lstm", "rg_lru", "lru")


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


@functools.cache
def build(name, dtype=jnp.float64):
    """Returns a cell with a learned initial carry, its parameters, inputs, and a carry."""
    kind, options = CELLS[name]
    cell = kind(F, H, param_dtype=dtype, learned_carry=True, **options)
    params = shaken(1, cell.init(jax.random.key(0)))
    carry = normal_like(2, cell.initial_carry(params, B))
    return cell, params, normal(3, (T, B, F), dtype), carry


def apart(cell, params, xs, carry, masks, lengths, reverse):
    """Runs every episode as a separate example; returns (carries, outputs) as `unroll` does."""
    rows, firsts, lasts = [], [], []
    for b, length in enumerate(lengths):
        inner = [t for t in range(1, length) if RESETS[t, b]]
        begins = [0, *inner]
        episodes = [*zip(begins, [*inner, length], strict=True)]
        episodes = episodes[::-1] if reverse else episodes
        # The given carry is not used if a reset starts an episode at the first step.
        firsts += [(reverse or not RESETS[0, b]) and n == 0 for n in range(len(episodes))]
        rows += [(b, *episode) for episode in episodes]
        lasts.append(len(rows) - 1)
    example, begin, end = np.array(rows).T
    time = begin + np.arange(T)[:, None]
    inside = time < end

    def episodes_of(array):
        return array[np.minimum(time, T - 1), example]

    start = jax.tree.map(
        lambda own, given: jnp.where(np.array(firsts)[:, None], given[example], own),
        cell.initial_carry(params, len(rows)),
        carry,
    )
    masks = jax.tree.map(lambda m: jnp.broadcast_to(m, (T, *m.shape[1:])), masks)
    carry, ys = unroll(
        cell,
        params,
        episodes_of(xs),
        start,
        masks=jax.tree.map(episodes_of, masks),
        seq_lengths=end - begin,
        reverse=reverse,
        implementation="scan",
    )
    place = time[inside], np.broadcast_to(example, inside.shape)[inside]
    out = jnp.zeros((T, B, ys.shape[-1]), ys.dtype).at[place].set(ys[inside])
    return jax.tree.map(lambda leaf: leaf[np.array(lasts)], carry), out


def differentiated(run, name, masks):
    """Carry, outputs and all gradients of `run(cell, params, xs, carry, masks)`."""
    cell, params, xs, carry = build(name)
    sampled = sample(cell, spec_for(cell, masks))
    soft = {n: m.astype(xs.dtype) for n, m in sampled._asdict().items() if m is not None}
    weights = normal(4, (T, B, cell.output_features), xs.dtype)

    def loss(params, xs, carry, soft):
        last, ys = run(cell, params, xs, carry, Masks(**soft))
        rest = sum(jnp.sum(jnp.square(jnp.abs(leaf))) for leaf in jax.tree.leaves(last))
        return jnp.sum(weights * ys) + rest, (last, ys)

    return jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(params, xs, carry, soft)


@functools.cache
def wanted(name, masks, lengths, reverse):
    run = functools.partial(apart, lengths=lengths or (T,) * B, reverse=reverse)
    return differentiated(run, name, masks)


def close(one, other, atol=1e-10, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


def run(cell, params, xs, carry=None, **options):
    return jax.jit(lambda *given: unroll(cell, *given, **options))(params, xs, carry)


RUNS = {
    "fused": {"implementation": "fused"},
    "transposed": {"implementation": "fused"},
    "scan": {"implementation": "scan"},
    "associative": {"implementation": "associative"},
    "chunks": {"chunk": 3, "unroll": 2},
}
FORWARD, BACK = (None, False), (LENGTHS, True)
CASES = [
    (name, "all", run, *case)
    for name in CELLS
    for run in RUNS
    for case in (FORWARD, BACK)
    if run not in (("fused", "transposed") if name in LINEAR else ("associative",))
    if run != "transposed" or name in ("lstm", "lstm output gate", "gru", "rnn")
]
CASES += [
    (name, "all", run, *case)
    for name, run in (("lstm", "fused"), ("gru", "chunks"), ("lru", "associative"))
    for case in ((LENGTHS, False), (None, True))
]
CASES += [("lstm", masks, "fused", *BACK) for masks in ("static", "gaussian", "stochastic depth")]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "masks", "run", "lengths", "reverse"),
    [
        pytest.param(*c, marks=pytest.mark.slow)
        if c[-2:] == FORWARD
        or c[2] == "chunks"
        or c[0] in FURTHER
        and c != ("lstm projected", "all", "fused", *BACK)
        else c
        for c in CASES
    ],
)
def test_equals_each_episode_apart(name, masks, run, lengths, reverse, monkeypatch):
    if run == "transposed":
        monkeypatch.setattr(module, "_is_better_transposed", lambda cell, batch: True)
        monkeypatch.setattr(module, "_multiplies_own_input", lambda cell: True)

    def unrolled(cell, params, xs, carry, masks):
        options = {"seq_lengths": None if lengths is None else jnp.array(lengths)} | RUNS[run]
        options |= {"masks": masks, "resets": RESETS, "reverse": reverse}
        return unroll(cell, params, xs, carry, **options)

    close(differentiated(unrolled, name, masks), wanted(name, masks, lengths, reverse))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "modes"), [("lstm", ["rev"]), ("min_gru", ["fwd", "rev"])])
def test_gradients_by_finite_differences(name, modes):
    cell, params, xs, carry = build(name)
    masks = spec_for(cell, "all").sample(KEY, T, B, H)
    weights = normal(4, (T, B, H), xs.dtype)

    @jax.jit
    def loss(params, xs, carry):
        return jnp.sum(weights * unroll(cell, params, xs, carry, masks=masks, resets=RESETS)[1])

    test_util.check_grads(loss, (params, xs, carry), order=1, modes=modes, atol=1e-6, rtol=1e-6)


def restarted(cell, params, carry, first):
    """Resets the carry of a stream where an episode begins."""
    start = cell.initial_carry(params, first.shape[0])
    return jax.tree.map(lambda c, s: jnp.where(first[:, None], s, c), carry, start)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in FURTHER else n for n in CELLS]
)
def test_streaming_equals_training(name):
    cell, params, xs, carry = build(name)
    masks = sample(cell, spec_for(cell, "all"))
    last, wanted = run(cell, params, xs, carry, masks=masks, resets=RESETS)
    step, ys = jax.jit(cell.step), []
    for t in range(T):
        carry = restarted(cell, params, carry, RESETS[t])
        carry, y = step(params, carry, xs[t], jax.tree.map(lambda m, t=t: m[t], masks))
        ys.append(y)
    close((carry, jnp.stack(ys)), (last, wanted))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "min_gru"])
def test_windows_of_a_stream(name, reverse):
    cell, params, xs, carry = build(name)
    whole = run(cell, params, xs, carry, resets=RESETS, reverse=reverse)
    for cut in (2, 4):
        windows = [slice(0, cut), slice(cut, T)]
        parts, state = {}, carry
        for number in (1, 0) if reverse else (0, 1):
            window = windows[number]
            if reverse and number == 0:  # an episode may begin between the windows
                state = restarted(cell, params, state, RESETS[cut])
            options = {"resets": RESETS[window], "reverse": reverse}
            state, parts[number] = run(cell, params, xs[window], state, **options)
        close((state, jnp.concatenate([parts[0], parts[1]])), whole)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru reset before", "lru"])
def test_a_carry_of_nan_ends_with_a_reset(name, reverse):
    cell, params, xs, carry = build(name, jnp.float32)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, carry)
    # In reverse, the last step runs first, as a separate chunk.
    kept = slice(0, T - 1 if reverse else T)
    options = {"resets": RESETS | (np.arange(T) == (T - 1 if reverse else 0))[:, None]}
    options |= {"reverse": reverse, "chunk": 3}
    ys, wanted = (run(cell, params, xs, c, **options)[1][kept] for c in (broken, carry))
    close(ys, wanted, 1e-6)


@pytest.mark.parametrize("name", ["lstm", "min_gru"])
def test_emit_sees_the_carry_after_the_step(name):
    cell, params, xs, carry = build(name, jnp.float32)
    options = {"resets": RESETS, "chunk": 3, "emit": lambda carry, y: (cell.hidden(carry), y)}
    _, (hs, ys) = run(cell, params, xs, carry, **options)
    np.testing.assert_array_equal(hs, ys)
    close(ys, run(cell, params, xs, carry, resets=RESETS)[1], 1e-6)


@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_every_episode_of_an_example_starts_with_the_same_noise(name):
    cell, params, xs, carry = build(name, jnp.float32)
    resets = np.zeros((T, B), bool)
    resets[3] = True
    options = {"key": KEY, "carry_noise": 0.5}
    _, first = run(cell, params, xs[:3], **options)
    last, second = run(cell, params, xs[3:], **options)
    ys = jnp.concatenate([first, second])
    close(run(cell, params, xs, resets=resets, **options), (last, ys), 1e-6)
    # A given carry gets no noise.
    ys = run(cell, params, xs, carry, resets=resets, **options)[1]
    close(ys[:3], run(cell, params, xs[:3], carry)[1], 1e-6)
    close(ys[3:], second, 1e-6)
    with pytest.raises(ValueError, match="noise in training needs a random key"):
        run(cell, params, xs, carry, resets=resets, carry_noise=0.5)
    quiet = {"deterministic": True, "resets": resets}
    close(run(cell, params, xs, carry_noise=0.5, **quiet), run(cell, params, xs, **quiet), 1e-6)


def program(name, **options):
    cell, params, xs, carry = build(name, jnp.float32)

    def loss(params, xs, carry):
        return jnp.sum(unroll(cell, params, xs, carry, **options)[1])

    return jax.jit(jax.grad(loss, (0, 1, 2))).lower(params, xs, carry).as_text()


@pytest.mark.parametrize("implementation", [None, "scan"])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "min_gru", "rg_lru"])
def test_no_resets_cost_nothing(name, implementation):
    plain = program(name, implementation=implementation)
    assert program(name, implementation=implementation, resets=None) == plain
    # Only resets select between carries. The plain RG-LRU has a select from its maximum.
    chosen = program(name, implementation=implementation, resets=RESETS).count("stablehlo.select")
    assert plain.count("stablehlo.select") < chosen


@pytest.mark.parametrize(("steps", "batch"), [(0, B), (T, 0)])
@pytest.mark.parametrize("name", ["lstm", "min_gru"])
def test_empty_arrays(name, steps, batch):
    cell, params, xs, carry = build(name, jnp.float32)
    carry = jax.tree.map(lambda leaf: leaf[:batch], carry)
    for reverse in (False, True):
        options = {"resets": RESETS[:steps, :batch], "reverse": reverse}
        last, ys = unroll(cell, params, xs[:steps, :batch], carry, **options)
        assert ys.shape == (steps, batch, H)
        close(last, carry)


@pytest.mark.parametrize("name", ["lstm", "min_gru"])
def test_traced_and_mapped_resets(name):
    cell, params, xs, carry = build(name, jnp.float32)
    spec = Zoneout(states=0.3)

    def gradient(resets):
        def loss(params):
            options = {"zoneout": spec, "key": KEY, "resets": resets}
            return jnp.sum(jnp.square(unroll(cell, params, xs, carry, **options)[1]))

        return jax.grad(loss)(params)

    several = jnp.stack([RESETS, ~RESETS, jnp.zeros_like(RESETS)])
    got = jax.jit(jax.vmap(gradient))(several)
    for number, resets in enumerate(several):
        close(jax.tree.map(lambda g, n=number: g[n], got), gradient(resets), 1e-5, 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["lstm", "lru"])
def test_symbolic_shapes(name, reverse):
    cell, params, xs, carry = build(name, jnp.float32)
    steps, batch = export.symbolic_shape("t, b")

    def run(xs, resets):
        return unroll(cell, params, xs, resets=resets, reverse=reverse)[1]

    shapes = [
        jax.ShapeDtypeStruct((steps, batch, *rest), dtype)
        for rest, dtype in (((F,), jnp.float32), ((), jnp.bool_))
    ]
    exported = export.export(jax.jit(run))(*shapes)
    close(exported.call(xs, jnp.asarray(RESETS)), run(xs, RESETS), 1e-5)


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", ["lstm", "gru reset before", "min_gru"])
def test_devices_give_the_numbers_of_one(name, explicit):
    cell, params, xs, carry = build(name, jnp.float32)
    spec = spec_for(cell, "all")
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))

    def loss(params, xs, resets, axis_name=None):
        options = {"zoneout": spec, "key": KEY, "axis_name": axis_name, "reverse": True}
        ys = unroll(cell, params, xs, resets=resets, carry_noise=0.1, **options)[1]
        total = jnp.sum(jnp.square(ys))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    wanted = jax.grad(loss)(params, xs, jnp.asarray(RESETS))
    if explicit:
        with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else jax.sharding.use_mesh(mesh):
            everywhere, spread = (NamedSharding(mesh, spec) for spec in (P(), P(None, "data")))
            arguments = jax.device_put(params, everywhere), jax.device_put(xs, spread)
            got = jax.jit(jax.grad(loss))(*arguments, jax.device_put(RESETS, spread))
    else:
        over = jax.shard_map(
            lambda *arguments: jax.grad(loss)(*arguments, "data"),
            mesh=mesh,
            in_specs=(P(), P(None, "data"), P(None, "data")),
            out_specs=P(),
        )
        got = jax.jit(over)(params, xs, jnp.asarray(RESETS))
    close(got, wanted, 1e-5, 1e-5)


# The Flax faces: B, T = 3, 6, batch first.

EPISODES = np.zeros(XS.shape[:2], bool)
for example, firsts in enumerate(([2, 5], [], [0, 1, 4])):
    EPISODES[example, firsts] = True
KINDS = ["LSTM", "GRU", "Simple", "MinGRU", "LRU"]


def raised(layer):
    """Makes the learned initial carries of a layer nonzero."""
    if isinstance(layer, InLinen):
        layer.variables = jax.tree.map(lambda p: p + 0.1, layer.variables)
    else:
        for cell in sum(layer.layer._layers(), ()):
            for name in cell.pure.parameters():
                getattr(cell, name)[...] += 0.1
    return layer


@both
@pytest.mark.parametrize(
    ("kind", "layers"),
    [pytest.param(kind, 1, marks=pytest.mark.slow) for kind in KINDS] + [("LSTM", 2)],
)
def test_streaming_equals_training_in_faces(face, kind, layers):
    spec = Zoneout(states=0.3)
    layer = raised(face(kind, layers=layers, learned_carry=True, zoneout=spec))
    last, wanted = layer(XS, resets=EPISODES, deterministic=True)
    none, _ = layer(XS[:, :0], deterministic=True)  # the initial carry

    @jax.jit
    def step(carry, x, first):
        carry = jax.tree.map(lambda c, s: jnp.where(first[:, None], s, c), carry, none)
        return layer(x[:, None], initial_carry=carry, deterministic=True)

    @jax.jit
    def short_step(carry, x, first):
        given = {"initial_carry": carry, "resets": first[:, None]}
        return layer(x[:, None], **given, deterministic=True)

    for one in (step, short_step):
        carry, ys = none, []
        for t in range(XS.shape[1]):
            carry, y = one(carry, XS[:, t], EPISODES[:, t])
            ys.append(y)
        close((carry, jnp.concatenate(ys, 1)), (last, wanted), 1e-5)
    assert np.abs(wanted - layer(XS, deterministic=True)[1]).max() > 1e-3


@both
@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_faces(face, kind):
    layer = raised(face(kind, learned_carry=True))
    options = {"reverse": True, "keep_order": True}
    last, ys = layer(XS, resets=EPISODES, **options)
    over_time = layer(jnp.moveaxis(XS, 1, 0), resets=EPISODES.T, time_major=True, **options)
    close(over_time, (last, jnp.moveaxis(ys, 1, 0)), 0)
    twice = layer(jnp.stack([XS, XS]), resets=np.stack([EPISODES, ~EPISODES]), **options)
    other = layer(XS, resets=~EPISODES, **options)
    close(twice, jax.tree.map(lambda *a: jnp.stack(a), (last, ys), other), 1e-6)
    # Lengths with resets after the end, and outputs in the order of computation.
    lengths = np.array([4, 6, 3])
    options |= {"seq_lengths": lengths, "keep_order": False}
    _, ys = layer(XS, resets=EPISODES, **options)
    cell = layer.layer.cell
    if isinstance(layer, InLinen):
        pure, params = cell.pure(XS.shape[-1]), layer.variables["params"]["cell"]
    else:
        pure, params = cell.pure, cell.pure_params()
    options = {"seq_lengths": lengths, "reverse": True, "resets": EPISODES.T}
    wanted = unroll(pure, params, jnp.moveaxis(XS, 1, 0), **options)[1]
    for b, length in enumerate(lengths):
        close(ys[b, :length], wanted[:length, b][::-1], 1e-6)


def call(resets, **options):
    cell, params, xs, _ = build("gru", jnp.float32)
    return unroll(cell, params, xs, resets=resets, **options)


def call_batch_norm():
    cell = LSTM(F, H, normalization="batch", max_steps=T)
    return unroll(cell, cell.init(KEY), jnp.ones((T, B, F)), resets=RESETS)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (
            lambda: call(RESETS.T),
            ValueError,
            r"^resets must be booleans of the shape \(7, 4\), got bool of \(4, 7\)$",
        ),
        (
            lambda: call(RESETS[0]),
            ValueError,
            r"resets must be booleans of the shape \(7, 4\), got bool of \(4,\)",
        ),
        (
            lambda: call(RESETS.astype(np.float32)),
            TypeError,
            r"resets must be booleans of the shape \(7, 4\), got float32 of \(7, 4\)",
        ),
        (lambda: call(jnp.asarray(RESETS, int)), TypeError, "must be booleans.*got int32"),
        (lambda: call([[0, 1, 0, 0]] * T), TypeError, "must be booleans.*got int64"),
        (call_batch_norm, ValueError, "resets are not for batch-normalized cells"),
        (
            lambda: InLinen("LSTM")(XS, resets=EPISODES.T),
            ValueError,
            r"^ZoneoutRNN: resets must be booleans of the shape \(3, 6\), got bool of \(6, 3\)",
        ),
        (
            lambda: InNNX("LSTM", layers=2)(XS, resets=EPISODES * 1.0),
            TypeError,
            r"ZoneoutRNN: resets must be booleans of the shape \(3, 6\), got float64 of \(3, 6\)",
        ),
        *[
            (
                lambda face=face: face("GRU", carry_init=jax.nn.initializers.ones)(
                    XS, resets=EPISODES
                ),
                ValueError,
                "ZoneoutGRUCell: resets are for carries of zeros or learned ones, not for carry_in",
            )
            for face in (InLinen, InNNX)
        ],
        (
            lambda: InNNX("LSTM", normalization="batch", max_steps=9)(XS, resets=EPISODES),
            ValueError,
            "resets are not for batch-normalized cells",
        ),
    ],
)
def test_errors(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_lists_of_booleans():
    close(call(RESETS.tolist()), call(RESETS), 0)


def test_resets_while_a_linen_layer_is_initialized():
    layer = linen.ZoneoutRNN(linen.ZoneoutGRUCell(H, learned_carry=True))
    one, other = (layer.init(KEY, XS, resets=resets) for resets in (EPISODES, None))
    jax.tree.map(np.testing.assert_array_equal, one, other)
