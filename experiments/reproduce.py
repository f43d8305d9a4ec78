"""Reruns the rows of a table of the paper over several seeds.

    python -m experiments.reproduce char_ptb --preset=laptop  # minutes, no download
    python -m experiments.reproduce char_ptb --seeds 0 1 2    # the paper's own settings
    python -m experiments.reproduce permuted_mnist --preset=laptop
    python -m experiments.reproduce gradient_propagation --preset=laptop   # a figure, no table
    python -m experiments.reproduce seq2seq                                # hours on a CPU core

Finished runs are skipped, and interrupted runs resume. Several processes can share a folder, each
with its own `--rows`; or with its own `--seeds` and `--together=False`, since seeds in one program
are one run. When all have ended, a command with all rows and seeds makes the table. The table
(Markdown and JSON) is written again after every run, the plots of the learning curves as they grow.
A row that diverges is marked, and the other rows continue. An experiment without a table
(`gradient_propagation`, `semantic_consistency`) writes what its docstring says.
"""

import contextlib
import dataclasses
import pathlib
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import tyro
from jax.experimental.compilation_cache import compilation_cache

from experiments.lib.experiment import NAMES, Experiment, Study, find
from experiments.lib.results import read
from experiments.lib.settings import DataConfig
from zoneout_jax.training import (
    Count,
    Diverged,
    RunDirectory,
    RunError,
    Seed,
    Settings,
    StopRequest,
    deviation,
    draw_curves,
    fit,
    markdown_table,
    output_folder,
    parse,
    parse_preset,
    prepare,
    program,
    versions,
    write_json,
    write_text,
)

SEEDS = (0, 1, 2)
"""Default seeds of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """What to rerun."""

    experiment: tyro.conf.Positional[Literal[NAMES]]
    """Experiment to rerun."""
    preset: str | None = None
    """Settings: of the paper; of the authors' code (repository); the same for longer (long); a
    small task on the paper's data (small); minutes on a laptop; or seconds (smoke). Not every
    experiment has all of them. The default is its first: the paper's, if the paper has it."""
    seeds: tuple[Seed, ...] | None = None
    """Seeds of every row; by default 0, 1 and 2, or the experiment's own seeds."""
    rows: tuple[str, ...] = ()
    """Names of rows or models; by default all, or those that suit the preset."""
    epochs: Count | None = None
    """Maximum number of epochs; by default the preset's."""
    on_nan: Literal["stop", "skip"] | None = None
    """If a loss or gradient is not finite: stop before that step, or skip it."""
    together: bool | None = None
    """Train the seeds of a row in one program, if they are consecutive; by default in presets
    laptop and smoke, where compilation is a large part of the time."""
    out: pathlib.Path | None = None
    """Folder for runs and tables; by default runs/reproduce/<experiment>-<preset>, or the default
    of an experiment without a table."""
    data: DataConfig = DataConfig()


def reproduce(options: Options) -> dict[str, Any]:
    """Runs every row with every seed.

    Returns:
      The content of `table.json`, or the result of the experiment's own `measure`.

    Raises:
      ValueError: unknown rows, bad seeds, or settings that the experiment refuses.
      RunError: rows have diverged; the other rows are done.
    """
    experiment = find(options.experiment)
    if options.preset is None:
        options = dataclasses.replace(options, preset=next(iter(experiment.presets)))
    if options.preset not in experiment.presets:
        raise ValueError(
            f"{options.experiment} has no preset {options.preset}; choose one of "
            f"{', '.join(experiment.presets)}"
        )
    start = experiment.presets[options.preset]
    if isinstance(experiment, Study):
        return experiment.measure(_measurement(options, start))
    rows = experiment.rows
    names = options.rows or experiment.preset_rows.get(options.preset, tuple(rows))
    unknown = [name for name in names if name not in rows]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}; choose from {', '.join(rows)}")
    if len(set(names)) < len(names):
        raise ValueError(f"rows must be distinct, got {', '.join(names)}")
    seeds = SEEDS if options.seeds is None else options.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more distinct values, got {seeds}")
    table = Table(
        experiment,
        options,
        output_folder(options.out, f"reproduce/{experiment.name}-{options.preset}"),
    )
    together = (
        options.preset in ("laptop", "smoke") if options.together is None else options.together
    )
    if together and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        parts = [(name, seeds) for name in names]
    else:  # seeds in the outer loop: an interrupted table compares the same seeds
        parts = [(name, (seed,)) for seed in seeds for name in names]
    configs = [table.config(*part) for part in parts]
    for config in configs:  # a folder that cannot be used ends the command before any training
        RunDirectory(pathlib.Path(config.run.workdir), config.identity())
    with StopRequest() as stop:
        for part, config in zip(parts, configs, strict=True):
            table.train(*part, config, stop)
            if stop.requested:  # after the last step of the row, which was not stopped by it
                raise stop.stopped(stop.requested)
    print(f"table: {table.out / 'table.md'} and table.json; curves: {table.out / 'curves.png'}")
    if table.failed:
        raise RunError(f"diverged: {', '.join(table.failed)}; other rows are done")
    return table.content()


