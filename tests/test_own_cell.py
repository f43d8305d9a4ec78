"""The cells of docs/own_cell.md, as users write them, equal NumPy and work in all faces."""

import dataclasses
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.arrays import normal, shaken
from tests.oracles import sigmoid
from tests.test_cells import KEY, LENGTHS, B, F, H, T
from zoneout_jax import (
    GRU,
    LSTM,
    RNN,
    Cell,
    Masks,
    Zoneout,
    _unroll,
    block_orthogonal,
    linen,
    tiled_orthogonal,
    unroll,
    zoneout,
)
from zoneout_jax import nnx as faces

PAGE = (pathlib.Path(__file__).parents[1] / "docs/own_cell.md").read_text()
NAMES: dict = {}
for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[:2]:
    exec(block, NAMES)


def mgu_step(p, carry, x, d_c, d_h, m):
    (h,) = carry
    x_f, x_n = np.split(x @ p["input"] + p["bias"], 2, -1)
    q_f, q_n = np.split((m * h) @ p["recurrent"], 2, -1)
    f = sigmoid(x_f + q_f)
    new = (1 - f) * h + f * np.tanh(x_n + f * q_n)
    return (d_h * h + (1 - d_h) * new,)


def peephole_step(p, carry, x, d_c, d_h, m):
    c, h = carry
    z_i, z_f, z_g, z_o = np.split(x @ p["input"] + h @ p["recurrent"] + p["bias"], 4, -1)
    i, f = sigmoid(z_i + p["peephole_i"] * c), sigmoid(z_f + p["peephole_f"] * c)
    new = f * c + i * np.tanh(z_g)
    new_h = sigmoid(z_o + p["peephole_o"] * new) * np.tanh(new)
    return d_c * c + (1 - d_c) * new, d_h * h + (1 - d_h) * new_h


CELLS = {
    "MinimalGatedUnit": (mgu_step, 1, Zoneout(states=0.3, hidden_drop=0.4)),
    "PeepholeLSTM": (peephole_step, 2, Zoneout(cells=0.5, states=0.3)),
}


def make(name, dtype=jnp.float32):
    """Returns the cell, nonzero parameters, and inputs."""
    cell = NAMES[name](F, H, param_dtype=dtype)
    return cell, shaken(1, cell.init(KEY)), normal(2, (T, B, F), dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", CELLS)
def test_equals_numpy_and_the_scan(name, transposed, monkeypatch):
    monkeypatch.setattr(_unroll, "_is_better_transposed", lambda cell, batch: transposed)
    cell, params, xs = make(name, jnp.float64)
    step, size, spec = CELLS[name]
    masks = spec.sample(KEY, T, B, H)
    lengths = jnp.array(LENGTHS)

    def loss(params, xs, **options):
        options |= {"masks": masks, "seq_lengths": lengths}
        carry, ys = unroll(cell, params, xs, **options)
        return jnp.sum(jnp.sin(ys)) + sum(map(jnp.sum, jax.tree.leaves(carry))), (carry, ys)

    grad = jax.jit(
        jax.grad(loss, (0, 1), has_aux=True), static_argnames=("implementation", "chunk")
    )
    fused, (carry, ys) = grad(params, xs)
    for other in ({"implementation": "scan"}, {"chunk": 3}):
        wanted, _ = grad(params, xs, **other)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), fused, wanted
        )
    p = jax.tree.map(np.asarray, params)
    now = (np.zeros((B, H)),) * size
    for t in range(T):
        d_c = np.zeros((B, H)) if masks.cells is None else np.asarray(masks.cells[t], np.float64)
        m = 1 if masks.hidden is None else np.asarray(masks.hidden[0], np.float64)
        new = step(p, now, np.asarray(xs[t]), d_c, np.asarray(masks.states[t], np.float64), m)
        valid = (t < np.array(LENGTHS))[:, None]
        now = tuple(np.where(valid, n, c) for n, c in zip(new, now, strict=True))
        np.testing.assert_allclose(ys[t], np.where(valid, now[-1], 0), rtol=0, atol=1e-10)
    for one, other in zip(jax.tree.leaves(carry), now, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CELLS)
