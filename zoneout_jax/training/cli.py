"""From a command line to a finished run."""

import contextlib
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import absl.logging
import jax

from zoneout_jax._files import local_folder
from zoneout_jax.training import parallel, processes
from zoneout_jax.training.config import RunConfig
from zoneout_jax.training.errors import RunError, Stopped, fail, one_line
from zoneout_jax.training.flags import command, parse, parse_preset
from zoneout_jax.training.loop import fit
from zoneout_jax.training.run_directory import RunDirectory
from zoneout_jax.training.settings import Settings
from zoneout_jax.training.stop import StopRequest
from zoneout_jax.training.sweep import parse_sweep
from zoneout_jax.training.task import Task

SHARED = ("steps_per_call", "checkpoint_steps", "on_nan", "num_processes")


class Config(Protocol):
    """The settings of an experiment: `Settings` that have those of a run as `run`."""

    @property
    def run(self) -> RunConfig:
        """Settings of the run."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run."""

    def flat(self) -> dict[str, Any]:
        """All settings by name."""

    def check(self, name: str, value: float) -> None:
        """Raises ValueError unless a setting may have a value."""


def launch(
    name: str,
    presets: Mapping[str, Any] | Any,
    build: Callable[[Any], Task],
    about: str,
    argv: Sequence[str] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Runs an experiment from its flags.

    Args:
      name: of the experiment; its runs are below `runs/<name>`.
      presets: its settings, `Settings` with a part `run`, by preset; or those alone.
      build: makes the task from the settings.
      about: description for `--help`.
      argv: arguments; those of the program if None.

    Returns:
      The settings, and the result, see `fit`.

    Raises:
      SystemExit: code 2 after one line for bad input, before anything is compiled or written; see
        `exits` for the others.
    """
    called = command()
    start: Any = presets
    if isinstance(presets, Settings):
        config = parse(presets, argv, called, about)
    else:
        config = parse_preset(presets, argv, called, about)
        start = presets[config.preset]
    again = f"{called} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    run = config.run
    with exits(again), contextlib.ExitStack() as stack:
        try:
            processes.connect(
                run.coordinator, run.num_processes, run.process_id, run.heartbeat_timeout
            )
            # After JAX has installed its own handlers. From here on signals wait for a step.
            stop = stack.enter_context(StopRequest(run.max_minutes))
            task, directory = prepare(name, config, start, build)
        except (ValueError, OSError) as error:
            fail(error)
        if processes.is_host0():
            print(f"{task.name}: run directory {directory.path}", file=sys.stderr)
        return config, fit(task, run, directory, stop)


@contextlib.contextmanager
def program(argv: Sequence[str] | None) -> Iterator[None]:
    """Ends a program with one line where it cannot go on.

    Args:
      argv: its arguments; those of the process if None.

    Raises:
      SystemExit: code 2 for a ValueError or OSError, which are bad input; see `exits` for others.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with exits(f"{command()} {shlex.join(arguments)}"):
            yield
    except (ValueError, OSError) as error:
        fail(error)


@contextlib.contextmanager
def exits(again: str) -> Iterator[None]:
    """Ends the program with one line where a run ends before its end.

    Args:
      again: what to call to go on.

    Raises:
      SystemExit: code 2 if the run directory is in use or cannot be written to; 1 if the run
        cannot go on; 130 or 143 after SIGINT or SIGTERM, 0 after `max_minutes`.
    """
    # What orbax's threads log of their failures is raised as well, and told in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    except Stopped as stop:
        print(f"{stop}; resume with: {again}", file=sys.stderr)
        processes.leave(stop.exit_code)
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        processes.leave(error.exit_code)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        processes.leave(130)
    except jax.errors.JaxRuntimeError as error:
        if not processes.is_multihost():
            raise
        print(
            f"error: another process is gone or out of reach ({one_line(error)[:200]}); start all "
            f"of them again, this one with: {again}",
            file=sys.stderr,
        )
        processes.leave(1)


def prepare(
    name: str, config: Config, start: Config, build: Callable[[Any], Task]
) -> tuple[Task, RunDirectory]:
    """Meets bad input before anything is compiled or written.

    Args:
      name: of the experiment.
      config: its settings.
      start: those of the preset; what differs names the directory.
      build: makes the task from the settings.

    Raises:
      ValueError: settings, data or a run directory that do not fit.
    """
    # What must be the same in all processes: else they would wait for each other for ever, or
    # each would train its own model.
    shared = config.identity() | {n: getattr(config.run, n) for n in SHARED}
    first = processes.run_on_host0(lambda: shared)

    def check() -> tuple[Task, RunDirectory]:
        for setting, value in json.loads(json.dumps(shared)).items():
            if value != json.loads(json.dumps(first))[setting]:
                raise ValueError(f"{setting} is {value} here and {first[setting]} in process 0")
        parallel.check_divides(config.run.batch_size, len(config.run.members))
        _check_sweep(config)
        directory = RunDirectory(
            path(name, config, start), config.identity(), config.run.resume, name
        )
        task = build(config)
        _ = task.steps_per_epoch  # raises where the data are less than a batch
        return task, directory

    if processes.is_multihost():
        # The first prepares the data, alone, and what it complains of is told by all.
        processes.run_on_host0(lambda: check() and None)
    return processes.run_on_all_hosts(check)


def _check_sweep(config: Config) -> None:
    """Raises ValueError unless a sweep is of settings, with values that they may have."""
    for name, rates in parse_sweep(config.run.sweep).items():
        if name not in config.flat():
            raise ValueError(f"sweep must be of settings, got {name}")
        for rate in rates:
            config.check(name, rate)


def path(name: str, config: Config, start: Config) -> pathlib.Path:
    """Where a run is kept: `workdir`, or a name made of the settings that were changed."""
    if config.run.workdir is not None:
        return local_folder(config.run.workdir, "workdir")
    settings, before = config.identity(), start.identity()
    unnamed = ("preset", "epochs")  # a run with more epochs goes on where it is

    def text(value: Any) -> str:
        words = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return words.replace(os.sep, "_")  # a path is not to lead elsewhere

    changed = [
        f"{k}={text(v)}" for k, v in settings.items() if k not in unnamed and v != before.get(k)
    ]
    return pathlib.Path("runs") / name / "-".join([settings.get("preset", "run"), *changed])
