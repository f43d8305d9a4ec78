"""Functions that the Linen and NNX cells share: settings, modes, batch dimensions, carries."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.errors import InvalidRngError

from zoneout_jax._cell import Carry, Cell, Params, check_cell
from zoneout_jax._checks import checked_carry
from zoneout_jax._draw import draw_masks
from zoneout_jax._initializers import Initializer
from zoneout_jax._lengths import Lengths
from zoneout_jax._normalization import BatchNormalizer, Stats, update_stats
from zoneout_jax._sharding import batch_offset, check_spread, spread_as
from zoneout_jax._unroll import unroll
from zoneout_jax._zoneout import Zoneout


def make_cell(kind: type[Cell], module: Any, in_features: int, hidden_features: int) -> Cell:
    """Makes the pure cell, with settings from the module's attributes of the same names."""
    names = [field.name for field in dataclasses.fields(kind)]
    offered = [name for name in names if not name.endswith("_features") and hasattr(module, name)]
    options = {name: getattr(module, name) for name in offered}
    return kind(in_features, hidden_features, **options)


def check_pure(cell: Any) -> None:
    """Raises TypeError unless a module can be made of a cell."""
    check_cell(cell)
    if type(cell).init is not Cell.init:
        raise TypeError(
            f"{type(cell).__name__} overrides init, but modules make parameters one by one, from"
            " `parameters`; override that instead"
        )


def check_carry_init(module: Any, learned: bool) -> None:
    """Raises ValueError for two kinds of initial carry at once."""
    if module.carry_init is not None and learned:
        raise ValueError(
            "carry_init is for carries that are not learned; leave carry_init or learned_carry out"
        )
    if module.carry_init is not None and module.carry_noise:
        raise ValueError("carry_noise is for carries of zeros or learned ones, not for carry_init")


@dataclasses.dataclass(frozen=True)
class Mode:
    """The mode of a call to a module.

    Attributes:
      zoneout: the spec.
      deterministic: True if nothing is drawn.
      draws: True if a key is needed.
    """

    zoneout: Zoneout
    deterministic: bool
    draws: bool

    @classmethod
    def of(
        cls,
        module: Any,
        cell: Cell,
        zoneout: Zoneout | None,
        deterministic: bool | None,
        initializing: bool = False,
    ) -> "Mode":
        """Returns the mode of a call; its arguments override the module's attributes."""
        zoneout = module.zoneout if zoneout is None else zoneout
        deterministic = module.deterministic if deterministic is None else deterministic
        check_spec(zoneout)
        if initializing:
            zoneout = Zoneout()
        draws = zoneout.active or bool(module.carry_noise)
        if initializing or not (draws or cell.statistics):
            deterministic = True
        deterministic = check_deterministic(module, deterministic)
        return cls(zoneout, deterministic, draws and not deterministic)


def linen_key(module: linen.Module) -> jax.Array:
    """Returns the next key of a module's stream for masks."""
    # If the stream is missing, Flax would silently use "params" where that one exists.
    if not module.has_rng("zoneout"):
        raise InvalidRngError(
            'zoneout in training needs the random stream "zoneout": pass'
            ' rngs={"zoneout": key} to apply; under nn.RNN also'
            ' split_rngs={"params": False, "zoneout": True}'
        )
    return module.make_rng("zoneout")


def check_deterministic(module: Any, deterministic: bool | None) -> bool:
    """Returns `deterministic`; ValueError if it is None."""
    if deterministic is None:
        raise ValueError(
            f"{type(module).__name__}: deterministic must be given where masks, noise or batch"
            " statistics depend on it: False in training (masks are sampled), True in"
            " evaluation (masks are their expectations)"
        )
    return deterministic


def run_step(
    module: Any,
    cell: Cell,
    mode: Mode,
    params: Params,
    stats: Stats | None,
    carry: Carry,
    x: jax.Array,
    draw_key: Callable[[], jax.Array],
) -> tuple[Carry, jax.Array, Stats | None]:
    """Runs `cell.step` for inputs `[*batch, F]` with the settings of a cell's module.

    Returns:
      The carry, the output, and in training the updated population statistics, if there are any.
    """
    name, batch_dims = type(module).__name__, x.shape[:-1]
    if not mode.deterministic:
        spec = mode.zoneout.without_zeros()
        of_a_sequence = {
            "static masks": spec.static,
            "hidden_drop": spec.hidden_drop is not None,
            "carry_noise": module.carry_noise,
        }
        for what, given in of_a_sequence.items():
            if given:
                raise ValueError(
                    f"{name}: a single step of training cannot have {what}; use ZoneoutRNN"
                )
    _check_features(name, cell, x.shape)
    carry, number = _to_pure(name, cell, carry, batch_dims)
    batch = math.prod(batch_dims)
    x = x.reshape(batch, x.shape[-1])
    key = draw_key() if mode.draws else None
    if key is not None:
        check_spread(x, key, module.axis_name)
    masks = draw_masks(
        cell,
        mode.zoneout,
        key,
        mode.deterministic,
        1,
        batch,
        lambda: batch_offset(module.axis_name, batch),
    )
    masks = jax.tree.map(lambda mask: mask[0] if jnp.ndim(mask) else mask, masks)
    masks = spread_as(x, 0, masks, 0)
    normalize = []
    if cell.statistics:
        cell.check_params(params)
        if module.axis_name is not None and not mode.deterministic:
            batch_offset(module.axis_name, batch)  # raises where the axis is not mapped
        population = stats if mode.deterministic else None
        number = jnp.asarray(number)
        normalize = [BatchNormalizer(number, population, axis_name=module.axis_name)]
        carry = checked_carry(carry, cell.carry_shapes(params, (batch,)))
        carry, y = cell.advance(params, carry, cell.project(params, x), masks, *normalize)
    else:
        carry, y = cell.step(params, carry, x, masks)
    moved = None
    if normalize and not mode.deterministic and stats is not None:
        found = {n: s[None] for n, s in (normalize[0].found() or {}).items()}
        moved = update_stats(stats, found, rate=1 - module.momentum)
    y = y.reshape(*batch_dims, y.shape[-1])
    return _from_pure(cell, carry, number + 1, batch_dims), y, moved


