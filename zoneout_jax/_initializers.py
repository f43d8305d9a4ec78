"""Initial values of recurrent weights."""

from collections.abc import Callable
from typing import Any

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

    def init(
        key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32, blocks: int = 1
    ) -> jax.Array:
        rows, columns = _block_shape(shape, blocks)
        keys = jax.random.split(key, blocks)
        parts = [orthogonal(k, (rows, columns), wide(dtype)) for k in keys]
        return jnp.concatenate(parts, 1).astype(dtype)

    return init


def tiled_orthogonal(scale: float = 1.0) -> Initializer:
    """Square orthogonal tiles, as large as a gate has room for.

    The block `[n, m]` of each gate is covered with independent orthogonal matrices of side
    s = min(n, m), times `scale`; the last tiles are cropped. Every element has mean 0 and

        standard deviation = scale / √s

    A matrix of 50 symbols and gates of 1000 units thus has elements of 1/√50, not of the 1/√1000
    of `block_orthogonal`. This is how the authors of zoneout start their character models. Their
    code takes the greatest common divisor of n and m for s, which is the same at their sizes, and
    leaves nothing to crop.

    Args:
      scale: factor on every tile.

    Returns:
      `init(key, shape, dtype, blocks=1)`, for `shape` (n, blocks · m).

    Raises:
      ValueError: from `init`, if the second dimension does not divide into the blocks.

    Example:
      >>> tiled_orthogonal()(jax.random.key(0), (3, 20), jnp.float32, blocks=4).shape
      (3, 20)
    """

    def init(
        key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32, blocks: int = 1
    ) -> jax.Array:
        rows, columns = _block_shape(shape, blocks)
        side = min(rows, columns)
        down, across = -(-rows // side), -(-columns // side)
        tiles = jax.random.orthogonal(key, side, (blocks, down, across), wide(dtype))
        whole = tiles.transpose(1, 3, 0, 2, 4).reshape(down * side, blocks, across * side)
        return (scale * whole[:rows, :, :columns].reshape(shape)).astype(dtype)

    return init


def _block_shape(shape: tuple[int, int], blocks: int) -> tuple[int, int]:
    """Rows and columns of a block."""
    rows, columns = shape
    if columns % blocks:
        raise ValueError(f"{columns} columns do not divide into {blocks} blocks")
    return rows, columns // blocks


def wide(dtype):
    """The type to draw in: QR knows none below 32 bits."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
