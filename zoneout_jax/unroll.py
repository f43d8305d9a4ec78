"""Recurrent cells over time."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from zoneout_jax.cells import Carry, Cell, Params, check_choice
from zoneout_jax.fused import Constants, How, Inputs, Weights, scan, scan_fused
from zoneout_jax.normalization import Stats
from zoneout_jax.zoneout import Masks, Zoneout

Lengths = ArrayLike | Sequence[int]
"""Lengths of sequences, integers `[B]`."""

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
    carry_noise: float = 0.0,
    seq_lengths: Lengths | None = None,
    reverse: bool = False,
    emit: Callable[[Carry, jax.Array], Emitted] | None = None,
    chunk: int | None = None,
    unroll: int = 1,
    implementation: Literal["fused", "scan"] = "fused",
    axis_name: str | None = None,
) -> tuple[Carry, Emitted]:
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
      masks: masks to use instead of sampled ones, each a scalar or of the axes
        `[T or 1, B or 1, H or 1]`.
      stats: population statistics of a batch-normalized cell, needed in evaluation. Training uses
        those of the batch. No gradient goes through population statistics.
      carry_noise: standard deviation of Gaussian noise on the cell's initial c and h, in training
        (recurrent batch normalization: inputs that all examples share leave no variance otherwise).
      seq_lengths: integers `[B]`. From a sequence's end on the carry stands still, and the outputs
        are zero. Traced lengths above T count as T.
      reverse: from the last element to the first. The outputs keep the order of the inputs, and
        padding stays where it is.
      emit: `emit(carry, output)`, what to return of each step instead of the output: arrays
        `[B, ...]` of the carry after it. `lambda carry, y: (y, carry[0])` adds the memory cells.
        Scalars are the whole batch's: padding does not make them zero.
      chunk: steps in a chunk; of each chunk only the carry is kept for the backward pass, the rest
        computed anew. None keeps everything.
      unroll: steps in one iteration of the compiled loop.
      implementation: "fused" makes each weight gradient in a single product; "scan" leaves
        derivatives to JAX, forward mode and higher orders included.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) over which the batch is spread, if
        it is: masks and batch statistics are then those of the whole batch on a single device.

    Returns:
      The carry after the last step, and the outputs `[T, B, H]`. In training, a batch-normalized
      cell returns the statistics of the batch as a third, for `update_stats`; type checkers cannot
      tell such a cell from others, and expect two values.

    Raises:
      ValueError: inputs, carry, masks, lengths or what `emit` returns, if their shapes do not fit;
        rates or masks that the cell has no use for; training without a key; evaluation without
        statistics.
      TypeError: a rate that is a schedule; a `key` that is not a random key.

    Example:
      >>> cell = lstm(3, 4)
      >>> params = cell.init(jax.random.key(0))
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> xs = jnp.ones((7, 2, 3))
      >>> carry, ys = unroll(cell, params, xs, zoneout=spec, key=jax.random.key(1))
      >>> ys.shape
      (7, 2, 4)
    """
    xs = jnp.asarray(xs)
    if xs.ndim != 3 or xs.shape[-1] != cell.in_features:
        raise ValueError(f"xs must be [T, B, {cell.in_features}] (time first), got {xs.shape}")
    for name, size in (("chunk", chunk), ("unroll", unroll)):
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    if carry_noise < 0:
        raise ValueError(f"carry_noise must be at least 0, got {carry_noise}")
    check_choice("implementation", implementation, ("fused", "scan"))
    if masks is not None and zoneout is not None:
        raise ValueError("masks are either injected or drawn: pass masks= or zoneout=, not both")
    if cell.init_stats is None and stats is not None:
        raise ValueError("stats are for batch-normalized cells only")
    if cell.init_stats is not None and deterministic and stats is None:
        raise ValueError("a batch-normalized cell in evaluation needs its population stats")
    steps, batch = xs.shape[:2]

    def offset() -> jax.Array | int:
        return 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch

    if carry is None:
        carry = cell.initial_carry(params, batch)
        if carry_noise and not deterministic:
            carry = _add_noise(carry, carry_noise, _required(key, "noise"), offset())
    _check_carry(cell, params, carry, batch)
    if masks is None:
        masks = _draw(cell, zoneout, key, deterministic, steps, batch, offset)
    constant, varying = _split_masks(masks, cell, (steps, batch, cell.hidden_features))
    valid = None
    if seq_lengths is not None:
        seq_lengths = _check_lengths(seq_lengths, steps, batch)
        valid = (jnp.arange(steps)[:, None] < seq_lengths)[..., None]
        xs = jnp.where(valid, xs, 0)  # what padding holds, even nan, must not reach any gradient
    # Statistics belong to the number of a step, which must not depend on the padding before it.
    flipped = seq_lengths if cell.init_stats is not None and reverse else None
    if flipped is not None:
        xs, varying = _flip((xs, varying), flipped)

    fused = implementation == "fused"
    how = How(
        cell,
        reverse and flipped is None,
        unroll,
        emit_carry=emit is not None,
        axis_name=axis_name,
        transposed=fused and _is_better_transposed(cell, batch),
    )
    run = functools.partial(
        _run,
        how,
        scan_fused if fused else scan,
        emit,
        own_input=fused and _multiplies_own_input(cell),
    )
    constants = Constants(constant, stats if deterministic else None)
    params, carry, constants, inputs = _vary_alike((params, carry, constants, (xs, varying, valid)))
    if chunk is None or chunk >= steps:
        carry, (ys, found) = run(params, constants, carry, inputs)
    else:
        run = functools.partial(jax.checkpoint(run), params, constants)
        carry, (ys, found) = _run_chunks(run, carry, inputs, steps, chunk, how.reverse)
    if flipped is not None:
        ys = _flip(ys, flipped)
    results: Any = (carry, ys) if found is None else (carry, ys, found)
    return results


