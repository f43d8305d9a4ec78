"""Steps and sums over all devices against a plain loop on one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.training import parallel
from zoneout_jax.training.state import Streams, TrainState

pytestmark = pytest.mark.usefixtures("standard_promotion")
DEVICES = jax.local_device_count()
DATA = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
PARAMS = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.zeros(())}


def row_noise(key, examples):
    """A number for each example that is the same on whatever device it lies."""
    return jax.vmap(lambda e: jax.random.normal(jax.random.fold_in(key, e)))(examples)


def loss(params, data, examples, key=None):
    """Squares of a linear function; examples of -1 do not count."""
    counted = examples >= 0
    errors = jnp.asarray(data)[jnp.maximum(examples, 0)] @ params["w"] + params["b"] - 1
    if key is not None:
        errors = errors + 0.1 * row_noise(key, jnp.maximum(examples, 0))
    return jnp.sum(jnp.where(counted, errors**2, 0)), jnp.sum(counted.astype(jnp.float32))


def plain_steps(optimizer, rows, key):
    """The same as `train_steps` on one device, written out."""

    @jax.jit
    def step(params, opt_state, examples, number):
        def mean(params):
            total, count = loss(params, DATA, examples, jax.random.fold_in(key, number))
            return total / count, (total, count)

        grads, sums = jax.grad(mean, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, sums

    params, opt_state, total, count = PARAMS, optimizer.init(PARAMS), 0.0, 0.0
    for number, examples in enumerate(rows):
        params, opt_state, sums = step(params, opt_state, examples, number)
        total, count = total + float(sums[0]), count + float(sums[1])
    return params, opt_state, total, count


def start(optimizer):
    """State and data on all devices."""
    return parallel.replicate(TrainState.create(PARAMS, optimizer)), parallel.replicate(DATA)


def assert_close(actual, wanted, rtol=1e-5):
    jax.tree.map(
        lambda a, w: np.testing.assert_allclose(a, w, rtol=rtol, atol=1e-6), actual, wanted
    )


# With -1 the devices count 2, 2, …, then 1 and 0 examples.
@pytest.mark.parametrize("missing", [0, 3, 2 * DEVICES - 1])
def test_steps_are_those_of_a_plain_loop(missing):
    rows = np.array(jax.random.randint(jax.random.key(1), (6, 2 * DEVICES), 0, 50))
    rows[:, 2 * DEVICES - missing :] = -1
    optimizer, key = optax.adam(0.05), jax.random.key(2)
    state, data = start(optimizer)
    run = parallel.train_steps(loss, optimizer)
    state, total, count = run(state, data, parallel.shard(rows), 0, 6, key)
    params, opt_state, wanted_total, wanted_count = plain_steps(optimizer, rows, key)
    assert_close(parallel.unreplicate(state.params), params)
    assert_close(parallel.unreplicate(state.opt_state), opt_state)
    assert int(state.step[0]) == 6
    assert_close((total[0], count[0]), (wanted_total, wanted_count))
    assert count[0] == 6 * (2 * DEVICES - missing)


def test_many_calls_are_one_call_and_compile_once():
    rows = parallel.shard(np.arange(6 * DEVICES).reshape(6, DEVICES) % 50)
    optimizer, key = optax.sgd(0.1, momentum=0.9), jax.random.key(2)
    compiled = []

    def counted_loss(*arguments):
        compiled.append(1)
        return loss(*arguments)

    run = parallel.train_steps(counted_loss, optimizer)
    state, data = start(optimizer)
    whole, whole_total, _ = run(state, data, rows, 0, 6, key)
    traces = len(compiled)
    state, data = start(optimizer)
    totals = []
    for first, stop in ((0, 1), (1, 4), (4, 4), (4, 6)):
        state, total, _ = run(state, data, rows, first, stop, key)
        totals.append(float(total[0]))
    assert len(compiled) == traces
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    np.testing.assert_allclose(sum(totals), whole_total[0], rtol=1e-6)


def test_all_devices_end_with_the_same_parameters():
    rows = parallel.shard(np.arange(3 * DEVICES).reshape(3, DEVICES) % 50)
    optimizer = optax.adam(0.05)
    state, data = start(optimizer)
    run = parallel.train_steps(loss, optimizer)
    state, *_ = run(state, data, rows, 0, 3, jax.random.key(0))
    for leaf in jax.tree.leaves(state):
        assert leaf.shape[0] == DEVICES
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def test_evaluation_sums_with_a_batch_that_is_filled_up():
    rows = np.arange(3 * 5).reshape(3, 5)  # three of eight devices get padding alone
    run = parallel.evaluation_sums(loss)
    totals, counts = run(
        parallel.replicate(PARAMS), parallel.replicate(DATA), parallel.shard(rows, pad=True)
    )
    errors = DATA[:15] @ np.asarray(PARAMS["w"]) - 1
    np.testing.assert_allclose(totals[0], (errors**2).reshape(3, 5).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(counts[0], [5, 5, 5])
    np.testing.assert_allclose(parallel.mean(totals, counts), np.mean(errors**2), rtol=1e-5)


def test_mean_weighs_rows_by_their_counts():
    totals, counts = jnp.array([[1.0, 9.0]]), jnp.array([[1.0, 3.0]])
    assert parallel.mean(totals, counts) == 2.5


def test_batch_must_divide():
    parallel.check_divides(3 * DEVICES)
    with pytest.raises(ValueError, match=f"a batch of {DEVICES + 1} .* multiple of {DEVICES}"):
        parallel.check_divides(DEVICES + 1)


def test_shard_keeps_the_order_of_examples():
    rows = np.arange(3 * 2 * DEVICES * 4).reshape(3, 2 * DEVICES, 4)
    spread = parallel.shard(rows)
    assert spread.shape == (DEVICES, 3, 2, 4)
    np.testing.assert_array_equal(np.swapaxes(spread, 0, 1).reshape(rows.shape), rows)
    np.testing.assert_array_equal(spread[1, 2], rows[2, 2:4])


@pytest.mark.parametrize("batch", [1, DEVICES - 1, DEVICES, DEVICES + 1])
def test_shard_fills_up_at_the_end(batch):
    tree = {"a": jnp.arange(2 * batch).reshape(2, batch), "b": jnp.ones((2, batch, 3), jnp.int32)}
    spread = parallel.shard(tree, pad=True)
    for name, rows in tree.items():
        flat = np.swapaxes(spread[name], 0, 1).reshape(2, -1, *rows.shape[2:])
        assert spread[name].dtype == rows.dtype
        np.testing.assert_array_equal(flat[:, :batch], rows)
        assert flat.shape[1] % DEVICES == 0 and flat.shape[1] - batch < DEVICES
        assert np.all(flat[:, batch:] == -1)


def test_replicate_and_back():
    tree = {"a": np.arange(3, dtype=np.uint8), "b": (np.float32(2.5), jnp.int32(7))}
    copies = parallel.replicate(tree)
    assert copies["a"].shape == (DEVICES, 3)
    assert len(copies["a"].sharding.device_set) == DEVICES
    back = parallel.unreplicate(copies)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["a"].dtype == np.uint8 and back["b"][1].dtype == np.int32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))


def test_streams_differ_and_repeat():
    keys = [jax.random.key_data(k).tolist() for seed in (0, 1) for k in Streams.from_seed(seed)]
    assert len({tuple(key) for key in keys}) == 6
    assert keys[:3] == [jax.random.key_data(k).tolist() for k in Streams.from_seed(0)]
