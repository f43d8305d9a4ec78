"""Other regularizers of recurrent networks: on weights, on inputs, and in the loss."""

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


def norm_stabilizer(
    states: jax.Array, seq_lengths: Lengths | None = None, *, time_major: bool = True
) -> jax.Array:
    """Measures how much the norms of states change over time.

        mean over examples of  Σ_t (‖h_t‖ − ‖h_{t−1}‖)² / (T − 1)

    Krueger and Memisevic 2016 (arXiv:1511.08400). Multiply by a coefficient (50 in the paper's
    language models) and add to the loss.

    Args:
      states: hidden states or memory cells `[T, B, H]`.
      seq_lengths: integers `[B]`; the length of each example replaces T. Examples with fewer than
        two steps count as 0; lengths above T count as T.
      time_major: False for `[B, T, H]`, as Flax layers return them.

    Returns:
      A scalar.

    Raises:
      ValueError: fewer than two steps, states of another rank, lengths of another shape.
      TypeError: lengths that are not integers.

    Example:
      >>> norm_stabilizer(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))  # norms 5 and 7
      Array(4., dtype=float32)
    """
    squared = jnp.sum(_squared(_checked_states(states, 2, time_major)), -1)
    # The square root has no derivative at zero, where states often start.
    norms = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)
    return _mean(jnp.square(norms[1:] - norms[:-1]), 1, seq_lengths)


def activation_regularization(
    outputs: jax.Array, seq_lengths: Lengths | None = None, *, time_major: bool = True
) -> jax.Array:
    """Measures how large outputs are (AR).

        mean over examples of  Σ_t ‖h_t‖² / (T H)

    Merity et al. 2017 (arXiv:1708.01009) and 2018 (arXiv:1708.02182), as in the authors' code: the
    mean square, where the papers print a norm. Pass the last layer's outputs after dropout.
    Multiply by a coefficient (2 in the authors' language models) and add to the loss.

    Args:
      outputs: `[T, B, H]`, with the dropout that the rest of the model sees.
      seq_lengths: integers `[B]`; the length of each example replaces T. Examples without steps
        count as 0; lengths above T count as T.
      time_major: False for `[B, T, H]`, as Flax layers return them.

    Returns:
      A scalar.

    Raises:
      ValueError: no step, outputs of another rank, lengths of another shape.
      TypeError: lengths that are not integers.

    Example:
      >>> activation_regularization(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))  # (25 + 49) / 4
      Array(18.5, dtype=float32)
    """
    return _mean(jnp.mean(_squared(_checked_states(outputs, 1, time_major)), -1), 0, seq_lengths)


def temporal_activation_regularization(
    outputs: jax.Array, seq_lengths: Lengths | None = None, *, time_major: bool = True
) -> jax.Array:
    """Measures how much outputs change from step to step (TAR).

        mean over examples of  Σ_t ‖h_t − h_{t−1}‖² / ((T − 1) H)

    Sources and form are those of `activation_regularization`, but pass the last layer's outputs
    before any dropout. The authors' coefficient is 1.

    Args:
      outputs: `[T, B, H]`, as `unroll` returns them.
      seq_lengths: integers `[B]`; the length of each example replaces T. Examples with fewer than
        two steps count as 0; lengths above T count as T.
      time_major: False for `[B, T, H]`, as Flax layers return them.

    Returns:
      A scalar.

    Raises:
      ValueError: fewer than two steps, outputs of another rank, lengths of another shape.
      TypeError: lengths that are not integers.

    Example:
      >>> temporal_activation_regularization(jnp.array([[[3.0, 4.0]], [[0.0, 7.0]]]))
      Array(9., dtype=float32)
    """
    outputs = _checked_states(outputs, 2, time_major)
    return _mean(jnp.mean(_squared(outputs[1:] - outputs[:-1]), -1), 1, seq_lengths)


