"""The convolutional LSTM equals Flax's, NumPy and finite differences, in Linen and NNX."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.errors import InvalidRngError
from jax import test_util

from tests.arrays import normal, shaken
from tests.oracles import sigmoid
from zoneout_jax import Zoneout, _linen_conv, linen
from zoneout_jax import nnx as faces

B, T, F, C = 3, 4, 2, 3
MAP, KERNEL = (4, 3), (3, 2)
UNITS = 4 * 3 * C
KEY = jax.random.key(7)
SPEC = Zoneout(cells=0.5, states=0.3, update_drop=0.4)
XS = normal(0, (B, T, *MAP, F))
LENGTHS = jnp.array([4, 2, 3])
SPLIT = {"params": False, "zoneout": True}


slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def strict_ranks():
    with jax.numpy_rank_promotion("raise"):
        yield


def close(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def in_linen(**options):
    """Makes a Linen cell."""
    return linen.ZoneoutConvLSTMCell(C, KERNEL, **options)


@functools.cache
def variables(dtype):
    """Makes nonzero variables for `nn.RNN` around the cell, with Flax's own cell."""
    made = nn.RNN(nn.ConvLSTMCell(C, KERNEL, param_dtype=dtype)).init(KEY, XS.astype(dtype))
    return shaken(1, made)


def in_nnx(dtype=jnp.float32, **options):
    """Makes an NNX cell with the same parameters."""
    cell = faces.ZoneoutConvLSTMCell(F, C, KERNEL, param_dtype=dtype, rngs=nnx.Rngs(0), **options)
    nnx.update(cell, variables(dtype)["params"]["cell"])
    return cell


OTHERS = {"use_bias": False, "padding": "CIRCULAR", "strides": (1,)}
NARROW = {"dtype": jnp.bfloat16, "carry_init": jax.nn.initializers.normal(1.0)}


@pytest.mark.parametrize(
    ("kernel", "options", "reverse"),
    [
        (KERNEL, {}, False),
        pytest.param((3,), OTHERS, True, marks=slow),
        pytest.param(KERNEL, NARROW, False, marks=slow),
    ],
)
@pytest.mark.usefixtures("standard_promotion")
def test_takes_the_place_of_the_cell_of_flax(kernel, options, reverse):
    xs = XS.reshape(B, T, -1, F) if len(kernel) == 1 else XS
    theirs, ours = (
        nn.RNN(kind(C, kernel, **options), reverse=reverse, keep_order=True, return_carry=True)
        for kind in (nn.ConvLSTMCell, linen.ZoneoutConvLSTMCell)
    )
    made = theirs.init(KEY, xs)
    jax.tree.map(np.testing.assert_array_equal, ours.init(KEY, xs), made)
    start = jax.tree.map(jnp.shape, ours.cell.initialize_carry(KEY, xs[:, 0].shape))
    assert start == ((*xs.shape[:1], *xs.shape[2:-1], C),) * 2

    def run(rnn):
        def loss(variables):
            out = rnn.apply(variables, xs, seq_lengths=LENGTHS)
            return jnp.sum(jnp.sin(out[1])), out

        return jax.jit(jax.grad(loss, has_aux=True))(made)

    # For bfloat16, our elementwise part is in float32, Flax's in both types.
    close(run(ours), run(theirs), 0.3 if "dtype" in options else 1e-5)


