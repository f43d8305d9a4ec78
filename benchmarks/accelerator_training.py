"""Parts 4 and 5 of `benchmarks.accelerator`: char_ptb at the paper's size, end to end.

Part 4 runs the unchanged training loop and ends it after some calls of compiled steps. It measures
steps per second and the share of time outside compiled functions. Part 5 trains with and without
zoneout, for as many epochs as there is time for. It uses the precision that was fastest in part 4,
and as many seeds in one program as cost almost no extra time.
"""

import contextlib
import dataclasses
import functools
import json
import statistics
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.accelerator_common import Context, brief, table
from benchmarks.outside_compiled import Clock
from experiments import char_ptb
from zoneout_jax.data import ptb, raw
from zoneout_jax.training import (
    Stopped,
    draw_curves,
    fit,
    parallel,
    parse_preset,
    prepare,
    write_text,
)

EXPERIMENT = char_ptb.EXPERIMENT
STEPS, CALLS = 300, 7
"""Steps to time, and the least number of calls, after the first two calls and if there is time."""
SETTINGS = (
    {"precision": "float32", "num_seeds": 1},
    {"precision": "bfloat16", "num_seeds": 1},
    {"precision": "bfloat16", "num_seeds": 8},
    {"precision": "float32", "num_seeds": 8},
    {"precision": "bfloat16", "num_seeds": 4},
    {"precision": "float32", "num_seeds": 4},
    {"precision": "bfloat16", "num_seeds": 1, "steps_per_call": 100},
)
"""The most important first."""
FREE = 1.25
"""More seeds cost almost nothing while a step takes at most this many times the step of one seed.
"""
UNMEASURED = {"precision": "float32", "num_seeds": 1, "steps a second": 1.0}
"""What part 5 trains with if part 4 measured nothing: so slow that there is little text."""
ROWS = ("zoneout", "LSTM")


class Enough(Exception):
    """Raised when enough steps have been timed."""


def config(context: Context, row: str, **settings: Any) -> char_ptb.Config:
    """Returns the settings of a row of the paper, on the paper's corpus if its files are here."""
    preset = "smoke" if context.quick else "paper"
    flags = [f"--preset={preset}", *EXPERIMENT.rows[row].flags]
    found = parse_preset(EXPERIMENT.presets, flags)
    if not penn_treebank_is_here():  # a measurement must not wait for a download
        settings["dataset"] = "stdlib"
    settings.setdefault("steps_per_call", context.pick(1, 1, found.run.steps_per_call))
    return found.replace(**settings)


def penn_treebank_is_here() -> bool:
    """Tells whether the raw files of the Penn Treebank are in the folder that the user named."""
    try:
        return all(raw.find(file) for file in ptb.RAW_FILES.values())
    except raw.DataError:
        return False


def end_to_end(context: Context, result: dict[str, Any]) -> None:
    """Measures steps per second of the training loop."""
    result["runs"] = []
    # On a CPU several seeds at once take as long as one after another.
    wanted = context.pick(SETTINGS[:3], SETTINGS[:2], SETTINGS)
    for settings in wanted:
        if context.left() <= 0:
            break
        found = dict(settings)
        result["runs"].append(found)
        try:
            found |= rate(context, settings)
        except Exception as error:
            found["error"] = brief(error)
        context.save()
    result["not reached"] = [dict(s) for s in wanted[len(result["runs"]) :]]


class Ready:
    """A run of char_ptb that is ready to start, without the test evaluations at its end."""

    def __init__(self, config: char_ptb.Config):
        self.config = config
        preset = EXPERIMENT.presets[config.preset]
        task, self.run = prepare(EXPERIMENT.name, config, preset, EXPERIMENT.build)
        self.task = dataclasses.replace(task, test_evaluations={})

    def fit(self) -> None:
        """Trains the model."""
        fit(self.task, self.config.run, self.run)