def weight_noise(params: Tree, key: jax.Array, std: jax.Array | float) -> Tree:
    """Adds Gaussian noise to weight matrices.

        W + std · ε,  ε ~ Normal(0, 1)

    Use a new key at each training step, and differentiate the loss at the noisy weights; apply the
    gradient to the clean weights. Vectors such as biases, and integers, do not change. Every
    floating-point array with two or more axes counts as a matrix: pass stacked parameters of layers
    or devices one by one (or under `vmap`), and do not pass statistics of batch normalization.

    Args:
      params: a pytree of arrays.
      key: a JAX random key.
      std: standard deviation (0.075 in the paper's language models).

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a negative standard deviation.
      TypeError: a key that is not a random key.

    Example:
      >>> params = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> weight_noise(params, jax.random.key(0), 0.075)["bias"]
      Array([0., 0.], dtype=float32)
    """
    if not isinstance(std, jax.Array) and np.any(np.asarray(std) < 0):
        raise ValueError(f"std must be at least 0, got {std}")
    key = checked_key(key)
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
    serves the whole batch and all steps. Use a new key at each training step, and differentiate the
    loss at the dropped weights; apply the gradient to the original weights. The gradient is 0 where
    weights were dropped. Evaluation uses the original parameters, which are the expectation.

    The `dropout` of Haste's cells does the same, next to their zoneout: each call drops entries of
    the recurrent kernel and rescales the others.

    Args:
      params: a pytree that holds recurrent kernels under the name "recurrent": parameters of one or
        more pure cells, variables of Linen, `nnx.state(model, nnx.Param)`. In an `IndRNN` this name
        is the vector v: a unit whose entry is dropped does not see its own state. Other leaves do
        not change.
      key: a JAX random key, the same on all devices that share a batch.
      rate: probability of dropping an entry (0.5 in the authors' language models).

    Returns:
      A pytree like `params`.

    Raises:
      ValueError: a rate outside [0, 1], or no kernel of that name.
      TypeError: a rate that is not a number, a key that is not a random key, numbers that are
        integers.

    Example:
      >>> params = {"recurrent": jnp.ones((1, 4)), "bias": jnp.ones(4)}
      >>> weight_drop(params, jax.random.key(0), 0.5)
      {'bias': Array([1., 1., 1., 1.], dtype=float32), 'recurrent': Array([[...]], dtype=float32)}
    """
    check_number("weight_drop", rate)
    key = checked_key(key)
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    numbers = [n for n, (path, _) in enumerate(leaves) if _name(path) == "recurrent"]
    if not numbers:
        raise ValueError('params hold no kernel named "recurrent", which weight_drop needs')
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
    time_major: bool = True,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Drops features of sequences: of inputs, of outputs, between layers.

        m∘x / (1 − rate),  m ~ Bernoulli(1 − rate)

    With `locked`, one mask serves a whole sequence: variational dropout (Gal and Ghahramani 2016,
    arXiv:1512.05287, section 4). Otherwise each step has its own mask. Call it in training only;
    the expectation is x. The masks of an example do not depend on the rest of the batch, as with
    zoneout.

    Args:
      xs: `[T, B, F]`.
      key: a JAX random key, used for nothing else.
      rate: probability of dropping a feature, rounded to a multiple of 2⁻¹⁶.
      locked: use one mask for all steps.
      time_major: False for `[B, T, F]`, as Flax layers take them.
      axis_name: name of the mapped axis that the batch is spread over, if any.

    Returns:
      An array like `xs`.

    Raises:
      ValueError: a rate outside [0, 1], arrays of another rank, a key that is the same on all
        devices without `axis_name`.
      TypeError: a rate that is not a number, a key that is not a random key, numbers that are
        integers.

    Example:
      >>> xs = dropout(jnp.ones((5, 2, 3)), jax.random.key(0), 0.4, locked=True)
      >>> bool(jnp.all(xs == xs[:1]))
      True
    """
    check_number("dropout", rate)
    xs = jnp.asarray(xs)
    if xs.ndim != 3:
        raise ValueError(f"xs must be {'[T, B, F]' if time_major else '[B, T, F]'}, got {xs.shape}")
    if not time_major:
        options: Any = {"locked": locked, "axis_name": axis_name}
        return jnp.swapaxes(dropout(jnp.swapaxes(xs, 0, 1), key, rate, **options), 0, 1)
    check_spread(xs, checked_key(key), axis_name)
    steps, batch, features = xs.shape
    spec, offset = Zoneout(states=rate, static=locked), batch_offset(axis_name, batch)
    mask = spec.sample(key, steps, batch, features, offset).states
    return _dropped(xs, spread_as(xs, 1, mask, 1), rate)


def _dropped(x: jax.Array, dropped: Any, rate: Any) -> jax.Array:
    """Sets dropped entries to zero and rescales the others."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(f"what is dropped must be real or complex numbers, got {x.dtype}")
    kept = jnp.asarray(1 - rate, x.dtype)
    return jnp.where(dropped, 0, x / jnp.where(kept > 0, kept, 1))  # no division by 0 at rate 1


def check_number(name: str, rate: Any) -> None:
    """Raises unless a rate is a probability or traced."""
    if rate is None or callable(rate):
        raise TypeError(f"rate of {name} must be a number in [0, 1], got {rate!r}")
    check_rate(name, rate)


def _name(path: tuple[Any, ...]) -> str:
    """Returns the name of a leaf: the last of its path, without the box that Flax may add."""
    names = [str(getattr(step, "key", getattr(step, "name", ""))) for step in path]
    boxed = names and isinstance(path[-1], jax.tree_util.GetAttrKey) and names[-1] == "value"
    return "".join((names[:-1] if boxed else names)[-1:])


def _checked_states(states: jax.Array, least: int, time_major: bool) -> jax.Array:
    """Returns states `[T, B, H]`; raises ValueError unless T is at least `least`."""
    states, time = jnp.asarray(states), 0 if time_major else 1
    if states.ndim != 3 or states.shape[time] < least:
        axes = "[T, B, H]" if time_major else "[B, T, H]"
        raise ValueError(f"states must be {axes} with T of at least {least}, got {states.shape}")
    return states if time_major else jnp.swapaxes(states, 0, 1)


def _squared(x: jax.Array) -> jax.Array:
    """Returns |x|², whose derivative exists at 0, also of complex numbers."""
    if jnp.iscomplexobj(x):
        return jnp.square(x.real) + jnp.square(x.imag)
    return jnp.square(x)


def _mean(values: jax.Array, first: int, seq_lengths: Lengths | None) -> jax.Array:
    """Averages values `[T − first, B]` over the time of each example, then over examples."""
    if seq_lengths is None:
        return jnp.mean(values)
    steps, batch = values.shape[0] + first, values.shape[1]
    lengths = clip_lengths(seq_lengths, steps)
    if lengths.shape != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {lengths.shape}")
    counted = jnp.arange(first, steps)[:, None] < lengths[None]
    sums = jnp.sum(jnp.where(counted, values, 0), 0)
    return jnp.mean(sums / jnp.maximum(lengths - first, 1).astype(sums.dtype))
