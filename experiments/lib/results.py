"""Reads folders of results: run directories, and the tables of `reproduce`."""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.lib.experiment import NAMES, Experiment, Row, find
from zoneout_jax.training import parse_sweep

COMMITTED = pathlib.Path(__file__).parents[1] / "results"
NOTES = COMMITTED / "results.json"
"""What the files of a committed folder lack: `command`, `commit`, `hardware`, `note`, and
`settings` that had another default, or did not exist, at the time of the run."""
History = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a row, or of settings that belong to no row, as read from a file.

    Attributes:
      folder: folder of the file.
      row: name of the row, in any preset; None for settings that belong to no row.
      flags: flags after `python -m experiments.<name>`.
      first: True for a row in the first preset (the paper's if there is one) that changes at most
        the number of epochs.
      state: progress of the run, in words.
      values: values of each seed, by metric.
      about: command, commit, versions, hardware and notes.
      curves: learning curves by label.
    """

    folder: pathlib.Path
    row: str | None
    flags: str
    first: bool
    state: str
    values: Mapping[str, list[float]]
    about: Mapping[str, Any]
    curves: Mapping[str, list[History]]


def collect(root: pathlib.Path) -> dict[str, list[Result]]:
    """Collects the results in a folder, at any depth, by experiment.

    Raises:
      ValueError: a file cannot be read.
    """
    found: dict[str, list[Result]] = {}
    tables = sorted(root.rglob("table.json"))
    runs = [
        file
        for file in sorted(root.rglob("config.json"))
        if not any(file.is_relative_to(table.parent) for table in tables)
    ]
    for read_one, files in ((from_table, tables), (from_run, runs)):
        for file in files:
            try:
                for name, result in read_one(file):
                    found.setdefault(name, []).append(result)
            except (KeyError, TypeError, AttributeError, ImportError) as error:
                raise ValueError(f"{file} is not a result: {error!r}") from error
    return found


def from_table(file: pathlib.Path) -> Iterator[tuple[str, Result]]:
    """Yields the rows of a table, with the curves of the runs in its folder."""
    folder, table = file.parent, read(file)
    experiment = find(table["experiment"])
    runs = [result for run in sorted(folder.rglob("config.json")) for _, result in from_run(run)]
    noted = notes(folder)
    later = noted.pop("settings", {})
    about = {name: table[name] for name in ("command", "commit", "versions")} | noted
    for row in table["rows"]:
        name, flags = row["name"], settings_of(Row(tuple(row["flags"])))
        words = described(experiment, later | {"preset": table["preset"]} | flags) | {"row": name}
        words["state"] = row.get("failed", words["state"])
        values = {metric: numbers["runs"] for metric, numbers in row["metrics"].items()}
        histories = [run.curves.values() for run in runs if run.row == name]
        curves = {name: [h for of_run in histories for of_model in of_run for h in of_model]}
        result = Result(folder=folder, values=values, about=about, curves=curves, **words)
        yield experiment.name, result


def from_run(file: pathlib.Path) -> Iterator[tuple[str, Result]]:
    """Yields the result of a run directory; for an unfinished run, its last epoch."""
    folder, config = file.parent, read(file)
    name = config.get("experiment")
    experiment = find(name) if name in NAMES else None
    if not isinstance(experiment, Experiment):
        return
    noted = notes(folder)
    settings = noted.pop("settings", {}) | config["settings"]
    words = described(experiment, settings)
    log = folder / "metrics.jsonl"
    history = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    curves: dict[str, list[History]] = {}
    for entry in history:
        model = [f"{k} {v:g}" for k, v in entry.items() if k == "seed" or k in settings]
        label = ", ".join([folder.name, *model])
        curves.setdefault(label, [[]])[0].append(entry)
    if (folder / "result.json").exists():
        result = read(folder / "result.json")
        runs = result.get("runs", [result])
    else:  # the last epoch of each seed; nothing of a sweep, whose best rates are not known yet
        result, words["state"] = {}, "not done"
        runs = [] if settings.get("sweep") else [run[-1] for (run,) in curves.values()]
    if settings.get("sweep") and "cells" in result:
        best = {name: result[name] for name in parse_sweep(settings["sweep"])}
        runs = [run for run in runs if best.items() <= run.items()]
        words["state"] += "; best: " + ", ".join(f"{n} {rate:g}" for n, rate in best.items())
    values = {m: [run[m] for run in runs if m in run] for m in experiment.metrics}
    command, seeds = [f"python -m experiments.{name}", words["flags"]], settings.get("num_seeds", 1)
    if seeds > 1 and "--num_seeds" not in words["flags"]:
        command.append(as_flag("num_seeds", seeds))
    about = {"command": " ".join(filter(None, command))}
    about |= {k: config[k] for k in ("commit", "versions") if k in config}
    about |= noted
    yield name, Result(folder=folder, values=values, about=about, curves=curves, **words)


def described(experiment: Experiment, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `row`, `flags`, `first` and `state` of settings, as in a `Result`."""
    first = next(iter(experiment.presets))
    preset = settings.get("preset", first)
    base = json.loads(json.dumps(experiment.presets[preset].identity()))
    known = base | {name: settings[name] for name in base if name in settings}
    rows = {name: settings_of(row) for name, row in experiment.rows.items()}
    deciding = {name for row in rows.values() for name in row} | {"sweep"}
    fits = (n for n, row in rows.items() if all(known[d] == (base | row)[d] for d in deciding))
    row = next(fits, None)
    free = {"preset", "seed", *([] if known["sweep"] else ["num_seeds"])}
    changed = [name for name in known if known[name] != base[name] and name not in free]
    others = set(changed) - {"epochs"} - (rows[row].keys() if row else set())
    flags = [f"--preset={preset}"] if preset != first else []
    shown = [*changed, *(["seed"] if known.get("seed") != base.get("seed") else [])]
    flags += [as_flag(name, known[name]) for name in shown]
    most = f" of at most {base['epochs']}" if known["epochs"] < base["epochs"] else ""
    return {
        "row": row,
        "flags": " ".join(flags),
        "first": preset == first and row is not None and not others,
        "state": f"{known['epochs']}{most} epochs" if "epochs" in changed else "done",
    }


def settings_of(row: Row) -> dict[str, Any]:
    """Converts the flags of a row to settings."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    flags = (flag.removeprefix("--").partition("=") for flag in row.flags)
    return {name: value(text) if equals else True for name, equals, text in flags}


def as_flag(name: str, value: Any) -> str:
    """Formats a setting as a flag."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    if isinstance(value, list):
        return " ".join([f"--{name}", *map(str, value)])
    return f"--{name}={value}"


def notes(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what `NOTES` says about a committed folder and about the folders around it."""
    known: dict[str, dict[str, Any]] = read(NOTES)
    found: dict[str, Any] = {}
    for part in [*reversed(folder.parents), folder]:
        if part.is_relative_to(COMMITTED):
            found |= known.get(part.relative_to(COMMITTED).as_posix(), {})
    return found


def read(file: pathlib.Path) -> Any:
    """Reads a JSON file.

    Raises:
      ValueError: the file cannot be read.
    """
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