def convolve(x, layer):
    """Cross-correlation of maps `[B, *map, F]`, padded to keep their size."""
    kernel = layer["kernel"]
    pads = [((k - 1) // 2, k // 2) for k in kernel.shape[:-2]]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    out = np.tile(layer["bias"], (*x.shape[:1], *MAP, 1))
    for shift in itertools.product(*map(range, kernel.shape[:-2])):
        part = x[:, *(slice(s, s + size) for s, size in zip(shift, MAP, strict=True))]
        out += part @ kernel[shift]
    return out


def numpy_step(params, carry, x, d_c, d_h, u):
    """Computes the equations in float64."""
    c, h = carry
    i, g, f, o = np.split(convolve(x, params["ih"]) + convolve(h, params["hh"]), 4, -1)
    new_c = sigmoid(f + 1) * c + u * sigmoid(i) * np.tanh(g)
    new_h = sigmoid(o) * np.tanh(new_c)
    return d_c * c + (1 - d_c) * new_c, d_h * h + (1 - d_h) * new_h


SPECS = {
    "plain": Zoneout(),
    "all": SPEC,
    "shared": Zoneout(cells=0.5, states=0.5, shared=True),
    "stochastic depth": Zoneout(cells=0.5, states=0.3, per_layer=True),
    "gaussian": Zoneout(cells=0.5, states=0.3, update_drop=0.4, gaussian=True),
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "deterministic"),
    [
        pytest.param(name, mode, marks=[] if name == "all" else slow)
        for name in SPECS
        for mode in (False, True)
    ],
)
def test_a_step_equals_numpy(name, deterministic, monkeypatch):
    spec, params = SPECS[name], variables(jnp.float64)["params"]["cell"]
    shapes = ((B, *MAP, F), (B, *MAP, C), (B, *MAP, C))
    x, *carry = (normal(n, shape, jnp.float64) for n, shape in enumerate(shapes))
    carry = tuple(carry)
    masks = spec.expected() if deterministic else spec.sample(KEY, 1, B, UNITS)

    def full(mask, default):
        mask = np.asarray(default if mask is None else mask, np.float64)
        return np.broadcast_to(mask, (1, B, UNITS)).reshape(B, *MAP, C)

    d_c, d_h, u = full(masks.cells, 0.0), full(masks.states, 0.0), full(masks.update, 1.0)
    p = jax.tree.map(np.asarray, params)
    wanted = numpy_step(p, jax.tree.map(np.asarray, carry), np.asarray(x), d_c, d_h, u)
    # Expected updates and Gaussian masks are computed in float32.
    atol = 1e-6 if deterministic or spec.gaussian else 1e-10
    options = {"zoneout": spec, "deterministic": deterministic}
    got = jax.jit(lambda c, x: in_nnx(jnp.float64)(c, x, rngs=KEY, **options))(carry, x)
    close(got, (wanted, wanted[1]), atol)
    monkeypatch.setattr(_linen_conv, "linen_key", lambda module: KEY)
    cell = in_linen(param_dtype=jnp.float64)
    close(cell.apply({"params": params}, carry, x, **options), got, atol)


@slow
@pytest.mark.usefixtures("x64")
def test_gradients_by_finite_differences():
    params, x = variables(jnp.float64)["params"]["cell"], XS[:, 0].astype(jnp.float64)
    cell = in_linen(param_dtype=jnp.float64, zoneout=SPEC, deterministic=False)
    carry = tuple(normal(n, (B, *MAP, C), jnp.float64) for n in (1, 2))

    @jax.jit
    def run(params, carry, x):
        for _ in range(2):
            carry, y = cell.apply({"params": params}, carry, x, rngs={"zoneout": KEY})
        return carry, y

    test_util.check_grads(run, (params, carry, x), 1, ["rev"], 1e-6, 1e-6)


def kept(ys):
    """Tells where outputs `[B, T, *map, C]` equal the outputs of the previous step."""
    return np.asarray(ys[:, 1:] == ys[:, :-1])


def by_linen(spec, xs, key, **options):
    rnn = nn.RNN(in_linen(zoneout=spec, deterministic=False, **options), split_rngs=SPLIT)
    return rnn.apply(variables(jnp.float32), xs, rngs={"zoneout": key})


def by_nnx(spec, xs, key, **options):
    cell = in_nnx(zoneout=spec, **options)
    cell.rngs = nnx.Rngs(zoneout=key).zoneout.fork()
    return nnx.RNN(cell)(xs)


@pytest.mark.parametrize("run", [pytest.param(by_linen, marks=slow), by_nnx])
def test_masks(run):
    variables(jnp.float32)  # made outside of the compiled function
    run = jax.jit(functools.partial(run, Zoneout(states=0.3)))
    xs = normal(1, (40, 6, *MAP, F))
    found = kept(run(xs, KEY))
    np.testing.assert_array_equal(kept(run(xs, KEY)), found)
    # 7,200 draws: 4 standard deviations.
    assert abs(found.mean() - 0.3) < 4 * np.sqrt(0.21 / found.size)
    for axis in range(found.ndim):
        size = found.shape[axis]
        left, right = (np.take(found, range(n, n + size - 1), axis).ravel() for n in (0, 1))
        assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(left.size)
    # The masks of an example do not depend on the batch.
    np.testing.assert_array_equal(kept(run(xs[:2], KEY)), found[:2])
    assert np.any(kept(run(xs, jax.random.key(1))) != found)


@slow
def test_devices_draw_the_masks_of_the_whole_batch():
    xs = normal(1, (4, T, *MAP, F))
    wanted = by_linen(SPEC, xs, KEY)
    run = functools.partial(by_linen, SPEC, key=KEY, axis_name="data")
    got = jax.pmap(run, axis_name="data")(xs.reshape(2, 2, *xs.shape[1:]))
    close(got.reshape(wanted.shape), wanted)


def test_modes():
    layer = nnx.RNN(in_nnx(zoneout=SPEC))
    assert np.abs(layer(XS) - layer(XS)).max() > 1e-3
    layer.eval()
    expected = layer(XS)
    cell = in_linen(zoneout=SPEC, deterministic=True)
    close(nn.RNN(cell).apply(variables(jnp.float32), XS), expected)
    if hasattr(nnx, "view"):
        layer.train()
        close(nnx.view(layer, deterministic=True)(XS), expected)


@slow
def test_batch_axes_seeds_and_directions():
    cell = in_linen(zoneout=SPEC, deterministic=True)
    twice = nn.RNN(cell).apply(variables(jnp.float32), jnp.stack([XS, XS]))
    expected = nn.RNN(cell).apply(variables(jnp.float32), XS)
    close(twice, jnp.stack([expected, expected]))
    samples = jax.vmap(lambda key: by_linen(SPEC, XS, key))(jax.random.split(KEY, 2))
    assert np.abs(samples[0] - samples[1]).max() > 1e-3
    pair = nn.Bidirectional(nn.RNN(cell), nn.RNN(cell.clone()))
    ys = pair.init_with_output(KEY, XS, seq_lengths=LENGTHS)[0]
    assert ys.shape == (B, T, *MAP, 2 * C)
    drawn = in_nnx(carry_init=jax.nn.initializers.normal(1.0))
    c, h = drawn.initialize_carry((B, *MAP, F), nnx.Rngs(3))
    assert c.shape == h.shape == (B, *MAP, C) and np.abs(c - h).max() > 0.1
    shape, init = (B, *MAP, F), jax.nn.initializers.normal(1.0)
    close(in_nnx().initialize_carry(shape, nnx.Rngs(3), init)[0], c)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: linen.ZoneoutRNN(in_linen()).init(KEY, XS),
            TypeError,
            "ZoneoutRNN takes no ZoneoutConvLSTMCell, whose inputs are maps; nn.RNN and nnx.RNN do",
        ),
        (lambda: faces.ZoneoutRNN(in_nnx()), TypeError, "ZoneoutRNN takes no ZoneoutConvLSTMCell"),
        (
            lambda: nn.RNN(in_linen(padding="VALID")).init(KEY, XS),
            ValueError,
            r"convolutions must keep the size of maps \(3, 4, 3\), got \(3, 2, 2\); leave strides",
        ),
        (
            lambda: in_nnx()((XS[:, 0], XS[:, 0]), XS[:, 0]),
            ValueError,
            r"the carry must be two arrays \(3, 4, 3, 3\), got \(\(3, 4, 3, 2\)",
        ),
        (
            lambda: nn.RNN(in_linen(zoneout=SPEC)).apply(variables(jnp.float32), XS),
            ValueError,
            "ZoneoutConvLSTMCell: deterministic must be given",
        ),
        (
            lambda: nn.RNN(in_linen(zoneout=SPEC, deterministic=False)).apply(
                variables(jnp.float32), XS
            ),
            InvalidRngError,
            'needs the random stream "zoneout"',
        ),
        (
            lambda: nnx.RNN(in_nnx(zoneout=Zoneout(cells=0.5, static=True)))(XS),
            ValueError,
            "no static masks in training, as each step draws its own masks",
        ),
        (lambda: in_nnx(zoneout=0.5), TypeError, "zoneout must be a Zoneout"),
        (
            lambda: nnx.RNN(in_nnx(zoneout=Zoneout(hidden_drop=0.5), deterministic=True))(XS),
            ValueError,
            "no product with h to drop from: leave hidden_drop out",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