def rate(context: Context, settings: dict[str, Any]) -> dict[str, Any]:
    """Measures steps per second of the training loop, and the time outside compiled functions."""
    clock = Clock()
    steps_per_call = config(context, "zoneout", **settings).run.steps_per_call
    calls = 3 if context.quick else max(CALLS, STEPS // steps_per_call)

    def ending(make: Callable[..., Callable]) -> Callable[..., Callable]:
        @functools.wraps(make)
        def made(*arguments: Any, **options: Any) -> Callable:
            function = make(*arguments, **options)

            def call(*inputs: Any) -> Any:
                if len(clock.marks) >= calls + 2 or len(clock.marks) > 2 and context.left() <= 0:
                    raise Enough
                return function(*inputs)

            return call

        return made

    steps = ending(clock.timed(parallel.train_steps, marks=True))
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        ready = Ready(config(context, "zoneout", workdir=folder, **settings))
        with mock.patch.object(parallel, "train_steps", steps):
            ready.fit()
    # Leaves out the first call, which compiles, and the second, which follows it.
    walls, insides = np.diff(np.array(clock.marks)[1:], axis=0).T
    return {
        "corpus": ready.task.metadata["corpus"],
        "steps_per_call": steps_per_call,
        "calls": len(walls),
        "seconds a call": walls.tolist(),
        "steps a second": steps_per_call / statistics.median(walls),
        "share outside": float(np.median(1 - insides / walls)),
    }


def evidence(context: Context, result: dict[str, Any]) -> None:
    """Trains rows of the paper in the seconds that are left, each for the same time."""
    chosen = fastest(context.found.get("end to end", {}).get("runs", []))
    result |= chosen | {"rows": {}}
    histories = {}
    for number, row in enumerate(ROWS):
        found = result["rows"][row] = {}
        try:
            history = train(context, row, context.left() / (len(ROWS) - number), chosen, found)
        except Exception as error:
            found["error"] = brief(error)
        else:
            seeds = sorted({entry.get("seed", 0) for entry in history})
            histories[row] = [[e for e in history if e.get("seed", 0) == seed] for seed in seeds]
            found["best validation"] = [
                min(entry["validation_bpc"] for entry in run) for run in histories[row]
            ]
            draw_curves(context.out / "curves.png", histories, "bpc")
        context.save()


def fastest(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Chooses the fastest precision, and the most seeds that cost it almost no extra time.

    Returns:
      Precision, number of seeds, and steps per second; `UNMEASURED` if no rate was measured.
    """
    rates = {
        (run["precision"], run["num_seeds"]): run["steps a second"]
        for run in runs[::-1]  # of runs that differ in steps per call, the first one wins
        if "steps a second" in run
    }
    single = {precision: rate for (precision, seeds), rate in rates.items() if seeds == 1}
    if not single:
        return UNMEASURED
    precision = max(single, key=single.get)
    seeds = max(
        seeds
        for (name, seeds), rate in rates.items()
        if name == precision and rate * FREE >= single[precision]
    )
    return {"precision": precision, "num_seeds": seeds, "steps a second": rates[precision, seeds]}


def train(
    context: Context, row: str, seconds: float, chosen: dict[str, Any], found: dict[str, Any]
) -> list[dict[str, Any]]:
    """Trains a row for a number of seconds; returns its history, and also writes it to a file.

    Raises:
      RuntimeError: no epoch ended.
    """
    settings = {name: chosen[name] for name in ("precision", "num_seeds")}
    settings |= {"max_minutes": max(seconds, 1) / 60, "checkpoint_minutes": 60}
    with tempfile.TemporaryDirectory() as folder:
        ready = Ready(config(context, row, workdir=folder, **settings))
        steps = int(0.6 * seconds * chosen["steps a second"])
        if steps < ready.task.steps_per_epoch:
            # Not even one epoch would end: use less text, for two epochs and a short validation.
            whole = ready.config
            size = (max(steps // 2, 2) * whole.run.batch_size + 1) * whole.data.seq_length
            ready = Ready(whole.replace(train_size=size, eval_size=6_400))
        found |= {
            "corpus": ready.task.metadata["corpus"],
            "steps an epoch": ready.task.steps_per_epoch,
        }
        with contextlib.suppress(Stopped):
            ready.fit()
        history = ready.run.history()
        times = [json.loads(line) for line in ready.run.times_file.read_text().splitlines()]
    if not history:
        raise RuntimeError(f"no epoch ended in {seconds:.0f} s")
    by_epoch = {entry["epoch"]: entry for entry in times}
    path = context.out / f"char_ptb-{row}.jsonl"
    lines = [json.dumps(by_epoch[entry["epoch"]] | entry) for entry in history]
    write_text(path, "\n".join(lines) + "\n")
    found |= {"epochs": times[-1]["epoch"], "seconds": times[-1]["seconds"]}
    return history


def end_to_end_report(result: dict[str, Any]) -> list[str]:
    """Formats part 4 as lines of Markdown."""
    rows, errors = [], []
    for run in result["runs"]:
        if "error" in run:
            errors += [f"- {run['precision']}, {run['num_seeds']} seeds: {run['error']}", ""]
            continue
        speed = run["steps a second"]
        row = [run["precision"], str(run["num_seeds"]), str(run["steps_per_call"])]
        row += [f"{speed:.3g}", f"{speed * run['num_seeds']:.3g}", f"{run['share outside']:.1%}"]
        rows.append([*row, str(run["calls"])])
    header = ("products", "seeds", "steps a call", "steps/s", "steps/s of all seeds")
    lines = table((*header, "outside compiled functions", "calls"), rows)
    if result.get("not reached"):
        lines += [f"Not reached: {result['not reached']}.", ""]
    return lines + errors


def evidence_report(result: dict[str, Any]) -> list[str]:
    """Formats part 5 as lines of Markdown."""
    lines = [
        f"Products in {result['precision']}, {result['num_seeds']} seed(s) in one program."
        " Validation, in bits per character, is the best so far of each seed; the paper's value is"
        " from the end of training.",
        "",
    ]
    rows, errors = [], []
    for name, row in result["rows"].items():
        if "error" in row:
            errors += [f"- {name}: {row['error']}", ""]
        if "best validation" in row:
            best = " ".join(f"{value:.3f}" for value in row["best validation"])
            paper = EXPERIMENT.rows[name].validation
            cells = [name, row["corpus"], str(row["steps an epoch"]), str(row["epochs"])]
            rows.append([*cells, f"{row['seconds']:.0f}", best, f"{paper:.3f}"])
    header = ("row", "corpus", "steps an epoch", "epochs", "seconds", "validation", "paper")
    return lines + table(header, rows) + errors
