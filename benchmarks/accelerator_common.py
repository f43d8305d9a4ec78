"""What the parts of `benchmarks.accelerator` share."""

import concurrent.futures
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax

from benchmarks.rnn import Torch
from zoneout_jax.training.errors import one_line


@dataclasses.dataclass
class Context:
    """What a part is given.

    Attributes:
      quick: tiny sizes.
      out: folder of the results.
      found: results by part: of this one, which it fills, and of those before it.
      save: writes what is found so far.
      torch: torch's process, where torch is installed.
      deadline: when the part should be done, of `time.monotonic`.
    """

    quick: bool
    out: pathlib.Path
    found: dict[str, dict[str, Any]]
    save: Callable[[], None]
    torch: Torch | None = None
    deadline: float = 0.0

    def left(self) -> float:
        """Seconds left to the part."""
        return self.deadline - time.monotonic()

    def pick(self, quick: Any, on_cpu: Any, on_accelerator: Any) -> Any:
        """A size: that of the quick run, that of a CPU, or that of an accelerator."""
        if self.quick:
            return quick
        return on_cpu if jax.default_backend() == "cpu" else on_accelerator


def precisions() -> tuple[str, ...]:
    """Kinds of products, the one that users get by default first.

    "tf32" is what a GPU makes of float32 by default: operands are rounded to 11 bits.
    """
    if jax.default_backend() == "gpu":
        return ("tf32", "bfloat16", "float32")
    return ("float32", "bfloat16")


def products_in(precision: str) -> contextlib.AbstractContextManager:
    """A context in which float32 products are whole for "float32", and JAX's default otherwise."""
    return jax.default_matmul_precision("highest" if precision == "float32" else "default")


def brief(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {one_line(error)}"[:300]


def side_by_side(
    makers: Mapping[str, Callable[[], Any]], deadline: float
) -> Iterator[tuple[str, Any]]:
    """Calls functions in threads, as XLA compiles without Python's lock.

    Yields:
      The name of each and what it returned, or the exception that it raised, as they end. What has
      not ended by the deadline is left out, and what has begun by then ends unheard.
    """
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
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
    """Lines of a Markdown table, and an empty one."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines] + [""]
