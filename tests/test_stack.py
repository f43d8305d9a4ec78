"""Layers in both directions, with dropout and residual connections, in both Flax faces."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from tests.arrays import normal
from zoneout_jax import GRU, LSTM, LinearCell, Zoneout, interop, linen, unroll
from zoneout_jax import nnx as faces

B, T, F, H = 3, 6, 4, 5
LENGTHS = np.array([6, 2, 4])
RESETS = np.zeros((B, T), bool)
RESETS[[0, 0, 2], [2, 5, 3]] = True
XS = normal(0, (B, T, F))
SPECS = [Zoneout(states=0.3), Zoneout(states=0.1)]
"""Specs of the layers."""
WAYS = ("cell", "backward")


def make(face, kind, params, specs=SPECS, **options):
    """Makes a layer of a face, as a function, from parameters `{name: {…}}` of its cells."""
    cells = {}
    for way in WAYS if "backward_0" in params else WAYS[:1]:
        cells[way] = []
        for number, spec in enumerate(specs):
            own = params[f"{way}_{number}"]
            if face == "linen":
                cell = getattr(linen, f"Zoneout{kind}Cell")(H, zoneout=spec)
            else:
                features = own["input"].shape[0]
                make_cell = getattr(faces, f"Zoneout{kind}Cell")
                cell = make_cell(features, H, zoneout=spec, rngs=nnx.Rngs(0))
                for name, value in own.items():
                    setattr(cell, name, nnx.Param(value))
            cells[way].append(cell)
    options |= {"return_carry": True, "backward": cells.get("backward")}
    if face == "linen":
        rnn = linen.ZoneoutRNN(cells["cell"], **options)
        return lambda xs, **call: rnn.apply({"params": params}, xs, **call)
    return faces.ZoneoutRNN(cells["cell"], **options)


KINDS = {"LSTM": LSTM, "GRU": GRU}


def parameters(kind, ways, width):
    """Makes parameters of all layers, by name of the module."""
    made = {}
    for number in range(len(SPECS)):
        for way in WAYS[:ways]:
            cell = KINDS[kind](width if number else F, H)
            made[f"{way}_{number}"] = cell.init(jax.random.fold_in(jax.random.key(0), len(made)))
    return made


def by_hand(kind, params, xs, carries, merge_fn, residual, **options):
    """Computes the same with single layers, one after the other, `[T, B, F]`, in evaluation."""
    last = []
    for number, spec in enumerate(SPECS):
        ends, outputs = [], []
        for way in WAYS if "backward_0" in params else WAYS[:1]:
            own = params[f"{way}_{number}"]
            cell = KINDS[kind](own["input"].shape[0], H)
            carry = None if carries is None else carries[number]
            if carry is not None and "backward_0" in params:
                carry = carry[WAYS.index(way)]
            options |= {"zoneout": spec, "deterministic": True, "reverse": way == "backward"}
            end, ys = unroll(cell, own, xs, carry, **options)
            ends.append(end)
            outputs.append(ys)
        new = merge_fn(*outputs) if len(outputs) > 1 else outputs[0]
        xs = xs + new if residual and number else new
        last.append(tuple(ends) if len(ends) > 1 else ends[0])
    return tuple(last), xs


def close(one, other, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), one, other)


def side_by_side(one, other):
    return jnp.concatenate([one, other], -1)


CASES = {
    "both ways": ("LSTM", 2, None, False),
    "both ways, summed, residual": ("GRU", 2, jnp.add, True),
    "one way, residual": ("LSTM", 1, None, True),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_single_layers_by_hand(name):
    kind, ways, merge_fn, residual = CASES[name]
    params = parameters(kind, ways, H if merge_fn or ways == 1 else 2 * H)
    over_time = jnp.moveaxis(XS, 1, 0)
    wanted_of = functools.partial(
        by_hand, kind, params, merge_fn=merge_fn or side_by_side, residual=residual
    )
    masked = {"seq_lengths": LENGTHS, "resets": RESETS.T}
    wanted = jax.jit(lambda xs: wanted_of(xs, None, **masked))(over_time)
    # Returned carries can be given again.
    then = jax.jit(wanted_of)(over_time, wanted[0])
    for face in ("linen", "nnx"):
        layer = make(face, kind, params, merge_fn=merge_fn, residual=residual)

        def run(layer=layer):
            options = {"deterministic": True}
            carry, ys = layer(XS, seq_lengths=LENGTHS, resets=RESETS, **options)
            options |= {"time_major": True, "initial_carry": carry}
            return (carry, jnp.moveaxis(ys, 1, 0)), layer(over_time, **options)

        close(jax.jit(run)(), (wanted, then))


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_equals_torch(face):
    torch = pytest.importorskip("torch")
    rnn = torch.nn.LSTM(F, H, num_layers=3, bidirectional=True, batch_first=True)
    params = {}
    for number, pair in enumerate(interop.from_torch(rnn.state_dict())):
        params |= {f"{way}_{number}": own for way, own in zip(WAYS, pair, strict=True)}
    layer = make(face, "LSTM", params, [Zoneout()] * 3)
    mask = np.arange(T) < LENGTHS[:, None]
    carries, ys = jax.jit(lambda xs: layer(xs, mask=mask))(XS)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        torch.tensor(np.asarray(XS)), LENGTHS, batch_first=True, enforce_sorted=False
    )
    wanted, (h, c) = rnn(packed)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(wanted, batch_first=True)
    close(ys, wanted.detach().numpy())
    for number, carry in enumerate(one for pair in carries for one in pair):
        close(carry, (c[number].detach().numpy(), h[number].detach().numpy()))


@dataclasses.dataclass(frozen=True)
class PassOn(LinearCell):
    """Returns its inputs."""

    gates = (None,)

    def coefficients(self, params, xs):
        return jnp.zeros((1,) * xs.ndim), xs


def passing_on(face, layers, ways=1, axis_name=None, **options):
    """Makes layers that return their inputs, so that dropout between them is visible."""
    module = {"linen": linen, "nnx": faces}[face]
    own = {"axis_name": axis_name} | ({"rngs": nnx.Rngs(0)} if face == "nnx" else {})
    cells = [
        [module.ZoneoutCell(PassOn(30, 30), **own) for _ in range(layers)] for _ in range(ways)
    ]
    if ways == 2:
        options |= {"backward": cells[1], "merge_fn": lambda one, other: (one + other) / 2}
    rnn = module.ZoneoutRNN(cells[0], implementation="scan", **options)
    variables = rnn.init(jax.random.key(0), ONES[:1]) if face == "linen" else None

    @functools.partial(jax.jit, static_argnames=("deterministic",))
    def call(xs, seed=0, deterministic=False):
        key = jax.random.key(seed)
        if face == "nnx":
            return rnn(xs, rngs=nnx.Rngs(zoneout=key), deterministic=deterministic)
        return rnn.apply(variables, xs, rngs={"zoneout": key}, deterministic=deterministic)

    return call


ONES = jnp.ones((40, 20, 30))


@pytest.mark.parametrize(("locked", "ways"), [(False, 1), (True, 2)])
@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_dropout_between_layers(face, locked, ways):
    run = passing_on(face, 2, ways, dropout=0.3, locked_dropout=locked)
    ys = np.asarray(run(ONES))
    np.testing.assert_allclose(np.unique(ys), [0, 1 / 0.7], rtol=1e-6)
    if locked:
        assert np.all(ys == ys[:, :1])
        ys = ys[:, :1]
    gone = ys == 0
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.21 / gone.size) + 2.0**-16
    for axis in (0, 2) if locked else (0, 1, 2):
        left, right = (np.take(gone, range(n, gone.shape[axis] - 1 + n), axis) for n in (0, 1))
        correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(left.size)
    np.testing.assert_array_equal(run(ONES, deterministic=True), ONES)
    np.testing.assert_array_equal(run(ONES), run(ONES))
    assert np.any(run(ONES, seed=1) != run(ONES))
    # Several batch axes act as one: masks belong to examples.
    np.testing.assert_array_equal(
        run(ONES.reshape(4, 10, 20, 30)), run(ONES).reshape(4, 10, 20, 30)
    )


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_dropout_is_in_the_branch_and_not_after_the_last_layer(face):
    # x1 = d(x), x2 = x1 + d'(x1), y = x2 + x2; each layer has its own mask.
    ys = np.asarray(passing_on(face, 3, dropout=0.5, residual=True)(ONES))
    values, counts = np.unique(ys, return_counts=True)
    np.testing.assert_array_equal(values, [0, 4, 12])
    for count, share in zip(counts, (0.5, 0.25, 0.25), strict=True):
        assert abs(count / ys.size - share) < 4 * np.sqrt(share * (1 - share) / ys.size) + 2.0**-15


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_devices_drop_what_one_would(face):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.jit(
        jax.shard_map(
            passing_on(face, 2, axis_name="data", dropout=0.3),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=P("data"),
        )
    )
    np.testing.assert_array_equal(spread(ONES), passing_on(face, 2, dropout=0.3)(ONES))


def encoder(**options):
    rngs = nnx.Rngs(0)
    one, other = ([faces.ZoneoutGRUCell(f, H, rngs=rngs) for f in (F, 2 * H)] for _ in range(2))
    return faces.ZoneoutRNN(one, backward=other, dropout=0.5, residual=True, **options)


def test_an_nnx_encoder_in_the_tools_of_flax():
    model, run = encoder(), nnx.jit(lambda model, **options: model(XS, **options))
    assert np.abs(run(model) - run(model)).max() > 0.1
    one, again = (run(model, rngs=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert "recurrent" in nnx.tabulate(model, XS)
    model.eval()
    quiet = run(model)
    np.testing.assert_array_equal(quiet, run(model))
    # Each layer has a carry per direction, and `emit` gives a result per direction.
    carries = model.initialize_carry((B, F))
    assert jax.tree.map(jnp.shape, carries) == (((B, H),) * 2,) * 2
    np.testing.assert_allclose(run(model, initial_carry=carries), quiet, rtol=0, atol=1e-6)
    model.residual = False

    @nnx.jit
    def both(model):
        return model(XS), model(XS, emit=lambda carry, y: carry)

    ys, (forward, backward) = both(model)
    np.testing.assert_array_equal(side_by_side(forward, backward), ys)


def test_a_linen_layer_both_ways():
    cells = [linen.ZoneoutLSTMCell(H, carry_init=jax.nn.initializers.normal(1.0)) for _ in range(2)]
    rnn = linen.ZoneoutRNN(cells[0], backward=cells[1], return_carry=True)
    variables = rnn.init(jax.random.key(0), XS)
    assert {*variables["params"]} == {"cell", "backward"}
    carry = rnn.initialize_carry(jax.random.key(3), (B, F))
    assert jax.tree.map(jnp.shape, carry) == (((B, H),) * 2,) * 2
    assert np.abs(carry[0][0] - carry[1][0]).max() > 0.1
    got = rnn.apply(variables, XS, init_key=jax.random.key(3))
    close(got, rnn.apply(variables, XS, initial_carry=carry), 0)
    assert got[1].shape == (B, T, 2 * H)


def linen_cells(*sizes):
    return [linen.ZoneoutGRUCell(size) for size in sizes]


ONE_CELL = linen.ZoneoutGRUCell(H)


def linen_layer(*arguments, xs=XS, call=None, **options):
    layer = linen.ZoneoutRNN(*arguments, **options)
    return layer.init(jax.random.key(0), xs, **(call or {}))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: linen_layer(linen_cells(H, 7), residual=True),
            ValueError,
            "cell 1 of ZoneoutRNN: residual adds its 5 inputs to its 7 outputs; make both",
        ),
        (
            lambda: linen_layer(linen_cells(H)[0], residual=True),
            ValueError,
            "residual acts between the cells of a sequence, but there is one cell",
        ),
        (
            lambda: linen_layer(linen_cells(H)[0], dropout=0.1),
            ValueError,
            "dropout acts between the cells of a sequence, but there is one cell",
        ),
        (
            lambda: linen_layer(linen_cells(H, H), backward=linen_cells(H)),
            ValueError,
            "backward must be a sequence of 2, as cell is",
        ),
        (
            lambda: linen_layer(linen_cells(H)[0], backward=linen_cells(H)),
            ValueError,
            "backward must be a cell, as cell is",
        ),
        (
            lambda: faces.ZoneoutRNN(
                faces.ZoneoutGRUCell(F, H, rngs=nnx.Rngs(0)), backward=linen_cells(H)[0]
            ),
            TypeError,
            "takes cells of that module, got zoneout_jax.linen.ZoneoutGRUCell",
        ),
        (
            lambda: linen.ZoneoutRNN(linen.ZoneoutGRUCell).init(jax.random.key(0), XS),
            TypeError,
            "got the class zoneout_jax.linen.ZoneoutGRUCell",
        ),
        (lambda: encoder(reverse=True)(XS), ValueError, "reverse is for one direction"),
        (
            lambda: linen_layer(linen_cells(H), merge_fn=jnp.add),
            ValueError,
            "merge_fn merges two directions; it needs backward",
        ),
        (
            lambda: faces.ZoneoutRNN(
                [faces.ZoneoutGRUCell(F, F, rngs=nnx.Rngs(0)) for _ in range(2)],
                dropout=lambda step: 0.1,
            ),
            TypeError,
            "rate of dropout must be a number",
        ),
        *(
            (make, ValueError, "got the same cell more than once, which would share its weights")
            for make in (
                lambda: faces.ZoneoutRNN([faces.ZoneoutGRUCell(F, F, rngs=nnx.Rngs(0))] * 2),
                lambda: linen_layer([linen.ZoneoutGRUCell(H)] * 2),
                lambda: linen_layer(ONE_CELL, backward=ONE_CELL),
            )
        ),
        (
            lambda: encoder()(XS, emit=lambda carry, y: y),
            ValueError,
            "before residual adds to them; leave emit or residual out",
        ),
        (
            lambda: encoder()(XS, initial_carry=(jnp.zeros((B, H)),) * 2),
            ValueError,
            "cell 0 of ZoneoutRNN: an initial carry must be a pair, one for cell",
        ),
        (
            lambda: encoder()(XS, initial_carry=((jnp.zeros((B, H)), jnp.zeros((2, H))),) * 2),
            ValueError,
            "backward cell 0 of ZoneoutRNN: ZoneoutGRUCell: the arrays of a carry must be",
        ),
        (
            lambda: linen.ZoneoutRNN(linen_cells(H, H), dropout=0.1).apply(
                linen_layer(linen_cells(H, H)), XS
            ),
            ValueError,
            "ZoneoutRNN: deterministic must be given",
        ),
        (
            lambda: linen.ZoneoutRNN(linen_cells(H, H), dropout=0.1).apply(
                linen_layer(linen_cells(H, H)), XS, deterministic=False
            ),
            Exception,
            'needs the random stream "zoneout"',
        ),
        (
            lambda: linen.ZoneoutRNN(linen_cells(H, H), dropout=1.5, deterministic=False).apply(
                linen_layer(linen_cells(H, H)), XS, rngs={"zoneout": jax.random.key(0)}
            ),
            ValueError,
            "rate of dropout must be in .0, 1., got 1.5",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
