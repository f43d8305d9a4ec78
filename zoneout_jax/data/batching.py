"""Cuts a text in memory into batches for a language model, and images into batches.

Positions are computed on the host or once an epoch; `gather` then reads the symbols inside the
jitted step. For next-token prediction over chunks of T inputs, compute positions with the length of
the text minus one, so that every chunk has a last target, and gather T + 1 symbols: the first T are
inputs, the last T are targets.
"""

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax._checks import check_sizes


def chunk_starts(length: int, chunk: int, offset: int = 0) -> np.ndarray:
    """Computes the start positions of non-overlapping chunks of a text, in order.

    Args:
      length: number of symbols in the text.
      chunk: number of symbols in a chunk; an incomplete last chunk is dropped.
      offset: start of the first chunk.

    Returns:
      int32 array `[(length - offset) // chunk]`.

    Raises:
      ValueError: `chunk` below one, a negative offset, or a text without one complete chunk.
    """
    check_sizes(chunk=chunk)
    if offset < 0:
        raise ValueError(f"offset must not be negative, got {offset}")
    if length - offset < chunk:
        raise ValueError(
            f"a text of {length} symbols holds no chunk of {chunk} from offset {offset} on"
        )
    return np.arange(offset, length - chunk + 1, chunk, dtype=np.int32)


def steps_per_epoch(length: int, chunk: int, batch_size: int) -> int:
    """Number of batches in an epoch, the same for every offset of the epoch:

        ((length - (chunk - 1)) // chunk) // batch_size

    Raises:
      ValueError: an argument below one, or a text too short for one batch at every offset.
    """
    check_sizes(chunk=chunk, batch_size=batch_size)
    steps = (length - (chunk - 1)) // chunk // batch_size
    if steps < 1:
        needed = (batch_size + 1) * chunk - 1
        raise ValueError(
            f"a text of {length} symbols is shorter than one batch: {batch_size} chunks of {chunk} "
            f"at any offset take {needed}; choose a smaller batch_size or a longer text"
        )
    return steps


