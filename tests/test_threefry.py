"""The random words of masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from zoneout_jax import Zoneout
from zoneout_jax._threefry import normal, random_words, threefry2x32

# Known answers from Random123, the library of the authors: key, counter, result.
KNOWN = [
    ((0x00000000, 0x00000000), (0x00000000, 0x00000000), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "wanted"), KNOWN)
def test_known_answers(key, counter, wanted):
    key, counter = (tuple(map(jnp.uint32, pair)) for pair in (key, counter))
    assert tuple(map(int, threefry2x32(key, counter))) == wanted


def test_words_are_those_of_the_generator():
    key = jax.random.key(3)
    first, second = random_words(key, 4, jnp.array([5, 9]), 6)
    assert first.shape == second.shape == (4, 2, 6)
    words = jax.random.key_data(jax.random.fold_in(key, 9))
    wanted = threefry2x32((words[0], words[1]), (jnp.uint32(2), jnp.uint32(3)))
    assert (first[2, 1, 3], second[2, 1, 3]) == wanted
    assert len(np.unique(np.stack([first, second]))) == 2 * first.size


@pytest.mark.parametrize("kind", [{}, {"gaussian": True}])
@pytest.mark.parametrize("implementation", ["threefry2x32", "rbg"])
def test_masks_belong_to_examples_whatever_the_generator(implementation, kind):
    key = jax.random.key(0, impl=implementation)
    spec = Zoneout(cells=0.5, states=0.3, update_drop=0.4, hidden_drop=0.2, **kind)
    whole = spec.sample(key, 50, 8, 60)
    part = spec.sample(key, 50, 3, 60, offset=4)
    arrays = [np.asarray(mask, np.float64) for mask in whole[:3]]
    for one, other, mean in zip(arrays, part[:3], (0.5, 0.3, 0.6), strict=True):
        np.testing.assert_array_equal(one[:, 4:7], other)
        assert abs(one.mean() - mean) < 4 * np.sqrt(0.25 / one.size)
    pairs = [(a, b) for n, a in enumerate(arrays) for b in arrays[:n]]
    pairs += [(mask[:, :-1], mask[:, 1:]) for mask in arrays]
    for one, other in pairs:
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(one.size)
    np.testing.assert_array_equal(whole.hidden[:, 4:7], part.hidden)
    alone = spec.sample(key, 50, 1, 60, offset=5)
    for one, other in zip(whole, alone, strict=True):
        np.testing.assert_array_equal(one[:, 5:6], other)
    # In threefry, a mask depends neither on the number of units nor on the number of steps.
    if implementation == "threefry2x32" and not kind:
        fewer = spec.sample(key, 20, 8, 30)
        np.testing.assert_array_equal(whole.cells[:20, :, :30], fewer.cells)


def test_old_keys():
    old, new = (make(7) for make in (jax.random.PRNGKey, jax.random.key))
    one, other = (random_words(key, 3, jnp.arange(2), 4)[0] for key in (old, new))
    np.testing.assert_array_equal(one, other)


def test_normal_values():
    ends = jnp.array([0, 2**32 - 1], jnp.uint32)
    low, high = normal(ends)
    assert -6 < low == -high < -5  # a probability of 2⁻²⁴ lies there; no word gives infinity
    words = jax.random.bits(jax.random.key(0), (400_000,), jnp.uint32)
    # The largest distance of the distributions; 1e-4 of samples exceed 2.225/√n.
    assert scipy.stats.kstest(np.asarray(normal(words)), "norm").statistic < 2.225 / np.sqrt(
        400_000
    )
