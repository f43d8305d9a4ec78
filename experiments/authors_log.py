"""Compares runs of char_ptb with the authors' own training log.

    python -m experiments.authors_log RUN [RUN…] --out DIR

The authors' repository has the log of one run with zoneout (0.5 of the cells, 0.05 of the states)
over 110 epochs. Its metrics, in bits per character, are in `experiments/results/authors-log`.
Output in DIR: `table.md`, with the metrics by epoch and the differences (ours minus the log's), and
`curves.png`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tyro

from zoneout_jax.training import draw_curves, markdown_table, parse, program, write_text

LOG = pathlib.Path(__file__).parent / "results/authors-log/metrics.jsonl"
METRICS = ("train_bpc", "validation_bpc")

History = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The runs to compare."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Run directories of char_ptb. Each run is named after its directory."""
    out: pathlib.Path
    """Folder for the table and the plot."""

    def __post_init__(self):
        if not self.runs:
            raise ValueError("no runs are given; give at least one run directory")
        if len({run.resolve().name for run in self.runs}) < len(self.runs):
            raise ValueError("runs must be directories of different names")


def read(file: pathlib.Path) -> History:
    """Reads the metrics of each epoch.

    Raises:
      ValueError: the file is not the log of a run of char_ptb.
    """
    try:
        history = [json.loads(line) for line in file.read_text().splitlines()]
        history = [{name: entry[name] for name in ("epoch", *METRICS)} for entry in history]
    except (OSError, LookupError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file.parent} is not a run of char_ptb: {file}: {error!r}") from error
    if not history:
        raise ValueError(f"{file.parent} has not finished an epoch")
    if len({entry["epoch"] for entry in history}) < len(history):
        raise ValueError(f"{file.parent} has several models; give runs of one seed")
    return history


def markdown(log: History, runs: Mapping[str, History]) -> str:
    """Makes the table: for each epoch and metric, the log's value, ours, and the difference."""
    theirs = {entry["epoch"]: entry for entry in log}
    header = ["run", "epoch"]
    header += [f"{name.split('_')[0]}, {of}" for name in METRICS for of in ("log", "ours", "above")]
    lines = []
    for run, history in runs.items():
        for entry in history:
            there = theirs[entry["epoch"]]
            cells = [run, str(entry["epoch"])]
            for name in METRICS:
                above = entry[name] - there[name]
                cells += [f"{there[name]:.4f}", f"{entry[name]:.4f}", f"{above:+.4f}"]
            lines.append(cells)
    return markdown_table(header, lines)


def compare(options: Options) -> str:
    """Writes the table and the plot; returns the table."""
    log = read(LOG)
    runs = {run.resolve().name: read(run / "metrics.jsonl") for run in options.runs}
    last = max(entry["epoch"] for history in runs.values() for entry in history)
    log = log[:last]
    table = markdown(log, {name: history[: len(log)] for name, history in runs.items()})
    options.out.mkdir(parents=True, exist_ok=True)
    write_text(options.out / "table.md", table)
    curves = {"authors' log": [log]} | {name: [history] for name, history in runs.items()}
    draw_curves(options.out / "curves.png", curves, "bpc")
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison from the command line."""
    options = parse(Options, argv, "Compares runs of char_ptb with the authors' log.")
    with program(argv):
        print(compare(options))


if __name__ == "__main__":
    main()
