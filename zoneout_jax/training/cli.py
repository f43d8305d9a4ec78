"""From a command line to a finished run."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zoneout_jax.training import parallel
from zoneout_jax.training.config import RunConfig, fail, parse_preset
from zoneout_jax.training.loop import Task, fit
from zoneout_jax.training.metrics import RunDirectory


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
      SystemExit: code 2 after one line for bad input, before anything is compiled or written; 130
        after a stop that the same command resumes.
    """
    config = parse_preset(presets, argv, f"python -m experiments.{experiment}", about)
    try:
        task, run = prepare(experiment, presets, build, config)
    except (ValueError, OSError) as error:
        fail(error)
    print(f"{task.name}: run directory {run.path}", file=sys.stderr)
    try:
        return fit(task, config, run)
    except KeyboardInterrupt as stop:
        print(f"{task.name}: {stop}", file=sys.stderr)
        raise SystemExit(130) from None


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
    parallel.check_divides(config.batch_size)
    path = config.run_directory(experiment, presets[config.preset])
    run = RunDirectory(path, config.identity(), config.resume)
    return build(config), run
