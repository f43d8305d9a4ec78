"""Regularizers that the paper compares zoneout with: norm stabilizer and weight noise."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax._lengths import Lengths, clip_lengths

Tree = TypeVar("Tree")


def norm_stabilizer(states: jax.Array, seq_lengths: Lengths | None = None) -> jax.Array:
    """How much the norms of states change over time.

        mean over examples of  Σ_t (‖h_t‖ − ‖h_{t−1}‖)² / (T − 1)

    Krueger and Memisevic 2016 (arXiv:1511.08400). Multiply by a coefficient (50 in the paper's
    language models) and add to the loss.

    Args:
      states: hidden states or memory cells `[T, B, H]`.
      seq_lengths: integers `[B]`; each example's own length takes the place of T. Examples of one
        step or none count as 0; lengths above T count as T.

    Returns:
      A scalar.

    Raises:
      ValueError: fewer than two steps, or states of another rank.
      TypeError: lengths that are no integers.

    Example:
      >>> norm_stabilizer(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))  # norms 5 and 7
      Array(4., dtype=float32)
    """
    if states.ndim != 3 or states.shape[0] < 2:
        raise ValueError(f"states must be [T, B, H] with T of at least 2, got {states.shape}")
    squared = jnp.sum(jnp.square(states), -1)
    # The root has no derivative at zero, where states often start.
    norms = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    changes = jnp.square(norms[1:] - norms[:-1])
    if seq_lengths is None:
        return jnp.mean(changes)
    lengths = clip_lengths(seq_lengths, states.shape[0])
    counted = jnp.arange(1, states.shape[0])[:, None] < lengths[None]
    sums = jnp.sum(jnp.where(counted, changes, 0), 0)
    return jnp.mean(sums / jnp.maximum(lengths - 1, 1).astype(sums.dtype))


def weight_noise(params: Tree, key: jax.Array, std: jax.Array | float) -> Tree:
    """Adds Gaussian noise to weight matrices.

        W + std · ε,  ε ~ Normal(0, 1)

    Draw anew at each training step, and differentiate the loss at the noisy weights: the gradient
    belongs to the clean ones. Biases and other vectors stay as they are, and so do integers. What
    is told apart by its rank: stacks of layers' or devices' parameters must be passed one by one
    (or under `vmap`), and statistics of batch normalization not at all.

    Args:
      params: a pytree of arrays.
      key: a JAX random key.
      std: standard deviation (0.075 in the paper's language models).

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a negative standard deviation.

    Example:
      >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> weight_noise(params, jax.random.key(0), 0.075)["bias"]
      Array([0., 0.], dtype=float32)
    """
    if not isinstance(std, jax.Array) and np.any(np.asarray(std) < 0):
        raise ValueError(f"std must be at least 0, got {std}")
    leaves, structure = jax.tree.flatten(params)
    noisy = [
        leaf
        if jnp.ndim(leaf) < 2 or not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        else leaf
        + jnp.asarray(std, leaf.dtype)
        * jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, noisy)