def run_sequence(
    module: Any,
    cell: Cell,
    mode: Mode,
    params: Params,
    stats: Stats | None,
    xs: jax.Array,
    carry: Carry | None,
    draw_key: Callable[[], jax.Array],
    *,
    seq_lengths: Lengths | None,
    resets: jax.Array | None,
    emit: Callable[..., Any] | None,
    **options: Any,
) -> tuple[Carry, Any, Stats | None]:
    """Runs `unroll` over inputs `[T, *batch, F]` with the settings of a cell's module.

    Returns:
      The carry, the outputs, and in training the updated population statistics, if there are any.
    """
    name, (steps, *batch_dims, in_features) = type(module).__name__, xs.shape
    _check_features(name, cell, xs.shape)
    number: Any = 0
    if carry is not None:
        carry, number = _to_pure(name, cell, carry, batch_dims)
    if seq_lengths is not None:
        seq_lengths = jnp.asarray(seq_lengths)
        if seq_lengths.shape != tuple(batch_dims):
            raise ValueError(
                f"{name}: seq_lengths must be {tuple(batch_dims)}, got {seq_lengths.shape}"
            )
        seq_lengths = jnp.ravel(seq_lengths) if len(batch_dims) != 1 else seq_lengths
    if resets is not None:
        if module.carry_init is not None:
            raise ValueError(
                f"{name}: resets are for carries of zeros or learned ones, not for carry_init"
            )
        resets = resets.reshape(steps, math.prod(batch_dims))
    found: list[Stats]
    carry, ys, *found = unroll(
        cell,
        params,
        xs.reshape(steps, math.prod(batch_dims), in_features),
        carry,
        zoneout=mode.zoneout,
        key=draw_key() if mode.draws else None,
        deterministic=mode.deterministic,
        stats=stats,
        first_step=number,
        carry_noise=module.carry_noise,
        seq_lengths=seq_lengths,
        resets=resets,
        emit=emit,
        axis_name=module.axis_name,
        **options,
    )
    moved = None
    if stats is not None and found:
        moved = update_stats(stats, found[0], rate=1 - module.momentum)
    if len(batch_dims) != 1:
        ys = jax.tree.map(
            lambda y: y.reshape(steps, *batch_dims, *y.shape[2:]) if y.ndim > 1 else y, ys
        )
    return _from_pure(cell, carry, number + steps, batch_dims), ys, moved


def start_carry(
    cell: Cell,
    params: Params,
    batch_dims: Sequence[int],
    carry_init: Initializer | None,
    key: Callable[[], jax.Array],
) -> Carry:
    """Returns the initial carry: learned, drawn or zeros."""
    carry = jax.tree.map(
        lambda a: jnp.broadcast_to(a[0], (*batch_dims, a.shape[-1])), cell.initial_carry(params, 1)
    )
    if carry_init is not None:
        arrays = dict(zip(cell.carry_names, jax.tree.leaves(carry), strict=True))
        keys = jax.random.split(key(), len(cell.state_names))
        for k, name in zip(keys, cell.state_names, strict=True):
            arrays[name] = carry_init(k, arrays[name].shape, cell.state_dtype)
        carry = jax.tree.unflatten(jax.tree.structure(carry), arrays.values())
    return _from_pure(cell, carry, 0, batch_dims)


def check_spec(zoneout: Any) -> None:
    """Raises TypeError unless `zoneout` is a `Zoneout`."""
    if not isinstance(zoneout, Zoneout):
        raise TypeError(f"zoneout must be a Zoneout, such as Zoneout(cells=0.5); got {zoneout!r}")


def _check_features(name: str, cell: Cell, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the last axis of the inputs has the size that the cell takes."""
    if shape[-1] != cell.input_width:
        raise ValueError(f"{name} takes {cell.input_width} features, got inputs of {shape[-1]}")


def _to_pure(
    name: str, cell: Cell, carry: Carry, batch_dims: Sequence[int]
) -> tuple[Carry, jax.Array | int]:
    """Returns the carry with a single batch dimension, and the number of the step."""
    number: Any = 0
    if cell.statistics and isinstance(carry, tuple) and len(carry) == len(cell.carry_names) + 1:
        *arrays, number = carry
        carry = tuple(arrays)
    wanted = [(*batch_dims, cell.size(n)) for n in cell.carry_names]
    if [jnp.shape(leaf) for leaf in jax.tree.leaves(carry)] != wanted:
        shapes = jax.tree.map(jnp.shape, carry)
        what = ", ".join(map(str, wanted))
        raise ValueError(f"{name}: the arrays of a carry must be {what}, got {shapes}")
    batch = math.prod(batch_dims)
    return jax.tree.map(lambda leaf: leaf.reshape(batch, leaf.shape[-1]), carry), number


def _from_pure(
    cell: Cell, carry: Carry, number: jax.Array | int, batch_dims: Sequence[int]
) -> Carry:
    """Returns the carry in the module's form; with batch statistics the step number comes last."""
    carry = jax.tree.map(lambda leaf: leaf.reshape(*batch_dims, leaf.shape[-1]), carry)
    return (*carry, jnp.asarray(number, jnp.int32)) if cell.statistics else carry
