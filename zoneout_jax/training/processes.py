"""Several processes as one run: how they find each other, agree, and end."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoneout_jax.training.errors import RunError


def connect(
    coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int
) -> None:
    """Joins several processes into one run; alone where there is only one.

    Args:
      coordinator: address `host:port` of process 0; None to find it on a TPU pod or under Slurm.
      num_processes, process_id: None with the coordinator.
      timeout: seconds of silence after which a process counts as dead and the others end.

    Raises:
      ValueError: the processes cannot be joined.
    """
    named = coordinator is not None
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    config: Any = jax.config  # not every JAX declares what it has
    tpu = importlib.util.find_spec("libtpu") is not None and not config.jax_platforms
    if not (named or slurm or tpu) or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=timeout
        )
    except (ValueError, RuntimeError) as error:
        if named or slurm:
            raise ValueError(f"the processes cannot be joined: {error}") from error
        print(f"alone on this host, as JAX finds no TPU pod ({error})", file=sys.stderr)


def is_multihost() -> bool:
    """Whether other processes take part."""
    return jax.process_count() > 1


def is_host0() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def run_on_host0(action: Callable[[], Any]) -> Any:
    """The first process's result of an action, on every process.

    The result must be JSON-able. What the first process raises the others raise as a RunError if it
    is one, as a ValueError otherwise.
    """
    if not is_multihost():
        return action()
    result, failure, told = None, None, None
    if is_host0():
        try:
            result = action()
        except Exception as error:
            failure = error
            told = [str(error), getattr(error, "exit_code", None)]
    result, told = _broadcast_json([result, told])
    if failure is not None:
        raise failure
    if told is not None:
        raise _told(*told)
    return result


def run_on_all_hosts(action: Callable[[], Any]) -> Any:
    """Each process's own result of an action; a ValueError on all if it fails on one.

    Raises:
      ValueError: what the first process that raised a ValueError or OSError has to say.
    """
    if not is_multihost():
        return action()
    result, failure = None, ""
    try:
        result = action()
    except (ValueError, OSError) as error:
        failure = f"process {jax.process_index()}: {error}"
    padded = np.zeros(1000, np.uint8)
    text = np.frombuffer(failure.encode()[:1000], np.uint8)
    padded[: len(text)] = text
    for told in np.asarray(multihost_utils.process_allgather(padded)):
        if message := bytes(told).rstrip(b"\0").decode(errors="replace"):
            raise ValueError(message)
    return result


def _told(message: str, exit_code: int | None) -> Exception:
    """What the first process raised, on another."""
    if exit_code is None:
        return ValueError(message)
    return RunError(message, exit_code)


def broadcast(tree: Any) -> Any:
    """The first process's NumPy arrays, on every process, each in memory of its own."""
    if not is_multihost():
        return tree
    return jax.tree.map(np.array, multihost_utils.broadcast_one_to_all(tree))


def _broadcast_json(value: Any) -> Any:
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast(np.int32(len(text))))
    return json.loads(bytes(broadcast(text if is_host0() else np.zeros(size, np.uint8))))


def leave(code: int) -> None:
    """Ends the process; others, if there are any, are not waited for."""
    if is_multihost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
