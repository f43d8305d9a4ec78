"""Batches that devices share: mapped axes (`pmap`, `shard_map`) and meshes with explicit axes."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from zoneout_jax._normalization import AxisName

_batch_axis: contextvars.ContextVar[str | None] = contextvars.ContextVar("axis", default=None)


@contextlib.contextmanager
def batch_over(axis_name: str) -> Iterator[None]:
    """Declares that code traced in this block has a batch spread over a mapped axis.

    `fit` uses it. Masks that are drawn without that `axis_name` are then an error, also on a single
    device.
    """
    token = _batch_axis.set(axis_name)
    try:
        yield
    finally:
        _batch_axis.reset(token)


def batch_offset(axis_name: AxisName | None, batch: int) -> jax.Array | int:
    """Returns the index in the whole batch of this device's first example."""
    if axis_name is None:
        return 0
    try:
        return jax.lax.axis_index(axis_name) * batch
    except NameError as error:
        raise ValueError(
            f"axis_name={axis_name!r} is not mapped here: call this inside the pmap or shard_map"
            " that spreads the batch over it, or leave axis_name out"
        ) from error


def check_spread(xs: jax.Array, key: jax.Array, axis_name: AxisName | None) -> None:
    """Raises ValueError where every device would draw the same masks for its part of a batch."""
    named = {axis_name} if isinstance(axis_name, str) else set(axis_name or ())
    axis = _batch_axis.get()
    if axis is not None and axis not in named:
        raise ValueError(
            f"the batch is spread over devices, which would all draw the same masks; pass "
            f"axis_name={axis!r}, which is zoneout_jax.training.AXIS"
        )
    spread = varying_axes(xs) - varying_axes(key) - named
    if spread:
        axes = tuple(sorted(spread | named))
        raise ValueError(
            f"inputs differ over the mapped axis {', '.join(sorted(spread))}, but key does not: all"
            " devices would draw the same masks. Pass"
            f" axis_name={axes if len(axes) > 1 else axes[0]!r} if that spreads the batch,"
            " or fold jax.lax.axis_index into the key"
        )


def varying_axes(leaf: jax.Array) -> frozenset[str]:
    """Returns the mapped axes over which an array is known to vary."""
    kind = jax.typeof(leaf)
    if hasattr(kind, "manual_axis_type"):
        return kind.manual_axis_type.varying
    return getattr(kind, "vma", frozenset())  # older JAX, as 0.7.0


def key_of_device(xs: jax.Array, key: jax.Array) -> jax.Array:
    """Returns another key on each device of the mapped axes that inputs vary over, unless it does.

    Carries that are drawn then differ between all examples. (Masks belong to examples instead.)
    """
    for axis in sorted(varying_axes(xs) - varying_axes(key)):
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
    return key


def vary_alike(tree: Any) -> Any:
    """Marks all arrays as varying over every mapped axis that any of them varies over.

    `shard_map` tracks these axes, and requires them to be the same in a scan and its gradients.
    """
    everything = frozenset().union(*map(varying_axes, jax.tree.leaves(tree)))

    def vary(leaf):
        missing = tuple(everything - varying_axes(leaf))
        if not missing:
            return leaf
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        return jax.lax.pvary(leaf, missing)  # type: ignore[attr-defined] # older JAX, as 0.7.0

    return jax.tree.map(vary, tree) if everything else tree


def explicit_sharding(array: jax.Array) -> jax.sharding.NamedSharding | None:
    """Returns the sharding of an array over a mesh with explicit axes; None without such a mesh."""
    sharding: Any = jax.typeof(array).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else None


def for_each_example(xs: jax.Array, tree: Any) -> Any:
    """Repeats arrays `[1, ...]` for each example of inputs `[T, B, F]`, sharded like the inputs.

    Repeated first and resharded then, their gradient would be gathered on every device.
    """
    sharding, batch = explicit_sharding(xs), xs.shape[1]

    def repeat(leaf):
        shape, axes = (batch, *leaf.shape[1:]), tuple(range(1, leaf.ndim))
        where: dict[str, Any] = {}
        if sharding is not None:
            spec = jax.sharding.PartitionSpec(sharding.spec[1], *[None] * len(axes))
            where["out_sharding"] = jax.sharding.NamedSharding(sharding.mesh, spec)
        return jax.lax.broadcast_in_dim(leaf[0], shape, axes, **where)

    return jax.tree.map(repeat, tree)


def spread_as(xs: jax.Array, xs_axis: int, tree: Any, axis: int) -> Any:
    """Shards an axis of arrays over an explicit mesh like the axis `xs_axis` of the inputs."""
    sharding = explicit_sharding(xs)
    if sharding is None:
        return tree

    def spread(leaf):
        if jnp.ndim(leaf) <= axis or leaf.shape[axis] != xs.shape[xs_axis]:
            return leaf
        spec: list[Any] = [None] * leaf.ndim
        spec[axis] = sharding.spec[xs_axis]
        wanted = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec))
        return jax.sharding.reshard(leaf, wanted)

    return jax.tree.map(spread, tree)
