"""Reruns the rows of a table of the paper over several seeds.

    python -m experiments.reproduce char_ptb --preset=laptop  # minutes, no download
    python -m experiments.reproduce char_ptb --seeds 0 1 2    # the paper's own settings
    python -m experiments.reproduce permuted_mnist --preset=laptop
    python -m experiments.reproduce gradient_propagation --preset=laptop   # a figure, no table
    python -m experiments.reproduce seq2seq                                # hours of a CPU core

Runs that are done are skipped, runs that were cut off go on; several processes can share a folder,
each with its own `--rows` or `--seeds`: when they have ended, one with all of them makes the table.
The table (Markdown and JSON) and the figures of all learning curves are written anew after every
run. An experiment that measures something else than rows of a table (`gradient_propagation`,
`semantic_consistency`) writes what its own docstring says.
"""

import contextlib
import dataclasses
import importlib
import itertools
import pathlib
import shlex
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import jax
import tyro
from jax.experimental.compilation_cache import compilation_cache

from zoneout_jax.training import (
    Count,
    Range,
    RunDirectory,
    check_ranges,
    deviation,
    draw_curves,
    fit,
    output_folder,
    parse,
    parse_preset,
    prepare,
    program,
    replacing,
    write_json,
    writing,
)

SEEDS = (0, 1, 2)
"""Seeds of a table."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to rerun."""

    experiment: tyro.conf.Positional[
        Literal[
            "char_ptb",
            "word_ptb",
            "text8",
            "permuted_mnist",
            "gradient_propagation",
            "seq2seq",
            "semantic_consistency",
        ]
    ]
    """Experiment."""
    preset: Literal["paper", "repository", "long", "small", "laptop", "smoke"] | None = None
    """Settings: the paper's own, the authors' code's, the same for longer, a small task on the
    paper's data, minutes on a laptop, or seconds. Not every experiment has them all; by default its
    first, the paper's own if it is in the paper."""
    seeds: tuple[Annotated[int, Range(0, 2**32 - 1)], ...] | None = None
    """Seeds that every row is run with: by default 0, 1 and 2, or those that the experiment has."""
    rows: tuple[str, ...] = ()
    """Rows, or models, by name; by default all, or those that suit the preset."""
    epochs: Count | None = None
    """Epochs at most; by default the preset's."""
    on_nan: Literal["stop", "skip"] | None = None
    """At a loss or gradient that is not finite: stop before the step, or leave it out."""
    out: pathlib.Path | None = None
    """Where runs and tables go; by default runs/reproduce/<experiment>-<preset>, or the own default
    of an experiment that measures something else."""
    raw_data_dir: str | None = None
    """Folder of raw data files; by default $ZONEOUT_RAW_DATA."""

    def __post_init__(self):
        check_ranges(self)


def reproduce(options: Options) -> dict[str, Any]:
    """Runs every row with every seed.

    Returns:
      The content of `table.json`, or of what the experiment's own `measure` writes.

    Raises:
      ValueError: bad rows or seeds, or what the experiment itself refuses.
    """
    experiment = importlib.import_module(f"experiments.{options.experiment}")
    if options.preset is None:
        options = dataclasses.replace(options, preset=next(iter(experiment.PRESETS)))
    if options.preset not in experiment.PRESETS:
        raise ValueError(
            f"{options.experiment} has no preset {options.preset}; choose one of "
            f"{', '.join(experiment.PRESETS)}"
        )
    if hasattr(experiment, "measure"):
        return experiment.measure(_measurement(options, experiment.PRESETS[options.preset]))
    names = options.rows or getattr(experiment, "PRESET_ROWS", {}).get(
        options.preset, tuple(experiment.ROWS)
    )
    unknown = [name for name in names if name not in experiment.ROWS]
    if unknown:
        raise ValueError(f"unknown row {unknown[0]!r}; choose of {', '.join(experiment.ROWS)}")
    seeds = SEEDS if options.seeds is None else options.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be given, each once, got {seeds}")
    out = output_folder(options.out, f"reproduce/{options.experiment}-{options.preset}")
    # Seeds outside, rows inside: a table cut short compares the same seeds.
    configs = {}
    for seed, name in itertools.product(seeds, names):
        flags = (f"--preset={options.preset}", f"--seed={seed}", *experiment.ROWS[name][0])
        config = parse_preset(experiment.PRESETS, flags, options.experiment, "")
        configs[seed, name] = dataclasses.replace(
            config,
            epochs=options.epochs or config.epochs,
            on_nan=options.on_nan or config.on_nan,
            workdir=str(out / f"{name.replace(' ', '_')}-seed{seed}"),
            raw_data_dir=options.raw_data_dir,
        )
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    histories: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in names}
    for (seed, name), config in configs.items():
        task, run = prepare(options.experiment, experiment.PRESETS, experiment.build, config)
        label = f"{name}, seed {seed}"
        task = dataclasses.replace(task, name=label)
        results[name].append(fit(task, config, run) | {"seed": seed})
        histories[name].append(RunDirectory(run.path, config.identity()).history())
        table = write_table(out, options, experiment, results)
        curves = {row: runs for row, runs in histories.items() if runs}
        draw_curves(out / "curves.png", curves, task.metric)
        for figure in getattr(experiment, "CURVES", ()):
            draw_curves(out / f"curves-{figure}.png", curves, figure, ("validation",))
    print(markdown(table))
    print(f"table: {out / 'table.md'} and {out / 'table.json'}; picture: {out / 'curves.png'}")
    return table


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Keeps compiled programs while rows are run: those of a row's seeds are the same.

    A cache that the user has set up is used as it is.
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
    """The settings of an experiment that measures by itself, with what the options say."""
    given = {
        "models": options.rows or None,
        "seeds": options.seeds,
        "epochs": options.epochs,
        "on_nan": options.on_nan,
        "out": options.out,
        "raw_data_dir": options.raw_data_dir,
    }
    given = {name: value for name, value in given.items() if value is not None}
    known = {field.name for field in dataclasses.fields(settings)}
    for name in given:
        if name not in known:
            flag = "rows" if name == "models" else name
            raise ValueError(f"{options.experiment} has no --{flag}; leave it out")
    return dataclasses.replace(settings, **given)


