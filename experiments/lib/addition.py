"""Additions of two numbers as strings of symbols, drawn on the device.

The task is Erik Rehn's simplified form of learning to execute, which the authors of zoneout use:

    input   ____12345+678      padded on the left
    target  13023__            padded on the right

An operand is uniform on 0 … 10^k, both included, with k uniform on 1 … digits. A hash of the two
operands, which ignores their order, assigns each pair to the training, validation or test part. A
drawn pair of another part is drawn again, so no part has an addition of another part. Pairs with
both operands at most 10 all belong to training. There are only 66 of them, but they are three in
ten of the draws with two digits; the few in a validation set would outweigh all other pairs.
"""

import dataclasses
import functools
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.training import Count, Probability, Range, Settings

SYMBOLS = "G_0123456789+"
"""Go, padding, digits, plus; the number of a symbol is its position."""
GO, PAD, ZERO, PLUS = (SYMBOLS.index(symbol) for symbol in "G_0+")
PARTS = {"validation": (0, 1), "test": (1, 2), "train": (2, 10)}
"""Classes of pairs (of ten) that belong to each part, as half-open ranges."""
SMALL = 10
"""Pairs with both operands at most this belong to training."""
MIN_DIGITS = 2
"""With fewer digits all operands are small, and no pairs are left for validation."""
MAX_DIGITS = 8
"""With more digits sums do not fit in 32-bit integers."""

Digits = Annotated[int, Range(MIN_DIGITS, MAX_DIGITS)]

_POWERS = 10 ** np.arange(MAX_DIGITS + 2, dtype=np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdditionConfig(Settings):
    """Settings of the additions and the curriculum."""

    batches_per_epoch: Count = 20
    """Batches between two validations."""
    digits: Digits = 5
    """At the end of the curriculum, operands are at most 10 to the power of this."""
    start_digits: Digits = 2
    """The same at the start of the curriculum, or `digits` if that is less."""
    good_error: Probability = 0.1
    """Validation error below which the number of digits grows."""
    input_length: Count = 13
    """Symbols of a question, padding included."""
    target_length: Count = 7
    """Symbols of an answer, padding included."""
    reverse: bool = False
    """Write questions from right to left (Sutskever et al. 2014)."""
    eval_size: Count = 512
    """Number of validation additions."""
    eval_batch_size: Count = 512
    """Additions per evaluation batch."""

    def __post_init__(self):
        super().__post_init__()
        longest = self.digits + 1  # of an operand, and of a sum: 10^k + 10^k
        for name, needed in (("input_length", 2 * longest + 1), ("target_length", longest)):
            length = getattr(self, name)
            if length < needed:
                raise ValueError(
                    f"{name} must be at least {needed} for numbers up to 10^{self.digits}, got "
                    f"{length}"
                )

    def encode(self, pairs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Writes additions of operands `[N, 2]` as symbols.

        Returns:
          Questions `[N, input_length]` and answers `[N, target_length]`.
        """
        a, b = pairs[:, :1], pairs[:, 1:]
        a_length, b_length = _length(a), _length(b)
        question = a_length + 1 + b_length
        place = jnp.arange(self.input_length - 1, -1, -1)  # from the right
        at = jnp.where(place < question, question - 1 - place, place) if self.reverse else place
        inputs = jnp.where(at < b_length, _digit(b, at), _digit(a, at - b_length - 1))
        inputs = jnp.where(at == b_length, PLUS, jnp.where(at < question, inputs, PAD))
        total = a + b
        place = _length(total) - 1 - jnp.arange(self.target_length)
        return inputs, jnp.where(place >= 0, _digit(total, place), PAD)


def in_part(pair: jax.Array, part: str) -> jax.Array:
    """Tells whether pairs `[…, 2]` belong to a part; the parts are the same in all runs."""
    root = jax.random.key(0, impl="threefry2x32")

    @functools.partial(jnp.vectorize, signature="(n)->()")
    def class_of(pair):
        key = jax.random.fold_in(jax.random.fold_in(root, jnp.min(pair)), jnp.max(pair))
        return jax.random.bits(key) % jnp.uint32(10)

    first, stop = PARTS[part]
    number = jnp.where(jnp.max(pair, -1) <= SMALL, PARTS["train"][0], class_of(pair))
    return (number >= first) & (number < stop)


def draw_pair(key: jax.Array, digits: jax.Array | int, part: str) -> jax.Array:
    """Draws the operands of one addition, `[2]`.

    Args:
      key: a JAX random key, of generator threefry2x32.
      digits: greatest k, at most `MAX_DIGITS`; for validation and test at least `MIN_DIGITS`,
        otherwise the draw never ends.
      part: a name in `PARTS`.
    """

    def draw(number):
        k_key, operand_key = jax.random.split(jax.random.fold_in(key, number))
        k = jax.random.randint(k_key, (2,), 1, digits + 1)
        return jax.random.randint(operand_key, (2,), 0, jnp.asarray(_POWERS)[k] + 1)

    def is_of_another(state):
        return ~in_part(state[1], part)

    def again(state):
        return state[0] + 1, draw(state[0])

    return jax.lax.while_loop(is_of_another, again, (1, draw(0)))[1]


def draw_pairs(key: jax.Array, numbers: jax.Array, digits: jax.Array | int, part: str) -> jax.Array:
    """Draws the operands of additions, `[N, 2]`; addition n draws from `fold_in(key, n)`.

    Args:
      key: a JAX random key of any generator.
      digits, part: as in `draw_pair`.
      numbers: n of each addition, integers `[N]`.

    Raises:
      ValueError: the part has no such pairs. Not checked if `digits` is traced.
    """
    if part != "train" and isinstance(digits, int) and digits < MIN_DIGITS:
        raise ValueError(f"the {part} part has no pairs below {MIN_DIGITS} digits, got {digits}")
    # Always Threefry: with `rbg` each draw would depend on the whole batch, and a pair that is
    # drawn again would be the same pair for ever.
    key = jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl="threefry2x32")
    return jax.vmap(lambda n: draw_pair(jax.random.fold_in(key, n), digits, part))(numbers)


def different(pairs: jax.Array, number: int) -> jax.Array:
    """Returns the first `number` distinct pairs; repeats them if there are too few."""
    _, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.resize(np.sort(first), number)]


def _length(n: jax.Array) -> jax.Array:
    """Counts decimal digits."""
    return 1 + jnp.sum(n[..., None] >= jnp.asarray(_POWERS[1:]), -1)


def _digit(n: jax.Array, place: jax.Array) -> jax.Array:
    """Returns the symbol at a place, counted from the right."""
    power = jnp.asarray(_POWERS)[jnp.clip(place, 0, len(_POWERS) - 1)]
    return ZERO + n // power % 10


def text(symbols: np.ndarray) -> str:
    """Formats symbols `[N]` as text, without padding."""
    return "".join(SYMBOLS[symbol] for symbol in symbols).strip("_")
