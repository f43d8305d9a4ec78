"""Recurrent cells over time."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.cells import Carry, Cell, Params
from zoneout_jax.fused import Constants, How, Inputs, Weights, scan, scan_fused
from zoneout_jax.normalization import Stats
from zoneout_jax.zoneout import Masks, Zoneout

IMPLEMENTATIONS = {"fused": scan_fused, "scan": scan}


def unroll(
    cell: Cell,
    params: Params,
    xs: jax.Array,
    carry: Carry | None = None,
    *,
    zoneout: Zoneout | None = None,
    key: jax.Array | None = None,
    deterministic: bool = False,
    masks: Masks | None = None,
    stats: Stats | None = None,
    carry_noise: float = 0.0,
    seq_lengths: jax.Array | None = None,
    reverse: bool = False,
    emit: Callable[[Carry, jax.Array], Any] | None = None,
    chunk: int | None = None,
    unroll: int = 1,
    implementation: Literal["fused", "scan"] = "fused",
    axis_name: str | None = None,
) -> tuple[Carry, Any] | tuple[Carry, Any, Stats]:
    """Runs a cell over a batch of sequences with `lax.scan`.

    Training (`deterministic=False`) samples the masks of `zoneout` from `key`; evaluation
    (`deterministic=True`) uses their expectation. Masks given as `masks` are used as they are.

    Args:
      cell: a `Cell`, for instance `lstm(in_features, hidden_features)`.
      params: its parameters.
      xs: inputs `[T, B, F]`.
      carry: carry before the first step; the cell's initial carry if None.
      zoneout: rates and kinds of the masks; None for none.
      key: random key of masks and noise, needed in training if there are any.
      deterministic: True in evaluation.
      masks: masks to use instead of sampled ones, each `[T, B, H]` or broadcast to it.
      stats: population statistics of a batch-normalized cell, needed in evaluation. Training uses
        those of the batch.
      carry_noise: standard deviation of Gaussian noise on the cell's initial carry, in training
        (recurrent batch normalization: inputs that all examples share leave no variance otherwise).
      seq_lengths: integers `[B]`. From a sequence's end on the carry stands still, and the outputs
        are zero. Traced lengths above T count as T.
      reverse: from the last element to the first. The outputs keep the order of the inputs, and
        padding stays where it is.
      emit: `emit(carry, output)`, what to return of each step instead of the output: arrays
        `[B, ·]`. `lambda carry, y: (y, carry[0])` adds the memory cells.
      chunk: steps in a chunk; of each chunk only the carry is kept for the backward pass, the rest
        computed anew. None keeps everything.
      unroll: steps in one iteration of the compiled loop.
      implementation: "fused" makes each weight gradient in a single product; "scan" leaves
        derivatives to JAX, forward mode and higher orders included.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: masks and batch statistics are then those of the whole batch on a single device.

    Returns:
      The carry after the last step, and the outputs `[T, B, H]`. In training, a batch-normalized
      cell returns the statistics of the batch as a third, for `update_stats`.

    Raises:
      ValueError: inputs, carry, masks or lengths whose shapes do not fit; rates that the cell has
        no use for; training without a key; evaluation without statistics.
      TypeError: a rate that is a schedule.

    Example:
      >>> cell = lstm(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> xs = jnp.ones((7, 2, 3))
      >>> carry, ys = unroll(cell, params, xs, zoneout=spec, key=jax.random.key(1))
      >>> ys.shape
      (7, 2, 4)
    """
    if xs.ndim != 3 or xs.shape[-1] != cell.in_features:
        raise ValueError(f"xs must be [T, B, {cell.in_features}] (time first), got {xs.shape}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}; got {implementation!r}"
        )
    if cell.init_stats is None and stats is not None:
        raise ValueError("stats are for batch-normalized cells only")
    if cell.init_stats is not None and deterministic and stats is None:
        raise ValueError("a batch-normalized cell in evaluation needs its population stats")
    steps, batch = xs.shape[:2]
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    if carry is None:
        carry = cell.initial_carry(params, batch)
        if carry_noise and not deterministic:
            carry = _add_noise(carry, carry_noise, _required(key, "noise"), offset)
    _check_carry(cell, params, carry, batch)
    if masks is None:
        masks = _masks(cell, zoneout, key, deterministic, steps, batch, offset)
    constant, varying = _split_masks(masks, cell, (steps, batch, cell.hidden_features))
    valid = _valid(seq_lengths, steps, batch)

    how = How(cell, reverse, unroll, emit or _output, axis_name)
    weights = Weights(cell.kernels(params), cell.gains(params))
    constants = Constants(constant, stats if deterministic else None)

    def run(carry, inputs):
        xs, varying, valid = inputs
        projected = cell.project(params, xs)
        inputs = Inputs(projected, varying, valid)
        return IMPLEMENTATIONS[implementation](how, weights, carry, inputs, constants)

    inputs = (xs, varying, valid)
    if chunk is None or chunk >= steps:
        carry, (ys, found) = run(carry, inputs)
    else:
        carry, (ys, found) = _run_chunks(jax.checkpoint(run), carry, inputs, steps, chunk, reverse)
    return (carry, ys) if found is None else (carry, ys, found)


def _output(carry: Carry, output: jax.Array) -> jax.Array:
    del carry
    return output


def _run_chunks(run, carry, inputs, steps, chunk, reverse):
    """Runs whole chunks in a scan, and what is left over after them in time on its own."""
    whole = steps - steps % chunk
    chunks = jax.tree.map(lambda a: a[:whole].reshape(-1, chunk, *a.shape[1:]), inputs)
    rest = jax.tree.map(lambda a: a[whole:], inputs)

    def run_rest(carry):
        return run(carry, rest) if whole < steps else (carry, None)

    if reverse:
        carry, last = run_rest(carry)
    carry, first = jax.lax.scan(run, carry, chunks, reverse=reverse)
    if not reverse:
        carry, last = run_rest(carry)
    first = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), first)
    if last is None:
        return carry, first
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)


def _masks(cell, zoneout, key, deterministic, steps, batch, offset) -> Masks:
    """Masks of the sequence: none, expected, or sampled."""
    if zoneout is None or not zoneout.active:
        return Masks()
    if any(callable(rate) for rate in (zoneout.cells, zoneout.states, zoneout.update_drop)):
        raise TypeError("a rate is a schedule of the step; pass zoneout=spec.at(step)")
    zoneout = zoneout.without_zeros()
    if deterministic:
        return zoneout.expected()
    key = _required(key, "zoneout")
    return zoneout.sample(key, steps, batch, cell.hidden_features, offset)


def _required(key: jax.Array | None, what: str) -> jax.Array:
    if key is None:
        raise ValueError(f"{what} in training needs a random key; pass key=, or deterministic=True")
    return key


def _split_masks(masks: Masks, cell: Cell, shape: tuple[int, int, int]):
    """Masks of each step that serve every step, and those with a leading axis T."""
    constant, varying = {}, {}
    for name, mask in masks._asdict().items():
        if mask is None:
            continue
        if name not in cell.masks:
            known = " and ".join(cell.masks)
            raise ValueError(f"this cell has no {name} to mask, only {known}; leave the rate None")
        mask = jnp.asarray(mask)
        fits = all(m in (1, n) for m, n in zip(mask.shape, shape, strict=False))
        if mask.ndim not in (0, 3) or not fits:
            raise ValueError(f"mask of {name} must broadcast to {shape}, got {mask.shape}")
        if mask.ndim == 3 and mask.shape[0] == shape[0]:
            varying[name] = mask
        else:
            constant[name] = mask[0] if mask.ndim else mask
    return constant, varying


def _valid(seq_lengths: jax.Array | None, steps: int, batch: int) -> jax.Array | None:
    """Booleans `[T, B, 1]`: which elements are no padding."""
    if seq_lengths is None:
        return None
    if jnp.shape(seq_lengths) != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {jnp.shape(seq_lengths)}")
    if not isinstance(seq_lengths, jax.core.Tracer):
        lengths = np.asarray(seq_lengths)
        if lengths.min(initial=0) < 0 or lengths.max(initial=0) > steps:
            raise ValueError(f"seq_lengths must be in [0, {steps}], got {lengths.tolist()}")
    return (jnp.arange(steps)[:, None] < jnp.asarray(seq_lengths))[..., None]


def _add_noise(carry: Carry, scale: float, key: jax.Array, offset: jax.Array | int) -> Carry:
    """Adds Gaussian noise to the arrays `[B, H]` of a carry; each example has its own key."""
    leaves, structure = jax.tree.flatten(carry)
    for number, leaf in enumerate(leaves):
        if leaf.ndim:
            stream = jax.random.fold_in(key, 2**31 + number)  # apart from any example's masks
            examples = offset + jnp.arange(leaf.shape[0], dtype=jnp.int32)
            noise = jax.vmap(
                lambda n, leaf=leaf, stream=stream: jax.random.normal(
                    jax.random.fold_in(stream, n), leaf.shape[1:], leaf.dtype
                )
            )(examples)
            leaves[number] = leaf + scale * noise
    return jax.tree.unflatten(structure, leaves)


def _check_carry(cell: Cell, params: Params, carry: Carry, batch: int) -> None:
    """Raises ValueError unless the carry has the structure and shapes of the cell's own."""
    wanted = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (carry, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"carry must have the shapes {shapes[1]}, got {shapes[0]}")
