"""Checkpoints: everything that an interrupted run needs to resume with the same numbers."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from zoneout_jax.training.errors import RunError, one_line


class Checkpoints:
    """The checkpoints of a run; the last two are kept.

    A checkpoint is a tree of NumPy arrays and a JSON-able dict, with a SHA-256 of both. It is
    written in the background under a temporary name and renamed when it is complete, so a kill at
    any moment leaves the previous checkpoint intact. Only one process may create this object.
    """

    def __init__(self, directory: pathlib.Path, read_only: bool = False):
        self._directory, self._read_only = directory.absolute(), read_only
        if not read_only:
            self._directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2,
            create=False,
            cleanup_tmp_directories=not read_only,  # another process may be writing them
            read_only=read_only,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}
            ),
        )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the last complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Starts to write the checkpoint of a step; does nothing if the last one is of that step.

        Raises:
          RunError: this checkpoint or the previous one cannot be written.
        """
        if step == self.latest:
            return
        if not self._directory.is_dir():
            raise RunError(f"cannot write a checkpoint: {self._directory} no longer exists")
        text = json.dumps(progress)
        content = {"progress": text, "sha256": digest(arrays, text)}
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(content)
        )
        self._attempt(lambda: self._manager.save(step, args=args))

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        Raises:
          RunError: a checkpoint cannot be written.
        """
        self._attempt(self._manager.wait_until_finished)

    def check(self) -> None:
        """Raises RunError if a checkpoint could not be written since the last call."""
        self._attempt(self._manager.check_for_errors)

    def restore(self, like: Any, say: Callable[[str], None]) -> tuple[Any, dict[str, Any]]:
        """Reads the last checkpoint that is intact; moves newer, damaged ones to another folder.

        Args:
          like: arrays with the structure, shapes and types of the saved ones.
          say: called with a message for each checkpoint that cannot be read.

        Raises:
          RunError: no checkpoint can be read. None is moved then.
        """
        bad: list[int] = []
        hook = sys.unraisablehook
        sys.unraisablehook = functools.partial(_ignore_late_reads, hook)
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, like)
            except Exception as error:  # orbax and tensorstore raise errors of many types
                say(f"the checkpoint of step {step:,} cannot be read ({one_line(error)[:200]})")
                bad.append(step)
            else:
                if not bad:  # otherwise reads may still end
                    sys.unraisablehook = hook
                if not self._read_only:
                    self._set_aside(bad)
                return restored
        raise RunError(
            f"no checkpoint in {self._directory} can be read; none was changed: repair them, or "
            "start again in another folder"
        )

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()

    def _read(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        args = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        content = restored.progress
        if content["sha256"] != digest(restored.arrays, content["progress"]):
            raise ValueError("its content does not match the SHA-256 saved with it")
        return restored.arrays, json.loads(content["progress"])

    def _set_aside(self, steps: list[int]) -> None:
        """Moves checkpoints to another folder, so that their steps can be saved again."""
        for step in steps:
            target = self._directory.with_name("unreadable_checkpoints") / str(step)
            while target.exists():
                target = target.with_name(target.name + "_")
            target.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(target)
        if steps:
            self._manager.reload()

    def _attempt(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # orbax and tensorstore raise errors of many types
            with contextlib.suppress(Exception):
                self._manager.wait_until_finished()  # another write may be in progress
            raise RunError(
                f"cannot write a checkpoint to {self._directory}: {_reason(error)}; "
                f"{self._on_disk()}"
            ) from error

    def _on_disk(self) -> str:
        """Says what is left after a failure."""
        names = os.listdir(self._directory) if self._directory.is_dir() else []
        steps = [int(name) for name in names if name.isdecimal()]
        return (
            f"the checkpoint of step {max(steps):,} is intact" if steps else "no earlier one exists"
        )


def _ignore_late_reads(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Passes errors of threads on, except of reads that end after another read of orbax failed.

    Such reads find the event loop closed, and would print a traceback each.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


def digest(arrays: Any, text: str = "") -> str:
    """SHA-256 of a text and of the types, shapes and values of arrays, in order of their paths."""
    found = hashlib.sha256(text.encode())
    for array in map(np.asarray, jax.tree.leaves(arrays)):
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def _reason(error: BaseException) -> str:
    """Describes an error from orbax, in the words of the operating system if it has any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if "No space left on device" in str(cause):
            return "No space left on device"
        error, cause = cause, cause.__cause__ or cause.__context__
    return one_line(error)[:300]
