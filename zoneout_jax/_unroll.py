"""Recurrent cells over time."""

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zoneout_jax._associative import scan_associative
from zoneout_jax._cell import Carry, Cell, Params, check_cell
from zoneout_jax._checks import check_choice, check_stats, checked_carry
from zoneout_jax._draw import add_noise, draw_masks, required, split_masks
from zoneout_jax._fused import Constants, How, Inputs, scan, scan_fused
from zoneout_jax._lengths import Lengths, check_lengths, first_steps, flip, without_padding
from zoneout_jax._linear import LinearCell
from zoneout_jax._normalization import AxisName, Stats
from zoneout_jax._sharding import (
    batch_offset,
    check_spread,
    for_each_example,
    spread_as,
    vary_alike,
)
from zoneout_jax._zoneout import Masks, Zoneout

Implementation = Literal["fused", "scan", "associative"]
"""How a cell runs over time."""

Chunk = int | Literal["auto"] | None
"""Number of steps in a chunk."""

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Emitted = TypeVar("Emitted", default=jax.Array)
else:  # `typing.TypeVar` has no default before Python 3.13.
    Emitted = Any


def unroll(
    cell: Cell,
    params: Params,
    xs: ArrayLike,
    carry: Carry | None = None,
    *,
    zoneout: Zoneout | None = None,
    key: jax.Array | None = None,
    deterministic: bool = False,
    masks: Masks | None = None,
    stats: Stats | None = None,
    first_step: ArrayLike = 0,
    carry_noise: float = 0.0,
    seq_lengths: Lengths | None = None,
    resets: ArrayLike | None = None,
    reverse: bool = False,
    emit: Callable[[Carry, jax.Array], Emitted] | None = None,
    chunk: Chunk = None,
    unroll: int = 1,
    implementation: Implementation | None = None,
    axis_name: AxisName | None = None,
) -> tuple[Carry, Emitted]:
    """Runs a cell over a batch of sequences.

    Training (`deterministic=False`) samples the masks of `zoneout` from `key`; evaluation
    (`deterministic=True`) uses their expectations. Masks given as `masks` are used unchanged.

    Args:
      cell: a `Cell`, for instance `LSTM(in_features, hidden_features)`.
      params: parameters of the cell.
      xs: inputs `[T, B, F]`.
      carry: carry before the first step; the cell's initial carry if None.
      zoneout: rates and kinds of the masks; None for no masks.
      key: random key for masks and noise, needed in training if there are any.
      deterministic: True in evaluation.
      masks: masks to use instead of sampled ones, each a scalar or with the axes
        `[T or 1, B or 1, H or 1]`.
      stats: population statistics of a batch-normalized cell, needed in evaluation; they get no
        gradient. Training uses the statistics of the batch.
      first_step: number of the first step, for the statistics, if the sequence continues another.
      carry_noise: standard deviation of Gaussian noise on the cell's initial c and h, in training.
        Recurrent batch normalization needs the noise where all examples have the same input, which
        leaves no variance. A `carry` that you pass gets no noise.
      seq_lengths: integers `[B]`. After the end of a sequence, the carry does not change and the
        outputs are zero. Lengths above T count as T where they, or T, are not known.
      resets: booleans `[T, B]`, True for the first step of each episode. Before that step the carry
        is set to the cell's initial carry, with noise if `carry_noise` asks for it. A `carry` that
        you pass is used up to the first reset. With `reverse`, True still marks the first element
        of an episode, which the run reaches last; the carry is reset after that element, so no
        state passes between episodes, and the first row has no effect. Resets in padding have no
        effect.
      reverse: run from the last element to the first. Outputs keep the order of the inputs, and
        padding stays where it is.
      emit: function of each step, whose result `emit(carry, output)` replaces the output; `carry`
        is the carry after the step. It returns arrays `[B, ...]`, or scalars for the whole batch,
        which padding does not set to zero. `lambda carry, y: (y, carry[0])` adds the memory cells
        of an LSTM.
      chunk: number of steps in a chunk. Only the carry of each chunk is stored for the backward
        pass, which computes the rest again. "auto" is about √T, so that memory grows with √T
        instead of T: the largest divisor of T from √T down to √T/2, or √T rounded down. None stores
        everything.
      unroll: steps in one iteration of the compiled loop; no effect on an associative scan.
      implementation: "fused" computes each weight gradient in a single product. "scan" leaves
        derivatives to JAX, including forward mode and higher orders. "associative" runs all steps
        of a `LinearCell`, or of each chunk, at once. None takes "associative" for linear cells
        ("scan" where T is a symbolic size) and "fused" for others. Where a step is not one product
        and `update`, "fused" means "scan".
      axis_name: name or names of the mapped axis (`pmap`, `shard_map`) that the batch is spread
        over, if any. Masks and batch statistics are then the same as for the whole batch on a
        single device.

    Returns:
      The carry after the last step, and the outputs `[T, B, H]`. In training, a batch-normalized
      cell also returns the statistics of the batch, for `update_stats`; type checkers cannot
      recognize such a cell, and expect two values.

    Raises:
      ValueError: inputs, carry, masks, lengths, resets or results of `emit` whose shapes do not
        fit; rates or masks that the cell does not use; training without a key; evaluation without
        statistics; resets of a batch-normalized cell, whose statistics belong to step numbers; an
        array of keys.
      TypeError: a `cell` that is not a `Cell`; parameters that are not a dict; masks that are not
        `Masks`; a rate that is a schedule; a `key` that is not a random key; lengths that are not
        integers; resets that are not booleans.

    Example:
      >>> cell = LSTM(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> xs = jnp.ones((7, 2, 3))
      >>> carry, ys = unroll(cell, params, xs, zoneout=spec, key=jax.random.key(1))
      >>> ys.shape
      (7, 2, 4)
    """
    check_cell(cell)
    xs = jnp.asarray(xs)
    if xs.ndim != 3 or xs.shape[-1] != cell.input_width:
        raise ValueError(f"xs must be [T, B, {cell.input_width}] (time first), got {xs.shape}")
    chunk = _checked_chunk(chunk, xs.shape[0])
    if unroll < 1:
        raise ValueError(f"unroll must be at least 1, got {unroll}")
    if carry_noise < 0:
        raise ValueError(f"carry_noise must be at least 0, got {carry_noise}")
    implementation = _checked_implementation(implementation, cell, xs.shape[0])
    if masks is not None and zoneout is not None:
        raise ValueError("masks are either injected or drawn: pass masks= or zoneout=, not both")
    check_stats(cell, stats)
    if cell.statistics and deterministic and stats is None:
        raise ValueError("a batch-normalized cell in evaluation needs its population stats")
    if cell.statistics and resets is not None:
        raise ValueError(
            "resets are not for batch-normalized cells: their statistics belong to step numbers,"
            " and examples would be at different steps of their episodes"
        )
    cell.check_params(params)
    steps, batch = xs.shape[:2]
    # Gradients then have the types of the parameters.
    params = {name: jnp.asarray(p).astype(cell.param_dtype) for name, p in params.items()}

    def offset() -> jax.Array | int:
        return batch_offset(axis_name, batch)

    if axis_name is not None and cell.statistics and not deterministic:
        offset()  # raises where the axis is not mapped
    draws = masks is None and isinstance(zoneout, Zoneout) and zoneout.active
    if key is not None and not deterministic and (draws or carry_noise):
        check_spread(xs, key, axis_name)
    start = None
    if carry is None or resets is not None:
        start = for_each_example(xs, cell.initial_carry(params, 1))
        if carry_noise and not deterministic:
            start = add_noise(cell, start, carry_noise, required(key, "noise"), offset())
    carry = checked_carry(start if carry is None else carry, cell.carry_shapes(params, (batch,)))
    carry, start = spread_as(xs, 1, (carry, start if resets is not None else None), 0)
    if masks is None:
        masks = draw_masks(cell, zoneout, key, deterministic, steps, batch, offset)
    masks = spread_as(xs, 1, masks, 1)
    constant, varying = split_masks(masks, cell, (steps, batch))
    valid = None
    if seq_lengths is not None:
        seq_lengths = check_lengths(seq_lengths, steps, batch)
        valid = (jnp.arange(steps)[:, None] < seq_lengths[None])[..., None]
        xs = jnp.where(valid, xs, 0)  # values in padding, even nan, must not reach any gradient
    starts = None
    if resets is not None:
        starts = spread_as(xs, 1, first_steps(resets, valid, (steps, batch), reverse), 1)
    number: Any = None
    if cell.statistics:
        number = first_step + jnp.arange(steps)
        number = number[::-1] if reverse else number
    # Statistics belong to the number of a step, which must not depend on the padding before it.
    flipped = seq_lengths if cell.statistics and reverse else None
    if flipped is not None:
        xs, varying, number = flip((xs, varying, number), flipped)

    fused = implementation == "fused" and cell.one_product
    how = How(
        cell,
        reverse and flipped is None,
        unroll,
        emit_carry=emit is not None,
        axis_name=tuple(axis_name) if isinstance(axis_name, list) else axis_name,
        transposed=fused and _is_better_transposed(cell, batch),
        own_input=fused and _multiplies_own_input(cell),
    )
    runner = scan_associative if implementation == "associative" else scan
    run = functools.partial(_run, emit, how, scan_fused if fused else runner)
    constants = Constants(constant, stats if deterministic else None, start)
    inputs: Any = Inputs(jnp.asarray(xs), varying, valid, starts, number)
    params, carry, constants, inputs = vary_alike((params, carry, constants, inputs))
    if chunk is None or chunk >= steps:
        carry, (ys, found) = run(params, constants, carry, inputs)
    else:
        run = functools.partial(jax.checkpoint(run), params, constants)
        carry, (ys, found) = _run_chunks(run, carry, inputs, steps, chunk, how.reverse)
    if flipped is not None:
        ys = flip(ys, flipped)
    results: Any = (carry, ys) if found is None else (carry, ys, found)
    return results


