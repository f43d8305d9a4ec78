"""What both Flax faces offer besides the layers: options, initializers, carries, views."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from zoneout_jax import LSTM, Zoneout, block_orthogonal, linen
from zoneout_jax import nnx as faces

B, T, F, H = 3, 6, 4, 8
SPEC = Zoneout(cells=0.5, states=0.3)
XS = jax.random.normal(jax.random.key(0), (B, T, F))


class InLinen:
    """A Linen layer with its variables, called as an NNX layer is."""

    def __init__(self, stem, *, layers=1, **options):
        cells = [getattr(linen, f"Zoneout{stem}Cell")(H, **options) for _ in range(layers)]
        self.layer = linen.ZoneoutRNN(cells if layers > 1 else cells[0], return_carry=True)
        self.variables = self.layer.init(jax.random.key(0), XS, deterministic=True)

    def __call__(self, xs, key=None, **options):
        rngs = None if key is None else {"zoneout": key}
        return self.layer.apply(self.variables, xs, rngs=rngs, **options)

    def start(self, shape):
        return self.layer.initialize_carry(jax.random.key(3), shape)

    def cell(self, carry, x, **options):
        variables = {"params": self.variables["params"]["cell"]}
        return self.layer.cell.apply(variables, carry, x, **options)


class InNNX:
    """An NNX layer."""

    def __init__(self, stem, *, layers=1, **options):
        kind, rngs = getattr(faces, f"Zoneout{stem}Cell"), nnx.Rngs(0)
        cells = [kind(H if n else F, H, rngs=rngs, **options) for n in range(layers)]
        self.layer = faces.ZoneoutRNN(cells if layers > 1 else cells[0], return_carry=True)

    def __call__(self, xs, key=None, **options):
        rngs = None if key is None else nnx.Rngs(zoneout=key)
        return self.layer(xs, rngs=rngs, **options)

    def start(self, shape):
        return self.layer.initialize_carry(shape, nnx.Rngs(3))

    def cell(self, carry, x, **options):
        return self.layer.cell(carry, x, **options)


both = pytest.mark.parametrize("face", [InLinen, InNNX])
KINDS = ["LSTM", "GRU", "Simple"]


@both
@pytest.mark.parametrize("kind", KINDS)
def test_options_change_what_they_say(face, kind):
    init = jax.nn.initializers.constant(0.1)
    options = {"kernel_init": init, "recurrent_kernel_init": init, "bias_init": init}
    plain = face(kind, **options)(XS)[1]
    changes = {"activation_fn": jax.nn.softplus, "dtype": jnp.bfloat16}
    changes |= {} if kind == "Simple" else {"gate_fn": jax.nn.hard_sigmoid}
    changes |= {"GRU": {"reset_after": False}, "LSTM": {"forget_bias": 0.0}}.get(kind, {})
    for name, value in changes.items():
        other = face(kind, **options | {name: value})(XS)[1]
        assert np.abs(other - plain).max() > 1e-4, name
    # Functions that have a name are the same as by name.
    named = {"activation_fn": jnp.tanh} | ({} if kind == "Simple" else {"gate_fn": nn.sigmoid})
    np.testing.assert_array_equal(face(kind, **options | named)(XS)[1], plain)
    narrow = face(kind, param_dtype=jnp.bfloat16)(XS.astype(jnp.bfloat16))[1]
    assert narrow.dtype == jnp.bfloat16


@both
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_the_sequence(face, kind):
    layer = face(kind, zoneout=Zoneout(states=0.3))
    _, wanted = layer(XS, deterministic=True)
    carry, ys = layer.start((B, F)), []
    for t in range(T):
        carry, y = layer.cell(carry, XS[:, t], deterministic=True)
        ys.append(y)
    np.testing.assert_allclose(jnp.stack(ys, 1), wanted, rtol=0, atol=1e-6)
    _, off = layer(XS, zoneout=Zoneout(), deterministic=True)
    _, step = layer.cell(layer.start((B, F)), XS[:, 0], zoneout=Zoneout())
    np.testing.assert_allclose(step, off[:, 0], rtol=0, atol=1e-6)


@both
def test_emit(face):
    layer = face("LSTM", layers=2)
    (_, (last, _)), (ys, cells) = layer(XS, emit=lambda carry, y: (y, carry[0]))
    np.testing.assert_array_equal(ys, layer(XS)[1])
    assert cells.shape == (B, T, H)
    np.testing.assert_array_equal(cells[:, -1], last)


@both
def test_initial_carries(face):
    shape = (50, 40, F)
    zeros = face("LSTM", layers=2).start(shape)
    assert jax.tree.map(jnp.shape, zeros) == (((50, 40, H),) * 2,) * 2
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))
    layer = face("LSTM", carry_init=jax.nn.initializers.normal(1.0))
    for leaf in layer.start(shape):
        assert abs(leaf.mean()) < 4 / np.sqrt(leaf.size)
        assert abs(leaf.std() - 1) < 4 / np.sqrt(2 * leaf.size)
    assert np.abs(np.corrcoef(*(leaf.ravel() for leaf in layer.start(shape)))[0, 1]) < 0.04
    # The layer draws one by itself, as those of Flax do.
    assert np.abs(layer(XS)[1] - layer(XS, initial_carry=(jnp.zeros((B, H)),) * 2)[1]).max() > 0.01
    with pytest.raises(ValueError, match="carry_init is for carries that are not learned"):
        face("GRU", carry_init=jax.nn.initializers.ones, learned_carry=True)


@both
def test_streams_at_the_call(face):
    layer = face("LSTM", zoneout=SPEC)
    one, again, other = (layer(XS, jax.random.key(k), deterministic=False)[1] for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


def test_partitioned_parameters():
    def options(module):
        named = {"kernel_init": nn.initializers.lecun_normal(), "bias_init": nn.initializers.zeros}
        named["recurrent_kernel_init"] = block_orthogonal()
        axes = {"bias_init": ("model",)}
        return {n: module(init, axes.get(n, (None, "model"))) for n, init in named.items()}

    wanted = {"input": P(None, "model"), "recurrent": P(None, "model"), "bias": P("model")}
    layer = linen.ZoneoutRNN(linen.ZoneoutLSTMCell(H, **options(nn.with_partitioning)))
    variables = layer.init(jax.random.key(0), XS)
    assert nn.get_partition_spec(variables)["params"]["cell"] == wanted
    plain = nn.meta.unbox(variables)
    bias = plain["params"]["cell"]["bias"]
    np.testing.assert_array_equal(bias, LSTM(F, H).init(jax.random.key(0))["bias"])
    np.testing.assert_array_equal(layer.apply(variables, XS), layer.apply(plain, XS))
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh) if hasattr(jax, "set_mesh") else mesh:
        cell = faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0), **options(nnx.with_partitioning))
    specs = nnx.get_partition_spec(nnx.state(cell, nnx.Param))
    assert {name: spec.get_value() for name, spec in specs.items()} == wanted
    assert faces.ZoneoutRNN(cell)(XS).shape == (B, T, H)


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="Flax has no views yet")
def test_views():
    class Model(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.rnn = faces.ZoneoutRNN(faces.ZoneoutLSTMCell(F, H, zoneout=SPEC, rngs=rngs))
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, xs):
            return self.dropout(self.rnn(xs))

    model = Model()
    for one in (model, model.rnn):
        quiet = nnx.view(one, deterministic=True)
        np.testing.assert_array_equal(quiet(XS), quiet(XS))
        noisy = nnx.view(quiet, deterministic=False)
        assert np.abs(noisy(XS) - noisy(XS)).max() > 1e-3
    assert "ZoneoutLSTMCell" in nnx.view_info(model)
    assert not model.rnn.cell.deterministic


@pytest.mark.parametrize("kind", KINDS)
def test_tabulate(kind):
    cell = getattr(faces, f"Zoneout{kind}Cell")(F, H, zoneout=Zoneout(states=0.3), rngs=nnx.Rngs(0))
    layer = faces.ZoneoutRNN(cell)
    assert "recurrent" in nnx.tabulate(cell, cell.initialize_carry((B, F)), XS[:, 0])
    assert "recurrent" in nnx.tabulate(layer, XS)
    assert layer(XS).shape == (B, T, H)


def test_rates_of_an_nnx_cell():
    cell = faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0))
    cell.zoneout = Zoneout(cells=jnp.float32(0.5), static=True)
    assert cell.zoneout == Zoneout(cells=0.5, static=True)
    assert faces.ZoneoutRNN(cell)(XS).shape == (B, T, H)

    @jax.jit
    def make(rate):
        faces.ZoneoutLSTMCell(F, H, zoneout=Zoneout(cells=rate), rngs=nnx.Rngs(0))

    with pytest.raises(TypeError, match="rate of cells is traced.*pass zoneout= to the call"):
        make(0.5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: faces.ZoneoutRNN(linen.ZoneoutLSTMCell(H)),
            TypeError,
            r"of zoneout_jax.nnx takes cells of that module, got zoneout_jax.linen.ZoneoutLSTMCell",
        ),
        (
            lambda: faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0), zoneuot=SPEC),
            TypeError,
            r"ZoneoutLSTMCell.__init__\(\) got an unexpected keyword argument 'zoneuot'",
        ),
        (
            lambda: linen.ZoneoutGRUCell(H, forget_bias=0.0),
            TypeError,
            r"ZoneoutGRUCell.__init__\(\) got an unexpected keyword argument",
        ),
        (lambda: InNNX("GRU")(XS[..., :2]), ValueError, "ZoneoutGRUCell takes 4 features"),
        (
            lambda: InNNX("GRU").cell(jnp.zeros((B, H)), XS[:, 0, :2]),
            ValueError,
            r"ZoneoutGRUCell: inputs must be \[\*batch, 4\], got \(3, 2\)",
        ),
        (
            lambda: InLinen("GRU")(XS, initial_carry=jnp.zeros((2, H))),
            ValueError,
            r"ZoneoutGRUCell: the arrays of a carry must be \(3, 8\), got \(2, 8\)",
        ),
        (
            lambda: InNNX("LSTM", zoneout=SPEC).layer(XS, rngs=jax.random.key(0)),
            TypeError,
            "rngs must be nnx.Rngs",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
