"""Recurrent cells over time."""

import jax
import jax.numpy as jnp

from zoneout_jax.cells import Carry, Cell, Params
from zoneout_jax.fused import scan_cell
from zoneout_jax.zoneout import Masks, Zoneout


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
    seq_lengths: jax.Array | None = None,
    reverse: bool = False,
    axis_name: str | None = None,
) -> tuple[Carry, jax.Array]:
    """Runs a cell over a batch of sequences with `lax.scan`.

    Training (`deterministic=False`) samples the masks of `zoneout` from `key`; evaluation
    (`deterministic=True`) uses their expectation. Masks given as `masks` are used as they are.

    Args:
      cell: a `Cell`, for instance `lstm(in_features, hidden_features)`.
      params: its parameters.
      xs: inputs `[T, B, F]`.
      carry: carry before the first step; the cell's initial carry if None.
      zoneout: rates and kinds of the masks; None for none.
      key: random key of the masks, needed in training if any rate is given.
      deterministic: True in evaluation.
      masks: masks to use instead of sampled ones, each `[T, B, H]` or broadcast to it.
      seq_lengths: integers `[B]`. From a sequence's end on the carry stands still, and the outputs
        are zero. Lengths above T count as T.
      reverse: from the last element to the first. The outputs keep the order of the inputs, and
        padding stays where it is.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: the masks are then those of the whole batch on a single device.

    Returns:
      The carry after the last step, and the outputs `[T, B, H]`.

    Raises:
      ValueError: inputs, carry, masks or lengths whose shapes do not fit; training without a key.

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
    steps, batch = xs.shape[:2]
    if carry is None:
        carry = cell.initial_carry(params, batch)
    _check_carry(cell, params, carry, batch)
    if seq_lengths is not None and jnp.shape(seq_lengths) != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {jnp.shape(seq_lengths)}")
    if masks is None:
        masks = _masks(zoneout, key, deterministic, steps, batch, cell.hidden_features, axis_name)
    shape = (steps, batch, cell.hidden_features)
    # Masks that are the same at every step do not go through the scan.
    constant, varying = {}, {}
    for name, mask in masks._asdict().items():
        if mask is None:
            continue
        mask = jnp.asarray(mask)
        fits = all(m in (1, n) for m, n in zip(mask.shape, shape, strict=False))
        if mask.ndim not in (0, 3) or not fits:
            raise ValueError(f"mask of {name} must broadcast to {shape}, got {mask.shape}")
        if mask.ndim == 3 and mask.shape[0] == steps:
            varying[name] = mask
        else:
            constant[name] = mask[0] if mask.ndim else mask

    valid = None
    if seq_lengths is not None:
        valid = (jnp.arange(steps)[:, None] < seq_lengths)[..., None]
    projected = cell.project(params, xs)
    return scan_cell(
        cell, reverse, cell.kernels(params), carry, projected, constant, varying, valid
    )


def _masks(zoneout, key, deterministic, steps, batch, features, axis_name) -> Masks:
    """Masks of the sequence: none, expected, or sampled."""
    if zoneout is None or not zoneout.active:
        return Masks()
    if deterministic:
        return zoneout.expected()
    if key is None:
        raise ValueError("zoneout in training needs a random key; pass key=, or deterministic=True")
    offset = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    return zoneout.sample(key, steps, batch, features, offset)


def _check_carry(cell: Cell, params: Params, carry: Carry, batch: int) -> None:
    """Raises ValueError unless the carry has the structure and shapes of the cell's own."""
    wanted = jax.eval_shape(lambda p: cell.initial_carry(p, batch), params)
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (carry, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"carry must have the shapes {shapes[1]}, got {shapes[0]}")
