"""Errors that say what to install if a package is missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(module: str, extra: str) -> Iterator[None]:
    """Names the extra to install if an import of a module fails.

    Raises:
      ModuleNotFoundError: replaces the error of the import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        message = f'{module} needs {package}: pip install "zoneout_jax[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