def write_table(
    out: pathlib.Path, options: Options, experiment: Any, results: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Writes `table.json` and `table.md` of the runs done so far, and returns the former."""
    rows = []
    for name, runs in results.items():
        flags, published = experiment.ROWS[name]
        if not runs:
            continue
        figures = {
            figure: {
                "mean": statistics.fmean(run[figure] for run in runs),
                "sd": deviation([run[figure] for run in runs]),
                "published": published.get(figure),
                "runs": [run[figure] for run in runs],
            }
            for figure in experiment.FIGURES
        }
        rows.append({"name": name, "flags": list(flags), "figures": figures, "runs": list(runs)})
    runs = [run for row in rows for run in row["runs"]]
    table = {
        "command": shlex.join(["python", "-m", "experiments.reproduce", *_arguments(options)]),
        "experiment": options.experiment,
        "preset": options.preset,
        "dataset": distinct(run.get("corpus") or run["dataset"] for run in runs),
        "published_on": getattr(experiment, "PUBLISHED_ON", None),
        "devices": distinct(run["devices"] for run in runs),
        "commit": distinct(run.get("commit", "unknown") for run in runs),
        "versions": {
            name: distinct(run["versions"].get(name, "unknown") for run in runs)
            for name in runs[0]["versions"]
        },
        "rows": rows,
    }
    with writing(out / "table.json"):
        write_json(out / "table.json", table)
    with writing(out / "table.md"), replacing(out / "table.md") as temporary:
        temporary.write_text(markdown(table))
    return table


def distinct(values: Iterable[str]) -> str:
    """What runs have in common, or all that they have."""
    return " and ".join(dict.fromkeys(values))


def markdown(table: Mapping[str, Any]) -> str:
    """The table for people: mean ± sd over seeds, and the published number in brackets."""
    figures = list(table["rows"][0]["figures"])
    header = ["model", *(f.replace("_", " ") for f in figures), "seeds", "best epoch", "steps"]
    header += ["minutes a run"]
    lines = [header, ["---"] * len(header)]
    for row in table["rows"]:
        cells = [row["name"]]
        for figure in row["figures"].values():
            sd = "" if figure["sd"] is None else f" ± {figure['sd']:.3f}"
            paper = "" if figure["published"] is None else f" ({figure['published']:.3f})"
            cells.append(f"{figure['mean']:.3f}{sd}{paper}")
        runs = row["runs"]
        cells.append(" ".join(str(run["seed"]) for run in runs))
        cells.append(" ".join(str(run["best_epoch"]) for run in runs))
        cells.append(f"{statistics.fmean(run['steps'] for run in runs):,.0f}")
        cells.append(f"{statistics.fmean(run['seconds'] for run in runs) / 60:.1f}")
        lines.append(cells)
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    used = ", ".join(f"{name} {version}" for name, version in table["versions"].items())
    note = "Nothing is published of this task."
    if table["published_on"]:
        note = f"In brackets: published, on {table['published_on']}."
        if table["preset"] != "paper":
            note += f" Preset {table['preset']} has other settings; do not compare."
        elif "--epochs" in table["command"]:
            note += " Trained for other epochs than the paper's; do not compare."
    return (
        f"{table['experiment']}, preset {table['preset']}, {table['dataset']}; mean ± sd over "
        f"seeds.\n{note}\n\n{body}\n\n`{table['command']}`\n\n"
        f"{table['devices']}; {used}; commit {table['commit']}\n"
    )


def _arguments(options: Options) -> list[str]:
    """The options that differ from their defaults, as flags."""
    arguments = [options.experiment]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if field.name not in ("experiment", "out", "raw_data_dir") and value != field.default:
            words = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{field.name}", *map(str, words)]
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Reruns rows from the command line."""
    about = "Reruns the rows of a table of the paper."
    command = "python -m experiments.reproduce"
    options = parse(Options, argv, command, about)
    with program(command, argv), compiled_once():
        reproduce(options)


if __name__ == "__main__":
    main()