def _run(how, scan, emit, params, constants, carry, inputs, own_input):
    """Runs the cell over inputs (xs, masks, valid), in the form that `how` asks for."""
    cell, (xs, masks, valid) = how.cell, inputs
    own = None
    if own_input:
        own = params["input"], params["bias"]
        xs = xs.astype(cell.hidden(carry).dtype)  # each step joins the two
    else:
        xs = cell.project(params, xs)
    weights, inputs = (
        Weights(cell.kernels(params), cell.gains(params), own),
        Inputs(xs, masks, valid),
    )
    if how.transposed:
        gains = jax.tree.map(lambda gain: gain[:, None], weights.gains)
        weights = weights._replace(gains=gains)
        constants = constants._replace(masks=_transpose(constants.masks))
        carry, inputs = _transpose((carry, inputs))
    carry, (ys, found) = scan(how, weights, carry, inputs, constants)
    if how.transposed:
        carry, ys = _transpose((carry, ys))
    if emit is not None:
        ys = jax.vmap(emit)(*ys)
        if valid is not None:
            ys = jax.tree.map(lambda y: _without_padding(y, valid), ys)
    return carry, (ys, found)


def _without_padding(y: jax.Array, valid: jax.Array) -> jax.Array:
    """What `emit` returned of each step, with zeros in place of padding."""
    if y.ndim == 1:
        return y  # it is the whole batch's
    if y.shape[:2] != valid.shape[:2]:
        raise ValueError(
            f"with seq_lengths, emit must return arrays [{valid.shape[1]}, ...], one row an"
            f" example, or scalars; got {y.shape[1:]}"
        )
    valid = valid.reshape(valid.shape[:2] + (1,) * (y.ndim - 2))
    return jnp.where(valid, y, jnp.zeros_like(y))


def _is_better_transposed(cell: Cell, batch: int) -> bool:
    """Whether arrays of a step should be `[features, B]`.

    On a CPU a large kernel takes some two thirds of the time from the left of a product, if the
    batch fills its vector registers; with small kernels, or a batch that does not, it is slower.
    docs/performance.md has the measurements.
    """
    large = cell.hidden_features >= 512 and batch % 16 == 0
    return _on_cpu() and cell.additive > 0 and large


def _multiplies_own_input(cell: Cell) -> bool:
    """Whether each step should multiply its input too, as further rows of the recurrent kernel.

    On a CPU that saves memory, the product of all inputs at once, `[T, B, kH]`, at about the same
    time; with more inputs it takes longer.
    """
    small = 4 * cell.in_features <= cell.hidden_features
    return _on_cpu() and cell.additive == cell.gates and small


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _vary_alike(tree: Any) -> Any:
    """Marks all arrays as varying over the mapped axes that any of them varies over.

    `shard_map` keeps account of that, and wants it the same throughout a scan and its gradients.
    """
    everything = frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))

    def vary(leaf):
        missing = tuple(everything - _varying_axes(leaf))
        if not missing:
            return leaf
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        return jax.lax.pvary(leaf, missing)  # type: ignore[attr-defined] # older JAX, as 0.7.0

    return jax.tree.map(vary, tree) if everything else tree


def _varying_axes(leaf: jax.Array) -> frozenset[str]:
    kind = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())  # older JAX, as 0.7.0


