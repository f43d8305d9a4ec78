"""Additions: how they are written, how they are drawn, and that no part shows another's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.lib import addition

NUMBERS = [0, 1, 9, 10, 11, 99, 100, 101, 999, 1000, 5005, 9999, 10000, 99999, 100000]


def by_hand(a, b, input_length, target_length, reverse=False):
    question = f"{a}+{b}"[:: -1 if reverse else 1]
    return question.rjust(input_length, "_"), str(a + b).ljust(target_length, "_")


def letters(symbols):
    return "".join("G_0123456789+"[s] for s in np.asarray(symbols))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("input_length", "target_length"), [(13, 7), (20, 6)])
def test_additions_are_written_as_text(input_length, target_length, reverse):
    pairs = np.array(list(itertools.product(NUMBERS, NUMBERS)), np.int32)
    lengths = {"input_length": input_length, "target_length": target_length}
    written = addition.AdditionConfig(reverse=reverse, **lengths).encode(jnp.asarray(pairs))
    questions, answers = map(np.asarray, written)
    for (a, b), question, answer in zip(pairs, questions, answers, strict=True):
        wanted = by_hand(a, b, input_length, target_length, reverse)
        assert (letters(question), letters(answer)) == wanted
        assert addition.text(question) == wanted[0].strip("_")


def test_the_largest_numbers():
    largest = 10**addition.MAX_DIGITS
    config = addition.AdditionConfig(input_length=21, target_length=10)
    questions, answers = config.encode(jnp.array([[largest, largest]]))
    assert (letters(questions[0]), letters(answers[0])) == by_hand(largest, largest, 21, 10)


@pytest.fixture(scope="module")
def all_pairs():
    """All pairs of numbers up to 100, and for each part which of them belong to it."""
    pairs = jnp.array(list(itertools.product(range(101), range(101))))
    parts = {part: np.asarray(addition.in_part(pairs, part)) for part in addition.PARTS}
    return np.asarray(pairs), parts


def test_every_pair_belongs_to_one_part(all_pairs):
    _, parts = all_pairs
    np.testing.assert_array_equal(sum(belongs.astype(int) for belongs in parts.values()), 1)
    pairs = all_pairs[0].reshape(101, 101, 2)
    for belongs in parts.values():
        np.testing.assert_array_equal(belongs.reshape(101, 101), belongs.reshape(101, 101).T)
    np.testing.assert_array_equal(pairs[..., 0], pairs[..., 1].T)
    # Binomial counts, within five standard deviations, each pair counted with its mirror image.
    large = pairs.max(-1).ravel() > 10
    for part, share in {"validation": 0.1, "test": 0.1, "train": 0.8}.items():
        deviation = (2 * large.sum() * share * (1 - share)) ** 0.5
        assert abs(parts[part][large].sum() - large.sum() * share) < 5 * deviation
        assert (parts[part][~large] == (part == "train")).all()


@pytest.mark.parametrize(
    ("part", "digits"),
    [
        ("train", 2),
        pytest.param("validation", 2, marks=pytest.mark.slow),
        pytest.param("train", 1, marks=pytest.mark.slow),
        pytest.param("test", 2, marks=pytest.mark.slow),
    ],
)
def test_draws_are_those_of_the_task_and_of_no_other_part(part, digits, all_pairs):
    pairs, parts = all_pairs
    draws = 50_000
    # Here it is running that takes long, not compiling, which the tests else do in haste.
    optimized = {"xla_backend_optimization_level": 3}
    drawn = jax.jit(addition.draw_pairs, static_argnames="part", compiler_options=optimized)(
        jax.random.key(3), jnp.arange(draws), digits, part=part
    )
    numbers = np.arange(101)
    # k is uniform on 1 … digits, and the operand on 0 … 10^k.
    p = np.mean([(numbers <= 10**k) / (10**k + 1) for k in range(1, digits + 1)], 0)
    expected = np.where(parts[part], p[pairs[:, 0]] * p[pairs[:, 1]], 0)
    expected *= draws / expected.sum()
    drawn = np.asarray(drawn)
    counts = np.bincount(drawn[:, 0] * 101 + drawn[:, 1], minlength=101**2)
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    rest = expected[~often].sum()
    groups = np.append(expected[often], rest) if rest >= 5 else expected[often]
    found = np.append(counts[often], counts[~often].sum()) if rest >= 5 else counts[often]
    assert scipy.stats.chisquare(found, groups * found.sum() / groups.sum()).pvalue > 1e-4


@pytest.mark.parametrize("part", ["validation", "test"])
def test_parts_without_small_numbers_have_no_pairs_of_one_digit(part):
    with pytest.raises(ValueError, match=f"the {part} part has no pairs below 2 digits, got 1"):
        addition.draw_pairs(jax.random.key(0), jnp.arange(2), 1, part)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_draw_depends_on_its_own_number_alone(impl):
    key = jax.random.key(0, impl=impl)
    draw = jax.jit(lambda numbers: addition.draw_pairs(key, numbers, 3, "train"))
    together = draw(jnp.arange(8))
    np.testing.assert_array_equal(together[3:4], draw(jnp.array([3])))
    np.testing.assert_array_equal(together[::-1], draw(jnp.arange(7, -1, -1)))


@pytest.mark.parametrize(
    ("lengths", "complaint"),
    [
        ((12, 7), "input_length must be at least 13 for numbers up to 10^5, got 12"),
        ((13, 5), "target_length must be at least 6 for numbers up to 10^5, got 5"),
    ],
)
def test_lengths_that_are_too_short(lengths, complaint):
    with pytest.raises(ValueError, match=complaint.replace("^", r"\^")):
        addition.AdditionConfig(input_length=lengths[0], target_length=lengths[1])
