"""Checkpoints: all that is needed to go on as if nothing had happened."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp


class Checkpoints:
    """The checkpoints of a run, the last two kept.

    A checkpoint is a tree of NumPy arrays and a JSON-able dict. It is written to a temporary name
    and renamed, so that a kill at any moment leaves the one before intact.
    """

    def __init__(self, directory: pathlib.Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """Step of the last checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, step: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Writes the checkpoint of a step; one that exists already is left as it is."""
        if step == self.latest:
            return
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(progress)
        )
        self._manager.save(step, args=args)

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
        """Reads the last checkpoint.

        Args:
          like: arrays of the structure, shapes and types that were saved.
        """
        args = ocp.args.Composite(
            arrays=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(self.latest, args=args)
        return restored.arrays, restored.progress

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()