def _transpose(tree: Any) -> Any:
    """Swaps the last two axes of what is no scalar."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, -1, -2) if a.ndim else a, tree)


def _flip(tree: Any, lengths: jax.Array) -> Any:
    """Reverses each example of arrays `[T, B, ...]` within its length, and arrays `[T]` whole."""

    def flip(array):
        if array.ndim == 1:
            return array[::-1]
        time = jnp.arange(array.shape[0])[:, None]
        source = jnp.where(time < lengths, lengths - 1 - time, time)
        source = source.reshape(source.shape + (1,) * (array.ndim - 2))
        array = jnp.broadcast_to(array, (array.shape[0], len(lengths), *array.shape[2:]))
        return jnp.take_along_axis(array, source, 0)

    return jax.tree.map(flip, tree)


def _run_chunks(run, carry, inputs, steps, chunk, reverse):
    """Runs whole chunks in a scan, and what is left over after them in time on its own."""
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


def _draw(
    cell: Cell,
    zoneout: Zoneout | None,
    key: jax.Array | None,
    deterministic: bool,
    steps: int,
    batch: int,
    offset: Callable[[], jax.Array | int],
) -> Masks:
    """Masks of the sequence: none, expected, or sampled."""
    if zoneout is not None and not isinstance(zoneout, Zoneout):
        raise TypeError(
            f"zoneout must be a Zoneout, got {zoneout!r}; for instance Zoneout(cells=0.5)"
        )
    if zoneout is None or not zoneout.active:
        return Masks()
    for name, rate in zoneout.rates.items():
        if callable(rate):
            raise TypeError(f"rate of {name} is a schedule of the step; pass zoneout=spec.at(step)")
        if rate is not None and jnp.ndim(rate):
            raise ValueError(f"rate of {name} must be a single number, got {jnp.shape(rate)}")
    zoneout = zoneout.without_zeros()
    if deterministic:
        return zoneout.expected()
    key = _required(key, "zoneout")
    return zoneout.sample(key, steps, batch, cell.hidden_features, offset())


def _required(key: jax.Array | None, what: str) -> jax.Array:
    if key is None:
        raise ValueError(f"{what} in training needs a random key; pass key=, or deterministic=True")
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key must be a random key, such as jax.random.key(0); got {key!r}")
    return key


def _split_masks(
    masks: Masks, cell: Cell, shape: tuple[int, int, int]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Masks of each step that serve every step, and those with a leading axis T."""
    constant, varying = {}, {}
    for name, mask in cell.known_masks(masks).items():
        mask = jnp.asarray(mask)
        fits = all(m in (1, n) for m, n in zip(mask.shape, shape, strict=False))
        if mask.ndim not in (0, 3) or not fits:
            axes = ", ".join(f"{size} or 1" for size in shape)
            raise ValueError(
                f"mask of {name} must have the axes [{axes}] (time first) or be a scalar,"
                f" got {mask.shape}"
            )
        if mask.ndim == 3 and mask.shape[0] == shape[0]:
            varying[name] = mask
        else:
            constant[name] = mask[0] if mask.ndim else mask
    return constant, varying


def _check_lengths(seq_lengths: Lengths, steps: int, batch: int) -> jax.Array:
    """The lengths as an array; those that are not known yet are cut off at T."""
    if not isinstance(seq_lengths, jax.Array):
        seq_lengths = np.asarray(seq_lengths)
    if seq_lengths.shape != (batch,):
        raise ValueError(f"seq_lengths must be [{batch}], got {seq_lengths.shape}")
    if not isinstance(seq_lengths, jax.core.Tracer):
        lengths = np.asarray(seq_lengths)
        if lengths.min(initial=0) < 0 or lengths.max(initial=0) > steps:
            raise ValueError(f"seq_lengths must be in [0, {steps}], got {lengths.tolist()}")
    return clip_lengths(seq_lengths, steps)


def clip_lengths(seq_lengths: Lengths, steps: int) -> jax.Array:
    """Lengths of any integer type as integers in [0, T]."""
    seq_lengths = jnp.asarray(seq_lengths)
    if not jnp.issubdtype(seq_lengths.dtype, jnp.integer):
        raise TypeError(f"seq_lengths must be integers, got {seq_lengths.dtype}")
    # In a narrow type T itself may be too large, and would wrap.
    most = min(steps, jnp.iinfo(seq_lengths.dtype).max)
    return jnp.clip(seq_lengths, 0, most).astype(int)


def _add_noise(carry: Carry, scale: float, key: jax.Array, offset: jax.Array | int) -> Carry:
    """Adds Gaussian noise to c and h; each example has its own key."""
    leaves, structure = jax.tree.flatten(carry)
    # What may come after them, the number of the step and an output gate, is no state.
    for number, leaf in enumerate(leaves[:2]):
        stream = jax.random.fold_in(key, 2**31 + number)  # apart from any example's masks
        examples = offset + jnp.arange(leaf.shape[0], dtype=jnp.int32)

        def draw(example, stream=stream, leaf=leaf):
            return jax.random.normal(
                jax.random.fold_in(stream, example), leaf.shape[1:], leaf.dtype
            )

        # Not `vmap`: it draws from the first key alone if keys are not those of threefry.
        leaves[number] = leaf + scale * jax.lax.map(draw, examples)
    return jax.tree.unflatten(structure, leaves)


def _check_carry(cell: Cell, params: Params, carry: Carry, batch: int) -> None:
    """Raises ValueError unless the carry has the structure, shapes and types of the cell's own."""

    def describe(tree):
        return jax.tree.map(lambda a: (jnp.shape(a), np.dtype(a.dtype).name), tree)

    wanted = describe(jax.eval_shape(lambda p: cell.initial_carry(p, batch), params))
    given = describe(carry)
    if given != wanted:
        raise ValueError(f"carry must have the shapes and types {wanted}, got {given}")