def shuffled_chunks(
    key: jax.Array, length: int, chunk: int, batch_size: int, augment: bool = True
) -> jax.Array:
    """Draws the start positions of the chunks of one epoch, in random order.

    An offset is drawn uniformly from [0, chunk), the text from there on is cut into chunks, the
    chunks are shuffled, and the last chunks that do not fill a batch are dropped. Every chunk at
    the drawn offset is equally likely to be used, and equally likely at every place.

    Args:
      key: a JAX random key.
      length, chunk, batch_size: as in `steps_per_epoch`; static under `jit`.
      augment: if False, the text is cut from its start in every epoch.

    Returns:
      int32 array `[steps_per_epoch(length, chunk, batch_size), batch_size]`.

    Raises:
      ValueError: as in `steps_per_epoch`.

    Example:
      >>> starts = shuffled_chunks(jax.random.key(0), length=1_000, chunk=10, batch_size=8)
      >>> starts.shape
      (12, 8)
    """
    steps = steps_per_epoch(length, chunk, batch_size)
    offset_key, order_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (), 0, chunk if augment else 1, dtype=jnp.int32)
    # Offset 0 gives the most chunks, any other offset at most one less. All of them are shuffled,
    # then a chunk past the end is moved to the back, so the order of the others stays uniform.
    order = jax.random.permutation(order_key, jnp.arange(length // chunk, dtype=jnp.int32))
    past_end = order >= (length - offset) // chunk
    order = order[jnp.argsort(past_end, stable=True)]
    return (offset + chunk * order[: steps * batch_size]).reshape(steps, batch_size)


def stream_chunks(length: int, chunk: int, streams: int) -> np.ndarray:
    """Computes start positions of chunks that follow each other in each of several streams.

    The text is cut into parts of the same length, one per stream, and each part into chunks:

        starts[s, b] = (b · n + s) · chunk,     n = (length // chunk) // streams chunks per part

    so stream b ends where stream b + 1 begins. Up to chunk · streams − 1 symbols at the end of the
    text are left out.

    Args:
      length, chunk: as in `chunk_starts`.
      streams: number of streams.

    Returns:
      int32 array `[n, streams]`.

    Raises:
      ValueError: an argument below one, or a text too short for one chunk per stream.

    Example:
      >>> stream_chunks(length=100, chunk=10, streams=3)[:, 1]
      array([30, 40, 50], dtype=int32)
    """
    check_sizes(chunk=chunk, streams=streams)
    steps = length // chunk // streams
    if steps < 1:
        raise ValueError(
            f"a text of {length} symbols is shorter than one batch: {streams} chunks of {chunk} "
            f"take {streams * chunk}; choose fewer streams or a longer text"
        )
    places = np.arange(streams) * steps + np.arange(steps)[:, None]
    return (chunk * places).astype(np.int32)


def shuffled_examples(key: jax.Array, examples: int, batch_size: int) -> jax.Array:
    """Draws the indices of the examples of one epoch, in random order.

    Every example is equally likely at every place. The last examples that do not fill a batch are
    dropped; they differ between epochs.

    Args:
      key: a JAX random key.
      examples: number of examples; static under `jit`.
      batch_size: number of examples in a batch; static under `jit`.

    Returns:
      int32 array `[examples // batch_size, batch_size]`; no index occurs twice.

    Raises:
      ValueError: an argument below one, or fewer examples than one batch.

    Example:
      >>> indices = shuffled_examples(jax.random.key(0), examples=1_000, batch_size=32)
      >>> indices.shape
      (31, 32)
    """
    check_sizes(examples=examples, batch_size=batch_size)
    steps = examples // batch_size
    if steps < 1:
        raise ValueError(f"{examples} examples are fewer than one batch of {batch_size}")
    order = jax.random.permutation(key, jnp.arange(examples, dtype=jnp.int32))
    return order[: steps * batch_size].reshape(steps, batch_size)


def permutation(seed: int, length: int) -> np.ndarray:
    """Returns the order in which permuted MNIST shows pixels, the same order for all images.

    Every position occurs exactly once. (The repository of the paper drew positions with
    replacement, so only 501 of the 784 pixels were used.) NumPy never changes the stream of
    `RandomState`, so a seed gives the same order in every version.

    Args:
      seed: from 0 to 2³² - 1; the only source of randomness.
      length: number of pixels, H · W.

    Returns:
      int32 array `[length]`; step t reads pixel `order[t]` of an image read row by row.

    Raises:
      ValueError: a seed outside its range, or no pixels.

    Example:
      >>> order = permutation(seed=0, length=64)
      >>> steps = np.zeros((10, 8, 8), np.uint8).reshape(-1, 64)[:, order]
      >>> steps.shape
      (10, 64)
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    return np.random.RandomState(seed).permutation(length).astype(np.int32)


def pad_rows(indices: np.ndarray, batch_size: int) -> np.ndarray:
    """Cuts a list of indices into rows of one batch each; the last row is padded with -1.

    -1 marks an empty place, to which the caller gives the weight zero.

    Returns:
      int32 array `[ceil(len(indices) / batch_size), batch_size]`.

    Raises:
      ValueError: `indices` is not one-dimensional or is empty, or `batch_size` is below one.
    """
    indices = np.asarray(indices)
    check_sizes(batch_size=batch_size)
    if indices.ndim != 1 or not indices.size:
        raise ValueError(f"indices must be a list of at least one, got shape {indices.shape}")
    rows = -(-len(indices) // batch_size)
    padded = np.full(rows * batch_size, -1, np.int32)
    padded[: len(indices)] = indices
    return padded.reshape(rows, batch_size)


def gather(corpus: jax.Array, starts: jax.Array, length: int) -> jax.Array:
    """Reads `length` symbols from each start position, for use inside `jit`:

        tokens[t, b] = corpus[starts[b] + t]

    `jit` cannot raise errors, so a position past the end of the text gives 2³¹ − 1, which is no
    symbol: optax's cross entropy with integer labels is NaN for it, which ends a run. A start of
    -1, as made by `pad_rows`, reads from 0.

    Args:
      corpus: integers `[N]`.
      starts: integers `[B]`.
      length: number of symbols to read; static under `jit`.

    Returns:
      int32 array `[length, B]`, time-major.

    Raises:
      ValueError: `corpus` or `starts` is not one-dimensional, or `length` is not in 1…N.
    """
    corpus, starts = jnp.asarray(corpus), jnp.asarray(starts, jnp.int32)
    if corpus.ndim != 1 or starts.ndim != 1:
        raise ValueError(
            f"corpus and starts must be one-dimensional, got {corpus.shape} and {starts.shape}"
        )
    if not 1 <= length <= corpus.size:
        raise ValueError(f"cannot read {length} symbols from a text of {corpus.size}")
    positions = jnp.maximum(starts, 0)[None, :] + jnp.arange(length, dtype=jnp.int32)[:, None]
    tokens = corpus[positions].astype(jnp.int32)
    return jnp.where(positions < corpus.size, tokens, jnp.iinfo(jnp.int32).max)
