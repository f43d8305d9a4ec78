"""Options, initializers, carries and views of both Flax faces."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.arrays import normal
from zoneout_jax import LSTM, Zoneout, block_orthogonal, linen
from zoneout_jax import nnx as faces

B, T, F, H = 3, 6, 4, 8
SPEC = Zoneout(cells=0.5, states=0.3)
XS = normal(0, (B, T, F))


class InLinen:
    """A Linen layer with its variables, called like an NNX layer."""

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
KINDS = ["LSTM", "GRU", "Simple", pytest.param("IndRNN", marks=pytest.mark.slow)]


@both
@pytest.mark.parametrize("kind", KINDS)
def test_options_change_what_they_say(face, kind):
    init = jax.nn.initializers.constant(0.1)
    options = {"kernel_init": init, "recurrent_kernel_init": init, "bias_init": init}
    plain = face(kind, **options)(XS)[1]
    changes = {"activation_fn": jax.nn.softplus, "dtype": jnp.bfloat16}
    gated = kind in ("LSTM", "GRU")
    changes |= {"gate_fn": jax.nn.hard_sigmoid} if gated else {}
    changes |= {"GRU": {"reset_after": False}, "LSTM": {"forget_bias": 0.0}}.get(kind, {})
    for name, value in changes.items():
        other = face(kind, **options | {name: value})(XS)[1]
        assert np.abs(other - plain).max() > 1e-4, name
    # A function gives the same as its name.
    named = {"activation_fn": nn.relu if kind == "IndRNN" else jnp.tanh}
    named |= {"gate_fn": nn.sigmoid} if gated else {}
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
def test_a_carry_of_two_sizes(face):
    options = {"proj_size": 2, "carry_init": jax.nn.initializers.normal(1.0)}
    layer = face("LSTM", zoneout=SPEC, **options)
    start = layer.start((B, F))
    assert [leaf.shape for leaf in start] == [(B, H), (B, 2)]
    _, wanted = layer(XS, initial_carry=start, deterministic=True)
    carry, y = layer.cell(start, XS[:, 0], deterministic=True)
    _, rest = layer(XS[:, 1:], initial_carry=carry, deterministic=True)
    np.testing.assert_allclose(jnp.concatenate([y[:, None], rest], 1), wanted, rtol=0, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"carry must be \(3, 8\), \(3, 2\), got \(\(3, 8\), \(3, 8"
    ):
        layer(XS, initial_carry=(jnp.zeros((B, H)),) * 2, deterministic=True)


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
    # The layer draws an initial carry, as the layers of Flax do.
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
    # Specs are in boxes, of either kind.
    assert {
        n: getattr(spec, "get_value", lambda s=spec: s.value)() for n, spec in specs.items()
    } == wanted
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
            "ZoneoutGRUCell takes 4 features, got inputs of 2",
        ),
        (
            lambda: InLinen("GRU")(XS, initial_carry=jnp.zeros((2, H))),
            ValueError,
            r"ZoneoutGRUCell: the arrays of a carry must be \(3, 8\), got \(2, 8\)",
        ),
        (
            lambda: InNNX("LSTM", zoneout=SPEC).layer(XS, rngs=3),
            TypeError,
            "rngs must be nnx.Rngs, a stream or a key, got int",
        ),
        (
            lambda: linen.ZoneoutCell(nn.LSTMCell(H)),
            TypeError,
            r"cell must be a cell of zoneout_jax, .* got flax.*LSTMCell$",
        ),
        (
            lambda: faces.ZoneoutCell(
                faces.ZoneoutLSTMCell(F, H, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0)
            ),
            TypeError,
            r"cell must be a cell of zoneout_jax, .* got zoneout_jax.nnx.ZoneoutLSTMCell$",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("layer", ["nnx.Bidirectional", "nnx.RNN"])
def test_the_rnns_of_flax_leave_each_cell_its_stream(layer):
    # The layers of Flax pass a stream for initial carries, the same in every call.
    def make(seed):
        rngs = nnx.Rngs(params=0, zoneout=seed)
        cell = faces.ZoneoutSimpleCell(F, F, zoneout=Zoneout(states=0.5), rngs=rngs)
        return faces.ZoneoutRNN(cell) if layer == "nnx.Bidirectional" else cell

    def run(*seeds):
        if layer == "nnx.RNN":
            return nnx.RNN(make(seeds[0]))(XS)
        return nnx.Bidirectional(*map(make, seeds))(XS)

    np.testing.assert_array_equal(run(1, 2), run(1, 2))
    assert np.abs(run(1, 2) - run(3, 4)).max() > 1e-3
    drawn = faces.ZoneoutSimpleCell(
        F, F, carry_init=jax.nn.initializers.normal(1.0), rngs=nnx.Rngs(0)
    )
    assert nnx.RNN(drawn)(XS).shape == (B, T, F)
    assert faces.ZoneoutRNN(drawn)(XS, rngs=nnx.Rngs(zoneout=0)).shape == (B, T, F)


@both
def test_layers_start_apart(face):
    layer = face("Simple", layers=2, carry_init=jax.nn.initializers.normal(1.0))
    one, other = layer.start((B, F))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(layer(XS, initial_carry=layer.start((B, F)))[1], layer_of(layer))


def layer_of(layer):
    """Outputs of a layer that draws its initial carry from the key that `start` uses."""
    if isinstance(layer, InLinen):
        return layer(XS, init_key=jax.random.key(3))[1]
    return layer.layer(XS, rngs=nnx.Rngs(3))[1]


def test_a_key_at_the_call_of_nnx():
    specs = Zoneout(states=0.5)
    cells = [faces.ZoneoutSimpleCell(F, F, zoneout=specs, rngs=nnx.Rngs(0)) for _ in range(2)]
    layer = faces.ZoneoutRNN(cells)
    one, again, other = (layer(XS, rngs=jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-3


@both
def test_emit_of_scalars(face):
    layer = face("GRU")
    for xs in (XS, jnp.stack([XS, XS])):
        out = layer(xs, emit=lambda carry, y: (y, jnp.mean(y)))[1]
        assert out[0].shape == (*xs.shape[:-1], H) and out[1].shape == (T,)
        by_time = jnp.moveaxis(out[0], -2, 0).reshape(T, -1)
        np.testing.assert_allclose(out[1], by_time.mean(1), rtol=0, atol=1e-6)


MASK = np.arange(T) < np.array([[4], [T], [0]])


@both
@pytest.mark.parametrize("reverse", [False, True])
def test_boolean_masks_are_lengths(face, reverse):
    layer = face("LSTM", layers=2)
    options = {"reverse": reverse}
    wanted = layer(XS, seq_lengths=MASK.sum(1), **options)

    def close(one, other):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), one, other)

    close(layer(XS, mask=MASK, **options), wanted)
    close(jax.jit(lambda mask: layer(XS, mask=mask, **options))(MASK), wanted)
    carry, ys = layer(jnp.moveaxis(XS, 1, 0), mask=MASK.T.tolist(), time_major=True, **options)
    close((carry, jnp.moveaxis(ys, 1, 0)), wanted)
    twice = layer(jnp.stack([XS, XS]), mask=np.stack([MASK, MASK]), **options)
    close(twice, jax.tree.map(lambda a: jnp.stack([a, a]), wanted))


@both
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": MASK.T}, ValueError, r"mask must be booleans of the shape \(3, 6\), got bool of"),
        ({"mask": MASK * 1.0}, TypeError, r"mask must be booleans of .*, got float64 of \(3, 6\)"),
        ({"mask": ~MASK}, ValueError, "mask must be True first and then False: padding comes last"),
        ({"mask": MASK, "seq_lengths": [1] * B}, ValueError, "mask and seq_lengths say the same"),
    ],
)
def test_bad_boolean_masks(face, options, error, message):
    with pytest.raises(error, match=f"ZoneoutRNN: {message}"):
        face("GRU")(XS, **options)


@both
def test_noise_beside_an_initializer_is_refused(face):
    with pytest.raises(ValueError, match="carry_noise is for carries of zeros or learned ones"):
        face("GRU", carry_init=jax.nn.initializers.ones, carry_noise=0.1)(XS, deterministic=True)


@both
def test_an_error_names_the_cell_of_a_stack(face):
    layer = face("GRU", layers=2)
    carries = jnp.zeros((B, H)), jnp.zeros((2, H))
    with pytest.raises(ValueError, match="cell 1 of ZoneoutRNN: ZoneoutGRUCell: the arrays of a"):
        layer(XS, initial_carry=carries)


def test_a_linen_cell_of_a_pure_cell_names_itself():
    layer = linen.ZoneoutRNN(linen.ZoneoutCell(LSTM(F + 1, H)))
    with pytest.raises(ValueError, match="ZoneoutCell takes 5 features, got inputs of 4"):
        layer.init(jax.random.key(0), XS)
