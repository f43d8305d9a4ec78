"""Every cell with every kind of mask equals NumPy, finite differences and its other faces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import test_util

from tests import oracles
from tests.arrays import normal, normal_like, shaken
from zoneout_jax import GRU, LSTM, RNN, IndRNN, Zoneout, _linen_cell, linen, unroll
from zoneout_jax import nnx as faces
from zoneout_jax._draw import draw_masks

T, B, F, H, P = 7, 4, 3, 5, 2
LENGTHS = (7, 2, 4, 0)
BATCH = {"normalization": "batch", "max_steps": T}

CELLS = {
    "lstm": ("lstm", {}),
    "lstm relu": ("lstm", {"activation_fn": "relu"}),
    "lstm candidate": ("lstm", {"output": "candidate"}),
    "lstm output gate": ("lstm", {"ogates_zoneout": "paper"}),
    "lstm output gate repository": ("lstm", {"ogates_zoneout": "repository"}),
    "lstm layer norm": ("lstm", {"normalization": "layer"}),
    "lstm batch norm": ("lstm", BATCH),
    "lstm batch norm output gate": ("lstm", BATCH | {"ogates_zoneout": "paper"}),
    "gru": ("gru", {}),
    "gru reset before": ("gru", {"reset_after": False}),
    "gru candidate": ("gru", {"output": "candidate"}),
    "rnn": ("rnn", {}),
    "rnn relu": ("rnn", {"activation_fn": "relu"}),
    "rnn candidate": ("rnn", {"output": "candidate"}),
    "lstm projected": ("lstm", {"proj_size": P}),
    "lstm projected layer norm": (
        "lstm",
        {"proj_size": P, "normalization": "layer", "ogates_zoneout": "paper"},
    ),
    "gru layer norm": ("gru", {"normalization": "layer"}),
    "indrnn": ("indrnn", {"activation_fn": "tanh"}),
    "indrnn relu": ("indrnn", {"activation_fn": "relu"}),
}
SHAPES = {
    "lstm": {"input": (F, 4 * H), "recurrent": (H, 4 * H), "bias": (4 * H,)},
    "gru": {"input": (F, 3 * H), "recurrent": (H, 3 * H), "bias": (3 * H,), "recurrent_bias": (H,)},
    "gru reset before": {"input": (F, 3 * H), "recurrent": (H, 3 * H), "bias": (3 * H,)},
    "rnn": {"input": (F, H), "recurrent": (H, H), "bias": (H,)},
    "indrnn": {"input": (F, H), "recurrent": (H,), "bias": (H,)},
    "lstm projected": {
        "input": (F, 4 * H),
        "recurrent": (P, 4 * H),
        "bias": (4 * H,),
        "projection": (H, P),
    },
    "gru layer norm": {
        "input": (F, 3 * H),
        "recurrent": (H, 3 * H),
        "bias": (3 * H,),
        "recurrent_bias": (H,),
        "input_gamma": (3 * H,),
        "recurrent_gamma": (3 * H,),
    },
    "lstm batch norm": {
        "input": (F, 4 * H),
        "recurrent": (H, 4 * H),
        "bias": (4 * H,),
        "input_gamma": (4 * H,),
        "recurrent_gamma": (4 * H,),
        "cell_gamma": (H,),
        "cell_beta": (H,),
    },
}
FURTHER = [*CELLS][[*CELLS].index("lstm projected") :]
"""Cells with few fast tests, because they share most of their code with other cells."""
MASKS = {
    "plain": {},
    "separate": {"cells": 0.5, "states": 0.3},
    "update": {"update_drop": 0.4},
    "all": {"cells": 0.5, "states": 0.3, "update_drop": 0.4, "hidden_drop": 0.25},
    "shared": {"cells": 0.4, "states": 0.4, "shared": True},
    "static": {"cells": 0.5, "states": 0.3, "static": True},
    "stochastic depth": {"cells": 0.5, "states": 0.3, "per_layer": True},
    "gaussian": {"cells": 0.5, "states": 0.3, "update_drop": 0.4, "gaussian": True},
}
FACTORIES = {"lstm": LSTM, "gru": GRU, "rnn": RNN, "indrnn": IndRNN}
KEY = jax.random.key(7)


def marked(*case, fast=False):
    """Makes a test case that starts with the name of a cell; slow for cells in `FURTHER`."""
    return pytest.param(*case, marks=[pytest.mark.slow] if case[0] in FURTHER and not fast else [])


@functools.cache
def build(name, dtype):
    """Returns a cell, parameters unlike their special initial values, and inputs."""
    kind, options = CELLS[name]
    cell = FACTORIES[kind](F, H, param_dtype=dtype, **options)
    return cell, shaken(1, cell.init(jax.random.key(0))), normal(2, (T, B, F), dtype)


def spec_for(cell, name):
    """Returns the spec with the masks of a variant that the cell has, or None."""
    known = {*cell.mask_names} | ({"update_drop"} if "update" in cell.mask_names else set())
    known |= {"hidden_drop"} if cell.drops_hidden else set()
    rates = {n: rate for n, rate in MASKS[name].items() if n in known}
    kinds = {n: kind for n, kind in MASKS[name].items() if isinstance(kind, bool)}
    if "shared" in kinds and "cells" not in cell.mask_names or name != "plain" and not rates:
        return None
    if "shared" in kinds and cell.output_features != cell.hidden_features:
        return None
    return Zoneout(**rates, **kinds)


def sample(cell, spec):
    """Returns the masks that `unroll` draws from `KEY`."""
    return draw_masks(cell, spec, KEY, False, T, B, lambda: 0)


def run_steps(cell, params, xs, masks, lengths, reverse):
    """Runs a Python loop over `cell.step`, without padding."""
    assert lengths is None
    step = jax.jit(cell.step)
    carry, ys = cell.initial_carry(params, B), [None] * T
    for t in range(T)[::-1] if reverse else range(T):
        at = jax.tree.map(lambda m, t=t: m[t if m.shape[0] > 1 else 0], masks)
        carry, ys[t] = step(params, carry, xs[t], at)
    return carry, jnp.stack(ys)


def run_unroll(cell, params, xs, masks, lengths, reverse, **options):
    options |= {"seq_lengths": None if lengths is None else jnp.array(lengths), "reverse": reverse}
    run = jax.jit(lambda params, xs, masks: unroll(cell, params, xs, masks=masks, **options)[:2])
    return run(params, xs, masks)


RUNNERS = {
    "fused": run_unroll,
    "scan": functools.partial(run_unroll, implementation="scan"),
    "chunks": functools.partial(run_unroll, chunk=3, unroll=2),
    "loop": run_steps,
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "masks", "runner"),
    [
        marked(
            name, masks, runner, fast=(masks, runner) == ("separate", "fused") and name in SHAPES
        )
        for name in CELLS
        for masks, runner in [*((m, "fused") for m in MASKS), *(("all", r) for r in [*RUNNERS][1:])]
    ],
)
def test_forward_equals_numpy(name, masks, runner):
    cell, params, xs = build(name, jnp.float64)
    spec = spec_for(cell, masks)
    if spec is None:
        pytest.skip("the cell has none of these masks")
    sampled = sample(cell, spec)
    if masks != "all":
        cases = [(LENGTHS, True)]
    elif runner == "loop":
        cases = [(None, False), (None, True)]
    else:
        cases = [(None, False), (LENGTHS, True)]
        if runner == "fused":
            cases += [(None, True), (LENGTHS, False)]
    for lengths, reverse in cases:
        # Compiling one kind of masks is enough: the computation does not depend on the draw.
        with jax.disable_jit(masks != "all"):
            carry, ys = RUNNERS[runner](cell, params, xs, sampled, lengths, reverse)
        kind, options = CELLS[name]
        wanted_carry, wanted = oracles.run(
            kind, options, params, np.asarray(xs), sampled, lengths, reverse
        )
        np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-10)
        # Our carry may also contain the step number; the oracle's carry always contains o'.
        arrays = [leaf for leaf in jax.tree.leaves(carry) if leaf.ndim]
        for one, other in zip(arrays, wanted_carry, strict=False):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("masks", "lengths"),
    [
        ("all", LENGTHS),
        pytest.param("plain", None, marks=pytest.mark.slow),
        pytest.param("gaussian", None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "name", [marked(name, fast=name == "lstm projected") for name in CELLS if "relu" not in name]
)
def test_gradients_by_finite_differences(name, masks, lengths):
    # relu has no derivative at zero; tanh runs the same code.
    cell, params, xs = build(name, jnp.float64)
    sampled = sample(cell, spec_for(cell, masks)) if masks != "plain" else None
    lengths = None if lengths is None else jnp.array(lengths)
    # Each output has its own weight, so that errors cannot cancel.
    weights = normal(3, (T, B, cell.output_features), jnp.float64)

    def loss(params, xs):
        ys = unroll(cell, params, xs, masks=sampled, seq_lengths=lengths)[1]
        return jnp.sum(weights * ys)

    # test_fused checks that the plain scan has the same gradient.
    test_util.check_grads(jax.jit(loss), (params, xs), 1, ["rev"], 1e-6, 1e-6, 1e-6)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("lstm batch norm output gate", "gru reset before", "rnn")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in CELLS
    ],
)
def test_gradients_in_chunks(name):
    cell, params, xs = build(name, jnp.float64)
    sampled, lengths = sample(cell, spec_for(cell, "all")), jnp.array(LENGTHS)

    def loss(params, xs, chunk):
        ys = unroll(cell, params, xs, masks=sampled, seq_lengths=lengths, chunk=chunk)[1]
        return jnp.sum(jnp.sin(ys))

    gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    whole, chunked = (gradient(params, xs, chunk) for chunk in (None, 2))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), whole, chunked)


def make_faces(name, spec, **options):
    """Makes Linen and NNX cells of a kind."""
    kind, own = CELLS[name]
    stem = {"lstm": "LSTM", "gru": "GRU", "rnn": "Simple", "indrnn": "IndRNN"}[kind]
    in_linen, in_nnx = (getattr(module, f"Zoneout{stem}Cell") for module in (linen, faces))
    in_linen = in_linen(H, zoneout=spec, **own, **options)
    in_nnx = in_nnx(F, H, zoneout=spec, rngs=nnx.Rngs(0), **own, **options)
    return in_linen, in_nnx


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_shapes(name):
    in_linen, in_nnx = make_faces(name, Zoneout())
    params = in_nnx.pure.init(jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == SHAPES[name]
    assert jax.tree.map(jnp.shape, in_nnx.pure_params()) == SHAPES[name]
    variables = linen.ZoneoutRNN(in_linen).init(jax.random.key(0), jnp.ones((B, T, F)))
    assert jax.tree.map(jnp.shape, variables["params"]["cell"]) == SHAPES[name]


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_initializers_of_jax_fill_a_gate_each(name):
    initializers = {
        "kernel_init": jax.nn.initializers.lecun_normal(),
        "recurrent_kernel_init": jax.nn.initializers.orthogonal(2.0),
    }
    in_linen, in_nnx = make_faces(name, Zoneout(), **initializers)
    variables = linen.ZoneoutRNN(in_linen).init(jax.random.key(0), jnp.ones((B, T, F)))
    for params in (variables["params"]["cell"], in_nnx.pure_params()):
        assert jax.tree.map(jnp.shape, dict(params)) == SHAPES[name]
        gates = jnp.split(params["recurrent"], len(in_nnx.pure.gates), -1)
        for gate in gates:
            np.testing.assert_allclose(gate.T @ gate, 4 * np.eye(H), rtol=0, atol=1e-5)
        assert len({gate.tobytes() for gate in map(np.asarray, gates)}) == len(gates)


def test_recurrent_weights_of_independent_units_start_uniform():
    for bound in (1.0, 2 ** (1 / T)):
        own = {} if bound == 1 else {"recurrent_kernel_init": jax.nn.initializers.uniform(bound)}
        v = np.asarray(IndRNN(1, 20_000, **own).init(KEY)["recurrent"], np.float64)
        assert 0 <= v.min() and v.max() <= bound
        assert abs(v.mean() - bound / 2) < 4 * bound / np.sqrt(12 * v.size)
        assert abs(v.std() - bound / np.sqrt(12)) < 0.01 * bound


def test_masks_of_a_projected_state():
    # They are the first masks of a layer with as many states as cells.
    cell, spec = LSTM(F, H, proj_size=P), Zoneout(cells=0.5, states=0.3)
    wanted = spec.sample(KEY, T, B, H)
    wanted = wanted._replace(states=wanted.states[..., :P])
    jax.tree.map(np.testing.assert_array_equal, sample(cell, spec), wanted)
    more = sample(LSTM(F, P, proj_size=H), spec)
    assert more.cells.shape == (T, B, P) and more.states.shape == (T, B, H)
    one = sample(cell, Zoneout(cells=0.5, states=0.5, shared=True, per_layer=True))
    np.testing.assert_array_equal(one.cells, one.states)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_narrow_types(dtype):
    narrow, wide = (LSTM(F, H, param_dtype=d).init(jax.random.key(0)) for d in (dtype, jnp.float32))
    assert {leaf.dtype for leaf in jax.tree.leaves(narrow)} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(narrow["recurrent"], wide["recurrent"].astype(dtype))
    assert unroll(LSTM(F, H, param_dtype=dtype), narrow, jnp.ones((T, B, F)))[1].dtype == dtype


IN_JIT = ("lstm", "lstm batch norm", "gru", "rnn")


@pytest.mark.parametrize(
    ("name", "masks", "deterministic"),
    [
        marked(name, masks, mode, fast=(name, masks, mode) == ("lstm projected", "all", False))
        for name in CELLS
        # In evaluation static masks are the same numbers.
        for masks, mode in (("all", True), ("all", False), ("static", False))
    ],
)
def test_faces_equal_the_pure_functions(name, masks, deterministic, monkeypatch):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, masks)
    in_linen, in_nnx = make_faces(name, spec)
    for parameter, value in params.items():
        setattr(in_nnx, parameter, nnx.Param(value))
    key = nnx.clone(in_nnx.rngs)()
    monkeypatch.setattr(_linen_cell.BaseCell, "_key", lambda self: key)
    stats = cell.init_stats() or None
    options = {"deterministic": deterministic}

    def pure(params, xs, stats):
        return unroll(cell, params, xs, zoneout=spec, key=key, stats=stats, **options)[:2]

    def by_linen(params, xs, stats):
        variables = {"params": {"cell": params}}
        variables |= {"batch_stats": {"cell": stats}} if stats else {}
        layer = linen.ZoneoutRNN(in_linen, time_major=True, return_carry=True)
        return layer.apply(variables, xs, mutable=["batch_stats"], **options)[0]

    layer = faces.ZoneoutRNN(in_nnx, time_major=True, return_carry=True)

    # Outside of `jit`, all faces run the same compiled loop.
    jit, nnx_jit = (jax.jit, nnx.jit) if name in IN_JIT else (lambda f: f, lambda f: f)
    wanted = jit(pure)(params, xs, stats)
    if cell.statistics:  # the carry of the modules then ends with the step number
        wanted = ((*wanted[0], jnp.int32(T)), wanted[1])
    got = jit(by_linen)(params, xs, stats)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    got = nnx_jit(lambda layer, xs: layer(xs, **options))(layer, xs)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize(
    "name", ["lstm", "gru", "gru reset before", "rnn", "lstm layer norm", "lstm projected"]
)
def test_stacked_layers(name):
    # Two layers in one ZoneoutRNN equal two ZoneoutRNNs, in both faces.
    first, second = (make_faces(name, Zoneout(states=0.3)) for _ in range(2))
    xs = normal(1, (B, T, F))
    stack = linen.ZoneoutRNN((first[0], second[0]), deterministic=True, return_carry=True)
    variables = stack.init(jax.random.key(2), xs)
    carries, ys = stack.apply(variables, xs)
    assert len(carries) == 2
    middle = linen.ZoneoutRNN(first[0], deterministic=True).apply(
        {"params": {"cell": variables["params"]["cell_0"]}}, xs
    )
    wanted = linen.ZoneoutRNN(second[0], deterministic=True).apply(
        {"params": {"cell": variables["params"]["cell_1"]}}, middle
    )
    np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-6)


def some_stats(cell, seed):
    """Makes population statistics that all differ."""
    drawn = normal_like(seed, cell.init_stats())
    return {name: s if "mean" in name else 0.5 + abs(s) for name, s in drawn.items()}


@pytest.mark.parametrize("name", [marked(name) for name in CELLS])
def test_streaming_equals_the_whole(name):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, "all")
    stats = None
    if cell.statistics:
        stats = some_stats(cell, 5)
    whole_carry, whole = unroll(cell, params, xs, zoneout=spec, deterministic=True, stats=stats)
    step = jax.jit(
        lambda x, carry, t: unroll(
            cell, params, x, carry, zoneout=spec, deterministic=True, stats=stats, first_step=t
        )
    )
    carry, ys = cell.initial_carry(params, B), []
    for t in range(T):
        carry, y = step(xs[t : t + 1], carry, t)
        ys.append(y[0])
    np.testing.assert_allclose(jnp.stack(ys), whole, rtol=0, atol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), carry, whole_carry
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("lstm", "gru", "rnn", "lstm batch norm")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in CELLS
    ],
)
def test_rates_zero_and_one(name):
    cell, params, xs = build(name, jnp.float32)
    rates = {"cells": 0.0, "states": 0.0, "update_drop": 0.0}

    def run(params, spec):
        return unroll(cell, params, xs, zoneout=spec, key=KEY)[:2]

    known = {*cell.mask_names, *(["update_drop"] if "update" in cell.mask_names else [])}
    plain = run(params, None)
    zero = run(params, Zoneout(**{n: 0.0 for n in rates if n in known}))
    jax.tree.map(np.testing.assert_array_equal, zero, plain)
    # The compiler does not know that a traced rate is 0, so rounding may differ.
    traced = jax.jit(run)(params, Zoneout(**{n: 0.0 for n in rates if n in known}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), traced, plain)
    ones = Zoneout(**{n: 1.0 for n in ("cells", "states") if n in cell.mask_names})
    carry, ys = run(params, ones)
    start = cell.initial_carry(params, B)
    for now, before in list(zip(jax.tree.leaves(carry), jax.tree.leaves(start), strict=True))[:2]:
        np.testing.assert_array_equal(now, before)
    if CELLS[name][1].get("output") != "candidate":
        assert not np.any(ys)
    for spec in (Zoneout(), ones):
        grads = jax.grad(lambda p, spec=spec: jnp.sum(run(p, spec)[1]))(params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("name", [marked(name) for name in CELLS])
def test_bfloat16_products_keep_a_float32_state(name):
    kind, options = CELLS[name]
    _, params, xs = build(name, jnp.float32)
    exact, rough = (FACTORIES[kind](F, H, dtype=d, **options) for d in (None, jnp.bfloat16))
    (carry, ys), (_, wanted) = (unroll(c, params, xs)[:2] for c in (rough, exact))
    assert {leaf.dtype for leaf in jax.tree.leaves((carry, ys))} == {jnp.dtype("float32")}
    # Operands have 8 bits, so each product has errors of 2⁻⁸, over 7 steps. An error of 0 would
    # mean that the option was not used.
    error = np.abs(ys - wanted).max()
    scale = 1 if CELLS[name][1].get("activation_fn") != "relu" else float(np.abs(wanted).max())
    assert 0 < error < 0.1 * scale


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("lstm", "gru reset before") else pytest.param(name, marks=pytest.mark.slow)
        for name in ("lstm", "gru reset before", "lstm batch norm", *FURTHER)
        if "relu" not in name
    ],
)
def test_transformations(name):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, "all")

    @jax.jit
    def run(params, key):
        return unroll(cell, params, xs, zoneout=spec, key=key)[1]

    keys = jax.random.split(KEY, 3)
    samples = jax.vmap(run, (None, 0))(params, keys)  # Monte-Carlo evaluation
    for one, key in zip(samples, keys, strict=True):
        np.testing.assert_allclose(one, run(params, key), rtol=0, atol=1e-5)
    assert np.all(samples.std(0).max((0, 2)) > 0)
    stacked = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    both = jax.vmap(run, (0, None))(stacked, KEY)
    np.testing.assert_allclose(both[0], run(params, KEY), rtol=0, atol=1e-5)

    def loss(params):
        return jnp.sum(jnp.square(run(params, KEY)))

    plain, again = jax.grad(loss)(params), jax.grad(jax.checkpoint(loss))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), plain, again)
