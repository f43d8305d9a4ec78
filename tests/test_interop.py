"""Weights from and to other libraries give equal outputs and exact round trips."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.arrays import shaken
from tests.oracles import over_features, sigmoid
from zoneout_jax import GRU, LSTM, RNN, IndRNN, interop, unroll

T, B, F, H, P = 7, 3, 4, 5, 2
CELLS = {
    "lstm": LSTM(F, H),
    "gru": GRU(F, H),
    "gru before": GRU(F, H, reset_after=False),
    "rnn": RNN(F, H),
    "rnn relu": RNN(F, H, activation_fn="relu"),
    "lstm projected": LSTM(F, H, proj_size=P),
    "lstm layer norm": LSTM(F, H, normalization="layer"),
    "gru layer norm": GRU(F, H, normalization="layer"),
    "indrnn": IndRNN(F, H, activation_fn="tanh"),
}
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


@pytest.fixture(params=TOLERANCE)
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return request.param


@pytest.fixture(autouse=True, scope="module")
def keras_on_jax(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield


def noisy(tree, seed=0):
    """Adds noise, so that all values differ."""
    return jax.tree.map(np.array, shaken(seed, tree))


def random_params(kind, dtype="float32"):
    return noisy(dataclasses.replace(CELLS[kind], param_dtype=dtype).init(jax.random.key(0)))


def inputs(features=F, dtype="float32"):
    return np.random.default_rng(9).normal(size=(T, B, features)).astype(dtype)


def outputs(kind, params, xs):
    cell = dataclasses.replace(CELLS[kind], param_dtype=xs.dtype)
    return unroll(cell, jax.tree.map(jnp.asarray, params), jnp.asarray(xs))[1]


def assert_same(one, other, tolerance=0.0):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [a.dtype for a in jax.tree.leaves(one)] == [a.dtype for a in jax.tree.leaves(other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), one, other)


# Each function makes a layer and returns its weights and a function from weights to outputs.


def linen(kind, dtype, cell=None):
    names = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}
    cell = (cell or names[kind])(H, dtype=dtype, param_dtype=dtype)
    layer = nn.RNN(cell, time_major=True)
    xs = inputs(dtype=dtype)
    made = layer.init(jax.random.key(1), xs)["params"]["cell"]
    return noisy(made), lambda params: layer.apply({"params": {"cell": params}}, xs)


def flax_nnx(kind, dtype, cell=None):
    names = {"lstm": nnx.OptimizedLSTMCell, "gru": nnx.GRUCell, "rnn": nnx.SimpleCell}
    cell = (cell or names[kind])(F, H, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
    layer = nnx.RNN(cell, time_major=True)

    def run(params):
        nnx.update(layer.cell, params)
        return layer(jnp.asarray(inputs(dtype=dtype)))

    return noisy(nnx.to_pure_dict(nnx.state(layer.cell, nnx.Param))), run


def torch_cell(kind, dtype, **options):
    torch = pytest.importorskip("torch")
    names = {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell", "rnn relu": "RNNCell"}
    cell = getattr(torch.nn, names[kind])(F, H, dtype=getattr(torch, dtype), **options)

    def run(state):
        cell.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
        carry, ys = None, []
        with torch.no_grad():
            for x in torch.tensor(inputs(dtype=dtype)):
                carry = cell(x, carry)
                ys.append(carry[0] if kind == "lstm" else carry)
        return torch.stack(ys).numpy()

    return {name: value.numpy().copy() for name, value in cell.state_dict().items()}, run


def haste(kind, dtype):
    """Haste's equations in NumPy, from frameworks/pytorch: {lstm,gru,layer_norm_*,indrnn}.py."""
    lstm, gru, layer = "lstm" in kind, "gru" in kind, "layer norm" in kind
    k = 4 if lstm else 3 if gru else 1
    shapes = {"kernel": (F, k * H), "recurrent_kernel": (H, k * H), "bias": (k * H,)}
    if gru:
        shapes["recurrent_bias"] = (k * H,)
    if kind == "indrnn":
        shapes["recurrent_scale"] = shapes.pop("recurrent_kernel")[:1]
    if layer:
        shapes["gamma"] = (2, k * H)
        shapes |= {"gamma_h": (H,), "beta_h": (H,)} if lstm else {}

    def norm(x, gamma):
        return over_features(x) * gamma if layer else x

    def run(state):
        c = h = np.zeros((B, H), dtype)
        gamma = state.get("gamma", (None, None))
        ys = []
        for x in inputs(dtype=dtype):
            from_x = norm(x @ state["kernel"], gamma[0]) + state["bias"]
            if kind == "indrnn":
                h = np.tanh(from_x + h * state["recurrent_scale"])
                ys.append(h)
                continue
            from_h = norm(h @ state["recurrent_kernel"], gamma[1])
            if lstm:
                i, g, f, o = np.split(from_x + from_h, 4, -1)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                cell = norm(c, state.get("gamma_h")) + state.get("beta_h", 0)
                h = sigmoid(o) * np.tanh(cell)
            else:
                x_z, x_r, x_n = np.split(from_x, 3, -1)
                h_z, h_r, h_n = np.split(from_h + state["recurrent_bias"], 3, -1)
                z = sigmoid(x_z + h_z)
                h = z * h + (1 - z) * np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
            ys.append(h)
        return np.stack(ys)

    return noisy({name: np.zeros(shape, dtype) for name, shape in shapes.items()}), run


