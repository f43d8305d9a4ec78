"""Cutting texts into batches."""
# ruff: noqa: D103 (a test's name says what it tests)

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zoneout_jax.data import (
    chunk_starts,
    gather,
    pad_rows,
    permutation,
    shuffled_chunks,
    shuffled_examples,
    steps_per_epoch,
)

SHAPES = [(1_000, 10, 8), (1_003, 10, 1), (29, 10, 2), (57, 1, 7), (10, 10, 1), (19, 10, 1)]
SHAPES = [shape for shape in SHAPES if (shape[0] - shape[1] + 1) // shape[1] >= shape[2]]


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def many_shuffled_chunks(
    seed: int, epochs: int, length: int, chunk: int, batch_size: int
) -> jax.Array:
    """Plans of many epochs at once."""
    keys = jax.random.split(jax.random.key(seed), epochs)
    return jax.vmap(lambda key: shuffled_chunks(key, length, chunk, batch_size))(keys)


@pytest.mark.parametrize(
    ("length", "chunk", "offset", "expected"),
    [
        (10, 3, 0, [0, 3, 6]),
        (10, 3, 1, [1, 4, 7]),
        (10, 3, 2, [2, 5]),
        (9, 3, 0, [0, 3, 6]),
        (3, 3, 0, [0]),
        (5, 1, 2, [2, 3, 4]),
        (30, 4, 9, [9, 13, 17, 21, 25]),
    ],
)
def test_chunk_starts(length, chunk, offset, expected):
    starts = chunk_starts(length, chunk, offset)
    assert starts.dtype == np.int32
    assert starts.tolist() == expected


@pytest.mark.parametrize("chunk", [1, 2, 7, 10])
@pytest.mark.parametrize("length", [10, 29, 30, 31, 100])
def test_steps_hold_for_every_offset(length, chunk):
    fewest = min(
        len(chunk_starts(length, chunk, offset)) if length - offset >= chunk else 0
        for offset in range(chunk)
    )
    for batch_size in range(1, fewest + 1):
        assert steps_per_epoch(length, chunk, batch_size) == fewest // batch_size
    with pytest.raises(ValueError, match=rf"{length} symbols is shorter than one batch"):
        steps_per_epoch(length, chunk, fewest + 1)


@pytest.mark.parametrize(("length", "chunk", "batch_size"), SHAPES)
def test_shuffled_chunks_are_of_one_offset(length, chunk, batch_size):
    epochs = np.asarray(many_shuffled_chunks(0, 200, length, chunk, batch_size))
    steps = steps_per_epoch(length, chunk, batch_size)
    assert epochs.shape == (200, steps, batch_size)
    assert epochs.dtype == np.int32
    assert epochs.min() >= 0
    assert epochs.max() <= length - chunk
    for epoch in epochs.reshape(200, -1):
        assert len(set(epoch % chunk)) == 1
        assert len(set(epoch)) == len(epoch)


def test_shuffling_chunks_is_a_function_of_its_key():
    epochs = [np.asarray(shuffled_chunks(jax.random.key(seed), 1_000, 10, 8)) for seed in (0, 0, 1)]
    jitted = jax.jit(shuffled_chunks, static_argnums=(1, 2, 3))(jax.random.key(0), 1_000, 10, 8)
    np.testing.assert_array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epochs[0], jitted)
    assert not np.array_equal(epochs[0], epochs[2])
    assert not np.array_equal(epochs[0].ravel(), np.sort(epochs[0].ravel()))


def test_offsets_are_uniform():
    epochs = np.asarray(many_shuffled_chunks(1, 4_000, 100, 10, 2))
    counts = np.bincount(epochs[:, 0, 0] % 10, minlength=10)
    # Binomial(4000, 1/10): mean 400, standard deviation 19; five of them on either side.
    assert np.all(np.abs(counts - 400) < 95)


