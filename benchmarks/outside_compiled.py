"""Measures how much of a run's time is spent outside compiled code, on `experiments.seq2seq`.

    python -m benchmarks.outside_compiled

Trains the toy task with the authors' sizes, where steps are so short that Python could slow them
down. Every call of a compiled function, with its dispatch, is timed until its results are ready, so
nothing overlaps. The remaining time belongs to the loop around the calls. A round is ten epochs,
each with 20 batches and a validation. The first round compiles and does not count.
"""

import dataclasses
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import numpy as np

from experiments import seq2seq
from zoneout_jax.training import (
    Count,
    Measurement,
    fit,
    parallel,
    parse_measurement,
    prepare,
    versions,
    write_json,
)

EXPERIMENT = seq2seq.EXPERIMENT
EPOCHS = 10
"""Epochs per round."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """How long to measure."""

    rounds: Count = 7
    """Number of rounds."""
    eval_size: Count = EXPERIMENT.presets["repository"].data.eval_size
    """Number of validation additions."""


class Clock:
    """Measures the seconds spent in the compiled functions that it wraps."""

    def __init__(self):
        self.inside = 0.0
        self.marks: list[tuple[float, float]] = []

    def timed(self, make: Callable[..., Callable], marks: bool = False) -> Callable[..., Callable]:
        """Wraps `make`, so that the functions that it makes are timed and, if asked for, marked."""

        @functools.wraps(make)
        def made(*arguments: Any, **options: Any) -> Callable:
            function = make(*arguments, **options)

            def call(*inputs: Any) -> Any:
                start = time.perf_counter()
                result = jax.block_until_ready(function(*inputs))
                end = time.perf_counter()
                self.inside += end - start
                if marks:
                    self.marks.append((end, self.inside))
                return result

            return call

        return made


def measure(options: Options) -> dict[str, Any]:
    """Runs the experiment; returns shares and times of each round."""
    clock = Clock()
    timed = {
        "train_steps": clock.timed(parallel.train_steps),
        "evaluation_sums": clock.timed(parallel.evaluation_sums),
        "each_state": clock.timed(parallel.each_state, marks=True),
    }
    with mock.patch.multiple(parallel, **timed), tempfile.TemporaryDirectory() as folder:
        epochs = (options.rounds + 1) * EPOCHS
        preset = EXPERIMENT.presets["long"]
        config = preset.replace(epochs=epochs, eval_size=options.eval_size, workdir=folder)
        task, run = prepare(EXPERIMENT.name, config, preset, EXPERIMENT.build)
        fit(dataclasses.replace(task, test_evaluations={}), config.run, run)
        entries = [json.loads(line) for line in run.times_file.read_text().splitlines()]
    ends = np.array(clock.marks)[EPOCHS - 1 :: EPOCHS]
    walls, insides = np.diff(ends, axis=0).T
    return {
        "share_outside": (1 - insides / walls).tolist(),
        "median_share_outside": float(np.median(1 - insides / walls)),
        "seconds_an_epoch": (walls / EPOCHS).tolist(),
        "median_seconds_an_epoch": float(np.median(walls / EPOCHS)),
        "median_batches_per_second": statistics.median(
            entry["steps_per_second"] for entry in entries[EPOCHS:]
        ),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    module, about = "benchmarks.outside_compiled", "Measures the time outside compiled code."
    options, out = parse_measurement(Options, argv, module, about)
    flags = f"--rounds={options.rounds} --eval_size={options.eval_size}"
    result = {
        "command": f"python -m {module} {flags}",
        "shapes": "2 layers, H=128, B=32, T=13+8, 20 batches an epoch, float32",
        **measure(options),
        "devices": f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}",
        "versions": versions(),
    }
    write_json(out / "outside_compiled.json", result)
    print(json.dumps(result, indent=2))
    print(f"result: {out / 'outside_compiled.json'}")


if __name__ == "__main__":
    main()