def keras(kind, dtype, use_bias=True):
    layers = pytest.importorskip("keras").layers
    if dtype == "float64":
        pytest.skip("Keras on JAX computes tanh in float32")
    made = {
        "lstm": layers.LSTM,
        "gru": layers.GRU,
        "gru before": functools.partial(layers.GRU, reset_after=False),
        "rnn": layers.SimpleRNN,
    }
    layer = made[kind](H, return_sequences=True, dtype=dtype, use_bias=use_bias)
    layer.build((B, T, F))

    def run(weights):
        layer.set_weights(weights)
        return np.asarray(layer(inputs(dtype=dtype).swapaxes(0, 1))).swapaxes(0, 1)

    return noisy(layer.get_weights()), run


def haiku(kind, dtype, **options):
    hk = pytest.importorskip("haiku")
    names = {"lstm": hk.LSTM, "gru before": hk.GRU, "rnn relu": hk.VanillaRNN}

    def unrolled(xs):
        core = names[kind](H, **options)
        return hk.dynamic_unroll(core, xs, core.initial_state(B))[0]

    layer = hk.without_apply_rng(hk.transform(unrolled))
    xs = inputs(dtype=dtype)
    return noisy(layer.init(jax.random.key(0), xs)), lambda params: layer.apply(params, xs)


def equinox(kind, dtype, use_bias=True):
    eqx = pytest.importorskip("equinox")
    made = {"lstm": eqx.nn.LSTMCell, "gru": eqx.nn.GRUCell}[kind]
    cell = made(F, H, use_bias, jnp.dtype(dtype), key=jax.random.key(0))

    def run(fields):
        fields = {name: array for name, array in fields.items() if array is not None}
        full = eqx.tree_at(
            lambda c: [getattr(c, name) for name in fields], cell, [*fields.values()]
        )

        def step(carry, x):
            carry = jax.vmap(full)(x, carry)
            return carry, carry[0] if kind == "lstm" else carry

        zeros = jnp.zeros((B, H), dtype)
        carry = (zeros, zeros) if kind == "lstm" else zeros
        return jax.lax.scan(step, carry, inputs(dtype=dtype))[1]

    arrays = {
        name: value for name, value in vars(cell).items() if name.startswith(("weight", "bias"))
    }
    return noisy(arrays), run


