"""Checks of arguments."""

from typing import Any

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
        if not isinstance(size, int | np.integer):
            raise TypeError(f"{name} must be an integer, got {size!r}")
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
