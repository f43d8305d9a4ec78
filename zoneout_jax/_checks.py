"""Checks of arguments."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_choice(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises ValueError unless the value is one of the allowed values."""
    if value not in allowed:
        choices = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def described(value: Any) -> str:
    """Returns the name of a class, or of the class of another value, for messages."""
    kind, what = (value, "the class ") if isinstance(value, type) else (type(value), "")
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{what}{module}{kind.__qualname__}"


def check_sizes(**sizes: int) -> None:
    """Raises an error unless all sizes are integers of at least 1."""
    for name, size in sizes.items():
        if not isinstance(size, int | np.integer) or isinstance(size, bool):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_stats(cell: Any, stats: Any) -> None:
    """Raises ValueError unless population statistics, if given, are those that the cell has."""
    if stats is None:
        return
    if not cell.statistics:
        raise ValueError("stats are for batch-normalized cells only")
    sizes = {f"{n}_{what}": size for n, size in cell.statistics.items() for what in ("mean", "var")}
    given = dict(stats) if isinstance(stats, Mapping) else {}
    shapes = {name: jnp.shape(value) for name, value in given.items()}
    fit = all(len(shape) == 2 and shape[1] == sizes.get(name) for name, shape in shapes.items())
    if shapes.keys() != sizes.keys() or not fit:
        wanted = ", ".join(f"{name} [max_steps, {size}]" for name, size in sizes.items())
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or described(stats)
        raise ValueError(f"stats must be {wanted}, as `init_stats` makes them; got {found}")


def check_step_mask(name: str, mask: Any, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the mask of a step has the shape or broadcasts to it."""
    given = jnp.shape(mask)
    fits = all(m in (1, n) for m, n in zip(given[::-1], shape[::-1], strict=False))
    if len(given) > len(shape) or not fits:
        raise ValueError(f"mask of {name} must be {shape} or broadcast to it, got {given}")


def checked_pair(cell: Any, result: Any) -> Any:
    """Returns the result of `update`; TypeError unless it is a pair."""
    if not (isinstance(result, tuple | list) and len(result) == 2):
        raise TypeError(
            f"{type(cell).__name__}.update must return the pair (carry, output), got"
            f" {described(result)}"
        )
    return result


def checked_carry(carry: Any, wanted: Any) -> Any:
    """Returns the carry as arrays; ValueError unless structure, shapes and types are as wanted."""
    one: Any = jax.tree.structure(carry)
    if one == jax.tree.structure(wanted):
        # NumPy's default type is wider than JAX's.
        carry = jax.tree.map(lambda a, w: _as_array(a, w.dtype), carry, wanted)

    def describe(tree):
        return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a).name), tree)

    if describe(carry) != describe(wanted):
        raise ValueError(
            f"carry must have the shapes and types {describe(wanted)}, got {describe(carry)}"
        )
    return carry


def _as_array(array: Any, dtype: Any) -> jax.Array:
    """Converts to a JAX array; all but JAX arrays get `dtype` if both are real or both complex."""
    if not isinstance(array, jax.Array):
        given, kinds = np.asarray(array).dtype, (jnp.floating, jnp.complexfloating)
        if any(jnp.issubdtype(given, k) and jnp.issubdtype(dtype, k) for k in kinds):
            return jnp.asarray(array, dtype)
    return jnp.asarray(array)
