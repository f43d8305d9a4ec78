"""The directory of a run: its lock and its files."""

import contextlib
import errno
import fcntl
import fnmatch
import importlib.metadata
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from zoneout_jax.training.errors import RunError
from zoneout_jax.training.files import write_json

BEFORE_CONFIG = (".lock", ".config.json.*.tmp")
"""Files that a run may leave if it is killed at its very start."""
PACKAGES = ("zoneout_jax", "jax", "optax", "orbax-checkpoint", "numpy")


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as JSON reads them; raises TypeError if it cannot hold one."""
    found = {}
    for name, value in settings.items():
        try:
            found[name] = json.loads(json.dumps(value))
        except TypeError as error:
            raise TypeError(f"setting {name} must be what JSON can hold: {error}") from error
    return found


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str:
    """Commit of the checkout that holds this package, marked as dirty if it has changes."""
    file = pathlib.Path(__file__)
    git = ["git", "-C", str(file.parent)]

    def answer(*arguments: str) -> str:
        asked = subprocess.run([*git, *arguments], capture_output=True, text=True, check=True)
        return asked.stdout.strip()

    try:
        answer("ls-files", "--error-unmatch", file.name)  # fails if installed in another checkout
        return answer("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def differences(there: Mapping[str, Any], here: Mapping[str, Any], names: Iterable[str]) -> str:
    """Lists the settings of these names that differ; returns an empty string if none does."""
    return "; ".join(
        f"{name} is {there.get(name)!r} there, {here.get(name)!r} here"
        for name in sorted(names)
        if there.get(name) != here.get(name)
    )


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Reads `config.json` in a run directory.

    Raises:
      ValueError: the file cannot be read.
    """
    file = path / "config.json"
    try:
        content = json.loads(file.read_text())
        return content | {"settings": dict(content["settings"])}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{file} cannot be read ({type(error).__name__}: {error}); repair it, or use another "
            "folder"
        ) from error


def read_begun(path: pathlib.Path) -> dict[str, Any]:
    """Reads `config.json` of a run that has begun.

    Raises:
      ValueError: the file cannot be read, or it is of a version with other checkpoints.
    """
    config = read_config(path)
    if "task" not in config:
        raise ValueError(
            f"workdir {path} holds a run of an older zoneout_jax, whose checkpoints have another"
            " format; finish it with that version, or use another folder"
        )
    return config


def is_begun(path: pathlib.Path) -> bool:
    """Tells whether a run directory holds anything from training, not only settings.

    A run that ended earlier, for instance by an error in its loss, left nothing to be spoiled.
    """
    trained = ("metrics.jsonl", "result.json", "not_finite.json", "checkpoints/*")
    found = (file for name in trained for file in path.glob(name))
    return any(file.is_dir() or file.stat().st_size for file in found)


def check_task(path: pathlib.Path, task: Mapping[str, str]) -> None:
    """Checks that the run in a directory, if one has begun, trains this model on these data.

    Args:
      path: run directory.
      task: identity of the task.

    Raises:
      RunError: the run trains another model or uses other data; exit code 2.
      ValueError: the run cannot be read.
    """
    if not is_begun(path):
        return
    there = read_begun(path)["task"]
    for name in there | dict(task):
        if there.get(name) != task.get(name):
            other = "on other data" if name == "data" else "of another model"
            if name.startswith(".opt_state"):  # parameters come first, so they are the same
                other = "with another optimizer"
            raise RunError(
                f"workdir {path} holds a run {other} ({name} is {there.get(name)} there, "
                f"{task.get(name)} here); use another folder",
                exit_code=2,
            )