MODULES = {"lstm": "lstm", "gru before": "gru", "rnn relu": "vanilla_rnn"}
IN_LISTS = (lambda state: interop.from_torch(state)[0]), lambda p: interop.to_torch([p], cell=True)
PEERS = [
    *[(linen, kind, {}, interop.from_flax, interop.to_linen) for kind in ("lstm", "gru", "rnn")],
    (linen, "lstm", {"cell": nn.LSTMCell}, interop.from_flax, interop.to_linen),
    *[(flax_nnx, kind, {}, interop.from_flax, interop.to_nnx) for kind in ("lstm", "gru", "rnn")],
    (
        flax_nnx,
        "lstm",
        {"cell": nnx.LSTMCell},
        interop.from_flax,
        functools.partial(interop.to_nnx, optimized=False),
    ),
    *[(torch_cell, kind, {}, *IN_LISTS) for kind in ("lstm", "gru", "rnn")],
    (torch_cell, "rnn relu", {"nonlinearity": "relu"}, *IN_LISTS),
    *[
        (haste, kind, {}, interop.from_haste, interop.to_haste)
        for kind in ("lstm", "gru", "gru layer norm", "lstm layer norm", "indrnn")
    ],
    *[
        (keras, kind, {}, interop.from_keras, interop.to_keras)
        for kind in ("lstm", "gru", "gru before", "rnn")
    ],
    *[
        (haiku, kind, {}, functools.partial(interop.from_haiku, prefix=module), interop.to_haiku)
        for kind, module in MODULES.items()
    ],
    *[(equinox, kind, {}, interop.from_equinox, interop.to_equinox) for kind in ("lstm", "gru")],
]


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("layer", "kind", "options", "convert", "back"),
    [
        pytest.param(
            *peer,
            id=f"{peer[0].__name__} {peer[1]} {[*peer[2]]}",
            marks=[pytest.mark.slow] if peer[1] == "lstm layer norm" else [],
        )
        for peer in PEERS
    ],
)
def test_outputs_are_theirs(layer, kind, options, convert, back, dtype):
    # Normalization magnifies rounding errors.
    tolerance = TOLERANCE[dtype] * (10 if "norm" in kind else 1)
    same = functools.partial(np.testing.assert_allclose, rtol=0, atol=tolerance)
    made, run = layer(kind, dtype, **options)
    params = convert(made)
    assert jax.tree.structure(params) == jax.tree.structure(random_params(kind))
    same(outputs(kind, params, inputs(dtype=dtype)), run(made))

    params = random_params(kind, dtype)
    if (layer, kind) == (flax_nnx, "gru"):
        with pytest.raises(ValueError, match="no recurrent_bias"):
            back(params)
        params["recurrent_bias"] *= 0
    converted = back(params)
    assert jax.tree.map(np.shape, converted) == jax.tree.map(np.shape, made)
    same(outputs(kind, params, inputs(dtype=dtype)), run(converted))
    # Haiku's LSTM adds 1 to a bias, which causes rounding.
    assert_same(convert(converted), params, TOLERANCE[dtype] if layer is haiku else 0)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize(
    ("layer", "kind", "options", "convert"),
    [
        (torch_cell, "lstm", {"bias": False}, IN_LISTS[0]),
        (torch_cell, "gru", {"bias": False}, IN_LISTS[0]),
        (keras, "lstm", {"use_bias": False}, interop.from_keras),
        (keras, "gru", {"use_bias": False}, lambda w: interop.from_keras(w, reset_after=True)),
        (
            keras,
            "gru before",
            {"use_bias": False},
            lambda w: interop.from_keras(w, reset_after=False),
        ),
        (
            haiku,
            "rnn relu",
            {"double_bias": False},
            lambda p: interop.from_haiku(p, "vanilla_rnn/"),
        ),
        (equinox, "lstm", {"use_bias": False}, lambda f: interop.from_equinox({**f, "bias": None})),
        (
            equinox,
            "gru",
            {"use_bias": False},
            lambda f: interop.from_equinox({**f, "bias_n": None}),
        ),
    ],
)
def test_without_biases(layer, kind, options, convert):
    made, run = layer(kind, "float32", **options)
    found = outputs(kind, convert(made), inputs())
    np.testing.assert_allclose(found, run(made), rtol=0, atol=1e-6)


def load(torch, module, state, **options):
    """Loads weights as documented."""
    tensors = {name: torch.tensor(array) for name, array in state.items()}
    return module.load_state_dict(tensors, **options)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn", "lstm projected"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_torch_with_two_layers(kind, bidirectional, bias):
    torch = pytest.importorskip("torch")
    options = {"num_layers": 2, "bidirectional": bidirectional, "bias": bias}
    options |= {"proj_size": P} if kind == "lstm projected" else {}
    layer = getattr(torch.nn, kind.split()[0].upper())(F, H, **options)

    def run():
        with torch.no_grad():
            return layer(torch.tensor(inputs()))[0].numpy()

    wanted = run()
    state = {name: value.numpy() for name, value in layer.state_dict().items()}
    layers = interop.from_torch(state)
    assert len(layers) == 2
    xs = jnp.asarray(inputs())
    for params in layers:
        cell = dataclasses.replace(CELLS[kind], in_features=xs.shape[-1])
        pair = params if bidirectional else (params,)
        ys = [unroll(cell, p, xs, reverse=bool(n))[1] for n, p in enumerate(pair)]
        xs = jnp.concatenate(ys, -1)
    np.testing.assert_allclose(xs, wanted, rtol=0, atol=1e-6)
    # Back to torch: it has two biases where we have their sum, so outputs are compared.
    if bias:
        converted = interop.to_torch(layers)
        assert {n: a.shape for n, a in converted.items()} == {n: a.shape for n, a in state.items()}
        load(torch, layer, converted)
        np.testing.assert_allclose(run(), wanted, rtol=0, atol=1e-6)
        assert_same(interop.from_torch(converted), layers)


