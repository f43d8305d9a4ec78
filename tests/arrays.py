"""Random arrays from NumPy: unlike draws of JAX, they compile nothing, which saves test time."""

import jax
import jax.numpy as jnp
import numpy as np


def normal(rng, shape, dtype=jnp.float32):
    """Draws standard normal numbers; real and imaginary parts if the type is complex.

    Args:
      rng: a generator of NumPy, or a seed.
      shape, dtype: of the array.
    """
    rng = np.random.default_rng(rng)
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(np.asarray(values).astype(dtype))


def normal_like(rng, tree):
    """Draws arrays of the shapes and types in a tree."""
    rng = np.random.default_rng(rng)
    return jax.tree.map(lambda leaf: normal(rng, leaf.shape, leaf.dtype), tree)


def shaken(rng, params):
    """Adds normal numbers times 0.3 to parameters, so that none has a special initial value."""
    rng = np.random.default_rng(rng)

    def shake(leaf):
        return jnp.asarray(np.asarray(leaf) + 0.3 * np.asarray(normal(rng, leaf.shape, leaf.dtype)))

    return jax.tree.map(shake, params)
