"""Linear cells equal NumPy, in parallel over time and step by step, in all faces."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, test_util
from jax.sharding import PartitionSpec as P

from tests.arrays import normal, shaken
from tests.oracles import sigmoid
from tests.test_cells import KEY, LENGTHS, MASKS, B, F, H, T, run_steps, run_unroll, spec_for
from zoneout_jax import (
    GRU,
    LRU,
    LSTM,
    RGLRU,
    LinearCell,
    Masks,
    MinGRU,
    MinLSTM,
    Zoneout,
    _linen_cell,
    linen,
    unroll,
)
from zoneout_jax import nnx as faces

PAGE = (pathlib.Path(__file__).parents[1] / "docs/own_cell.md").read_text()
(BLOCK,) = [b for b in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "(LinearCell)" in b]
NAMES: dict = {}
exec(BLOCK, NAMES)


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


# The equations of the papers in NumPy: coefficients and output of a step.


def min_gru(p, x, squash=lambda n: n):
    z, n = np.split(x @ p["input"] + p["bias"], 2, -1)
    z = sigmoid(z)
    return 1 - z, z * squash(n)


def min_lstm(p, x):
    f, i, n = np.split(x @ p["input"] + p["bias"], 3, -1)
    f, i = sigmoid(f), sigmoid(i)
    return f / (f + i), i / (f + i) * n


def rg_lru(p, x):
    size = p["decay"].size
    r, i = (sigmoid(part) for part in np.split((x @ p["input"] + p["bias"])[:, : 2 * size], 2, -1))
    if x.shape[-1] != size:
        x = x @ p["input"][:, 2 * size :] + p["bias"][2 * size :]
    a = sigmoid(p["decay"]) ** (8 * r)
    return a, np.sqrt(1 - a**2) * (i * x)


def lru(p, x):
    nu, theta, gamma = np.split(p["diagonal"], 3)
    b_re, b_im = np.split(p["input"], 2, -1)
    return np.exp(-np.exp(nu) + 1j * np.exp(theta)), np.exp(gamma) * (x @ (b_re + 1j * b_im))


def lru_output(p, h, x):
    c_re, c_im = np.split(p["output"], 2, -1)
    return (h @ (c_re + 1j * c_im)).real + x @ p["skip"]


def decaying(p, x):
    return np.exp(-np.exp(p["log_rate"])), x @ p["input"] + p["bias"]


CELLS = {
    "min_gru": (MinGRU, F, {}, min_gru),
    "min_gru tanh": (
        MinGRU,
        F,
        {"activation_fn": "tanh", "learned_carry": True},
        functools.partial(min_gru, squash=np.tanh),
    ),
    "min_lstm": (MinLSTM, F, {}, min_lstm),
    "rg_lru": (RGLRU, H, {"learned_carry": True}, rg_lru),
    "rg_lru projected": (RGLRU, F, {}, rg_lru),
    "lru": (LRU, F, {}, lru),
    "lru learned": (LRU, F, {"learned_carry": True}, lru),
    "own": (NAMES["Decaying"], F, {}, decaying),
}


@functools.cache
def build(name, dtype):
    """Returns a cell, parameters unlike their special initial values, and inputs."""
    kind, features, options, _ = CELLS[name]
    cell = kind(features, H, param_dtype=dtype, **options)
    return cell, shaken(1, cell.init(jax.random.key(0))), normal(2, (T, B, features), dtype)


def run_numpy(name, params, xs, masks, lengths, reverse):
    """Runs a cell in float64, one step at a time; returns (carry, ys)."""
    coefficients = CELLS[name][3]
    complex_state = name.startswith("lru")
    output = lru_output if complex_state else lambda p, h, x: h
    p = {n: np.asarray(value, np.float64) for n, value in params.items()}
    xs, steps, rows = np.asarray(xs, np.float64), xs.shape[0], np.arange(B)

    def full(mask, default):
        shape = (steps, B, H)
        return np.broadcast_to(default if mask is None else mask, shape).astype(np.float64)

    d, u = full(masks.states, 0.0), full(masks.update, 1.0)
    h = p.get("initial_h", np.zeros(H))
    if complex_state:
        parts = np.split(p["initial_h"], 2) if "initial_h" in p else (h, h)
        h = parts[0] + 1j * parts[1]
    h, ys = np.tile(h, (B, 1)), np.zeros((steps, B, H))
    lengths = np.full(B, steps) if lengths is None else np.asarray(lengths)
    for number in range(steps):
        valid = number < lengths
        t = np.where(valid & reverse, lengths - 1 - number, number)
        x, keep = xs[t, rows], d[t, rows]
        a, b = coefficients(p, x)
        new = keep * h + (1 - keep) * (a * h + u[t, rows] * b)
        h = np.where(valid[:, None], new, h)
        ys[t[valid], rows[valid]] = output(p, h, x)[valid]
    return h, ys


def close(one, other, atol, rtol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), one, other)


RUNNERS = {
    "associative": functools.partial(run_unroll, implementation="associative"),
    "scan": functools.partial(run_unroll, implementation="scan"),
    "chunks": functools.partial(run_unroll, chunk=3),
    "loop": run_steps,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("masks", "runner"),
    [(masks, "associative") for masks in MASKS] + [("all", runner) for runner in [*RUNNERS][1:]],
)
@pytest.mark.parametrize("name", CELLS)
def test_forward_equals_numpy(name, masks, runner):
    cell, params, xs = build(name, jnp.float64)
    spec = spec_for(cell, masks)
    if spec is None:
        pytest.skip("the cell has none of these masks")
    sampled = spec.sample(KEY, T, B, H)
    both = masks == "all" and name in ("min_gru", "lru learned")
    for lengths in (None,) if runner == "loop" else (None, LENGTHS) if both else (LENGTHS,):
        for reverse in (False, True) if both else (True,):
            with jax.disable_jit(masks != "all"):  # as in test_cells
                carry, ys = RUNNERS[runner](cell, params, xs, sampled, lengths, reverse)
            wanted = run_numpy(name, params, xs, sampled, lengths, reverse)
            close((carry, ys), wanted, 1e-10)


def losses(name, dtype, lengths=LENGTHS, reverse=False):
    """Returns a loss of everything that has gradients, and its arguments."""
    cell, params, xs = build(name, dtype)
    weights, carry = normal(3, (T, B, H), dtype), normal(4, (B, H), cell.state_dtype)
    rng = np.random.default_rng(5)
    masks = Masks(
        states=jnp.asarray(rng.uniform(size=(T, B, H)).astype(dtype)),
        update=jnp.asarray(rng.uniform(size=(1, 1, H)).astype(dtype)),
    )

    def loss(params, xs, carry, masks, **options):
        options |= {"masks": masks, "seq_lengths": jnp.array(lengths), "reverse": reverse}
        last, ys = unroll(cell, params, xs, carry, **options)
        last = jnp.sum(jnp.sin(last.real) + jnp.cos(last.imag))
        return jnp.sum(weights * ys) + last, ys

    return loss, (params, xs, carry, masks)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64])
@pytest.mark.parametrize("name", CELLS)
def test_associative_equals_the_scan(name, dtype):
    for reverse in (False, True) if name == "lru" else (dtype == jnp.float64,):
        loss, arguments = losses(name, dtype, reverse=reverse)

        def run(loss=loss, arguments=arguments, **options):
            loss = functools.partial(loss, **options)
            return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))(*arguments)

        wanted = run(implementation="scan")
        for path, leaf in jax.tree_util.tree_leaves_with_path(wanted[1]):
            assert np.any(leaf) or "initial_h" in str(path), path
        for options in ({}, {"chunk": 3}, {"chunk": 3, "implementation": "scan"}):
            close(run(**options), wanted, 1e-5 if dtype == jnp.float32 else 1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CELLS)
def test_gradients_by_finite_differences(name):
    loss, (params, xs, carry, masks) = losses(name, jnp.float64, reverse=True)

    @jax.jit
    def real(params, xs, masks):
        return loss(params, xs, carry, masks)[0]

    # In both modes: the solution of linear equations has derivatives of all kinds.
    test_util.check_grads(real, (params, xs, masks), 1, ["fwd", "rev"], 1e-6, 1e-6, 1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_second_derivatives(name):
    loss, (params, *rest) = losses(name, jnp.float64)

    def slope(params, **options):
        gradient = jax.grad(loss, has_aux=True)(params, *rest, **options)[0]
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(gradient))

    got, wanted = (jax.grad(functools.partial(slope, **o))(params) for o in ({}, IN_STEPS))
    close(got, wanted, 1e-10)
    close(*(jax.jvp(functools.partial(slope, **o), (params,), (params,)) for o in ({}, IN_STEPS)),
          1e-10)  # fmt: skip


IN_STEPS = {"implementation": "scan"}


@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_vmap_over_seeds(name):
    cell, _, xs = build(name, jnp.float32)
    params = jax.vmap(cell.init)(jax.random.split(KEY, 3))
    keys = jax.random.split(jax.random.key(1), 3)
    spec = Zoneout(states=0.5)

    def loss(params, key):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, zoneout=spec, key=key)[1]))

    gradient = jax.jit(jax.grad(loss))
    got = jax.jit(jax.vmap(gradient))(params, keys)
    for n in range(3):
        one = gradient(jax.tree.map(lambda p, n=n: p[n], params), keys[n])
        close(jax.tree.map(lambda g, n=n: g[n], got), one, 1e-4, 1e-5)


@pytest.mark.parametrize("name", ["min_gru", "min_lstm", "rg_lru projected", "lru"])
@pytest.mark.parametrize(
    ("steps", "batch"),
    [(0, B), (1, 1), *(pytest.param(*s, marks=pytest.mark.slow) for s in [(T, 0), (2, 1)])],
)
def test_short_and_empty(name, steps, batch):
    cell, params, _ = build(name, jnp.float32)
    xs, carry = normal(1, (steps, batch, F)), normal(2, (batch, H), cell.state_dtype)
    options = {"zoneout": Zoneout(states=0.3), "key": KEY, "seq_lengths": jnp.full(batch, steps)}

    def loss(params, carry, **more):
        last, ys = unroll(cell, params, xs, carry, **options, **more)
        return jnp.sum(jnp.sin(ys)) + jnp.sum(jnp.sin(last.real)), (last, ys)

    def grads(**more):
        gradient = jax.grad(functools.partial(loss, **more), (0, 1), has_aux=True)
        return jax.jit(gradient)(params, carry)

    for reverse in (False, True):
        got, (last, ys) = grads(reverse=reverse)
        assert ys.shape == (steps, batch, H) and last.shape == (batch, H)
        close((got, (last, ys)), grads(reverse=reverse, **IN_STEPS), 1e-6)
        close(grads(reverse=reverse, chunk=1), (got, (last, ys)), 1e-6)


def test_nan_in_padding_reaches_nothing():
    for name in ("min_gru", "rg_lru", "lru"):
        cell, params, xs = build(name, jnp.float32)
        padding = (jnp.arange(T)[:, None] >= jnp.array(LENGTHS)[None])[..., None]

        def loss(params, xs, cell=cell):
            return jnp.sum(unroll(cell, params, xs, seq_lengths=LENGTHS, reverse=True)[1])

        gradient = jax.jit(jax.grad(loss))
        got, wanted = (gradient(params, x) for x in (jnp.where(padding, jnp.nan, xs), xs))
        jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.usefixtures("x64")  # NumPy arrays are then wider than the carry
@pytest.mark.parametrize("name", ["min_lstm", "lru"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_emit_and_carries_in_two_pieces(name, chunk):
    cell, params, xs = build(name, jnp.float32)

    def emit(carry, y):
        return carry, y, jnp.mean(y)

    def run(xs, carry=None, **options):
        options |= {"emit": emit, "chunk": chunk}
        return jax.jit(lambda params, xs: unroll(cell, params, xs, carry, **options))(params, xs)

    last, (hs, ys, means) = run(xs)
    assert hs.dtype == cell.state_dtype and ys.dtype == jnp.float32 and means.shape == (T,)
    np.testing.assert_array_equal(hs[-1], last)
    close(ys, unroll(cell, params, xs, chunk=chunk)[1], 1e-6)
    half, first = run(xs[:4])
    end, second = run(xs[4:], np.asarray(half, np.result_type(half.dtype, np.float64)))
    close((end, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, second)),
          (last, (hs, ys, means)), 1e-5)  # fmt: skip
    padded, wanted = (run(xs, seq_lengths=LENGTHS, **o) for o in ({}, IN_STEPS))
    close(padded[0], wanted[0], 1e-5)
    close(padded[1][:2], wanted[1][:2], 1e-5)
    assert not np.any(padded[1][0][2:, 1])


@pytest.mark.parametrize("name", CELLS)
def test_types(name):
    _, params, xs = build(name, jnp.float32)
    kind, features, options, _ = CELLS[name]
    exact = jax.jit(functools.partial(unroll, kind(features, H, **options)))(params, xs)[1]
    for narrow in (
        kind(features, H, dtype=jnp.bfloat16, **options),
        kind(features, H, param_dtype=jnp.bfloat16, **options),
    ):
        for implementation in ("associative", "scan"):
            run = jax.jit(functools.partial(unroll, narrow, implementation=implementation))
            carry, ys = run(params, xs)
            assert ys.dtype == narrow.param_dtype and carry.dtype == narrow.state_dtype
            difference = np.abs(np.asarray(ys, np.float32) - exact)
            assert 1e-4 < difference.max() and difference.mean() < 0.05


def test_gradients_stay_finite_where_gates_are_shut():
    # Both gates of the minLSTM round to 0, and so does the recurrence gate of the RG-LRU.
    xs = jnp.ones((T, B, F))
    for kind in (MinGRU, MinLSTM, RGLRU):
        cell = kind(F, H)
        for shut in (-200.0, 200.0):
            params = cell.init(KEY)
            params["bias"] = params["bias"].at[: 2 * H].set(shut)

            def loss(params, cell=cell):
                return jnp.sum(jnp.sin(unroll(cell, params, xs)[1]))

            value, gradient = jax.value_and_grad(loss)(params)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((value, gradient)))
    params = MinLSTM(F, H).init(KEY) | {"input": jnp.zeros((F, 3 * H))}
    params["bias"] = jnp.concatenate([jnp.full(H, -200.0), jnp.full(H, -201.0), jnp.ones(H)])
    carry, _ = unroll(MinLSTM(F, H), params, xs[:1])
    close(carry, np.full((B, H), sigmoid(-1.0)), 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shift", [-12.0, -4.0, 0.0, 12.0])
def test_long_sequences_with_gates_near_their_ends(shift):
    steps = 5000
    narrow, wide = (MinGRU(1, 4, param_dtype=dtype) for dtype in (jnp.float32, jnp.float64))
    params = wide.init(KEY) | {"bias": jnp.array([shift] * 4 + [1.0] * 4)}
    xs = normal(1, (steps, 1, 1))
    got = jax.jit(lambda p: unroll(narrow, p, xs)[1])(params)
    wanted = jax.jit(lambda p: unroll(wide, p, xs, **IN_STEPS)[1])(params)
    close(got, wanted, 1e-5, 2e-5)


# Outputs with expected masks are the mean over sampled masks.


def mean_and_expectation(cell, spec, samples=100_000, steps=5):
    """Distance between mean outputs over sampled masks and expected outputs, in standard errors.

    Each example of one large batch has its own masks, on the same inputs.
    """
    params, xs = shaken(1, cell.init(KEY)), normal(2, (steps, 1, cell.in_features))
    run = jax.jit(functools.partial(unroll, cell), static_argnames="deterministic")
    _, wanted = run(params, xs, zoneout=spec, deterministic=True)
    many = jnp.broadcast_to(xs, (steps, samples, cell.in_features))
    ys = np.asarray(run(params, many, zoneout=spec, key=KEY)[1], np.float64)
    assert ys.std(1).max() > 0.05
    return np.abs(ys.mean(1) - np.asarray(wanted)[:, 0]) / (ys.std(1) / np.sqrt(samples) + 1e-7)


LINEAR = {
    "min_gru": MinGRU(F, H),
    "min_lstm": MinLSTM(F, H),
    "rg_lru": RGLRU(F, H),
    "lru": LRU(F, H),
}


@pytest.mark.parametrize(
    "kind",
    [{}, *(pytest.param({k: True}, marks=pytest.mark.slow) for k in ("per_layer", "gaussian"))],
)
@pytest.mark.parametrize("name", LINEAR)
def test_the_expectation_is_exactly_the_mean_over_masks(name, kind):
    # By chance, an output exceeds 5 standard errors with probability 3e-7; a case has 25 outputs.
    distance = mean_and_expectation(LINEAR[name], Zoneout(states=0.4, update_drop=0.3, **kind))
    assert distance.max() < 5


@pytest.mark.parametrize(
    ("cell", "spec"),
    [
        (LSTM(F, H), Zoneout(cells=0.5, states=0.4)),
        (GRU(F, H), Zoneout(states=0.4)),
        (MinGRU(F, H), Zoneout(states=0.4, static=True)),  # all steps have the same mask
    ],
)
def test_it_is_not_where_gates_see_the_state_or_masks_stay(cell, spec):
    assert mean_and_expectation(cell, spec).max() > 8


# The Flax modules.

STEMS = {"MinGRU": MinGRU, "MinLSTM": MinLSTM, "RGLRU": RGLRU, "LRU": LRU}
SPEC = Zoneout(states=0.4, update_drop=0.2)
XS = normal(0, (B, T, F))


def in_flax(stem, *, implementation=None, **options):
    """Makes a Linen and an NNX layer, as functions of inputs and options, and the NNX cell."""
    options = {"zoneout": SPEC, **options}
    cell = getattr(faces, f"Zoneout{stem}Cell")(F, H, rngs=nnx.Rngs(0), **options)
    layers = {"implementation": implementation, "return_carry": True}
    layer = linen.ZoneoutRNN(getattr(linen, f"Zoneout{stem}Cell")(H, **options), **layers)
    shapes = jax.tree.map(jnp.shape, layer.init(KEY, XS)["params"]["cell"])
    assert dict(shapes) == jax.tree.map(jnp.shape, cell.pure_params())

    def in_linen(xs, **more):
        return layer.apply({"params": {"cell": cell.pure_params()}}, xs, **more)

    return in_linen, faces.ZoneoutRNN(cell, **layers), cell


@pytest.mark.parametrize("implementation", [None, "scan"])
@pytest.mark.parametrize("stem", STEMS)
def test_faces_are_the_pure_functions(stem, implementation):
    in_linen, in_nnx, module = in_flax(stem, implementation=implementation)
    params = module.pure_params()
    assert module.pure == STEMS[stem](F, H)
    options = {"seq_lengths": jnp.array(LENGTHS), "reverse": True}
    carry, ys = unroll(
        module.pure, params, XS.swapaxes(0, 1), zoneout=SPEC, deterministic=True, **options
    )
    for layer in (in_linen, in_nnx):
        got = layer(XS, deterministic=True, keep_order=True, **options)
        close(got, (carry, ys.swapaxes(0, 1)), 1e-5)
    # In training, a step draws its masks from the key.
    start = module.initialize_carry((B, F))
    got = module(start, XS[:, 0], rngs=KEY)
    masks = jax.tree.map(lambda m: m[0], SPEC.sample(KEY, 1, B, H))
    close(got, module.pure.step(params, start, XS[:, 0], masks), 1e-6)


OF_FACES = {
    "MinGRU": SPEC,
    "MinLSTM": Zoneout(states=0.4, update_drop=0.3, per_layer=True),
    "RGLRU": Zoneout(states=0.4, update_drop=0.3, static=True),
    "LRU": Zoneout(states=0.4, update_drop=0.3, gaussian=True),
}


@pytest.mark.parametrize("stem", STEMS)
def test_faces_in_training_and_by_steps(stem, monkeypatch):
    spec = OF_FACES[stem]
    in_linen, in_nnx, module = in_flax(stem, learned_carry=True, zoneout=spec)
    key, xs = nnx.clone(module.rngs)(), XS.swapaxes(0, 1)
    monkeypatch.setattr(_linen_cell.BaseCell, "_key", lambda self: key)
    wanted = unroll(module.pure, module.pure_params(), xs, zoneout=spec, key=key)
    wanted = (wanted[0], wanted[1].swapaxes(0, 1))
    plain = unroll(module.pure, module.pure_params(), xs)[1].swapaxes(0, 1)
    assert jnp.abs(wanted[1] - plain).max() > 1e-3
    close(in_linen(XS, deterministic=False), wanted, 1e-6)
    close(in_nnx(XS), wanted, 1e-6)
    _, wanted = in_nnx(XS, deterministic=True)
    carry = module.initialize_carry((B, F))
    for t in range(T):
        carry, y = module(carry, XS[:, t], deterministic=True)
        close(y, wanted[:, t], 1e-5)
    with pytest.raises(ValueError, match="carry_init is for carries that are not learned"):
        in_flax(stem, learned_carry=True, carry_init=jax.nn.initializers.ones)
    _, drawn, _ = in_flax(stem, carry_init=jax.nn.initializers.normal(1.0))
    assert drawn.initialize_carry((B, F)).dtype == module.pure.state_dtype
    noisy = in_flax(stem, carry_noise=1.0, zoneout=Zoneout())[1]
    assert np.abs(noisy(XS)[1] - noisy(XS, deterministic=True)[1]).max() > 1e-3


@pytest.mark.parametrize("stem", STEMS)
def test_options_of_the_faces_change_what_they_say(stem):
    def cells(**options):
        one = getattr(linen, f"Zoneout{stem}Cell")(H, **options).pure(F)
        other = getattr(faces, f"Zoneout{stem}Cell")(F, H, rngs=nnx.Rngs(0), **options).pure
        assert one == other
        return one

    init = jax.nn.initializers.constant(0.1)
    changes = {
        "RGLRU": {"bias_init": init},
        "LRU": {"r_min": 0.9, "r_max": 0.95, "max_phase": 0.1},
    }.get(stem, {"activation_fn": "relu", "bias_init": init})
    xs = XS.swapaxes(0, 1)

    def outputs(cell):
        return unroll(cell, cell.init(KEY), xs)[1]

    plain = outputs(cells())
    for name, value in (changes | {"kernel_init": init, "dtype": jnp.bfloat16}).items():
        assert np.abs(outputs(cells(**{name: value})) - plain).max() > 1e-4, name


def test_stacks_of_linear_and_other_cells():
    cells = [linen.ZoneoutLSTMCell(H), linen.ZoneoutLRUCell(H), linen.ZoneoutMinGRUCell(H)]
    layer = linen.ZoneoutRNN(cells, return_carry=True)
    variables = layer.init(KEY, XS)
    carry, ys = layer.apply(variables, XS)
    assert [c.dtype for c in carry[1:]] == [jnp.complex64, jnp.float32]
    one = linen.ZoneoutRNN(cells, return_carry=True, implementation="fused")
    close(one.apply(variables, XS)[1], ys, 1e-5)
    with pytest.raises(ValueError, match="cell 0 of ZoneoutRNN.*is for linear cells, got LSTM"):
        linen.ZoneoutRNN(cells, implementation="associative").apply(variables, XS)


# Devices, exported shapes, memory, initial values, errors.


@pytest.mark.parametrize("name", ["min_gru", "lru"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_shard_map_gives_the_numbers_of_one_device(name, chunk):
    cell, params, xs = build(name, jnp.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(params, xs, axis_name=None):
        options = {"zoneout": SPEC, "key": KEY, "axis_name": axis_name, "chunk": chunk}
        total = jnp.sum(jnp.square(unroll(cell, params, xs, **options)[1]))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    spread = jax.shard_map(
        lambda params, xs: jax.grad(loss)(params, xs, "data"),
        mesh=mesh,
        in_specs=(P(), P(None, "data")),
        out_specs=P(),
    )
    close(jax.jit(spread)(params, xs), jax.grad(loss)(params, xs), 1e-4, 1e-5)


class Sum(LinearCell):
    """Has a constant coefficient."""

    gates = (None,)

    def coefficients(self, params, xs):
        return jnp.ones((1,) * xs.ndim), xs


def test_constant_coefficients_under_shard_map():
    cell, xs = Sum(H, H), jnp.ones((T, B, H))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = P(None, "data")
    run = jax.shard_map(
        lambda xs: unroll(cell, cell.init(KEY), xs)[1], mesh=mesh, in_specs=spec, out_specs=spec
    )
    np.testing.assert_allclose(jax.jit(run)(xs), jnp.cumsum(xs, 0), rtol=1e-6)


@pytest.mark.parametrize("axis_type", ["Auto", "Explicit"])
@pytest.mark.parametrize(
    "implementation", ["associative", pytest.param("scan", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["min_gru", "lru"])
def test_meshes(name, implementation, axis_type):
    cell, params, xs = build(name, jnp.float32)
    kind = getattr(jax.sharding.AxisType, axis_type)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))

    def loss(params, xs):
        options = {"zoneout": SPEC, "key": KEY, "implementation": implementation}
        return jnp.sum(jnp.square(unroll(cell, params, xs, **options)[1]))

    wanted = jax.grad(loss)(params, xs)
    spread = jax.device_put(xs, jax.sharding.NamedSharding(mesh, P(None, "data")))
    whole = jax.device_put(params, jax.sharding.NamedSharding(mesh, P()))
    run = jax.jit(jax.grad(loss)).lower(whole, spread).compile()
    close(run(whole, spread), wanted, 1e-4, 1e-5)
    assert "all-gather" not in run.as_text()


def test_symbolic_shapes():
    cell, params, xs = build("lru", jnp.float32)
    t, b = export.symbolic_shape("t, b")
    shape = jax.ShapeDtypeStruct((t, b, F), jnp.float32)
    exported = export.export(jax.jit(lambda xs: unroll(cell, params, xs)[1]))(shape)
    close(exported.call(xs), unroll(cell, params, xs)[1], 1e-5)
    shape = jax.ShapeDtypeStruct((T, b, F), jnp.float32)
    exported = export.export(jax.jit(lambda xs: unroll(cell, params, xs)[1]))(shape)
    close(exported.call(xs), unroll(cell, params, xs)[1], 1e-6)
    with pytest.raises(ValueError, match="needs a known number of steps, and T is symbolic"):
        run = jax.jit(lambda xs: unroll(cell, params, xs, implementation="associative")[1])
        export.export(run)(jax.ShapeDtypeStruct((t, b, F), jnp.float32))


@pytest.mark.slow
def test_memory_grows_with_the_chunk():
    cell = MinGRU(1, 32)
    params = cell.init(KEY)

    def temporary(steps, chunk):
        def loss(params, xs):
            return jnp.sum(jnp.square(unroll(cell, params, xs, chunk=chunk)[1][-1]))

        compiled = jax.jit(jax.grad(loss)).lower(params, jnp.ones((steps, 4, 1))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    states = 4096 * 4 * 32 * 4
    whole, chunked = temporary(4096, None), temporary(4096, 64)
    assert chunked < 2.5 * states < whole < 16 * states


def test_initial_values():
    ring = LRU(F, 20_000, r_min=0.5, r_max=0.9, max_phase=1.0)
    init, shape = ring.parameters()["diagonal"]
    nu, theta, gamma = np.split(np.asarray(init(KEY, shape, jnp.float32), np.float64), 3)
    radius, phase = np.exp(-np.exp(nu)), np.exp(theta)
    # Uniform on the ring means that the squared radius and the phase are uniform.
    for values, low, high in ((radius**2, 0.25, 0.81), (phase, 0.0, 1.0)):
        assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
        spread = (high - low) / np.sqrt(12)
        assert abs(values.mean() - (low + high) / 2) < 5 * spread / np.sqrt(values.size)
        assert abs(values.std() - spread) < 0.02 * spread
    np.testing.assert_allclose(np.exp(gamma), np.sqrt(1 - radius**2), rtol=1e-4)
    small = LRU(100, 200).init(KEY)
    for name, variance in (("input", 1 / 200), ("output", 1 / 200), ("skip", 1 / 100)):
        assert abs(small[name].var() / variance - 1) < 0.05, name
    assert np.all(np.isfinite(small["diagonal"]))
    decay = np.asarray(RGLRU(F, 20_000).init(KEY)["decay"], np.float64)
    values = sigmoid(decay) ** 8
    assert 0.9 - 1e-4 < values.min() and values.max() < 0.999 + 1e-4
    assert abs(values.mean() - 0.9495) < 5 * 0.099 / np.sqrt(12 * values.size)
    kernel = RGLRU(400, 300).init(KEY)["input"]
    assert kernel.shape == (400, 900) and abs(kernel.var() * 400 - 1) < 0.05
    assert RGLRU(H, H).init(KEY)["input"].shape == (H, 2 * H)


@pytest.mark.slow
@pytest.mark.parametrize(("bias", "ours_is_better"), [(0.0, True), (-12.0, False)])
def test_the_form_in_logarithms_is_exact_only_where_gates_keep(bias, ours_is_better):
    """Feng et al. 2024, appendix B: h_t = exp(A_t + logsumexp_s≤t(log b_s − A_s)), A = Σ log a."""
    steps, units = 20_000, 4
    k, n = np.random.default_rng(0).standard_normal((2, steps, units), np.float32)
    k += np.float32(bias)
    n = np.abs(n) + np.float32(0.5)
    cell = MinGRU(2 * units, units)
    params = {"input": jnp.eye(2 * units), "bias": jnp.zeros(2 * units)}
    _, ours = unroll(cell, params, jnp.concatenate([k, n], -1)[:, None])

    def in_logarithms(k, n):
        sums = jnp.cumsum(-jax.nn.softplus(k), 0)
        log_b = jnp.log(n) - jax.nn.softplus(-k)
        return jnp.exp(sums + jax.lax.cumlogsumexp(log_b - sums, 0))

    z, h, wanted = sigmoid(k.astype(np.float64)), np.zeros(units), []
    for t in range(steps):
        h = (1 - z[t]) * h + z[t] * n[t]
        wanted.append(h)
    errors = [
        np.abs(np.asarray(ys, np.float64) / np.array(wanted) - 1).max()
        for ys in (ours[:, 0], jax.jit(in_logarithms)(k, n))
    ]
    assert (100 * errors[0] < errors[1]) if ours_is_better else (errors[1] < errors[0])


class Real(LinearCell):
    """Has coefficients of two types."""

    gates = (None,)

    def coefficients(self, params, xs):
        return jnp.ones_like(xs[..., :1], jnp.bfloat16), *self.blocks(params, xs)


class Flat(MinGRU):
    """Has a coefficient without the axes of the inputs."""

    def coefficients(self, params, xs):
        a, b = super().coefficients(params, xs)
        return params["bias"][: self.hidden_features], b


class Nothing(LinearCell):
    """Does not define its coefficients."""

    gates = (None,)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: run(GRU(F, H), implementation="associative"),
            ValueError,
            'implementation="associative" is for linear cells, got GRU',
        ),
        (
            lambda: run(MinGRU(F, H), implementation="fast"),
            ValueError,
            "implementation must be one of 'fused', 'scan', 'associative', None",
        ),
        (
            lambda: run(MinGRU(F, H), zoneout=Zoneout(cells=0.5), key=KEY),
            ValueError,
            "MinGRU has no cells to mask, only states and update",
        ),
        (
            lambda: run(Real(F, H)),
            TypeError,
            "Real.coefficients must return arrays of float32, got bfloat16 and float32",
        ),
        (lambda: run(Nothing(F, H)), NotImplementedError, "must define coefficients"),
        (
            lambda: MinLSTM(F, H, recurrent_kernel_init=jax.nn.initializers.ones),
            ValueError,
            "MinLSTM has no recurrent kernel: leave recurrent_kernel_init out",
        ),
        (
            lambda: LRU(F, H, bias_init=jax.nn.initializers.ones),
            ValueError,
            "LRU has no bias: leave bias_init out",
        ),
        (lambda: LRU(F, H, r_min=0.9, r_max=0.5), ValueError, "got r_min=0.9, r_max=0.5"),
        (lambda: LRU(F, H, r_max=0.0), ValueError, "r_max above 0.*r_max=0.0"),
        (lambda: LRU(F, H, r_min=1.0), ValueError, "r_min below 1; got r_min=1.0, r_max=1.0"),
        (
            lambda: run(Flat(F, H), implementation="scan"),
            ValueError,
            r"coefficients must return arrays \(7, 4, 5\), or 1 .* got \(5,\) and \(7, 4, 5\)",
        ),
        (lambda: LRU(F, H, max_phase=0.0), ValueError, "max_phase must be above 0, got 0.0"),
        (lambda: MinGRU(F, H, activation_fn="sine"), ValueError, "activation_fn must be one of"),
        (
            lambda: unroll(LRU(F, H), LRU(F, H).init(KEY), jnp.ones((T, B, F)), jnp.zeros((B, H))),
            ValueError,
            "carry must have the shapes and types .*complex64.*got .*float32",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def run(cell, **options):
    return unroll(cell, cell.init(KEY), jnp.ones((T, B, F)), **options)
