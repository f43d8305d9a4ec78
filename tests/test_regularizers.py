"""Regularizers other than zoneout: on weights, on inputs and outputs, and in the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import test_util
from jax.sharding import PartitionSpec as P

from tests.arrays import normal
from zoneout_jax import (
    LSTM,
    Zoneout,
    activation_regularization,
    dropout,
    linen,
    norm_stabilizer,
    temporal_activation_regularization,
    unroll,
    weight_drop,
    weight_noise,
)
from zoneout_jax import nnx as faces

T, B, H = 6, 3, 4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lengths", [None, (6, 3, 1), (9, 3, 1)])
def test_norm_stabilizer_equals_a_loop(lengths):
    states = normal(0, (T, B, H), jnp.float64)
    total = 0.0
    for b in range(B):
        norms = [np.sqrt(np.sum(np.asarray(states[t, b]) ** 2)) for t in range(T)]
        norms = norms[: T if lengths is None else lengths[b]]
        changes = [(after - before) ** 2 for before, after in zip(norms, norms[1:], strict=False)]
        total += sum(changes) / len(changes) if changes else 0
    lengths = None if lengths is None else jnp.array(lengths)
    np.testing.assert_allclose(norm_stabilizer(states, lengths), total / B, rtol=1e-12)
    of_flax = norm_stabilizer(jnp.swapaxes(states, 0, 1), lengths, time_major=False)
    np.testing.assert_allclose(of_flax, total / B, rtol=1e-12)
    test_util.check_grads(lambda s: norm_stabilizer(s, lengths), (states,), 1, ["rev"], 1e-6, 1e-6)


def test_norm_stabilizer_of_zeros_has_a_gradient():
    gradient = jax.grad(norm_stabilizer)(jnp.zeros((T, B, H)).at[3:].set(1.0))
    assert np.all(np.isfinite(gradient))
    with pytest.raises(ValueError, match="T of at least 2"):
        norm_stabilizer(jnp.zeros((1, B, H)))


def test_memory_cells_by_emit():
    cell = LSTM(3, H)
    params = cell.init(jax.random.key(0))
    xs = normal(1, (T, B, 3))
    options = {"zoneout": Zoneout(cells=0.5), "key": jax.random.key(2)}
    lengths = jnp.array([6, 3, 0])
    carry, (ys, cells) = unroll(
        cell, params, xs, emit=lambda carry, y: (y, carry[0]), seq_lengths=lengths, **options
    )
    wanted_carry, wanted = unroll(cell, params, xs, seq_lengths=lengths, **options)
    np.testing.assert_array_equal(ys, wanted)
    for b, length in enumerate(lengths):
        assert not np.any(cells[length:, b])
        if length:
            np.testing.assert_array_equal(cells[length - 1, b], wanted_carry[0][b])
    for fused in ("fused", "scan"):
        gradient = jax.grad(
            lambda p, fused=fused: norm_stabilizer(
                unroll(
                    cell, p, xs, emit=lambda carry, y: carry[0], implementation=fused, **options
                )[1]
            )
        )(params)
        if fused == "fused":
            kept = gradient
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), kept, gradient)


def test_weight_noise():
    params = {
        "kernel": jnp.ones((300, 200)),
        "other": jnp.ones((300, 200)),
        "bias": jnp.ones(200),
        "gain": jnp.ones(()),
        "table": jnp.ones((3, 2), int),
    }
    noisy = weight_noise(params, jax.random.key(0), 0.075)
    for name in ("bias", "gain", "table"):
        np.testing.assert_array_equal(noisy[name], params[name])
    noise = {name: np.asarray(noisy[name] - 1, np.float64) for name in ("kernel", "other")}
    for one in noise.values():
        assert abs(one.mean()) < 4 * 0.075 / np.sqrt(one.size)
        assert abs(one.var() / 0.075**2 - 1) < 4 * np.sqrt(2 / one.size)
    correlation = np.corrcoef(noise["kernel"].ravel(), noise["other"].ravel())[0, 1]
    assert abs(correlation) < 4 / np.sqrt(60000)
    again = weight_noise(params, jax.random.key(1), 0.075)
    assert not np.any(again["kernel"] == noisy["kernel"])
    jax.tree.map(
        np.testing.assert_array_equal, weight_noise(params, jax.random.key(0), 0.0), params
    )
    with pytest.raises(ValueError, match="at least 0, got -1"):
        weight_noise(params, jax.random.key(0), -1)


def square_of_changes(h):
    """Squared changes of the outputs `[T, H]` of an example, as torch users write them."""
    return (h[1:] - h[:-1]) ** 2


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("lengths", [None, (6, 3, 1), (9, 3, 0)])
@pytest.mark.parametrize(
    ("function", "squares"),
    [
        (activation_regularization, np.square),
        (temporal_activation_regularization, square_of_changes),
    ],
)
def test_activations_and_their_changes_equal_a_loop(function, squares, lengths):
    outputs = normal(0, (T, B, H), jnp.float64)
    parts = [squares(np.asarray(outputs)[: (lengths or (T,) * B)[b], b]) for b in range(B)]
    wanted = np.mean([part.mean() if part.size else 0 for part in parts])
    if lengths is None:  # then the result is the mean over everything, as in the authors' code
        np.testing.assert_allclose(wanted, squares(np.asarray(outputs)).mean(), rtol=1e-12)
    lengths = None if lengths is None else jnp.array(lengths)
    np.testing.assert_allclose(function(outputs, lengths), wanted, rtol=1e-12)
    of_flax = function(jnp.swapaxes(outputs, 0, 1), lengths, time_major=False)
    np.testing.assert_allclose(of_flax, wanted, rtol=1e-12)
    test_util.check_grads(lambda h: function(h, lengths), (outputs,), 1, ["rev"], 1e-6, 1e-6)
    least = 1 if function is activation_regularization else 2
    with pytest.raises(ValueError, match=f"with T of at least {least}, got"):
        function(outputs[: least - 1])
    with pytest.raises(ValueError, match=r"states must be \[B, T, H\] with T"):
        function(outputs[:, : least - 1], time_major=False)


KERNEL = np.linspace(1.0, 2.0, 60_000, dtype=np.float32).reshape(300, 200)


def trees():
    """Parameters that hold the kernel in every way of the faces, and functions to get it."""
    vectors = {"bias": jnp.ones(200), "recurrent_bias": jnp.ones(50)}
    cell = {"input": jnp.asarray(KERNEL), "recurrent": jnp.asarray(KERNEL)} | vectors
    box = nn.Partitioned(cell["recurrent"], (None, "model"))
    return {
        "a pure cell": (cell, lambda t: [t["recurrent"]]),
        "layers": ([cell, {"recurrent": cell}], lambda t: [t[0]["recurrent"],
                                                           t[1]["recurrent"]["recurrent"]]),
        "a box": ({"params": {"cell": cell | {"recurrent": box}}},
                  lambda t: [t["params"]["cell"]["recurrent"].value]),
    }  # fmt: skip


@pytest.mark.parametrize("name", trees())
def test_weight_drop(name):
    tree, kernels = trees()[name]
    before = jax.tree.leaves(tree)
    dropped = weight_drop(tree, jax.random.key(0), 0.3)
    assert jax.tree.structure(dropped) == jax.tree.structure(tree)
    changed = [
        number
        for number, (one, other) in enumerate(zip(before, jax.tree.leaves(dropped), strict=True))
        if not np.array_equal(one, other)
    ]
    found = kernels(dropped)
    assert len(changed) == len(found)
    for kernel in found:
        gone = np.asarray(kernel == 0)
        np.testing.assert_allclose(kernel, np.where(gone, 0, KERNEL / 0.7), rtol=1e-6)
        assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.21 / gone.size)
        # So must every row and column: 500 averages, so 5 sigma.
        for axis in (0, 1):
            assert np.all(abs(gone.mean(axis) - 0.3) < 5 * np.sqrt(0.21 / gone.shape[axis]))
        for one, other in ((gone[1:], gone[:-1]), (gone[:, 1:], gone[:, :-1])):
            assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 4 / np.sqrt(one.size)
    others = [*found, *kernels(weight_drop(tree, jax.random.key(1), 0.3))]
    masks = [np.asarray(kernel != 0, float).ravel() for kernel in others]
    for number, one in enumerate(masks):
        for other in masks[:number]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(one.size)


def test_weight_drop_in_flax_and_in_a_gradient():
    xs, key = normal(1, (2, T, 3)), jax.random.key(2)
    model = faces.ZoneoutRNN(faces.ZoneoutGRUCell(3, H, rngs=nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    variables = {"params": nnx.to_pure_dict(params)}
    layer = linen.ZoneoutRNN(linen.ZoneoutGRUCell(H))

    @jax.jit
    def in_nnx(params, rate):
        return jnp.sum(jnp.sin(nnx.merge(graph, weight_drop(params, key, rate), rest)(xs)))

    @jax.jit
    def in_linen(variables, rate):
        return jnp.sum(jnp.sin(layer.apply(weight_drop(variables, key, rate), xs)))

    value, gradient = jax.value_and_grad(in_nnx)(params, 0.5)
    wanted, other = jax.value_and_grad(in_linen)(variables, 0.5)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    gradient = nnx.to_pure_dict(gradient)["cell"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), gradient, other["params"]["cell"]
    )
    gone = weight_drop(variables, key, 0.5)["params"]["cell"]["recurrent"] == 0
    assert 0 < gone.sum() < gone.size
    np.testing.assert_array_equal(gradient["recurrent"] == 0, gone)
    assert np.all(gradient["input"] != 0)
    assert in_linen(variables, 0.0) == jnp.sum(jnp.sin(layer.apply(variables, xs)))
    assert np.isfinite(jax.grad(in_linen, 1)(variables, 1.0))


@pytest.mark.parametrize("locked", [False, True])
def test_dropout(locked):
    xs = jnp.asarray(np.linspace(1, 2, 50 * 32 * 40, dtype=np.float32).reshape(50, 32, 40))
    found = dropout(xs, jax.random.key(3), 0.3, locked=locked)
    gone = np.asarray(found == 0)
    np.testing.assert_allclose(found, np.where(gone, 0, xs / 0.7), rtol=1e-6)
    of_flax = dropout(xs.swapaxes(0, 1), jax.random.key(3), 0.3, locked=locked, time_major=False)
    np.testing.assert_array_equal(of_flax, found.swapaxes(0, 1))
    if locked:
        assert np.all(gone == gone[:1])
        gone = gone[:1]
    assert abs(gone.mean() - 0.3) < 4 * np.sqrt(0.21 / gone.size) + 2.0**-16
    for axis in range(int(locked), 3):
        left, right = (np.take(gone, range(n, gone.shape[axis] - 1 + n), axis) for n in (0, 1))
        correlation = np.corrcoef(left.ravel(), right.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(left.size)
        # So must each step, example and feature: 122 averages, so 5 sigma.
        others = tuple(a for a in range(3) if a != axis)
        count = gone.size / gone.shape[axis]
        assert np.all(abs(gone.mean(others) - 0.3) < 5 * np.sqrt(0.21 / count) + 2.0**-16)
    # Masks belong to examples, so two devices have the same masks as one.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.jit(
        jax.shard_map(
            lambda xs: dropout(xs, jax.random.key(3), 0.3, locked=locked, axis_name="data"),
            mesh=mesh,
            in_specs=P(None, "data"),
            out_specs=P(None, "data"),
        )
    )
    np.testing.assert_array_equal(spread(xs) == 0, found == 0)
    np.testing.assert_allclose(spread(xs), found, rtol=1e-6)
    # Traced rates, narrow types, and the rates 0 and 1.
    run = jax.jit(lambda xs, rate: dropout(xs, jax.random.key(3), rate, locked=locked))
    narrow = run(xs.astype(jnp.bfloat16), 0.3)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow == 0, found == 0)
    np.testing.assert_array_equal(run(xs, 0.0), xs)
    assert not np.any(run(xs, 1.0))
    assert np.all(np.isfinite(jax.grad(lambda xs: jnp.sum(run(xs, 1.0)))(xs)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda key: weight_drop({"kernel": jnp.ones(3)}, key, 0.5), ValueError, "no kernel named"),
        (lambda key: weight_drop({"recurrent": {}}, key, 0.5), ValueError, "no kernel named"),
        (lambda key: weight_drop({"recurrent": jnp.ones(3)}, key, 1.5), ValueError, "got 1.5"),
        (lambda key: weight_drop({"recurrent": jnp.ones(3)}, 0, 0.5), TypeError, "a random key"),
        (lambda key: dropout(jnp.ones((2, 3)), key, 0.5), ValueError, "xs must be .T, B, F."),
        (
            lambda key: dropout(jnp.ones((2, 3)), key, 0.5, time_major=False),
            ValueError,
            "xs must be .B, T, F.",
        ),
        (lambda key: dropout(jnp.ones((2, 3, 4)), key, "0.5"), TypeError, "must be a number in"),
        (lambda key: dropout(jnp.ones((2, 3, 4)), None, 0.5), TypeError, "a random key.*got None"),
        (lambda key: dropout(jnp.ones((2, 3, 4)), key, 0.5, axis_name="i"), ValueError, "'i' is"),
        (lambda key: dropout(jnp.ones((2, 3, 4)), key, None), TypeError, "number in .*got None"),
        (lambda key: dropout(jnp.ones((2, 3, 4), int), key, 0.5), TypeError, "got int32"),
        (lambda key: weight_drop({"recurrent": jnp.ones(3)}, key, abs), TypeError, "must be a num"),
        (lambda key: weight_noise({"input": jnp.ones((2, 3))}, None, 0.1), TypeError, "got None"),
        (
            lambda key: activation_regularization(jnp.ones((2, 3, 4)), jnp.array([2])),
            ValueError,
            r"seq_lengths must be \[3\], got \(1,\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jax.random.key(0))


@pytest.mark.parametrize(
    "measure", [norm_stabilizer, activation_regularization, temporal_activation_regularization]
)
def test_complex_states_count_by_their_absolute_values(measure):
    h = normal(1, (4, 3, 5), jnp.complex64)
    if measure is norm_stabilizer:
        wanted = measure(jnp.abs(h))
    else:
        wanted = 2 * measure(jnp.concatenate([h.real, h.imag], -1))
    np.testing.assert_allclose(measure(h), wanted, rtol=1e-5)
