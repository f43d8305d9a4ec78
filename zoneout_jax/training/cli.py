"""Runs an experiment from its command line."""

import contextlib
import hashlib
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import absl.logging
import jax

from zoneout_jax._files import local_folder
from zoneout_jax.training import parallel, processes
from zoneout_jax.training.errors import RunError, Stopped, fail, one_line
from zoneout_jax.training.flags import command, parse, parse_preset
from zoneout_jax.training.loop import fit
from zoneout_jax.training.run_directory import RunDirectory, as_json
from zoneout_jax.training.settings import Settings, check_range
from zoneout_jax.training.stop import StopRequest
from zoneout_jax.training.sweep import parse_sweep
from zoneout_jax.training.task import Task

LONGEST_NAME = 200
"""Bytes of a folder's name; file systems allow 255."""
SHARED = ("steps_per_call", "checkpoint_steps", "on_nan", "num_processes")


def launch(
    name: str,
    presets: Mapping[str, Any] | Any,
    build: Callable[[Any], Task],
    about: str,
    argv: Sequence[str] | None = None,
) -> tuple[Any, dict[str, Any]]:
    """Runs an experiment from its flags.

    Args:
      name: name of the experiment; its runs are below `runs/<name>`.
      presets: `Settings` with a part `run`, or a dict of such settings by name of the preset.
      build: makes the task from the settings.
      about: description for `--help`.
      argv: arguments; None means `sys.argv[1:]`.

    Returns:
      The settings and the result (see `fit`).

    Raises:
      SystemExit: code 2 after one line for bad input, before anything is compiled or written; see
        `exits` for the other codes.
    """
    start: Any = presets
    if isinstance(presets, Settings):
        config = parse(presets, argv, about)
    else:
        config = parse_preset(presets, argv, about)
        start = presets[config.preset]
    run = config.run
    with exits(argv), contextlib.ExitStack() as stack:
        try:
            processes.connect(
                run.coordinator, run.num_processes, run.process_id, run.heartbeat_timeout
            )
            # After JAX has installed its handlers. From here on a signal takes effect after a step.
            stop = stack.enter_context(StopRequest(run.max_minutes))
            task, directory = prepare(name, config, start, build)
        except (ValueError, OSError) as error:
            fail(error)
        if processes.is_host0():
            print(f"{task.name}: run directory {directory.path}", file=sys.stderr)
        return config, fit(task, run, directory, stop)


@contextlib.contextmanager
def program(argv: Sequence[str] | None) -> Iterator[None]:
    """Ends a program with one line if an error stops it.

    Args:
      argv: arguments; None means `sys.argv[1:]`.

    Raises:
      SystemExit: code 2 for a ValueError or OSError, which means bad input; see `exits` for the
        other codes.
    """
    try:
        with exits(argv):
            yield
    except (ValueError, OSError) as error:
        fail(error)


@contextlib.contextmanager
def exits(argv: Sequence[str] | None) -> Iterator[None]:
    """Ends the program with one line if a run ends early.

    Args:
      argv: arguments; None means `sys.argv[1:]`.

    Raises:
      SystemExit: code 2 if the run directory is in use or cannot be written to; 1 if the run
        cannot continue; 130 or 143 after SIGINT or SIGTERM, 0 after `max_minutes`.
    """
    # Failures that orbax's threads log are also raised, and printed here in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    again = f"{command()} {shlex.join(sys.argv[1:] if argv is None else argv)}"
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
    name: str, config: Any, start: Any, build: Callable[[Any], Task]
) -> tuple[Task, RunDirectory]:
    """Makes the task and checks the input, before anything is compiled or written.

    Args:
      name: name of the experiment.
      config: its `Settings`, with a part `run`.
      start: settings of the preset; the settings that differ from them name the directory.
      build: makes the task from the settings.

    Raises:
      ValueError: the settings, the data or the run directory cannot be used.
    """
    # These must be the same in all processes. Otherwise the processes would wait for each other
    # for ever, or each would train a different model.
    shared = as_json(config.identity() | {n: getattr(config.run, n) for n in SHARED})
    first = processes.run_on_host0(lambda: shared)

    def check() -> tuple[Task, RunDirectory]:
        for setting, value in shared.items():
            if value != first.get(setting):
                raise ValueError(
                    f"{setting} is {value} here but {first.get(setting)} in process 0; give all "
                    "processes the same"
                )
        parallel.check_divides(config.run.batch_size, len(config.run.members))
        _check_sweep(config)
        directory = RunDirectory(
            path(name, config, start), config.identity(), config.run.resume, name
        )
        task = build(config)
        _ = task.steps_per_epoch  # raises if the data do not fill a batch
        return task, directory

    if processes.is_multihost():
        # Process 0 prepares the data alone, and every process reports its errors.
        processes.run_on_host0(lambda: check() and None)
    return processes.run_on_all_hosts(check)


def _check_sweep(config: Any) -> None:
    """Raises ValueError unless a sweep names rates and gives them allowed values."""
    for name, rates in parse_sweep(config.run.sweep).items():
        allowed = config.range_of(name)
        if allowed is None or (allowed.low, allowed.high) != (0, 1):
            raise ValueError(f"sweep must name rates of masks, which are in [0, 1]; got {name}")
        for rate in rates:
            check_range(name, rate, allowed)


def path(name: str, config: Any, start: Any) -> pathlib.Path:
    """Returns the directory of a run: `workdir`, or a name made of the changed settings.

    A long name is cut, and ends with a hash of the whole.
    """
    if config.run.workdir is not None:
        return local_folder(config.run.workdir, "workdir")
    settings, before = config.identity(), start.identity()
    unnamed = ("preset", "epochs")  # a run with more epochs continues in its directory

    def text(value: Any) -> str:
        words = "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
        return words.replace(os.sep, "_")  # a separator would make another folder

    changed = [
        f"{k}={text(v)}" for k, v in settings.items() if k not in unnamed and v != before.get(k)
    ]
    folder = "-".join([settings.get("preset", "run"), *changed])
    if len(folder.encode()) > LONGEST_NAME:
        digest = hashlib.sha256(folder.encode()).hexdigest()[:12]
        folder = f"{folder.encode()[: LONGEST_NAME - 13].decode(errors='ignore')}-{digest}"
    return pathlib.Path("runs") / name / folder