class Table:
    """The finished rows of an experiment.

    Attributes:
      out: folder of the runs, of `table.json`, `table.md` and the plots.
      failed: error messages of rows that diverged, by name.
    """

    def __init__(self, experiment: Experiment, options: Options, out: pathlib.Path):
        self.experiment, self.options, self.out = experiment, options, out
        self.failed: dict[str, str] = {}
        self._runs: dict[str, list[dict[str, Any]]] = {}
        self._histories: dict[str, list[list[dict[str, Any]]]] = {}
        self._metric = ""
        if (out / "table.json").exists():
            there = read(out / "table.json")
            for name, ours in (("experiment", experiment.name), ("preset", options.preset)):
                if there.get(name, ours) != ours:
                    raise ValueError(
                        f"{out} holds a table of {name} {there[name]}, not {ours}; use another "
                        "folder"
                    )

    def config(self, name: str, seeds: Sequence[int]) -> Any:
        """Returns the settings of a row for consecutive seeds."""
        flags = (f"--preset={self.options.preset}", *self.experiment.rows[name].flags)
        config = parse_preset(self.experiment.presets, flags)
        given = {n: getattr(self.options, n) for n in ("epochs", "on_nan")}
        given |= self.options.data.folders()
        of_seeds = f"seed{seeds[0]}" if len(seeds) == 1 else f"seeds{seeds[0]}-{seeds[-1]}"
        return config.replace(
            seed=seeds[0],
            num_seeds=len(seeds),
            workdir=str(self.out / f"{name.replace(' ', '_')}-{of_seeds}"),
            **known(given, config.flat(), self.experiment.name),
        )

    def train(self, name: str, seeds: Sequence[int], config: Any, stop: StopRequest) -> None:
        """Trains a row with some seeds; notes in `failed` if it diverges, without an error."""
        experiment = self.experiment
        start = experiment.presets[self.options.preset]
        task, run = prepare(experiment.name, config, start, experiment.build)
        words = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
        task = dataclasses.replace(task, name=f"{name}, {words}")
        self._metric = task.metric

        def histories(entries):
            return [[e for e in entries if e.get("seed", seed) == seed] for seed in seeds]

        try:
            result = fit(
                task,
                config.run,
                run,
                stop,
                on_history=lambda entries: self.draw(name, histories(entries)),
            )
        except Diverged as error:
            self.failed[name] = str(error)
            print(f"{name}: diverged; {error}", file=sys.stderr)
        except (ValueError, OSError) as error:  # no bad input, which `prepare` has checked
            raise RuntimeError(f"{name}, {words} failed") from error
        else:
            runs = by_seed(result, seeds)
            lost = [str(run["seed"]) for run in runs if not run["best_epoch"]]
            if lost:
                self.failed[name] = f"diverged in every epoch with seed {', '.join(lost)}"
                print(f"{name}: {self.failed[name]}", file=sys.stderr)
            self._runs.setdefault(name, []).extend(run for run in runs if run["best_epoch"])
        self._histories.setdefault(name, []).extend(histories(run.history()))
        self.write()
        self.draw()
        print(markdown(self.content()))

    def draw(self, name: str | None = None, of_now: Sequence[Any] = ()) -> None:
        """Draws the curves of finished runs, and of the row that is being trained."""
        curves = {row: list(runs) for row, runs in self._histories.items()}
        if name is not None:
            curves[name] = [*curves.get(name, []), *of_now]
        curves = {row: runs for row, runs in curves.items() if any(runs)}
        if curves:
            draw_curves(self.out / "curves.png", curves, self._metric)
            for metric in self.experiment.curves:
                path = self.out / f"curves-{metric}.png"
                draw_curves(path, curves, metric, ("validation",))

    def write(self) -> None:
        """Writes `table.json` and `table.md`."""
        content = self.content()
        write_json(self.out / "table.json", content)
        write_text(self.out / "table.md", markdown(content))

    def content(self) -> dict[str, Any]:
        """Returns the content of `table.json`."""
        rows = [self._row(name) for name in self._histories]
        runs = [run for row in rows for run in row["runs"]]
        return {
            "command": shlex.join(
                ["python", "-m", "experiments.reproduce", *_arguments(self.options)]
            ),
            "experiment": self.experiment.name,
            "preset": self.options.preset,
            "dataset": distinct(run.get("corpus") or run["dataset"] for run in runs),
            "published_on": self.experiment.published_on,
            "devices": distinct(run["devices"] for run in runs),
            "commit": distinct(run.get("commit", "unknown") for run in runs),
            "versions": {
                name: distinct(run["versions"].get(name, "unknown") for run in runs)
                for name in versions()
            },
            "rows": rows,
        }

    def _row(self, name: str) -> dict[str, Any]:
        row, runs = self.experiment.rows[name], self._runs.get(name, [])
        values = {metric: [run[metric] for run in runs] for metric in self.experiment.metrics}
        published = self.experiment.published(row)
        metrics = {
            metric: {
                "mean": statistics.fmean(of_runs) if of_runs else None,
                "sd": deviation(of_runs),
                "published": published.get(metric),
                "runs": of_runs,
            }
            for metric, of_runs in values.items()
        }
        content = {"name": name, "flags": list(row.flags), "metrics": metrics, "runs": runs}
        return content | ({"failed": self.failed[name]} if name in self.failed else {})


