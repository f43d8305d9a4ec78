"""Weights from and to Flax and torch: outputs equal, round trips exact."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoneout_jax import GRU, LSTM, RNN, interop, unroll

T, B, F, H = 7, 3, 4, 5
CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


def random_params(cell, seed=0):
    keys = iter(jax.random.split(jax.random.key(seed), 9))
    return jax.tree.map(
        lambda p: p + 0.3 * jax.random.normal(next(keys), p.shape), cell.init(next(keys))
    )


def inputs(features=F):
    return jax.random.normal(jax.random.key(9), (T, B, features))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


LINEN = [
    ("lstm", nn.OptimizedLSTMCell),
    ("lstm", nn.LSTMCell),
    ("gru", nn.GRUCell),
    ("rnn", nn.SimpleCell),
]


@pytest.mark.parametrize(("kind", "theirs"), LINEN)
def test_linen(kind, theirs):
    cell = CELLS[kind](F, H)
    params = random_params(cell)
    layer = nn.RNN(theirs(H), time_major=True)
    converted = interop.to_linen(params)
    wanted = layer.apply({"params": {"cell": converted}}, inputs())
    np.testing.assert_allclose(unroll(cell, params, inputs())[1], wanted, rtol=0, atol=1e-6)
    assert_same(interop.from_flax(converted), params)
    # And from weights that Flax made itself.
    made = layer.init(jax.random.key(1), inputs())
    found = interop.from_flax(made["params"]["cell"])
    ys = unroll(cell, found, inputs())[1]
    np.testing.assert_allclose(ys, layer.apply(made, inputs()), rtol=0, atol=1e-6)
    assert jax.tree.structure(interop.to_linen(found)) == jax.tree.structure(
        jax.tree.map(np.asarray, dict(made["params"]["cell"]))
    )


@pytest.mark.parametrize(
    ("kind", "theirs", "options"),
    [
        ("lstm", nnx.OptimizedLSTMCell, {}),
        ("lstm", nnx.LSTMCell, {"optimized": False}),
        ("gru", nnx.GRUCell, {}),
        ("rnn", nnx.SimpleCell, {}),
    ],
)
def test_nnx(kind, theirs, options):
    cell = CELLS[kind](F, H)
    layer = nnx.RNN(theirs(F, H, rngs=nnx.Rngs(0)), time_major=True)
    made = nnx.to_pure_dict(nnx.state(layer.cell, nnx.Param))
    found = interop.from_flax(made)
    ys = unroll(cell, found, inputs())[1]
    np.testing.assert_allclose(ys, layer(inputs()), rtol=0, atol=1e-6)
    params = random_params(cell)
    if kind == "gru":
        with pytest.raises(ValueError, match="no recurrent_bias"):
            interop.to_nnx(params)
        params["recurrent_bias"] = jnp.zeros(H)
    converted = interop.to_nnx(params, **options)
    assert_same(interop.from_flax(converted), params)
    nnx.update(layer.cell, converted)
    np.testing.assert_allclose(
        unroll(cell, params, inputs())[1], layer(inputs()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_torch_with_two_layers(kind, bidirectional, bias):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, kind.upper())(
        F, H, num_layers=2, bidirectional=bidirectional, bias=bias
    )
    with torch.no_grad():
        wanted = layer(torch.tensor(np.array(inputs())))[0].numpy()
    state = {name: value.numpy() for name, value in layer.state_dict().items()}
    layers = interop.from_torch(state)
    assert len(layers) == 2
    xs = inputs()
    for params in layers:
        cell = CELLS[kind](xs.shape[-1], H)
        pair = params if bidirectional else (params,)
        ys = [unroll(cell, p, xs, reverse=bool(n))[1] for n, p in enumerate(pair)]
        xs = jnp.concatenate(ys, -1)
    np.testing.assert_allclose(xs, wanted, rtol=0, atol=1e-5)
    # Back: torch has two biases where we have their sum, so what it computes is compared.
    if bias:
        converted = interop.to_torch(layers)
        assert {n: a.shape for n, a in converted.items()} == {n: a.shape for n, a in state.items()}
        layer.load_state_dict({n: torch.tensor(a.copy()) for n, a in converted.items()})
        with torch.no_grad():
            again = layer(torch.tensor(np.array(inputs())))[0].numpy()
        np.testing.assert_allclose(again, wanted, rtol=0, atol=1e-5)
        assert_same(interop.from_torch(converted), layers)


@pytest.mark.parametrize(
    ("convert", "params", "message"),
    [
        (interop.to_linen, {"input": np.zeros((F, 4 * H))}, "lack bias, recurrent"),
        (interop.to_torch, [GRU(F, H, reset_after=False)], "reset_after=True"),
        (interop.to_nnx, LSTM(F, H, learned_carry=True), "initial_c, initial_h"),
        (interop.to_linen, LSTM(F, H, normalization="layer"), "cell_beta"),
        (interop.from_flax, {"q": {}}, "not the parameters"),
        (interop.from_torch, {"weight_hr_l0": np.zeros((2, 2))}, "projections .proj_size."),
        (interop.from_torch, {"weight_xx_l0": np.zeros((2, 2))}, "not the state"),
        (
            interop.from_torch,
            {"weight_ih_l0": np.zeros((20, F)), "weight_hh_l0": np.zeros((20, 7))},
            "must be .H, 4H.",
        ),
        (
            interop.from_torch,
            {"weight_ih_l0": np.zeros((16, F)), "weight_hh_l0": np.zeros((20, 5))},
            "weights must be",
        ),
    ],
)
def test_errors(convert, params, message):
    def made(value):
        return value.init(jax.random.key(0)) if hasattr(value, "init") else value

    params = [made(p) for p in params] if isinstance(params, list) else made(params)
    with pytest.raises(ValueError, match=message):
        convert(params)


def test_a_dict_in_place_of_layers():
    with pytest.raises(TypeError, match=r"to_torch\(\[params\]\)"):
        interop.to_torch(LSTM(F, H).init(jax.random.key(0)))


@pytest.mark.parametrize("kind", CELLS)
def test_conversions_compile(kind):
    params = CELLS[kind](F, H).init(jax.random.key(0))
    for there, back in (
        (lambda p: interop.to_torch([p]), lambda s: interop.from_torch(s)[0]),
        (interop.to_linen, interop.from_flax),
    ):
        plain = back(there(params))
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(plain))
        traced = jax.jit(lambda p, there=there, back=back: back(there(p)))(params)
        assert_same(jax.tree.map(np.asarray, traced), plain)
        many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
        mapped = jax.vmap(lambda p, there=there, back=back: back(there(p)))(many)
        assert_same(jax.tree.map(lambda p: np.asarray(p[0]), mapped), plain)
    with pytest.raises(TypeError, match="recurrent_bias must be known"):
        jax.jit(interop.to_nnx)(GRU(F, H).init(jax.random.key(0)))
