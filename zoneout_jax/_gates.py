"""Gates: their activations, and the masks and sums that they take part in."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from zoneout_jax._checks import check_choice

Gates = tuple[jax.Array, ...]
Activation = str | Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
}


def combine(
    gates: tuple[Activation | None, ...], products: Any, projected: Any
) -> tuple[Gates, Gates]:
    """Adds projections to products of blocks with an activation; returns the others separately."""
    blocks = list(zip(gates, products, projected, strict=True))
    values = tuple(product if name is None else product + x for name, product, x in blocks)
    return values, tuple(x for name, _, x in blocks if name is None)


def function(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that an activation names or is."""
    if isinstance(activation, str):
        check_choice("an activation", activation, tuple(ACTIVATIONS))
        return ACTIVATIONS[activation]
    return activation


def scaled(mask: ArrayLike | None, x: jax.Array) -> jax.Array:
    """Multiplies by a mask of booleans or numbers; without a mask, returns `x`."""
    return x if mask is None else jnp.asarray(mask).astype(x.dtype) * x


def as_row(vector: jax.Array, ndim: int) -> jax.Array:
    """Adds leading axes of size one to a vector."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)
