"""From a command line to a finished run."""

import contextlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import absl.logging
import jax

from zoneout_jax.training import parallel, processes
from zoneout_jax.training.config import RunConfig, RunError, Stopped, fail, one_line, parse_preset
from zoneout_jax.training.loop import fit
from zoneout_jax.training.run_directory import RunDirectory
from zoneout_jax.training.stop import StopRequest
from zoneout_jax.training.task import Task

SHARED = ("steps_per_call", "checkpoint_steps", "on_nan", "num_processes")


def launch(
    experiment: str,
    presets: Mapping[str, RunConfig],
    build: Callable[[Any], Task],
    about: str,
    argv: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Runs an experiment from its flags.

    Args:
      experiment: its name, as in `python -m experiments.<name>`.
      presets: its settings by preset.
      build: makes the task from the settings.
      about: description for `--help`.
      argv: arguments; those of the program if None.

    Returns:
      The final figures, see `fit`.

    Raises:
      SystemExit: code 2 after one line for bad input, before anything is compiled or written; see
        `exits` for the others.
    """
    command = f"python -m experiments.{experiment}"
    config = parse_preset(presets, argv, command, about)
    again = f"{command} {shlex.join(sys.argv[1:] if argv is None else argv)}"
    with exits(again), contextlib.ExitStack() as stack:
        try:
            processes.connect(
                config.coordinator,
                config.num_processes,
                config.process_id,
                config.heartbeat_timeout,
            )
            # After JAX has installed its own handlers. From here on signals wait for a step.
            stop = stack.enter_context(StopRequest(config.max_minutes))
            task, run = prepare(experiment, presets, build, config)
        except (ValueError, OSError) as error:
            fail(error)
        if processes.is_first():
            print(f"{task.name}: run directory {run.path}", file=sys.stderr)
        return fit(task, config, run, stop)


@contextlib.contextmanager
def program(command: str, argv: Sequence[str] | None) -> Iterator[None]:
    """Ends a program that is called as `command` with one line where it cannot go on.

    Args:
      command: how it is called, without arguments.
      argv: its arguments; those of the process if None.

    Raises:
      SystemExit: code 2 for a ValueError or OSError, which are bad input; see `exits` for others.
    """
    arguments = sys.argv[1:] if argv is None else argv
    try:
        with exits(f"{command} {shlex.join(arguments)}"):
            yield
    except (ValueError, OSError) as error:
        fail(error)


@contextlib.contextmanager
def exits(command: str) -> Iterator[None]:
    """Ends the program with one line where a run ends before its end.

    Args:
      command: what to call to go on.

    Raises:
      SystemExit: code 2 if the run directory is in use or cannot be written to; 1 if the run
        cannot go on; 130 or 143 after SIGINT or SIGTERM, 0 after `max_minutes`.
    """
    # What orbax's threads log of their failures is raised as well, and told in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    except Stopped as stop:
        print(f"{stop}; resume with: {command}", file=sys.stderr)
        processes.leave(stop.exit_code)
    except RunError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        processes.leave(error.exit_code)
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        processes.leave(130)
    except jax.errors.JaxRuntimeError as error:
        if not processes.several():
            raise
        print(
            f"error: another process is gone or out of reach ({one_line(error)[:200]}); start all "
            f"of them again, this one with: {command}",
            file=sys.stderr,
        )
        processes.leave(1)


def prepare(
    experiment: str,
    presets: Mapping[str, RunConfig],
    build: Callable[[Any], Task],
    config: RunConfig,
) -> tuple[Task, RunDirectory]:
    """Meets bad input before anything is compiled or written.

    Raises:
      ValueError: settings, data or a run directory that do not fit.
    """
    # What must be the same in all processes: else they would wait for each other for ever, or
    # each would train its own model.
    shared = config.identity() | {name: getattr(config, name) for name in SHARED}
    first = processes.on_first(lambda: shared)

    def check() -> tuple[Task, RunDirectory]:
        for name, value in json.loads(json.dumps(shared)).items():
            if value != json.loads(json.dumps(first))[name]:
                raise ValueError(f"{name} is {value} here and {first[name]} in process 0")
        parallel.check_divides(config.batch_size, config.num_seeds)
        path = config.run_directory(experiment, presets[config.preset])
        run = RunDirectory(path, config.identity(), config.resume, experiment)
        return build(config), run

    if processes.several():
        # The first prepares the data, alone, and what it complains of is told by all.
        processes.on_first(lambda: check() and None)
    return processes.on_all(check)