@pytest.mark.parametrize("prefix", ["encoder.rnn.", "encoder.rnn"])
def test_torch_in_a_larger_model(prefix):
    torch = pytest.importorskip("torch")
    parts = {"embed": torch.nn.Embedding(9, F), "rnn": torch.nn.GRU(F, H)}
    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict(parts)})
    state = model.state_dict()
    (params,) = interop.from_torch(state, prefix)
    assert_same([params], interop.from_torch(parts["rnn"].state_dict()))
    with pytest.raises(ValueError, match="set `prefix`, to 'encoder.rnn'$"):
        interop.from_torch(state)
    with pytest.raises(ValueError, match=r"none of them below 'decoder\.'"):
        interop.from_torch(state, "decoder")
    converted = interop.to_torch([random_params("gru")], prefix)
    result = load(torch, model, converted, strict=False)
    assert not result.unexpected_keys and result.missing_keys == ["encoder.embed.weight"]
    assert_same(interop.from_torch(model.state_dict(), prefix), [random_params("gru")])


def test_haste_in_a_larger_model():
    params = random_params("gru")
    converted = interop.to_haste(params, "encoder.rnn")
    assert {name.rpartition(".")[0] for name in converted} == {"encoder.rnn"}
    assert_same(interop.from_haste(converted | {"embed.weight": 0}, "encoder.rnn."), params)


def test_torch_tensors_are_copied():
    torch = pytest.importorskip("torch")
    cell = torch.nn.RNNCell(F, H)
    (params,) = interop.from_torch(dict(cell.named_parameters()))  # these require gradients
    before = params["input"].copy()
    with torch.no_grad():
        cell.weight_ih += 1
    np.testing.assert_array_equal(params["input"], before)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_torch_bfloat16(kind):
    torch = pytest.importorskip("torch")
    layer = getattr(torch.nn, kind.upper())(F, H).to(torch.bfloat16)
    state = layer.state_dict()
    (params,) = interop.from_torch(state)
    assert {a.dtype for a in params.values()} == {jnp.dtype(jnp.bfloat16)}
    (wide,) = interop.from_torch({name: value.float() for name, value in state.items()})
    for name, array in params.items():
        np.testing.assert_array_equal(array, wide[name].astype(jnp.bfloat16))
    load(torch, layer, interop.to_torch([params]))
    assert layer.weight_ih_l0.dtype == torch.bfloat16
    if kind != "rnn":
        assert {a.dtype for a in interop.to_haste(params).values()} == {np.dtype(np.float32)}
    assert_same(interop.from_torch(layer.state_dict()), [params])


WAYS = {
    "torch": (lambda p: interop.to_torch([p]), lambda s: interop.from_torch(s)[0]),
    "linen": (interop.to_linen, interop.from_flax),
    "haste": (interop.to_haste, interop.from_haste),
    "keras": (interop.to_keras, interop.from_keras),
    "haiku": (lambda p: interop.to_haiku(p, "m"), lambda p: interop.from_haiku(p, "m")),
    "equinox": (interop.to_equinox, interop.from_equinox),
}


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        *[(library, "lstm") for library in WAYS],
        *[(library, "gru") for library in WAYS if library != "haiku"],
        *[(library, "gru before") for library in ("keras", "haiku")],
        *[(library, "rnn") for library in ("torch", "linen", "keras", "haiku")],
        *[("haste", kind) for kind in ("gru layer norm", "indrnn")],
        pytest.param("haste", "lstm layer norm", marks=pytest.mark.slow),
        ("torch", "lstm projected"),
    ],
)
def test_conversions_compile(library, kind):
    there, back = WAYS[library]
    params = random_params(kind)
    plain = back(there(params))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(plain))
    traced = jax.jit(lambda p: back(there(p)))(params)
    assert_same(jax.tree.map(np.asarray, traced), plain)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    mapped = jax.vmap(lambda p: back(there(p)))(many)
    assert_same(jax.tree.map(lambda p: np.asarray(p[0]), mapped), plain)