class RunDirectory:
    """The directory of one run.

    config.json      experiment, settings that its numbers depend on, its data and the shapes of
                     all that it trains, commit and versions at its start
    metrics.jsonl    one JSON object per epoch (and seed); nothing in it depends on the clock
    times.jsonl      times of each epoch
    checkpoints/     what the run needs to resume
    events.out.*     metrics and times for TensorBoard
    curves.png       learning curves
    not_finite.json  the batch that ended the run, if a loss or gradient was not finite
    result.json      the result, when the run is done

    Attributes:
      path: the directory; `config_file`, `metrics_file`, `times_file` and `result_file` are in it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: Mapping[str, Any],
        resume: bool = True,
        experiment: str | None = None,
    ):
        """Opens a run directory without writing to it.

        Args:
          path: the directory.
          settings: settings that the numbers of the run depend on.
          resume: resume a run that is in the directory.
          experiment: name of the experiment, to be saved next to the settings.

        Raises:
          ValueError: `path` is not a directory, holds a run with other settings, holds files but no
            run, or is not empty although `resume` is False.
          TypeError: JSON cannot hold a setting.
        """
        self.path = path = pathlib.Path(path)
        self.config_file, self.result_file = path / "config.json", path / "result.json"
        self.metrics_file, self.times_file = path / "metrics.jsonl", path / "times.jsonl"
        self._settings, self._experiment = as_json(settings), experiment
        if path.exists() and not path.is_dir():
            raise ValueError(f"workdir {path} is a file; use another folder")
        if not path.exists() or all(
            any(fnmatch.fnmatch(file.name, name) for name in BEFORE_CONFIG)
            for file in path.iterdir()
        ):
            return
        if not resume:
            raise ValueError(
                f"workdir {path} is not empty and resume is off; remove it, or use another folder"
            )
        if not self.config_file.exists():
            raise ValueError(f"workdir {path} is not empty and holds no run; use another folder")
        if is_begun(path):
            self._compare(self._settings)  # `fit` adds further settings

    def add(self, settings: Mapping[str, Any]) -> None:
        """Adds settings; raises ValueError if a run in the directory has others."""
        self._settings |= as_json(settings)
        if is_begun(self.path):
            self._compare()

    def _compare(self, names: Iterable[str] | None = None) -> None:
        """Raises ValueError if the directory holds another experiment, settings or more epochs.

        Args:
          names: names of the settings to compare; by default all.
        """
        config = read_begun(self.path)
        there, experiment = config["settings"], config.get("experiment")
        if self._experiment and experiment and experiment != self._experiment:
            raise ValueError(
                f"workdir {self.path} holds a run of {experiment}, not of {self._experiment}; use "
                "another folder"
            )
        names = {*(there.keys() | self._settings.keys() if names is None else names)} - {"epochs"}
        if differing := differences(there, self._settings, names):
            raise ValueError(
                f"workdir {self.path} holds a run of another configuration ({differing}); use "
                "another folder"
            )
        here, done = self._settings.get("epochs"), there.get("epochs")
        if here is not None and done is not None and here < done:
            raise ValueError(
                f"workdir {self.path} holds a run of {done} epochs, more than {here}; use another "
                "folder"
            )

    def extends(self) -> bool:
        """Tells whether the settings ask for more epochs than the run in the directory has."""
        if not is_begun(self.path):
            return False
        there = read_config(self.path)["settings"].get("epochs")
        return there is not None and there < self._settings.get("epochs", there)

    def extend(self) -> None:
        """Saves a greater number of epochs and removes the result, once the run can continue."""
        if not self.extends():
            return
        self.result_file.unlink(missing_ok=True)
        write_json(self.config_file, read_config(self.path) | {"settings": self._settings})

    def changed_versions(self) -> list[str]:
        """Lists what has another version now than when the run began, in a few words each."""
        content = read_config(self.path)
        there = content.get("versions", {}) | {"commit": content.get("commit")}
        return [
            f"{name} {there[name]} then, {now} now"
            for name, now in (versions() | {"commit": commit()}).items()
            if there.get(name) not in (None, now)
        ]

    @contextlib.contextmanager
    def opened(self, task: Mapping[str, str]) -> Iterator[None]:
        """Creates the directory and its configuration, and keeps other processes out.

        Args:
          task: identity of the task.

        Raises:
          RunError: another process has opened the directory or has begun another run in it, or it
            cannot be written to; exit code 2.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self.path / ".lock").open("a+"))
                self._lock(lock)
                if not is_begun(self.path):
                    content = {
                        "experiment": self._experiment,
                        "settings": self._settings,
                        "task": dict(task),
                        "commit": commit(),
                        "versions": versions(),
                    }
                    write_json(self.config_file, content)
                else:
                    self._compare()  # another run may have begun in the meantime
                    check_task(self.path, task)
            except ValueError as error:
                raise RunError(str(error), exit_code=2) from error
            except OSError as error:
                raise RunError(
                    f"cannot write to workdir {self.path}: {error.strerror or error}; "
                    "use another folder",
                    exit_code=2,
                ) from error
            yield

    def _lock(self, lock: IO[str]) -> None:
        """Takes the lock; the system releases it when the process ends, for any reason."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return  # a file system without locks
            lock.seek(0)
            raise RunError(
                f"workdir {self.path} is in use by another run ({lock.read().strip()}); wait for "
                "its end, or use another folder",
                exit_code=2,
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def history(self) -> list[dict[str, Any]]:
        """Returns the metrics written so far."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def result(self) -> dict[str, Any] | None:
        """Returns the result; None if the run is not finished or the file cannot be read."""
        try:
            found = json.loads(self.result_file.read_text())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None
        return found if isinstance(found, dict) else None
