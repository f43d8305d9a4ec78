"""Regularizers of recurrent networks besides zoneout: on weights, on inputs, and in the loss."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax._draw import checked_key
from zoneout_jax._lengths import Lengths, clip_lengths
from zoneout_jax._normalization import AxisName
from zoneout_jax._sharding import batch_offset, check_spread, spread_as
from zoneout_jax._zoneout import Zoneout, check_rate

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
    _check_states(states, 2)
    squared = jnp.sum(jnp.square(states), -1)
    # The root has no derivative at zero, where states often start.
    norms = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return _mean(jnp.square(norms[1:] - norms[:-1]), 1, seq_lengths)


def activation_regularization(outputs: jax.Array, seq_lengths: Lengths | None = None) -> jax.Array:
    """How large outputs are (AR).

        mean over examples of  Σ_t ‖h_t‖² / (T H)

    Merity et al. 2017 (arXiv:1708.01009) and 2018 (arXiv:1708.02182), as in the authors' code: the
    mean square, where the papers print a norm. It is taken of the last layer's outputs after
    dropout. Multiply by a coefficient (2 in the authors' language models) and add to the loss.

    Args:
      outputs: `[T, B, H]`, with whatever dropout the rest of the model sees.
      seq_lengths: integers `[B]`; each example's own length takes the place of T. Examples of no
        step count as 0; lengths above T count as T.

    Returns:
      A scalar.

    Raises:
      ValueError: no step, or outputs of another rank.
      TypeError: lengths that are no integers.

    Example:
      >>> activation_regularization(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))  # (25 + 49) / 4
      Array(18.5, dtype=float32)
    """
    _check_states(outputs, 1)
    return _mean(jnp.mean(jnp.square(outputs), -1), 0, seq_lengths)


def temporal_activation_regularization(
    outputs: jax.Array, seq_lengths: Lengths | None = None
) -> jax.Array:
    """How much outputs change from step to step (TAR).

        mean over examples of  Σ_t ‖h_t − h_{t−1}‖² / ((T − 1) H)

    Sources and form are those of `activation_regularization`, but it is taken of the last layer's
    outputs before any dropout. The authors' coefficient is 1.

    Args:
      outputs: `[T, B, H]`, as `unroll` returns them.
      seq_lengths: integers `[B]`; each example's own length takes the place of T. Examples of one
        step or none count as 0; lengths above T count as T.

    Returns:
      A scalar.

    Raises:
      ValueError: fewer than two steps, or outputs of another rank.
      TypeError: lengths that are no integers.

    Example:
      >>> temporal_activation_regularization(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))
      Array(9., dtype=float32)
    """
    _check_states(outputs, 2)
    return _mean(jnp.mean(jnp.square(outputs[1:] - outputs[:-1]), -1), 1, seq_lengths)


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


def weight_drop(params: Tree, key: jax.Array, rate: jax.Array | float) -> Tree:
    """Drops entries of recurrent kernels (DropConnect, weight drop).

        M∘R / (1 − rate),  M ~ Bernoulli(1 − rate)

    Merity et al. 2018 (arXiv:1708.02182), section 2; Wan et al. 2013 for DropConnect. One mask
    serves the whole batch and all steps. Draw anew at each training step, and differentiate the
    loss at the dropped weights: the gradient belongs to the whole ones, and is 0 where they were
    dropped. Evaluation uses the parameters as they are, which is the expectation.

    The `dropout` of Haste's cells is the same: at each call it drops entries of the recurrent
    kernel, rescaled, beside its zoneout.

    Args:
      params: a pytree that holds recurrent kernels under the name "recurrent": parameters of a pure
        cell or of several, variables of Linen, `nnx.state(model, nnx.Param)`. All else stays as it
        is.
      key: a JAX random key, the same on all devices that share a batch.
      rate: probability of dropping an entry (0.5 in the authors' language models).

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a rate outside [0, 1], or no kernel of that name.
      TypeError: a rate that is no number, a key that is none.

    Example:
      >>> params = {"recurrent": jnp.ones((1, 4)), "bias": jnp.ones(4)}
      >>> weight_drop(params, jax.random.key(0), 0.5)
      {'bias': Array([1., 1., 1., 1.], dtype=float32), 'recurrent': Array([[...]], dtype=float32)}
    """
    check_rate("weight_drop", rate)
    key = checked_key(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    numbers = [n for n, (path, _) in enumerate(leaves) if _name(path) == "recurrent"]
    if not numbers:
        raise ValueError('params hold no kernel of the name "recurrent", which weight_drop drops')
    dropped = [leaf for _, leaf in leaves]
    for number in numbers:
        leaf = jnp.asarray(dropped[number])
        kept = jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, leaf.shape)
        dropped[number] = _dropped(leaf, ~kept, rate)
    return jax.tree.unflatten(structure, dropped)


def dropout(
    xs: jax.Array,
    key: jax.Array,
    rate: jax.Array | float,
    *,
    locked: bool = False,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Drops features of sequences: of inputs, of outputs, between layers.

        m∘x / (1 − rate),  m ~ Bernoulli(1 − rate)

    With `locked`, m is one mask a sequence: variational dropout (Gal and Ghahramani 2016,
    arXiv:1512.05287, section 4). Otherwise each step has a mask of its own. In training only: the
    expectation is x itself. Masks belong to examples, as those of zoneout do.

    Args:
      xs: `[T, B, F]`.
      key: a JAX random key, used for nothing else.
      rate: probability of dropping a feature, rounded to a multiple of 2⁻¹⁶.
      locked: one mask for all steps.
      axis_name: name of the mapped axis over which the batch is spread, if it is.

    Returns:
      An array like `xs`.

    Raises:
      ValueError: a rate outside [0, 1], arrays of another rank, a key that is the same on all
        devices without `axis_name`.
      TypeError: a rate that is no number, a key that is none.

    Example:
      >>> xs = dropout(jnp.ones((5, 2, 3)), jax.random.key(0), 0.4, locked=True)
      >>> bool(jnp.all(xs == xs[:1]))
      True
    """
    check_rate("dropout", rate)
    if xs.ndim != 3:
        raise ValueError(f"xs must be [T, B, F] (time first), got {xs.shape}")
    check_spread(xs, checked_key(key), axis_name)
    steps, batch, features = xs.shape
    spec, offset = Zoneout(states=rate, static=locked), batch_offset(axis_name, batch)
    mask = spec.sample(key, steps, batch, features, offset).states
    return _dropped(xs, spread_as(xs, 1, mask, 1), rate)


def _dropped(x: jax.Array, dropped: Any, rate: Any) -> jax.Array:
    """Zeros where dropped, and the rest rescaled."""
    kept = jnp.asarray(1 - rate, x.dtype)
    return jnp.where(dropped, 0, x / jnp.where(kept > 0, kept, 1))  # at 1, nothing is infinite


def _name(path: tuple[Any, ...]) -> str:
    """The name of a leaf: the last of its path, but for the box that Flax may keep it in."""
    names = [str(getattr(step, "key", getattr(step, "name", ""))) for step in path]
    boxed = names and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value"
    return "".join((names[:-1] if boxed else names)[-1:])


def _check_states(states: jax.Array, least: int) -> None:
    """Raises ValueError unless there are so many steps."""
    if states.ndim != 3 or states.shape[0] < least:
        raise ValueError(f"states must be [T, B, H] with T of at least {least}, got {states.shape}")


def _mean(values: jax.Array, first: int, seq_lengths: Lengths | None) -> jax.Array:
    """The mean over examples of their means over time, of values `[T − first, B]`."""
    if seq_lengths is None:
        return jnp.mean(values)
    steps = values.shape[0] + first
    lengths = clip_lengths(seq_lengths, steps)
    counted = jnp.arange(first, steps)[:, None] < lengths[None]
    sums = jnp.sum(jnp.where(counted, values, 0), 0)
    return jnp.mean(sums / jnp.maximum(lengths - first, 1).astype(sums.dtype))
