"""How much of a run's time is spent outside compiled code: learning to add.

    python -m benchmarks.outside_compiled

Trains the toy task at the authors' setting, whose steps are so small that Python could be in their
way. Every call of a compiled function, its dispatch included, is timed until its results are there,
so that nothing overlaps; what remains is the rest of the loop. A round is ten epochs, of 20 batches
and a validation each; those of the first round compile and do not count.
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
"""Epochs of a round."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """How long to measure."""

    rounds: Count = 7
    """Rounds."""
    eval_size: Count = EXPERIMENT.presets["repository"].data.eval_size
    """Additions of a validation."""


class Clock:
    """Seconds spent in the compiled functions that it has wrapped."""

    def __init__(self):
        self.inside = 0.0
        self.marks: list[tuple[float, float]] = []

    def timed(self, make: Callable[..., Callable], marks: bool = False) -> Callable[..., Callable]:
        """`make` as it was, but for functions that are timed, and may each mark an epoch's end."""

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
    """Measures from the command line, prints and keeps the result."""
    module, about = "benchmarks.outside_compiled", "How much time is spent outside compiled code."
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
