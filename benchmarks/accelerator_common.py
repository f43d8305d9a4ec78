"""Code that the parts of `benchmarks.accelerator` share."""

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from benchmarks.rnn import Torch, cores
from zoneout_jax.training import markdown_table
from zoneout_jax.training.errors import one_line

THREADS = 8
"""Most compilations at the same time. Tracing does not run in parallel; with more threads all
compilations would end late, the most important ones with them."""


@dataclasses.dataclass
class Context:
    """The context of a part.

    Attributes:
      quick: use tiny sizes.
      out: folder of the results.
      found: results by part: of this part, which fills them, and of the parts before it.
      save: writes the results so far.
      torch: torch's process, if torch is installed.
      deadline: time of `time.monotonic` by which the part should end.
    """

    quick: bool
    out: pathlib.Path
    found: dict[str, dict[str, Any]]
    save: Callable[[], None]
    torch: Torch | None = None
    deadline: float = 0.0

    def left(self) -> float:
        """Returns the seconds that are left for the part."""
        return self.deadline - time.monotonic()

    def pick(self, quick: Any, on_cpu: Any, on_accelerator: Any) -> Any:
        """Returns the size for a quick run, for a CPU, or for an accelerator."""
        if self.quick:
            return quick
        return on_cpu if jax.default_backend() == "cpu" else on_accelerator


def precisions() -> tuple[str, ...]:
    """Returns the precisions of products, the user's default first.

    "tf32" is the default for float32 on a GPU: operands are rounded to 11 bits.
    """
    if jax.default_backend() == "gpu":
        return ("tf32", "bfloat16", "float32")
    return ("float32", "bfloat16")


def products_in(precision: str) -> contextlib.AbstractContextManager:
    """Returns a context with full float32 products for "float32", otherwise JAX's default."""
    return jax.default_matmul_precision("highest" if precision == "float32" else "default")


def brief(error: BaseException) -> str:
    """Formats an error in one line."""
    return f"{type(error).__name__}: {one_line(error)}"[:300]


def side_by_side(
    makers: Mapping[str, Callable[[], Any]], deadline: float
) -> Iterator[tuple[str, Any]]:
    """Calls functions in parallel threads, as XLA compiles without Python's lock.

    Yields:
      The name of each function when it ends, with its result or the exception that it raised.
      Functions that have not ended by the deadline are left out; results of those that are still
      running are lost.
    """
    pool = concurrent.futures.ThreadPoolExecutor(min(cores(), THREADS))
    names = {pool.submit(make): name for name, make in makers.items()}
    try:
        left = max(0.0, deadline - time.monotonic())
        for future in concurrent.futures.as_completed(names, left):
            yield names[future], future.exception() or future.result()
    except TimeoutError:
        pass
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Formats a Markdown table as lines, with an empty line at the end."""
    return markdown_table(list(header), map(list, rows)).split("\n")
