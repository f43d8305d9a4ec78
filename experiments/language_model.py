"""What the language models share: the output layer, its loss, and evaluation with carried state."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training import Evaluation

BLOCK = 100
"""Symbols read at once while a state is carried."""
WARM_UP = 1000
"""Symbols that a part of a text is preceded by; a multiple of BLOCK. With the paper's model the
figures differ from those of the text in one piece by less than 1e-5 bits per character."""


def readout_init(key: jax.Array, features: int, vocab_size: int) -> dict[str, jax.Array]:
    """Parameters of the output layer: an orthogonal kernel `[H, V]` and a bias `[V]` of zeros."""
    kernel = jax.nn.initializers.orthogonal()(key, (features, vocab_size), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(vocab_size)}


def cross_entropy_sum(
    readout: dict[str, jax.Array],
    ys: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Summed loss of predicting symbols.

        (Σ −w · log softmax(y W + b)[target],  Σ w)     in nats

    Args:
      readout: as made by `readout_init`.
      ys: outputs of the recurrent layer, `[T, B, H]`.
      targets: integers `[T, B]`.
      weights: `[T, B]`; 0 for what must not count.
      dtype: type of the operands of the matrix product.
    """
    kernel = readout["kernel"].astype(dtype)
    logits = jnp.matmul(ys.astype(dtype), kernel, preferred_element_type=jnp.float32)
    logits = logits + readout["bias"]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(weights * nats), jnp.sum(weights)


def carried_evaluation(
    text: np.ndarray, streams: int, sums: Callable, initial_carry: Callable
) -> Evaluation:
    """Loss over a whole text with the state carried along.

    Every symbol but the first is predicted once. The text is cut into `streams` parts that are
    read side by side; each part's state comes from the `WARM_UP` symbols before it, the first
    part's from the initial state. One stream is the text in one piece.

    Args:
      text: integers `[N]`.
      streams: parts.
      sums: `sums(params, inputs, targets, weights, carry) -> ((total, count), carry)`, arrays
        `[BLOCK, B]`.
      initial_carry: `initial_carry(params, batch) -> carry`.
    """
    predictions = len(text) - 1
    part = -(-predictions // (streams * BLOCK)) * BLOCK
    starts = np.arange(0, predictions, part, dtype=np.int32)
    warm_up = 0 if streams == 1 else WARM_UP

    def loss(params, text, starts):
        batch = len(starts)
        fresh = initial_carry(params, batch)

        def block(state, number):
            carry, total, count = state
            first = starts - warm_up + number * BLOCK
            positions = first + jnp.arange(BLOCK)[:, None]
            counted = (positions >= starts) & (positions < predictions) & (starts >= 0)
            # A block past the end or before the start reads what lies there instead, unweighted.
            inputs = text[jnp.clip(positions, 0, predictions - 1)].astype(jnp.int32)
            targets = text[jnp.clip(positions + 1, 0, predictions)].astype(jnp.int32)
            (block_total, block_count), carry = sums(
                params, inputs, targets, counted.astype(jnp.float32), carry
            )
            before = (first < 0)[:, None]
            carry = jax.tree.map(lambda new, old: jnp.where(before, old, new), carry, fresh)
            return (carry, total + block_total, count + block_count), None

        zero = jnp.zeros(())
        blocks = jnp.arange((warm_up + part) // BLOCK)
        (_, total, count), _ = jax.lax.scan(block, (fresh, zero, zero), blocks)
        return total, count

    return Evaluation(loss, text, starts[None, :])
