"""Training and evaluation on all devices of all processes; only this module handles devices.

Each batch is split over the devices, and their gradients are summed. But if the number of seeds is
a multiple of the number of devices, each device trains whole seeds and nothing is exchanged.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax._sharding import batch_over
from zoneout_jax.training.processes import is_multihost
from zoneout_jax.training.state import TrainState

AXIS = "data"
"""Name of the mapped axis over which a batch is split."""
SEEDS = "seeds"
"""Name of the mapped axis over which seeds are distributed."""

Sums = tuple[jax.Array, jax.Array]
"""A total and its count."""
Loss = Callable[[Any, Any, "Batch", jax.Array], tuple[Sums, Any]]
EvaluationLoss = Callable[[Any, Any, "Batch"], tuple[Any, jax.Array]]


class Batch(NamedTuple):
    """One device's part of a batch.

    Attributes:
      data: the whole arrays from which examples are taken.
      indices: indices of the examples, integers `[B, …]`; −1 for the padding of a batch.
    """

    data: Any
    indices: Any

    def take(self) -> tuple[Any, jax.Array]:
        """Returns the examples, `[B, …]` from each array, and weights `[B]`: 0 for −1, else 1."""
        examples = jax.tree.map(lambda array: array[jnp.maximum(self.indices, 0)], self.data)
        return examples, (self.indices >= 0).astype(jnp.float32)


def check_divides(batch_size: int, num_seeds: int = 1) -> None:
    """Raises ValueError unless a batch, or the seeds, can be split evenly over the devices."""
    devices = jax.device_count()
    if batch_size % devices and not Placement(num_seeds).spread:
        raise ValueError(
            f"a batch of {batch_size} cannot be split evenly over the {devices} devices; "
            f"choose a multiple of {devices}"
        )


def replicate(tree: Any) -> Any:
    """Copies every array to all devices of this process, under a new first axis."""
    return _copier()(np.arange(jax.local_device_count()), tree)


@functools.cache
def _copier() -> Callable:
    # The axis name of `train_steps`, which otherwise would compile again for its own output.
    return jax.pmap(lambda _, tree: tree, axis_name=AXIS, in_axes=(0, None))


@functools.cache
def _spreader() -> Callable:
    return jax.pmap(lambda tree: tree, axis_name=SEEDS)


class Placement:
    """Placement of the state and the examples of each seed on the devices.

    Attributes:
      seeds: number of seeds.
      spread: True if each device has its own seeds, False if it has a part of every seed's batch.
    """

    def __init__(self, seeds: int = 1):
        devices = jax.device_count()
        self.seeds = seeds
        self.spread = seeds > 1 and devices > 1 and not is_multihost() and seeds % devices == 0
        self.axis = SEEDS if self.spread else AXIS
        self._each = seeds // devices if self.spread else seeds

    def put(self, tree: Any) -> Any:
        """Copies arrays `[seeds, …]` to the devices as `[devices, seeds of the device, …]`."""
        if not self.spread:
            return replicate(tree)
        split = jax.tree.map(lambda x: np.reshape(x, (-1, self._each, *np.shape(x)[1:])), tree)
        return _spreader()(split)

    def get(self, tree: Any) -> Any:
        """Copies arrays that are placed as by `put` back to `[seeds, …]`, as NumPy arrays."""
        if not self.spread:
            return jax.tree.map(lambda x: np.array(x[0]), tree)
        return jax.tree.map(lambda x: np.reshape(np.array(x), (-1, *x.shape[2:])), tree)

    def rows(self, tree: Any) -> Any:
        """Places each seed's rows of examples, `[seeds, rows, batch, …]`, on the devices.

        Returns:
          `[devices of this process, seeds of the device, rows, examples of the device, …]`.
          Device d gets the examples d·local … (d + 1)·local − 1 of every row, or these seeds.
        """
        return self.put(tree) if self.spread else jax.tree.map(lambda x: _split(x, 2), tree)

    def shared_rows(self, tree: Any) -> Any:
        """Places rows of examples that all seeds share, `[rows, batch, …]`, on the devices.

        Rows that cannot be split evenly over the devices are padded with -1.
        """
        if self.spread:
            return replicate(tree)

        def pad(rows):
            widths = [(0, 0), (0, -rows.shape[1] % jax.device_count())]
            widths += [(0, 0)] * (rows.ndim - 2)
            return _split(jnp.pad(rows, widths, constant_values=-1), 1)

        return jax.tree.map(pad, tree)

    def each_seed(self, function: Callable, in_axes: tuple) -> Callable:
        """Turns a function of one seed into one of all seeds of a device, for `pmap` over `axis`.

        `in_axes` is as in `jax.vmap`. If the seeds are spread, the axis `AXIS`, over which the
        function sums, has size 1.
        """
        if self.spread:
            whole = function

            def function(*args):
                alone = jax.vmap(whole, None, 0, axis_name=AXIS, axis_size=1)
                return jax.tree.map(lambda x: x[0], alone(*args))

        if self._each > 1:
            return jax.vmap(function, in_axes)

        def single(*args):
            picked = [
                arg if axis is None else jax.tree.map(lambda x: x[0], arg)
                for arg, axis in zip(args, in_axes, strict=True)
            ]
            return jax.tree.map(lambda x: x[None], function(*picked))

        return single


def _split(rows: jax.Array, axis: int) -> jax.Array:
    """Splits an axis over all devices, and moves the parts of this process to the front."""
    devices = jax.device_count()
    rows = rows.reshape(*rows.shape[:axis], devices, -1, *rows.shape[axis + 1 :])
    mine = [n for n, d in enumerate(jax.devices()) if d.process_index == jax.process_index()]
    return jnp.moveaxis(rows, axis, 0)[np.array(mine)]


def train_steps(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    placement: Placement,
    steps_per_call: int,
    skip_not_finite: bool = False,
) -> Callable:
    """Compiles many training steps into one call.

    Args:
      loss: `loss(params, model_state, batch, key) -> ((total, count), model_state)`, over one
        device's part of the batch, inside the mapped axis `AXIS`. The gradient is taken of
        Σ total / Σ count over all devices, so neither padding nor an uneven split biases it.
      optimizer: an optax optimizer.
      placement: placement of the seeds.
      steps_per_call: maximum number of steps in a call.
      skip_not_finite: skip a step whose loss or gradient is not finite; if False, all seeds stop
        before such a step.

    Returns:
      `run(state, data, rows, first, stop, key, going, vote) -> (state, totals, counts, votes)`,
      which does one step for each row in [first, stop). `state` (donated), `rows`, and `key` and
      `going` of each seed are placed, `data` is replicated. A seed that is not `going` does not
      stop the others. Step t draws from `fold_in(key, t)`. `totals` and `counts` hold the sums of
      each step and seed, `[steps_per_call, seeds of the device]`: NaN for the step that stopped the
      run, a count of 0 for a skipped step. `votes` is the largest `vote` of all processes. Other
      values of first, stop or vote do not cause a new compilation.
    """

    def total(params, model_state, batch, key):
        with batch_over(AXIS):
            found = loss(params, model_state, batch, key)
        (total, count), model_state = checked(found, model_state)
        return total, (count, model_state)

    def gradient(state: TrainState, data: Any, rows: Any, row: jax.Array, key: jax.Array) -> Any:
        batch = Batch(data, jax.tree.map(lambda r: r[row], rows))
        step_key = jax.random.fold_in(key, state.step)
        gradient = jax.value_and_grad(total, has_aux=True)
        (value, (count, model_state)), grads = gradient(
            state.params, state.model_state, batch, step_key
        )
        value, count, grads = jax.lax.psum((value, count, grads), AXIS)
        grads = jax.tree.map(lambda g: g / count.astype(g.dtype), grads)
        finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((value, grads))]
        return grads, model_state, value, count, jnp.all(jnp.stack(finite))

    def update(state: TrainState, grads: Any, model_state: Any) -> TrainState:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, model_state)

    def leave_out(state: TrainState, grads: Any, model_state: Any, finite: jax.Array) -> TrainState:
        new = update(state, grads, model_state)
        new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
        return new._replace(step=state.step + 1)

    gradients = placement.each_seed(gradient, (0, None, 0, None, 0))
    updates = placement.each_seed(update, (0, 0, 0))
    some_updates = placement.each_seed(leave_out, (0, 0, 0, 0))

    def run(state, data, rows, first, stop, key, going, vote):
        seeds = state.step.shape[0]

        def body(carried):
            row, state, totals, counts, _ = carried
            grads, model_state, total, count, finite = gradients(state, data, rows, row, key)
            stopping = jnp.zeros((), bool)
            if not skip_not_finite:
                stopping = jnp.any(~finite & going)
                if placement.spread:
                    stopping = jax.lax.pmax(stopping.astype(jnp.int32), SEEDS) > 0
            total = jnp.where(finite, total, jnp.where(stopping & going, jnp.nan, 0))
            count = jnp.where(finite, count, 0)
            state = jax.lax.switch(
                jnp.where(stopping, 2, jnp.where(jnp.all(finite), 0, 1)),
                [
                    lambda state, grads, model_state, finite: updates(state, grads, model_state),
                    some_updates,
                    lambda state, grads, model_state, finite: state,
                ],
                *(state, grads, model_state, finite),
            )
            at = row - first
            totals, counts = totals.at[at].set(total), counts.at[at].set(count)
            return row + 1, state, totals, counts, stopping

        def more(carried):
            return (carried[0] < stop) & ~carried[-1]

        zeros = jnp.zeros((steps_per_call, seeds), jnp.float32)
        start = (jnp.asarray(first, jnp.int32), state, zeros, zeros, jnp.zeros((), bool))
        _, state, totals, counts, _ = jax.lax.while_loop(more, body, start)
        return state, totals, counts, jax.lax.pmax(vote, placement.axis)

    axes = (0, 0, 0, None, None, 0, 0, None)
    return jax.pmap(run, axis_name=placement.axis, in_axes=axes, donate_argnums=(0,))


def form(tree: Any) -> Any:
    """Types and shapes of arrays, for messages."""
    return jax.tree.map(lambda x: f"{jnp.result_type(x).name}{list(jnp.shape(x))}", tree)


def checked(found: Any, model_state: Any) -> tuple[Sums, Any]:
    """Returns what a loss returned, after checking its form ((total, count), model_state).

    Raises:
      TypeError: it has another form; the sums are not scalars; or the model state has another
        structure, or arrays of other shapes or types, than before the step.
    """
    try:
        (total, count), new = found
        scalars = jnp.shape(total) == jnp.shape(count) == ()
    except (TypeError, ValueError):
        scalars = False
    if not scalars:
        raise TypeError(
            f"a loss must return ((total, count), model_state) with scalars total and count, got "
            f"{form(found)}"
        )
    if form(new) != form(model_state):
        raise TypeError(
            f"a loss must return a model_state like the one it was given, {form(model_state)}, got "
            f"{form(new)}"
        )
    return (total, jnp.asarray(count)), new


def each_state(change: Callable[..., TrainState], placement: Placement) -> Callable:
    """Compiles `change(state, metrics, key) -> state` of one seed for all seeds, all placed."""
    run = placement.each_seed(change, (0, 0, 0))
    return jax.pmap(run, axis_name=placement.axis, donate_argnums=(0,))


def evaluation_sums(loss: EvaluationLoss, placement: Placement) -> Callable:
    """Compiles the sums of a loss over the examples of each row.

    Args:
      loss: `loss(params, model_state, batch) -> (total, count)`, over one device's part of a batch;
        the total may be a tree.
      placement: placement of the seeds.

    Returns:
      `run(params, model_state, data, rows) -> (totals, counts)`, one number per seed and row.
      `params` and `model_state` are placed, `data` is replicated, `rows` are placed as shared rows.
    """

    def all_rows(params, model_state, data, rows):
        def row(indices):
            return jax.lax.psum(loss(params, model_state, Batch(data, indices)), AXIS)

        return jax.lax.map(row, rows)

    run = placement.each_seed(all_rows, (0, 0, None, None))
    return jax.pmap(run, axis_name=placement.axis)


def calibrated(sums: EvaluationLoss, placement: Placement) -> Callable:
    """Compiles an estimate of the model state from rows of examples.

    Args:
      sums: `sums(params, model_state, batch) -> (tree, count)`, where `tree` is a dict, over one
        device's part of a batch.
      placement: placement of the seeds.

    Returns:
      `run(params, model_state, data, rows) -> model_state`, with the entries Σ tree / Σ count over
      all rows. The arguments are placed as in `evaluation_sums`.
    """

    def estimate(params, model_state, data, rows):
        def row(indices):
            return jax.lax.psum(sums(params, model_state, Batch(data, indices)), AXIS)

        def add(found, indices):
            return jax.tree.map(jnp.add, found, row(indices)), None

        first = row(jax.tree.map(lambda r: r[0], rows))
        rest = jax.tree.map(lambda r: r[1:], rows)
        (total, count), _ = jax.lax.scan(add, first, rest)
        return model_state | jax.tree.map(lambda x: x / count.astype(x.dtype), total)

    run = placement.each_seed(estimate, (0, 0, None, None))
    return jax.pmap(run, axis_name=placement.axis)
