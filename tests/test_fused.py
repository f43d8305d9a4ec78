"""The hand-differentiated path equals the plain scan in each of its forms."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from tests.arrays import normal
from tests.test_cells import CELLS, KEY, LENGTHS, MASKS, B, F, H, T, build, sample, spec_for
from zoneout_jax import GRU, LSTM, Masks, Zoneout, linen, unroll
from zoneout_jax import _unroll as module

FORMS = {
    "as it comes": None,
    "own input": (False, True),
    "transposed": (True, False),
    "transposed, own input": (True, True),
}
"""For each form: True if arrays are transposed; True if each step multiplies its input."""


@pytest.fixture
def form(request, monkeypatch):
    """Forces a form if the cell allows it."""
    if FORMS[request.param] is not None:
        transposed, own = FORMS[request.param]
        monkeypatch.setattr(
            module, "_is_better_transposed", lambda cell, batch: transposed and cell.elementwise
        )
        monkeypatch.setattr(
            module, "_multiplies_own_input", lambda cell: own and cell.plain_projection
        )
    return request.param


def assert_equals_the_scan(name, masks, lengths, reverse, dtype, tolerance):
    """Compares outputs, last carry and all gradients of both implementations."""
    cell, params, xs = build(name, dtype)
    spec = spec_for(cell, masks)
    if spec is None:
        pytest.skip("the cell has none of these masks")
    sampled = jax.tree.map(lambda m: m if m.dtype == bool else m.astype(dtype), sample(cell, spec))
    soft = {n: m for n, m in sampled._asdict().items() if m is not None and m.dtype != bool}
    weights = normal(3, (T, B, cell.output_features), dtype)

    def loss(arguments, implementation):
        params, xs, carry, soft = arguments
        out = unroll(
            cell,
            params,
            xs,
            carry,
            masks=sampled._replace(**soft),
            seq_lengths=lengths,
            reverse=reverse,
            implementation=implementation,
        )
        last = [leaf for leaf in jax.tree.leaves(out[0]) if leaf.ndim]
        return jnp.sum(weights * out[1]) + sum(jnp.sum(jnp.sin(leaf)) for leaf in last), out

    def both(arguments):
        return [
            jax.value_and_grad(functools.partial(loss, implementation=i), has_aux=True)(arguments)
            for i in ("fused", "scan")
        ]

    carry = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.3 if leaf.ndim else 0, leaf.dtype),
        cell.initial_carry(params, B),
    )
    one, other = jax.jit(both)((params, xs, carry, soft))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other
    )


PLAIN = ["lstm", "lstm output gate", "gru", "gru reset before", "rnn relu"]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "form"),
    [(name, form) for name in PLAIN for form in FORMS]
    # These cells are not transposed; a normalized cell does not multiply its input in steps.
    + [
        ("lstm projected", "own input"),
        pytest.param("gru layer norm", "as it comes", marks=pytest.mark.slow),
    ],
    indirect=["form"],
)
def test_every_form_equals_the_scan(name, form):
    assert_equals_the_scan(name, "all", jnp.array(LENGTHS), False, jnp.float64, 1e-12)


EVERY = [(masks, LENGTHS, True) for masks in MASKS] + [("all", None, True), ("all", LENGTHS, False)]
EVERY_FORM = [(*case, "as it comes") for case in EVERY]
# Masks are transposed too, so every shape and type of mask is tested in both forms.
SHAPES = ("plain", "all", "static", "stochastic depth", "gaussian")
EVERY_FORM += [(*case, "transposed, own input") for case in EVERY if case[0] in SHAPES]
# The use of masks is the same in all cells. The other cells differ in how a step computes, so they
# are tested with masks of every shape and type, or only with all masks and none.
WITH_EVERY_MASK = ("lstm", "gru")
WITH_EVERY_SHAPE = (
    *("lstm output gate", "lstm output gate repository", "lstm layer norm", "lstm batch norm"),
    *("rnn", "lstm projected"),
)
assert {*WITH_EVERY_MASK, *WITH_EVERY_SHAPE} <= CELLS.keys()


def has_to(name, masks):
    """Tells whether a cell is tested with masks of a kind."""
    if name in WITH_EVERY_MASK:
        return True
    return masks in (SHAPES if name in WITH_EVERY_SHAPE else ("plain", "all"))


EVERY_CASE = [
    (name, *case)
    for name in CELLS
    for case in EVERY_FORM
    if has_to(name, case[0])
    # Normalized and projected cells have one form only.
    if case[-1] == "as it comes" or not {"norm", "projected"} & {*name.split()}
]


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "masks", "lengths", "reverse", "form"), EVERY_CASE, indirect=["form"]
)
def test_every_cell_and_mask_equals_the_scan(name, masks, lengths, reverse, form):
    lengths = None if lengths is None else jnp.array(lengths)
    assert_equals_the_scan(name, masks, lengths, reverse, jnp.float64, 1e-12)


@pytest.mark.parametrize("form", ["as it comes", "transposed, own input"], indirect=True)
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn", "lstm layer norm"])
def test_float32(name, form):
    assert_equals_the_scan(name, "all", jnp.array(LENGTHS), True, jnp.float32, 1e-5)


def test_large_layers_take_the_form_that_is_faster_here():
    cell = LSTM(50, 512)
    assert module._multiplies_own_input(cell) and module._multiplies_own_input(GRU(64, 64))
    for large in (LSTM(64, 32), LSTM(650, 650), LSTM(3, 5, normalization="layer")):
        assert not module._multiplies_own_input(large)
    assert module._is_better_transposed(cell, 32) == (jax.default_backend() == "cpu")
    assert not module._is_better_transposed(cell, 20)
    params = cell.init(jax.random.key(0))
    xs = normal(1, (3, 16, 50))
    spec = Zoneout(cells=0.5, states=0.05, update_drop=0.1)

    def run(params, implementation, precision=None):
        used = LSTM(50, 512, dtype=precision)
        carry, ys = unroll(
            used, params, xs, zoneout=spec, key=KEY, chunk=2, implementation=implementation
        )
        return jnp.sum(jnp.square(ys)) + jnp.sum(carry[0]), ys

    one, other, rough = (
        jax.jit(
            jax.value_and_grad(functools.partial(run, implementation=i, precision=p), has_aux=True)
        )(params)
        for i, p in (("fused", None), ("scan", None), ("fused", jnp.bfloat16))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)
    # Operands have 8 bits, so errors are 2⁻⁸ each; sums over many terms average them.
    for exact, approximate in zip(jax.tree.leaves(one), jax.tree.leaves(rough), strict=True):
        error = np.linalg.norm(exact - approximate) / np.linalg.norm(exact)
        assert 0 < error < 2.0**-7


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "form",
    ["as it comes", pytest.param("transposed, own input", marks=pytest.mark.slow)],
    indirect=True,
)
@pytest.mark.parametrize(
    "name",
    ["lstm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gru", "rnn"))]
    + [pytest.param("gru reset before", marks=pytest.mark.slow)],
)
def test_higher_orders_and_batches_of_parameters(name, form):
    cell, params, xs = build(name, jnp.float64)
    spec = spec_for(cell, "all")
    direction = jax.tree.map(jnp.cos, params)

    def loss(params, key, implementation):
        ys = unroll(cell, params, xs, zoneout=spec, key=key, implementation=implementation)[1]
        return jnp.sum(jnp.square(ys))

    def slope(params, key, implementation):
        gradient = jax.grad(loss)(params, key, implementation)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
        return sum(jnp.vdot(g, d) for g, d in pairs)

    def close(one, other):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), one, other
        )

    second = [jax.jit(jax.grad(slope), static_argnums=2)(params, KEY, i) for i in ("fused", "scan")]
    close(*second)
    # Forward mode uses the scan.
    _, tangent = jax.jvp(lambda p: loss(p, KEY, "scan"), (params,), (direction,))
    close(tangent, slope(params, KEY, "fused"))
    if cell.one_product:  # otherwise JAX computes the derivatives
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(lambda p: loss(p, KEY, "fused"), (params,), (direction,))
    # A batch over parameters and keys at the same time.
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    keys = jax.random.split(KEY, 2)
    batched = jax.jit(jax.vmap(jax.grad(functools.partial(loss, implementation="fused"))))(
        many, keys
    )
    for n in range(2):
        one = jax.tree.map(lambda p, n=n: p[n], many)
        close(
            jax.tree.map(lambda g, n=n: g[n], batched),
            jax.grad(functools.partial(loss, implementation="scan"))(one, keys[n]),
        )


def test_gradient_of_inputs_with_own_input(monkeypatch):
    monkeypatch.setattr(module, "_multiplies_own_input", lambda cell: True)
    cell, params, xs = build("lstm", jnp.float32)

    def loss(xs, implementation):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, implementation=implementation)[1]))

    one, other = (jax.grad(loss)(xs, i) for i in ("fused", "scan"))
    assert one.shape == (T, B, F)
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("form", ["as it comes", "transposed, own input"], indirect=True)
def test_emit_may_close_over_what_is_differentiated(form, chunk):
    cell, params, xs = build("lstm", jnp.float32)
    lengths = jnp.array(LENGTHS)

    def loss(readout, params, implementation):
        def emit(carry, y):
            return y @ readout + 1, carry[0]

        options = {"seq_lengths": lengths, "chunk": chunk, "implementation": implementation}
        carry, (logits, cells) = unroll(cell, params, xs, emit=emit, **options)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(cells) + jnp.sum(carry[0]), (logits, cells)

    readout = normal(0, (H, 2))
    one, other = (
        jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)(readout, params, i)
        for i in ("fused", "scan")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)
    assert not np.any(one[1][0][:, LENGTHS.index(0)])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs(dtype, monkeypatch):
    monkeypatch.setattr(module, "_multiplies_own_input", lambda cell: True)
    cell, params, xs = build("lstm", jnp.float32)
    narrow = xs.astype(dtype)

    def loss(xs):
        return jnp.sum(jnp.sin(unroll(cell, params, xs)[1]))

    wanted = jax.grad(loss)(narrow.astype(jnp.float32))
    got = jax.grad(loss)(narrow)
    assert got.dtype == dtype
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=2.0**-7, atol=1e-3)


def test_integer_masks():
    cell, params, xs = build("lstm", jnp.float32)
    for mask in (1, np.ones((T, B, H), int), np.ones((1, B, H), int)):
        gradient = jax.grad(lambda p, m=mask: jnp.sum(unroll(cell, p, xs, masks=Masks(m))[1]))(
            params
        )
        assert np.any(gradient["recurrent"])


@pytest.mark.parametrize("implementation", ["fused", "scan"])
@pytest.mark.parametrize("name", ["lstm", "gru reset before", "lstm layer norm"])
def test_shard_map_gives_the_numbers_of_one_device(name, implementation):
    cell, params, xs = build(name, jnp.float32)
    spec = spec_for(cell, "all")
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(params, xs, axis_name=None):
        options = {"axis_name": axis_name, "implementation": implementation}
        ys = unroll(cell, params, xs, zoneout=spec, key=KEY, **options)[1]
        total = jnp.sum(jnp.square(ys))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    spread = jax.shard_map(
        lambda params, xs: jax.grad(loss)(params, xs, "data"),
        mesh=mesh,
        in_specs=(P(), P(None, "data")),
        out_specs=P(),
    )
    got, wanted = jax.jit(spread)(params, xs), jax.grad(loss)(params, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


@pytest.mark.parametrize("layer", ["ZoneoutRNN", "nn.RNN"])
def test_forward_mode_through_the_linen_face(layer):
    cell = linen.ZoneoutLSTMCell(H)
    rnn = linen.ZoneoutRNN(cell, implementation="scan") if layer == "ZoneoutRNN" else nn.RNN(cell)
    xs = normal(0, (B, T, F))
    variables = rnn.init(jax.random.key(1), xs)

    def loss(variables):
        return jnp.sum(jnp.square(rnn.apply(variables, xs)))

    _, slope = jax.jvp(loss, (variables,), (variables,))
    gradient = jax.grad(loss)(variables)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(variables), strict=True)
    np.testing.assert_allclose(slope, sum(jnp.vdot(g, v) for g, v in pairs), rtol=1e-5)