def by_seed(result: dict[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Splits the result of a run by seed; each seed gets its share of the time."""
    if len(seeds) == 1:
        return [result | {"seed": seeds[0]}]
    shared = {k: v for k, v in result.items() if k != "runs" and not k.endswith("_sd")}
    shared["seconds"] = result["seconds"] / len(seeds)
    return [shared | run for run in result["runs"]]


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Caches compiled programs while rows run, as all seeds of a row use the same programs.

    If the user has set up a cache, that one is used.
    """
    if jax.config.jax_compilation_cache_dir:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
        try:
            yield
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
            compilation_cache.reset_cache()


def _measurement(options: Options, settings: Any) -> Any:
    """Returns the settings of a `Study`, changed by the options."""
    given = {
        "models": options.rows or None,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "on_nan": options.on_nan,
        "together": options.together,
        "out": options.out,
        **options.data.folders(),
    }
    return settings.replace(**known(given, settings.flat(), options.experiment))


def known(given: Mapping[str, Any], settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the options that are given; raises ValueError if an experiment has no such setting.

    Args:
      given: values of options by the name of the setting; None if an option is not given.
      settings: the settings of the experiment.
      name: the experiment.
    """
    for setting, value in given.items():
        if value is not None and setting not in settings:
            flag = "rows" if setting == "models" else setting
            raise ValueError(f"{name} has no --{flag}; leave it out")
    return {setting: value for setting, value in given.items() if value is not None}


def distinct(values: Iterable[str]) -> str:
    """Joins the distinct values of all runs."""
    return " and ".join(dict.fromkeys(values))


def markdown(table: Mapping[str, Any]) -> str:
    """Formats the table in Markdown: mean ± sd over seeds, and the published value in brackets.

    The published value is left out if the settings are not the paper's.
    """
    published, own = table["published_on"], ""
    if table["preset"] != "paper":
        own = f"Preset {table['preset']} has other settings than the paper."
    elif "--epochs" in table["command"]:
        own = "The number of epochs is not the paper's."
    metrics = list(table["rows"][0]["metrics"])
    header = ["model", *(metric.replace("_", " ") for metric in metrics)]
    header += ["seeds", "best epoch", "steps", "minutes a run"]
    lines = []
    for row in table["rows"]:
        runs = row["runs"]
        diverged = " (a run diverged)" if "failed" in row and runs else ""
        cells = [row["name"] + diverged]
        for metric in row["metrics"].values():
            if metric["mean"] is None:
                cells.append("diverged")
                continue
            sd = "" if metric["sd"] is None else f" ± {metric['sd']:.3f}"
            paper = metric["published"]
            paper = "" if own or paper is None else f" ({paper:.3f})"
            cells.append(f"{metric['mean']:.3f}{sd}{paper}")
        cells.append(" ".join(str(run["seed"]) for run in runs))
        cells.append(" ".join(str(run["best_epoch"]) for run in runs))
        steps, seconds = ([run[name] for run in runs] or [0] for name in ("steps", "seconds"))
        cells.append(f"{statistics.fmean(steps):,.0f}")
        cells.append(f"{statistics.fmean(seconds) / 60:.1f}")
        lines.append(cells)
    used = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    note = "There are no published values."
    if published:
        note = own or f"In brackets: published values, for {published}."
    return (
        f"{table['experiment']}, preset {table['preset']}, {table['dataset']}; mean ± sd over "
        f"seeds.\n{note}\n\n{markdown_table(header, lines)}\n`{table['command']}`\n\n"
        f"{table['devices']}; {used}; commit {table['commit']}\n"
    )


def _arguments(options: Options) -> list[str]:
    """Formats the options that differ from their defaults as flags."""
    arguments = [options.experiment]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in ("experiment", "out", "data") and value != field.default:
            words = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{field.name}", *map(str, words)]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Reruns rows from the command line."""
    options = parse(Options, argv, "Reruns the rows of a table of the paper.")
    with program(argv), compiled_once():
        reproduce(options)


if __name__ == "__main__":
    main()