@pytest.mark.parametrize(("length", "batch_size"), [(45, 3), (49, 2), (40, 3)])
def test_every_chunk_of_an_offset_has_the_same_chance(length, batch_size):
    """Also the one that only some offsets have, and in every place of the epoch."""
    chunk, epochs = 10, 6_000
    drawn = np.asarray(many_shuffled_chunks(2, epochs, length, chunk, batch_size)).reshape(
        epochs, -1
    )
    for offset in range(chunk):
        rows = drawn[drawn[:, 0] % chunk == offset]
        starts = chunk_starts(length, chunk, offset)
        share = 1 / len(starts)
        bound = 5 * np.sqrt(len(rows) * share * (1 - share)) + 1
        for place in range(drawn.shape[1]):
            counts = [np.sum(rows[:, place] == start) for start in starts]
            assert sum(counts) == len(rows)
            assert np.all(np.abs(np.array(counts) - len(rows) * share) < bound)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def many_shuffled_examples(seed: int, epochs: int, examples: int, batch_size: int) -> jax.Array:
    """Plans of many epochs at once."""
    keys = jax.random.split(jax.random.key(seed), epochs)
    return jax.vmap(lambda key: shuffled_examples(key, examples, batch_size))(keys)


@pytest.mark.parametrize(("examples", "batch_size"), [(100, 10), (103, 10), (7, 7), (5, 1), (1, 1)])
def test_shuffled_examples_take_an_example_once(examples, batch_size):
    epochs = np.asarray(many_shuffled_examples(0, 50, examples, batch_size))
    steps = examples // batch_size
    assert epochs.shape == (50, steps, batch_size)
    assert epochs.dtype == np.int32
    assert epochs.min() >= 0
    assert epochs.max() < examples
    for epoch in epochs.reshape(50, -1):
        assert len(set(epoch)) == steps * batch_size


def test_shuffling_examples_is_a_function_of_its_key():
    epochs = [np.asarray(shuffled_examples(jax.random.key(seed), 1_000, 8)) for seed in (0, 0, 1)]
    jitted = jax.jit(shuffled_examples, static_argnums=(1, 2))(jax.random.key(0), 1_000, 8)
    np.testing.assert_array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(epochs[0], jitted)
    assert not np.array_equal(epochs[0], epochs[2])


def test_shuffling_examples_is_int32_with_64_bits(x64):
    assert shuffled_examples(jax.random.key(0), 10, 5).dtype == jnp.int32


def test_every_example_has_the_same_chance():
    """In every place of the epoch, and of being dropped."""
    examples, epochs = 11, 6_000
    drawn = np.asarray(many_shuffled_examples(1, epochs, examples, 4)).reshape(epochs, -1)
    bound = 5 * np.sqrt(epochs * 1 / examples * (1 - 1 / examples))
    for place in range(8):
        counts = np.bincount(drawn[:, place], minlength=examples)
        assert np.all(np.abs(counts - epochs / examples) < bound)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8])
