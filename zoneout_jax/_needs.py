"""What to install where a package is missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def needs(module: str, extra: str) -> Iterator[None]:
    """Names the extra that brings what the imports of a module lack.

    Raises:
      ModuleNotFoundError: in place of the one raised by an import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        message = f'{module} needs {package}: pip install "zoneout_jax[{extra}]"'
        raise ModuleNotFoundError(message, name=error.name) from error