def _checked_implementation(
    implementation: Implementation | None, cell: Cell, steps: Any
) -> Implementation:
    """Returns the implementation, by default the cell's; ValueError if it does not fit."""
    check_choice("implementation", implementation, ("fused", "scan", "associative", None))
    linear, known = isinstance(cell, LinearCell), isinstance(steps, int)
    if implementation is None:
        return ("associative" if known else "scan") if linear else "fused"
    if implementation == "associative" and not linear:
        raise ValueError(
            f'implementation="associative" is for linear cells, got {type(cell).__name__}; leave it'
            " out"
        )
    if implementation == "associative" and not known:
        raise ValueError(
            'implementation="associative" needs a known number of steps, and T is symbolic; pass'
            ' "scan"'
        )
    return implementation


def _checked_chunk(chunk: Chunk, steps: Any) -> int | None:
    """Returns the number of steps in a chunk; ValueError where chunks are impossible."""
    if chunk is None:
        return None
    if not (chunk == "auto" or isinstance(chunk, int | np.integer) and chunk >= 1):
        raise ValueError(f'chunk must be at least 1, "auto" or None; got {chunk!r}')
    if not isinstance(steps, int):
        raise ValueError("chunk needs a known number of steps, and T is symbolic; leave it out")
    if chunk != "auto":
        return int(chunk)
    root = max(math.isqrt(steps), 1)
    # Prefer a divisor of T: steps after the last whole chunk are compiled and stored separately.
    return next((k for k in range(root, root // 2, -1) if steps % k == 0), root)


def _run(emit, how, scan, params, constants, carry, inputs):
    """Runs the cell over inputs, and applies `emit` to all steps."""
    run = _run_compiled if _is_known(how.cell) else _run_cell
    carry, (ys, found) = run(how, scan, params, constants, carry, inputs)
    if emit is not None:
        batch = ys[1].shape[1]
        ys = jax.vmap(emit)(*ys)
        for leaf in jax.tree.leaves(ys):
            if leaf.ndim > 1 and leaf.shape[1] != batch:
                raise ValueError(
                    f"emit must return arrays [{batch}, ...], one row for each example, or scalars;"
                    f" got {leaf.shape[1:]}"
                )
        if inputs.valid is not None:
            ys = jax.tree.map(lambda y: without_padding(y, inputs.valid), ys)
    return carry, (ys, found)


def _is_known(cell: Cell) -> bool:
    """True if equal cells compute the same: not so for a user's classes and functions."""
    functions = (*cell.gates, getattr(cell, "activation_fn", None))
    return type(cell).__module__.startswith("zoneout_jax.") and not any(map(callable, functions))


def _run_cell(how, scan, params, constants, carry, inputs):
    """Runs the cell over inputs, in the layout that `how` asks for."""
    cell = how.cell
    if how.own_input:
        xs = inputs.xs.astype(cell.param_dtype)  # each step multiplies its own input
    else:
        xs = cell.project(params, inputs.xs)
    inputs = inputs._replace(xs=xs)
    if how.transposed:
        constants = constants._replace(
            masks=how.turned(constants.masks), start=how.turned(constants.start)
        )
        carry = how.turned(carry)
        inputs = how.turned(inputs._replace(number=None))
    carry, (ys, found) = scan(how, params, carry, inputs, constants)
    carry, ys = how.turned((carry, ys))
    return carry, (ys, found)


# Where `unroll` is called outside of `jit`, each call would compile its own loop without this.
_run_compiled = jax.jit(_run_cell, static_argnums=(0, 1))


def _is_better_transposed(cell: Cell, batch: int) -> bool:
    """True if arrays of a step should be `[features, B]`.

    On a CPU, a product with a large kernel on its left takes about two thirds of the time if the
    batch fills the vector registers. With a small kernel, or another batch size, it is slower.
    docs/performance.md has the measurements.
    """
    known = isinstance(batch, int)  # it may be symbolic, for `jax.export`
    large = cell.hidden_features >= 512 and known and batch % 16 == 0
    return _on_cpu() and cell.elementwise and large


def _multiplies_own_input(cell: Cell) -> bool:
    """True if each step should multiply its own input, instead of one product of all inputs.

    On a CPU, this avoids storing and reading the product of all inputs, `[T, B, kH]`. Each step
    must read the input kernel, which takes longer if the kernel is large.
    """
    wide = len(cell.gates) * cell.hidden_features
    small = cell.in_features <= cell.hidden_features and cell.in_features * wide <= 2**19
    narrow = 4 * cell.in_features <= cell.hidden_features
    return _on_cpu() and cell.plain_projection and (small or narrow)


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _run_chunks(run, carry, inputs, steps, chunk, reverse):
    """Runs whole chunks in a scan, and the elements after the last whole chunk separately."""
    whole = steps - steps % chunk
    chunks = jax.tree.map(lambda a: a[:whole].reshape(whole // chunk, chunk, *a.shape[1:]), inputs)
    rest = jax.tree.map(lambda a: a[whole:], inputs)

    def run_rest(carry):
        return run(carry, rest) if whole < steps else (carry, None)

    if reverse:
        carry, last = run_rest(carry)
    carry, first = jax.lax.scan(run, carry, chunks, reverse=reverse)
    if not reverse:
        carry, last = run_rest(carry)
    first = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), first)
    if last is None:
        return carry, first
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)
