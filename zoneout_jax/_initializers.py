"""Initial values of recurrent weights."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Initializer = Callable[..., jax.Array]


def block_orthogonal(scale: float = 1.0) -> Initializer:
    """Makes an initializer of orthogonal blocks side by side, one for each gate.

    A matrix `[n, k·m]` of k gates is filled with k independent matrices `[n, m]`, each with
    orthonormal columns (or rows, if n < m), times `scale`. One orthogonal matrix over all gates
    would make the weights of the gates depend on each other. The authors initialize square blocks
    in this way, from the SVD of a Gaussian matrix.

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
    return _BlockOrthogonal(scale)


def tiled_orthogonal(scale: float = 1.0) -> Initializer:
    """Makes an initializer of square orthogonal tiles, as large as the block of a gate allows.

    The block `[n, m]` of each gate is covered with independent orthogonal matrices of side
    s = min(n, m), times `scale`; the last tiles are cropped. Every element has mean 0 and

        standard deviation = scale / √s

    With 50 symbols and gates of 1000 units, this is 1/√50; with `block_orthogonal` it is 1/√1000.
    The authors of zoneout initialize their character models in this way. In their code, s is the
    greatest common divisor of n and m, so no tile is cropped; at their sizes s is the same.

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
    return _TiledOrthogonal(scale)


# Classes, not closures, so that cells with these initializers can be pickled.
@dataclasses.dataclass(frozen=True)
class _BlockOrthogonal:
    scale: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32, blocks: int = 1
    ) -> jax.Array:
        block, orthogonal = _block_shape(shape, blocks), jax.nn.initializers.orthogonal(self.scale)
        parts = [orthogonal(k, block, wide(dtype)) for k in jax.random.split(key, blocks)]
        return jnp.concatenate(parts, 1).astype(dtype)


@dataclasses.dataclass(frozen=True)
class _TiledOrthogonal:
    scale: float

    def __call__(
        self, key: jax.Array, shape: tuple[int, int], dtype: Any = jnp.float32, blocks: int = 1
    ) -> jax.Array:
        rows, columns = _block_shape(shape, blocks)
        side = min(rows, columns)
        down, across = -(-rows // side), -(-columns // side)
        tiles = jax.random.orthogonal(key, side, (blocks, down, across), wide(dtype))
        whole = tiles.transpose(1, 3, 0, 2, 4).reshape(down * side, blocks, across * side)
        return (self.scale * whole[:rows, :, :columns].reshape(shape)).astype(dtype)


def _block_shape(shape: tuple[int, int], blocks: int) -> tuple[int, int]:
    """Returns the numbers of rows and columns of a block."""
    rows, columns = shape
    if columns % blocks:
        raise ValueError(f"{columns} columns do not divide into {blocks} blocks")
    return rows, columns // blocks


def wide(dtype):
    """Returns the type to draw in: QR supports no type below 32 bits."""
    return jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype


def in_blocks(init: Initializer, blocks: int) -> Initializer:
    """Makes an initializer of blocks side by side from one of all blocks or of a single block."""
    parameters = inspect.signature(init).parameters.values()
    if any(p.name == "blocks" for p in parameters):
        return lambda key, shape, dtype: init(key, shape, dtype, blocks)

    def init_each(key, shape, dtype):
        rows, columns = shape
        keys = jax.random.split(key, blocks)
        parts = [init(k, (rows, columns // blocks), dtype) for k in keys]
        return on_arrays(lambda *arrays: jnp.concatenate(arrays, -1), *parts)

    return init_each


def on_arrays(f: Callable[..., jax.Array], *values: Any) -> Any:
    """Applies a function to arrays, inside the boxes with which initializers mark sharding."""
    if hasattr(values[0], "raw_value"):  # box of `nnx.with_partitioning`
        return dataclasses.replace(values[0], raw_value=f(*(value.raw_value for value in values)))
    return jax.tree.map(f, *values)
