"""Initializers of recurrent weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zoneout_jax import block_orthogonal, tiled_orthogonal

INITIALIZERS = {"block": block_orthogonal, "tiled": tiled_orthogonal}


def tiles(matrix, blocks):
    """Yields the tiles of a matrix from its corner; the last ones may be cut."""
    rows, columns = matrix.shape[0], matrix.shape[1] // blocks
    side = min(rows, columns)
    for block in np.split(np.asarray(matrix), blocks, 1):
        for top in range(0, rows, side):
            for left in range(0, columns, side):
                yield block[top : top + side, left : left + side]


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((5, 80), 4), ((5, 68), 4), ((80, 5), 1), ((27, 4), 1), ((6, 18), 3), ((1, 8), 4)],
)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_tiles_are_orthogonal_and_differ(shape, blocks, scale):
    matrix = tiled_orthogonal(scale)(jax.random.key(0), shape, jnp.float32, blocks=blocks)
    assert matrix.shape == shape and matrix.dtype == jnp.float32
    found = list(tiles(matrix, blocks))
    for tile in found:
        shorter = tile.T if tile.shape[0] > tile.shape[1] else tile
        wanted = scale**2 * np.eye(len(shorter))
        np.testing.assert_allclose(shorter @ shorter.T, wanted, atol=1e-5 * scale**2)
    if min(found[0].shape) > 1:
        firsts = {tile.flat[0] for tile in found}
        assert len(firsts) == len(found)


def test_standard_deviation_is_that_of_the_side():
    """Each element of an orthogonal matrix of side s has mean 0 and variance 1/s."""
    draw = jax.vmap(lambda key: tiled_orthogonal()(key, (4, 22), jnp.float32, blocks=2))
    draws = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))
    # The variance of the square of an element is (3/(s+2) − 1/s)/s, 0.0625 for s = 4.
    assert np.abs(draws.mean(0)).max() < 5 * np.sqrt(0.25 / 4000)
    assert np.abs(np.square(draws).mean(0) - 0.25).max() < 5 * np.sqrt(0.0625 / 4000)


@pytest.mark.parametrize("make", INITIALIZERS.values(), ids=INITIALIZERS)
def test_columns_that_do_not_divide(make):
    with pytest.raises(ValueError, match="10 columns do not divide into 4 blocks"):
        make()(jax.random.key(0), (3, 10), jnp.float32, blocks=4)


@pytest.mark.parametrize("make", INITIALIZERS.values(), ids=INITIALIZERS)
def test_narrow_types_are_rounded(make):
    narrow, wide = (
        make()(jax.random.key(0), (3, 12), dtype, blocks=4) for dtype in (jnp.bfloat16, jnp.float32)
    )
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))