def test_pad_rows(count):
    indices = np.arange(10, 10 + count)
    rows = pad_rows(indices, 4)
    assert rows.dtype == np.int32
    assert rows.shape == (-(-count // 4), 4)
    assert rows.ravel()[:count].tolist() == indices.tolist()
    assert np.all(rows.ravel()[count:] == -1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_gather_reads_slices(dtype):
    text = np.random.default_rng(0).integers(0, 200, 500).astype(dtype)
    starts = np.array([0, 17, 490, 3], np.int32)
    tokens = jax.jit(gather, static_argnums=2)(jnp.asarray(text), starts, 10)
    assert tokens.shape == (10, 4)
    assert tokens.dtype == jnp.int32
    for column, start in enumerate(starts):
        np.testing.assert_array_equal(tokens[:, column], text[start : start + 10])


def test_gather_accepts_padding():
    text = np.arange(100, dtype=np.int32)
    tokens = gather(text, pad_rows(np.array([40]), 2)[0], 3)
    np.testing.assert_array_equal(tokens, [[40, 0], [41, 1], [42, 2]])


def test_positions_past_the_end_are_no_symbols():
    """JAX reads the last symbol there, so that a wrong window would train without a word."""
    tokens = jax.jit(gather, static_argnums=2)(jnp.arange(5, dtype=jnp.uint8), jnp.array([3]), 3)
    np.testing.assert_array_equal(tokens, [[3], [4], [2**31 - 1]])
    nats = optax.softmax_cross_entropy_with_integer_labels(jnp.zeros((3, 1, 5)), tokens)
    np.testing.assert_array_equal(jnp.isfinite(nats), [[True], [True], [False]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: chunk_starts(9, 10), "9 symbols holds no chunk of 10 from offset 0"),
        (lambda: chunk_starts(12, 10, 3), "12 symbols holds no chunk of 10 from offset 3"),
        (lambda: chunk_starts(9, 0), "chunk must be at least 1, got 0"),
        (lambda: chunk_starts(9, 3, -1), "offset must not be negative, got -1"),
        (lambda: steps_per_epoch(100, 10, 0), "batch_size must be at least 1, got 0"),
        (lambda: steps_per_epoch(28, 10, 2), "28 symbols is shorter than one batch.* take 29"),
        (lambda: shuffled_chunks(jax.random.key(0), 28, 10, 2), "shorter than one batch"),
        (lambda: shuffled_examples(jax.random.key(0), 9, 10), "9 examples are fewer .* of 10"),
        (
            lambda: shuffled_examples(jax.random.key(0), 9, 0),
            "batch_size must be at least 1, got 0",
        ),
        (lambda: shuffled_examples(jax.random.key(0), 0, 1), "examples must be at least 1, got 0"),
        (lambda: pad_rows(np.zeros((2, 2)), 2), r"got shape \(2, 2\)"),
        (lambda: pad_rows(np.zeros(0), 2), r"got shape \(0,\)"),
        (lambda: pad_rows(np.zeros(3), 0), "batch_size must be at least 1"),
        (lambda: gather(jnp.zeros((2, 2), int), jnp.zeros(1, int), 1), "one-dimensional"),
        (lambda: gather(jnp.zeros(5, int), jnp.zeros((1, 1), int), 1), "one-dimensional"),
        (lambda: gather(jnp.zeros(5, int), jnp.zeros(1, int), 6), "read 6 symbols from .* 5"),
        (lambda: gather(jnp.zeros(5, int), jnp.zeros(1, int), 0), "read 0 symbols"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("length", [1, 2, 64, 784])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_permutation_is_a_bijection(seed, length):
    order = permutation(seed, length)
    assert order.dtype == np.int32
    assert order.shape == (length,)
    assert sorted(order.tolist()) == list(range(length))


def test_permutation_is_a_function_of_its_seed():
    np.random.seed(7)
    first = permutation(5, 784)
    np.random.seed(8)
    np.testing.assert_array_equal(permutation(5, 784), first)
    orders = [permutation(seed, 784) for seed in range(5)]
    for number, order in enumerate(orders):
        assert not np.array_equal(order, np.arange(784))
        for other in orders[:number]:
            # Two permutations agree in one place on average, and in five about never.
            assert np.sum(order == other) < 8


def test_permutation_leaves_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    permutation(0, 784)
    assert np.random.rand() == expected


def test_permutation_is_the_same_for_good():
    """Drawn with NumPy 2.4; results on permuted images cannot be compared if it ever changes."""
    assert permutation(0, 10).tolist() == [2, 8, 4, 9, 1, 6, 7, 3, 0, 5]
    assert permutation(42, 784)[:8].tolist() == [598, 590, 209, 637, 174, 213, 429, 259]


@pytest.mark.parametrize(
    ("seed", "length", "message"),
    [
        (-1, 10, "seed must be from 0 .* got -1"),
        (2**32, 10, "seed must be from 0 .* got 4294967296"),
        (0, 0, "length must be at least 1, got 0"),
    ],
)
def test_bad_arguments_of_permutations(seed, length, message):
    with pytest.raises(ValueError, match=message):
        permutation(seed, length)
