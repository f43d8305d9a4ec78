"""Initial values of recurrent weights."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def block_orthogonal(scale: float = 1.0) -> Initializer:
    """Orthogonal blocks side by side, one for each gate.

    A matrix `[n, k·m]` of k gates is filled with k independent matrices `[n, m]`, each with
    orthonormal columns (or rows, if n < m), times `scale`. One orthogonal matrix over all gates
    would instead tie the gates' weights to each other. Square blocks are the authors' own
    initialization, there from the SVD of a Gaussian matrix.

    Args:
      scale: factor on every block.

    Returns:
      `init(key, shape, dtype, blocks=1)`, for `shape` (n, blocks · m).

    Raises:
      ValueError: from `init`, if the second dimension does not divide into the blocks.

    Example:
      >>> block_orthogonal()(jax.random.key(0), (3, 12), jnp.float32, blocks=4).shape
      (3, 12)
    """
    orthogonal = jax.nn.initializers.orthogonal(scale)

    def init(key, shape, dtype=jnp.float32, blocks: int = 1) -> jax.Array:
        rows, columns = shape
        if columns % blocks:
            raise ValueError(f"{columns} columns do not divide into {blocks} blocks")
        keys = jax.random.split(key, blocks)
        wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype  # QR knows no narrower type
        parts = [orthogonal(k, (rows, columns // blocks), wide) for k in keys]
        return jnp.concatenate(parts, 1).astype(dtype)

    return init
