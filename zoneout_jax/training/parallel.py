"""Training and evaluation over all local devices: the only file that knows of devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training.state import TrainState

AXIS = "data"
"""Name of the mapped axis over which a batch is spread."""

Loss = Callable[..., tuple[jax.Array, jax.Array]]


def check_divides(batch_size: int) -> None:
    """Raises ValueError unless a batch divides evenly among the devices."""
    devices = jax.local_device_count()
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} does not divide by the {devices} devices; "
            f"choose a multiple of {devices}"
        )


def replicate(tree: Any) -> Any:
    """Copies every array to all devices, under a new first axis."""
    # Named as in `train_steps`, which would else be compiled again for its own output.
    copy = jax.pmap(lambda _, tree: tree, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(jax.local_device_count()), tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy, as NumPy arrays of its own memory."""
    return jax.tree.map(lambda x: np.array(x[0]), tree)


def shard(tree: Any, pad: bool = False) -> Any:
    """Spreads rows of examples `[rows, batch, …]` over the devices: `[devices, rows, local, …]`.

    Device d gets examples d·local … (d + 1)·local − 1 of every row.

    Args:
      tree: arrays of rows.
      pad: fill rows that do not divide by the devices up with -1.
    """
    devices = jax.local_device_count()

    def split(rows):
        if pad:
            missing = -rows.shape[1] % devices
            widths = [(0, 0), (0, missing)] + [(0, 0)] * (rows.ndim - 2)
            rows = jnp.pad(rows, widths, constant_values=-1)
        rows = rows.reshape(rows.shape[0], devices, -1, *rows.shape[2:])
        return jnp.swapaxes(rows, 0, 1)

    return jax.tree.map(split, tree)


def train_steps(loss: Loss, optimizer: optax.GradientTransformation) -> Callable:
    """Compiles many training steps into one call.

    Args:
      loss: `loss(params, data, examples, key) -> (total, count)`, over one device's examples. It
        runs inside the mapped axis `AXIS`. The gradient taken is that of Σ total / Σ count over
        all devices, so that neither padding nor an uneven spread biases it.
      optimizer: an optax optimizer.

    Returns:
      `run(state, data, rows, first, stop, key) -> (state, total, count)`, which does one step for
      each row in [first, stop) and sums the losses. `state` and `data` are replicated (`state` is
      donated), `rows` sharded; step t draws from `fold_in(key, t)`. Nothing is compiled again for
      another first or stop.
    """

    def run(state: TrainState, data, rows, first, stop, key):
        def body(row, carried):
            state, total, count = carried
            examples = jax.tree.map(lambda r: r[row], rows)
            step_key = jax.random.fold_in(key, state.step)
            gradient = jax.value_and_grad(loss, has_aux=True)
            (row_total, row_count), grads = gradient(state.params, data, examples, step_key)
            row_total, row_count, grads = jax.lax.psum((row_total, row_count, grads), AXIS)
            grads = jax.tree.map(lambda g: g / row_count.astype(g.dtype), grads)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            state = TrainState(state.step + 1, params, opt_state)
            return state, total + row_total, count + row_count

        zero = jnp.zeros((), jnp.float32)
        return jax.lax.fori_loop(first, stop, body, (state, zero, zero))

    return jax.pmap(run, axis_name=AXIS, in_axes=(0, 0, 0, None, None, None), donate_argnums=(0,))


def evaluation_sums(loss: Loss) -> Callable:
    """Compiles the sum of a loss over rows of examples.

    Args:
      loss: `loss(params, data, examples) -> (total, count)`, over one device's examples.

    Returns:
      `run(params, data, rows) -> (totals, counts)`, one number for each row. `params` and `data`
      are replicated, `rows` sharded.
    """

    def run(params, data, rows):
        def row(examples):
            return jax.lax.psum(loss(params, data, examples), AXIS)

        return jax.lax.map(row, rows)

    return jax.pmap(run, axis_name=AXIS)


def mean(totals: jax.Array, counts: jax.Array) -> float:
    """Σ totals / Σ counts in float64, of the first device's copies."""
    totals, counts = (np.asarray(x[0], np.float64) for x in (totals, counts))
    return float(totals.sum() / counts.sum())
