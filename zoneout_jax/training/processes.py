"""Runs with several processes: how the processes connect, agree and end."""

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
    """Connects several processes to one run; does nothing if there is only one.

    Args:
      coordinator: address `host:port` of process 0; None to find it on a TPU pod or under Slurm.
      num_processes, process_id: number of processes, and of this one; None if `coordinator` is.
      timeout: seconds of silence after which a process counts as dead and the others end.

    Raises:
      ValueError: the processes cannot be connected.
    """
    named = coordinator is not None
    slurm = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    config: Any = jax.config  # not every version of JAX declares its options
    tpu = importlib.util.find_spec("libtpu") is not None and not config.jax_platforms
    if not (named or slurm or tpu) or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=timeout
        )
    except (ValueError, RuntimeError) as error:
        if named or slurm:
            raise ValueError(f"the processes cannot be connected: {error}") from error
        print(f"running on this host only: JAX finds no TPU pod ({error})", file=sys.stderr)


def is_multihost() -> bool:
    """Tells whether other processes take part in the run."""
    return jax.process_count() > 1


def is_host0() -> bool:
    """Tells whether this process is process 0, which writes the files."""
    return jax.process_index() == 0


def run_on_host0(action: Callable[[], Any]) -> Any:
    """Runs an action in process 0, and returns its result in every process.

    The result must be JSON-able. If the action raises a RunError in process 0, the other processes
    raise a RunError too; for every other error they raise a ValueError.
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
        message, exit_code = told
        raise ValueError(message) if exit_code is None else RunError(message, exit_code)
    return result


def run_on_all_hosts(action: Callable[[], Any]) -> Any:
    """Runs an action in every process, and returns each process's own result.

    Raises:
      ValueError: in every process, if the action raised a ValueError or OSError in one; the message
        is that of the first such process.
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


def broadcast(tree: Any) -> Any:
    """Returns the NumPy arrays of process 0 in every process, each in its own memory."""
    if not is_multihost():
        return tree
    return jax.tree.map(np.array, multihost_utils.broadcast_one_to_all(tree))


def _broadcast_json(value: Any) -> Any:
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(broadcast(np.int32(len(text))))
    return json.loads(bytes(broadcast(text if is_host0() else np.zeros(size, np.uint8))))


def leave(code: int) -> None:
    """Ends the process without waiting for other processes."""
    if is_multihost():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)