def test_in_flax(name):
    cell, params, xs = make(name)
    spec = CELLS[name][2]
    _, wanted = unroll(cell, params, xs, zoneout=spec, deterministic=True)
    layer = linen.ZoneoutRNN(linen.ZoneoutCell(cell, zoneout=spec), time_major=True)
    shapes = layer.init(jax.random.key(0), xs)["params"]["cell"]
    assert jax.tree.map(jnp.shape, dict(shapes)) == jax.tree.map(jnp.shape, params)
    got = layer.apply({"params": {"cell": params}}, xs, deterministic=True)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)
    module = faces.ZoneoutCell(cell, zoneout=spec, rngs=nnx.Rngs(0))
    for parameter, value in params.items():
        setattr(module, parameter, nnx.Param(value))
    got = faces.ZoneoutRNN(module, time_major=True)(xs, deterministic=True)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("function", [jax.nn.softplus, jnp.sin])
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_any_activation(kind, function):
    cell = kind(F, H, activation_fn=function)
    params = cell.init(jax.random.key(0))
    xs = normal(1, (T, B, F))

    def loss(params, implementation):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, implementation=implementation)[1]))

    one, other = (jax.grad(loss)(params, i) for i in ("fused", "scan"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, other)
    plain = unroll(kind(F, H), params, xs)[1]
    assert np.abs(plain - unroll(cell, params, xs)[1]).max() > 1e-3


def test_cells_are_values():
    init = jax.nn.initializers.lecun_normal()
    one, other = LSTM(3, 5, kernel_init=init), LSTM(3, 5, activation_fn=jnp.tanh)
    assert one == other and hash(one) == hash(other) != hash(LSTM(3, 5, forget_bias=0.0))
    assert LSTM(3, 5, param_dtype="float32", dtype=jnp.bfloat16) == LSTM(3, 5, dtype="bfloat16")
    assert pickle.loads(pickle.dumps(other)) == other
    for init in (block_orthogonal(), tiled_orthogonal()):
        again = pickle.loads(pickle.dumps(LSTM(3, 5, kernel_init=init)))
        assert again.kernel_init == init
    assert "function" not in repr(one) and "LSTM(in_features=3, hidden_features=5" in repr(one)
    for wrong in (jnp.int8, jnp.complex64):
        with pytest.raises(TypeError, match="dtype must be a type of real numbers"):
            LSTM(3, 5, dtype=wrong)
    with pytest.raises(ValueError, match=r"parameters of LSTM.*must have the shapes"):
        unroll(LSTM(3, 6), one.init(jax.random.key(0)), jnp.ones((7, 4, 3)))


@dataclasses.dataclass(frozen=True)
class CoupledLSTM(Cell):
    """An LSTM whose input gate is 1 − f, with a mask of its update as docs/own_cell.md has it."""

    gates = ("sigmoid", "tanh", "sigmoid")
    carry_names = ("c", "h")
    mask_names = ("cells", "states", "update")

    def update(self, params, carry, gates, rest, masks):
        (c, h), (f, n, o) = carry, gates
        n = n if masks.update is None else masks.update.astype(n.dtype) * n
        new_c = f * c + (1 - f) * n
        new_h = zoneout(h, o * jnp.tanh(new_c), masks.states)
        return (zoneout(c, new_c, masks.cells), new_h), new_h


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reverse", [False, True])
def test_update_masks_resets_and_reverse(reverse):
    cell = CoupledLSTM(F, H, param_dtype=jnp.float64)
    params = cell.init(KEY)
    xs, resets = (normal(1, (T, B, F), jnp.float64), jax.random.bernoulli(KEY, 0.3, (T, B)))
    masks = Zoneout(cells=0.5, states=0.3, update_drop=0.4).sample(KEY, T, B, H)

    def loss(params, implementation):
        options = {"reverse": reverse, "resets": resets, "implementation": implementation}
        ys = unroll(cell, params, xs, masks=masks, **options)[1]
        return jnp.sum(jnp.sin(ys)), ys

    (one, ys), (other, _) = (jax.grad(loss, has_aux=True)(params, i) for i in ("fused", "scan"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12), one, other)
    p, now = jax.tree.map(np.asarray, params), (np.zeros((B, H)),) * 2
    u, d_c, d_h = (np.asarray(m, np.float64) for m in (masks.update, masks.cells, masks.states))
    for t in range(T)[:: -1 if reverse else 1]:
        start = np.asarray(resets[min(t + 1, T - 1)] & (t + 1 < T) if reverse else resets[t])
        c, h = (np.where(start[:, None], 0, a) for a in now)
        z_f, z_n, z_o = np.split(np.asarray(xs[t]) @ p["input"] + h @ p["recurrent"], 3, -1)
        f = sigmoid(z_f)
        new = f * c + (1 - f) * u[t] * np.tanh(z_n)
        h = d_h[t] * h + (1 - d_h[t]) * sigmoid(z_o) * np.tanh(new)
        now = d_c[t] * c + (1 - d_c[t]) * new, h
        np.testing.assert_allclose(ys[t], h, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mode", ["sampled", "expected"])
def test_update_masks_in_bfloat16_and_strict(mode):
    cell = CoupledLSTM(F, H, param_dtype=jnp.bfloat16)
    spec = Zoneout(states=jnp.float32(0.3), update_drop=jnp.float32(0.4), gaussian=True)
    options = {"key": KEY} if mode == "sampled" else {"deterministic": True}
    ys = unroll(cell, cell.init(KEY), jnp.ones((T, B, F)), zoneout=spec, **options)[1]
    assert ys.dtype == jnp.bfloat16


class Doubled:
    """Computes another product."""

    def product(self, x, kernel):
        return 2 * super().product(x, kernel)


class DoubledRNN(Doubled, RNN):
    """A plain RNN with another product."""


class DoubledGRU(Doubled, GRU):
    """A GRU with another product."""


@pytest.mark.parametrize("cell", [DoubledRNN(F, H), DoubledGRU(F, H, reset_after=True)])
def test_another_product_has_its_own_gradient(cell):
    params, xs = cell.init(KEY), normal(1, (T, B, F))
    unroll(cell, params, xs, zoneout=Zoneout(hidden_drop=0.5), key=KEY)  # still has this mask

    def loss(params, implementation):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, implementation=implementation)[1]))

    one, other = (jax.grad(loss)(params, i) for i in ("fused", "scan"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)


def softmax(x):
    return jax.nn.softmax(x)


@pytest.mark.parametrize("cell", [GRU(3, 512, gate_fn=softmax), RNN(3, 512, activation_fn=softmax)])
def test_activations_that_mix_units(cell):
    assert not cell.elementwise and type(cell)(3, 512).elementwise
    params, xs = cell.init(KEY), normal(1, (3, 16, 3))
    one, other = (unroll(cell, params, xs, implementation=i)[1] for i in ("fused", "scan"))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


class Embedding(RNN):
    """Takes symbols instead of vectors, and has no parameter `input`."""

    def parameters(self):
        made = super().parameters()
        return {
            "table": (made["input"][0], (self.in_features, H)),
            **{n: made[n] for n in made if n != "input"},
        }

    @property
    def input_width(self):
        return 1

    def project(self, params, xs):
        return params["table"][xs[..., 0]] + params["bias"][None, None]


class Louder(GRU):
    """Has a step of another form."""

    def advance(self, params, carry, projected, masks, *normalize):
        return carry + 1, carry + 1


def test_other_projections_and_steps():
    cell = Embedding(4, H)
    params, symbols = cell.init(KEY), jax.random.randint(KEY, (T, B, 1), 0, 4)

    def loss(params, implementation):
        return jnp.sum(jnp.sin(unroll(cell, params, symbols, implementation=implementation)[1]))

    one, other = (jax.grad(loss)(params, i) for i in ("fused", "scan"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), one, other)
    louder = Louder(F, H)
    ys = unroll(louder, louder.init(KEY), jnp.ones((T, B, F)))[1]
    np.testing.assert_array_equal(ys[:, 0, 0], np.arange(1, T + 1))


class Wider(RNN):
    """Returns a carry of another type."""

    def update(self, params, carry, gates, rest, masks):
        return carry.astype(jnp.bfloat16), carry


class Nameless(RNN):
    """Has no hidden state."""

    carry_names = ("c",)


class Lonely(RNN):
    """Returns no output, and names its masks in a string."""

    mask_names = "states"


class Started(RNN):
    """Makes its parameters in another way."""

    def init(self, key):
        return super().init(key)


class Moving(RNN):
    """Has a parameter with the name of an attribute of modules."""

    def parameters(self):
        return super().parameters() | {"momentum": super().parameters()["bias"]}


class Halved(RNN):
    """Returns no output."""

    def update(self, params, carry, gates, rest, masks):
        return carry


def step(cell, carry=None, x=None, **options):
    """Runs one step, by default with a carry and inputs that fit."""
    params = cell.init(KEY)
    carry = cell.initial_carry(params, B) if carry is None else carry
    return cell.step(params, carry, jnp.ones((B, F)) if x is None else x, **options)


BATCH_NORM = LSTM(F, H, normalization="batch", max_steps=T)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: run(Wider(F, H)), TypeError, "Wider.update must return a carry float32.*bfloat16"),
        (lambda: run(Halved(F, H)), TypeError, r"Halved.update must return the pair \(carry, outp"),
        (lambda: Nameless(F, H), ValueError, 'carry_names must hold "h"'),
        (lambda: Lonely(F, H), TypeError, r"mask_names must be a tuple, such as \(\"states\",\)"),
        (lambda: linen.ZoneoutCell(Started(F, H)), TypeError, "Started overrides init, but"),
        (lambda: RNN(F, H, kernel_init=jnp.ones(3)), TypeError, "kernel_init must be a function"),
        (lambda: RNN(F, True), TypeError, "hidden_features must be an integer, got True"),
        (lambda: faces.ZoneoutGRUCell(F, H, rngs=0), TypeError, "rngs must be nnx.Rngs, such as"),
        (lambda: RNN(F, H).step(None, None, None), TypeError, "params must be a dict of arrays"),
        (lambda: step(LSTM(F, H), carry=jnp.zeros((B, H))), ValueError, "carry must have the sh"),
        (lambda: step(GRU(F, H), x=jnp.ones((B, F + 1))), ValueError, r"x must be \[B, 3\], got"),
        (
            lambda: step(GRU(F, H), masks=Masks(states=jnp.ones((T, B, H)))),
            ValueError,
            r"mask of states must be \(4, 5\) or broadcast to it, got \(7, 4, 5\)",
        ),
        (lambda: step(GRU(F, H), stats={"junk": 1}), ValueError, "batch-normalized cells only"),
        (lambda: step(BATCH_NORM, stats={}), ValueError, "stats must be input_mean .* got dict"),
        (lambda: step(BATCH_NORM, stats=[1]), ValueError, "stats must be input_mean .* got list"),
        (
            lambda: step(
                BATCH_NORM, stats=LSTM(F, 2, normalization="batch", max_steps=T).init_stats()
            ),
            ValueError,
            r"stats must be input_mean \[max_steps, 20\], .*got input_mean \(7, 8\)",
        ),
        (lambda: faces.ZoneoutCell(Started(F, H), rngs=nnx.Rngs(0)), TypeError, "overrides init"),
        (lambda: step(Halved(F, H)), TypeError, r"Halved.update must return the pair"),
        (
            lambda: faces.ZoneoutCell(Moving(F, H), rngs=nnx.Rngs(0)),
            ValueError,
            "a parameter of Moving is named momentum, as is an attribute",
        ),
        (
            lambda: unroll(
                RNN(F, H),
                RNN(F, H).init(KEY),
                jnp.ones((T, B, F)),
                zoneout=Zoneout(states=0.5),
                key=jax.random.split(KEY),
            ),
            ValueError,
            r"key must be one random key, got an array of keys \(2,\)",
        ),
        (lambda: LSTM(3, 4.0), TypeError, "hidden_features must be an integer, got 4.0"),
        (
            lambda: LSTM(3, 6).step(
                LSTM(3, 5).init(KEY), (jnp.zeros((B, 6)),) * 2, jnp.ones((B, 3))
            ),
            ValueError,
            r"parameters of LSTM must have the shapes input \(3, 24\), got \(3, 20\)",
        ),
        (
            lambda: Louder(F, H).known_masks(Masks(hidden=1.0)),
            ValueError,
            "Louder has no hidden to mask, only states and update",
        ),
        (lambda: Zoneout(cells=object()), TypeError, "rate of cells must be a number"),
        (lambda: Zoneout(cells=jnp.bfloat16(2.0)), ValueError, "rate of cells must be in"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def run(cell):
    return unroll(cell, cell.init(KEY), jnp.ones((T, B, F)))
