"""Steps and sums over all devices against a plain loop on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.training import Batch, parallel, processes
from zoneout_jax.training.state import Streams, TrainState

pytestmark = pytest.mark.usefixtures("standard_promotion")
DEVICES = jax.local_device_count()
DATA = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
ROUNDING = {"rtol": 1e-6, "atol": 1e-7}
PARAMS = {"w": jnp.array([0.3, -0.2, 0.5]), "b": jnp.zeros(())}


def row_noise(key, examples):
    """A number for each example that is the same on whatever device it lies."""
    return jax.vmap(lambda e: jax.random.normal(jax.random.fold_in(key, e)))(examples)


def losses(params, model_state, batch, key=None):
    """Squares of a linear function; examples of -1 do not count."""
    inputs, weights = batch.take()
    errors = inputs @ params["w"] + params["b"] - 1
    if key is not None:
        errors = errors + 0.1 * row_noise(key, jnp.maximum(batch.indices, 0))
    return jnp.sum(weights * errors**2), jnp.sum(weights)


def loss(params, model_state, batch, key):
    """The same in training."""
    return losses(params, model_state, batch, key), model_state


def plain_steps(optimizer, rows, key):
    """The same as `train_steps` on one device, written out."""

    @jax.jit
    def step(params, opt_state, examples, number):
        def mean(params):
            batch = Batch(jnp.asarray(DATA), examples)
            total, count = losses(params, None, batch, jax.random.fold_in(key, number))
            return total / count, (total, count)

        grads, sums = jax.grad(mean, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, sums

    params, opt_state, total, count = PARAMS, optimizer.init(PARAMS), 0.0, 0.0
    for number, examples in enumerate(rows):
        params, opt_state, sums = step(params, opt_state, examples, number)
        total, count = total + float(sums[0]), count + float(sums[1])
    return params, opt_state, total, count


def seeds_of(tree, seeds=1):
    """A leading axis of so many equal seeds."""
    return jax.tree.map(lambda x: np.stack([np.asarray(x)] * seeds), tree)


def start(optimizer, placement):
    """State and data on all devices."""
    state = TrainState.create(PARAMS, optimizer)
    return placement.put(seeds_of(state, placement.seeds)), parallel.replicate(DATA)


def stepper(optimizer, placement, loss=loss, calls=6, alive=None, **options):
    """`run(state, data, rows, first, stop, seeds' keys)` and the placement of rows."""
    run = parallel.train_steps(loss, optimizer, placement, calls, **options)

    def call(state, data, rows, first, stop, *keys):
        going = placement.put(np.ones(len(keys), bool) if alive is None else np.array(alive))
        keys = placement.put(jnp.stack(keys))
        rows = placement.rows(rows)
        return run(state, data, rows, first, stop, keys, going, np.int32(0))[:3]

    return call


def assert_close(actual, wanted, rtol=1e-5):
    jax.tree.map(
        lambda a, w: np.testing.assert_allclose(a, w, rtol=rtol, atol=1e-6), actual, wanted
    )


# With -1 the devices count 2, 2, …, then 1 and 0 examples.
@pytest.mark.parametrize("missing", [0, 3, 2 * DEVICES - 1])
def test_steps_are_those_of_a_plain_loop(missing):
    rows = np.array(jax.random.randint(jax.random.key(1), (6, 2 * DEVICES), 0, 50))
    rows[:, 2 * DEVICES - missing :] = -1
    optimizer, key, placement = optax.adam(0.05), jax.random.key(2), parallel.Placement()
    state, data = start(optimizer, placement)
    run = stepper(optimizer, placement)
    state, totals, counts = run(state, data, rows[None], 0, 6, key)
    params, opt_state, wanted_total, wanted_count = plain_steps(optimizer, rows, key)
    assert_close(placement.get(state.params), seeds_of(params))
    assert_close(placement.get(state.opt_state), seeds_of(opt_state))
    assert placement.get(state.step).tolist() == [6]
    assert totals.shape == counts.shape == (DEVICES, 6, 1)
    assert_close((totals[0].sum(), counts[0].sum()), (wanted_total, wanted_count))
    np.testing.assert_array_equal(counts, 2 * DEVICES - missing)


@pytest.mark.parametrize("seeds", [2, 2 * DEVICES, pytest.param(DEVICES, marks=pytest.mark.slow)])
def test_many_seeds_are_each_alone(seeds):
    rng = np.random.default_rng(seeds)
    rows = rng.integers(0, 50, (seeds, 4, DEVICES))
    optimizer, placement = optax.adam(0.05), parallel.Placement(seeds)
    assert placement.spread == (seeds % DEVICES == 0)
    keys = [jax.random.key(n) for n in range(seeds)]
    state, data = start(optimizer, placement)
    state, totals, _ = stepper(optimizer, placement)(state, data, rows, 0, 4, *keys)
    totals = placement.get(jnp.swapaxes(totals, 1, 2))
    for n in range(seeds):
        params, opt_state, total, _ = plain_steps(optimizer, rows[n], keys[n])
        assert_close(jax.tree.map(lambda x, n=n: x[n], placement.get(state.params)), params)
        assert_close(jax.tree.map(lambda x, n=n: x[n], placement.get(state.opt_state)), opt_state)
        assert_close(totals[n].sum(), total)


def test_many_calls_are_one_call_and_compile_once():
    rows = np.arange(6 * DEVICES).reshape(1, 6, DEVICES) % 50
    optimizer, key, placement = (
        optax.sgd(0.1, momentum=0.9),
        jax.random.key(2),
        parallel.Placement(),
    )
    compiled = []

    def counted_loss(*arguments):
        compiled.append(1)
        return loss(*arguments)

    run = stepper(optimizer, placement, counted_loss)
    state, data = start(optimizer, placement)
    whole, whole_totals, _ = run(state, data, rows, 0, 6, key)
    traces = len(compiled)
    state, data = start(optimizer, placement)
    totals = []
    for first, stop in ((0, 1), (1, 4), (4, 4), (4, 6)):
        state, total, _ = run(state, data, rows, first, stop, key)
        totals += total[0, : stop - first].tolist()
    assert len(compiled) == traces
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    np.testing.assert_array_equal(np.float32(totals), whole_totals[0])


def test_all_devices_end_with_the_same_parameters():
    rows = np.arange(3 * DEVICES).reshape(1, 3, DEVICES) % 50
    optimizer, placement = optax.adam(0.05), parallel.Placement()
    state, data = start(optimizer, placement)
    state, *_ = stepper(optimizer, placement)(state, data, rows, 0, 3, jax.random.key(0))
    for leaf in jax.tree.leaves(state):
        assert leaf.shape[0] == DEVICES
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


def broken(bad, params, model_state, batch, key):
    """A loss that is not finite, or whose gradient is not, where the first example is 13."""
    bad_batch = batch.indices == 13
    here = jnp.any(bad_batch)
    batch = batch._replace(indices=jnp.where(bad_batch, 0, batch.indices))
    total, count = losses(params, model_state, batch, key)
    if bad == "loss":
        return (total / jnp.where(here, 0.0, 1.0), count), model_state
    # √x at 0: finite itself, with an infinite derivative.
    return (total + jnp.sqrt(jnp.where(here, 0.0 * params["b"], 1.0)), count), model_state


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.slow), DEVICES])
def test_a_step_that_is_not_finite_stops_all_or_is_left_out(seeds, bad):
    rows = np.arange(seeds * 5 * DEVICES).reshape(seeds, 5, DEVICES) % 10
    rows[0, 2, DEVICES - 1] = 13
    optimizer, placement = optax.adam(0.05), parallel.Placement(seeds)
    keys = [jax.random.key(n) for n in range(seeds)]

    def run(rows, stop, **options):
        state, data = start(optimizer, placement)
        run = stepper(optimizer, placement, functools.partial(broken, bad), **options)
        state, totals, counts = run(state, data, rows, 0, stop, *keys)
        return placement.get((state, jnp.swapaxes(totals, 1, 2), jnp.swapaxes(counts, 1, 2)))

    before, _, _ = run(rows, 2)
    state, totals, _ = run(rows, 5)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert np.argwhere(np.isnan(totals)).tolist() == [[0, 2]]
    state, totals, counts = run(rows, 5, skip_not_finite=True)
    assert np.all(np.isfinite(totals)) and state.step.tolist() == [5] * seeds
    assert np.argwhere(counts[:, :5] == 0).tolist() == [[0, 2]]
    # The seeds beside it do not notice, and its own parameters are kept as they were.
    healthy = rows.copy()
    healthy[0, 2, DEVICES - 1] = 0
    other, _, _ = run(healthy, 5)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(leaf[1:], wanted[1:], **ROUNDING)
    # A seed that is done already stops no other.
    if seeds > 1:
        done, totals, _ = run(rows, 5, alive=[False] + [True] * (seeds - 1))
        assert np.all(np.isfinite(totals))
        # Of two programs: XLA contracts a·b + c in some kernels and not in others.
        jax.tree.map(functools.partial(np.testing.assert_allclose, **ROUNDING), done, state)
    three, _, _ = run(rows, 3, skip_not_finite=True)
    for leaf, wanted in zip(
        jax.tree.leaves(three.params), jax.tree.leaves(before.params), strict=True
    ):
        np.testing.assert_array_equal(leaf[0], wanted[0])


def test_votes_are_told_to_all_devices():
    placement, optimizer = parallel.Placement(), optax.sgd(0.1)
    state, data = start(optimizer, placement)
    run = parallel.train_steps(loss, optimizer, placement, 1)
    rows = placement.rows(np.zeros((1, 1, DEVICES), np.int32))
    keys = placement.put(jnp.stack([jax.random.key(0)]))
    going = placement.put(np.ones(1, bool))
    for vote in (0, 15):
        state, _, _, votes = run(state, data, rows, 0, 1, keys, going, np.int32(vote))
        assert int(votes[0]) == vote


@pytest.mark.parametrize("seeds", [1, 2, DEVICES])
def test_evaluation_sums_with_a_batch_that_is_filled_up(seeds):
    rows = np.arange(3 * 5).reshape(3, 5)  # three of eight devices get padding alone
    placement = parallel.Placement(seeds)
    run = parallel.evaluation_sums(losses, placement)
    params = placement.put(seeds_of(PARAMS, seeds))
    found = run(params, None, parallel.replicate(DATA), placement.shared_rows(rows))
    totals, counts = placement.get(found)
    errors = DATA[:15] @ np.asarray(PARAMS["w"]) - 1
    assert totals.shape == counts.shape == (seeds, 3)
    wanted = np.broadcast_to((errors**2).reshape(3, 5).sum(1), totals.shape)
    np.testing.assert_allclose(totals, wanted, rtol=1e-5)
    np.testing.assert_array_equal(counts, 5)


def test_batch_must_divide():
    parallel.check_divides(3 * DEVICES)
    with pytest.raises(ValueError, match=f"a batch of {DEVICES + 1} .* multiple of {DEVICES}"):
        parallel.check_divides(DEVICES + 1)


def test_seeds_that_divide_need_no_batch_that_does():
    parallel.check_divides(DEVICES + 1, num_seeds=2 * DEVICES)
    with pytest.raises(ValueError, match="cannot be split evenly"):
        parallel.check_divides(DEVICES + 1, num_seeds=DEVICES + 1)


def test_rows_keep_the_order_of_examples():
    rows = np.arange(2 * 3 * 2 * DEVICES * 4).reshape(2, 3, 2 * DEVICES, 4)
    spread = parallel.Placement(2).rows(rows)
    assert spread.shape == (DEVICES, 2, 3, 2, 4)
    np.testing.assert_array_equal(np.moveaxis(spread, 0, 2).reshape(rows.shape), rows)
    np.testing.assert_array_equal(spread[1, 1, 2], rows[1, 2, 2:4])


@pytest.mark.parametrize("batch", [1, DEVICES - 1, DEVICES, DEVICES + 1])
def test_shared_rows_are_filled_up_at_the_end(batch):
    tree = {"a": jnp.arange(2 * batch).reshape(2, batch), "b": jnp.ones((2, batch, 3), jnp.int32)}
    spread = parallel.Placement().shared_rows(tree)
    for name, rows in tree.items():
        flat = np.swapaxes(spread[name], 0, 1).reshape(2, -1, *rows.shape[2:])
        assert spread[name].dtype == rows.dtype
        np.testing.assert_array_equal(flat[:, :batch], rows)
        assert flat.shape[1] % DEVICES == 0 and flat.shape[1] - batch < DEVICES
        assert np.all(flat[:, batch:] == -1)


@pytest.mark.parametrize("seeds", [1, 3, DEVICES, 2 * DEVICES])
def test_put_and_get(seeds):
    tree = {"a": np.arange(3 * seeds, dtype=np.uint8).reshape(seeds, 3)}
    tree["b"] = (np.arange(seeds, dtype=np.float32), jnp.arange(seeds))
    placement = parallel.Placement(seeds)
    placed = placement.put(tree)
    local = seeds // DEVICES if placement.spread else seeds
    assert placed["a"].shape == (DEVICES, local, 3)
    assert len(placed["a"].sharding.device_set) == DEVICES
    back = placement.get(placed)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["a"].dtype == np.uint8 and back["b"][1].dtype == np.int32
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back))


def test_alone_the_first_process_decides_for_itself():
    assert processes.is_host0() and not processes.is_multihost()
    assert processes.run_on_host0(lambda: {"a": [1.5]}) == {"a": [1.5]}
    with pytest.raises(KeyError):
        processes.run_on_host0(lambda: {}["missing"])
    tree = {"a": np.arange(3)}
    assert processes.broadcast(tree) is tree


def test_streams_differ_and_repeat():
    keys = [jax.random.key_data(k).tolist() for seed in (0, 1) for k in Streams.from_seed(seed)]
    assert len({tuple(key) for key in keys}) == 8
    assert keys[:4] == [jax.random.key_data(k).tolist() for k in Streams.from_seed(0)]
