"""Random words for masks: Threefry-2x32, the generator behind JAX's default keys.

Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. `jax.random.bits` makes one
word from each pair that the generator returns, and on a CPU passes over the whole array in memory
for each group of rounds. Here the rounds are elementwise code, which the compiler fuses with the
comparison that makes a mask, so random words are never stored.
"""

import functools

import jax
import jax.numpy as jnp

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = 0x1BD11BDA


@functools.partial(jax.jit, inline=True)  # or every operation would be a program of its own
def threefry2x32(
    key: tuple[jax.Array, jax.Array], counter: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Computes Threefry-2x32 with 20 rounds: two words for each key and counter, all uint32.

    Example:
      >>> zero = jnp.uint32(0)
      >>> [hex(word) for word in threefry2x32((zero, zero), (zero, zero))]
      ['0x6b200159', '0x99ba4efe']
    """
    schedule = (*key, key[0] ^ key[1] ^ jnp.uint32(PARITY))
    a, b = counter[0] + key[0], counter[1] + key[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = (b << jnp.uint32(rotation) | b >> jnp.uint32(32 - rotation)) ^ a
        a = a + schedule[(group + 1) % 3]
        b = b + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return a, b


def random_words(
    key: jax.Array, steps: int, examples: jax.Array, features: int, stream: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Draws two independent arrays of uniform uint32 words, `[T, B, H]`.

    The words of an example depend only on the key and on the example's index, not on the batch.

    Args:
      key: a JAX random key of any implementation.
      steps, features: T and H.
      examples: indices of the examples, integers `[B]`.
      stream: 0 or 1; each stream has its own two words.
    """
    # Old-style keys are arrays of words.
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    key = key if typed else jax.random.wrap_key_data(key)
    if jax.random.key_data(key).shape == (2,):  # threefry2x32
        words = jax.random.key_data(key)
        # The words of `fold_in(key, example)`, which would take longer to compile.
        counter = jnp.uint32(0), jnp.asarray(examples, jnp.uint32)
        # One array, or the compiler would compute them again for every unit. Selected, not stacked,
        # or it would compile the rounds twice.
        first, second = threefry2x32((words[0], words[1]), counter)
        keys = jnp.where(jnp.arange(2) == 0, first[None, :, None], second[None, :, None])
        shape = (steps, *examples.shape, features)
        time, unit = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in (0, 2))
        counter = time | jnp.uint32(stream << 31), unit
        return threefry2x32((keys[..., :1], keys[..., 1:]), counter)

    def draw(example):
        # `vmap` over keys of other implementations would draw only from the first key.
        own = jax.random.fold_in(key, example)
        keys = (jax.random.fold_in(own, 2 * stream + word) for word in range(2))
        return [jax.random.bits(word_key, (steps, features), jnp.uint32) for word_key in keys]

    a, b = (jnp.moveaxis(words, 0, 1) for words in jax.lax.map(draw, examples))
    return a, b


def normal(words: jax.Array) -> jax.Array:
    """Turns uniform words into normal values: √2 · erf⁻¹(2u − 1), u in (0, 1) with 23 bits."""
    uniform = ((words >> 9).astype(jnp.float32) + 0.5) * 2.0**-23
    return jnp.sqrt(2.0).astype(jnp.float32) * jax.lax.erf_inv(2 * uniform - 1)
