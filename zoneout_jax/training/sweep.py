"""Sweeps over grids of rates: settings, table and figure."""

import itertools
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from zoneout_jax._needs import needs
from zoneout_jax.training.files import write_text
from zoneout_jax.training.metrics import deviation, markdown_table, save_figure, shown

Member = dict[str, Any]
"""What distinguishes the models of a run: the seed, and the rates by name."""


def parse_sweep(sweep: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Parses rates of the form `name=0,0.25,0.5`.

    Raises:
      ValueError: another form, or a repeated name or rate.
    """
    found: dict[str, tuple[float, ...]] = {}
    for item in sweep:
        name, _, values = item.partition("=")
        try:
            rates = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise ValueError(f"sweep must be name=rate,rate,…, got {item!r}") from None
        if not name.isidentifier() or name == "seed" or not all(map(math.isfinite, rates)):
            raise ValueError(f"sweep must be name=rate,rate,…, got {item!r}")
        if name in found or len(set(rates)) < len(rates):
            raise ValueError(f"sweep must have each name and rate once, got {' '.join(sweep)!r}")
        found[name] = rates
    return found


def members(sweep: Sequence[str], seeds: Sequence[int]) -> list[Member]:
    """Lists the models of a run: each combination of rates with each seed."""
    rates = parse_sweep(sweep)
    return [
        dict(zip(rates, values, strict=True)) | {"seed": seed}
        for values in itertools.product(*rates.values())
        for seed in seeds
    ]


def rates_of(member: Mapping[str, Any]) -> dict[str, float]:
    """Returns the rates of a member: all entries except its seed."""
    return {name: value for name, value in member.items() if name != "seed"}


def label(member: Mapping[str, Any]) -> str:
    """Formats a member for messages."""
    return ", ".join(f"{name} {value}" for name, value in member.items())


def by_rates(
    entries: Sequence[dict[str, Any]], models: Sequence[Member], name: str
) -> dict[str, list[list[dict[str, Any]]]]:
    """Groups the histories of the seeds by rates; all under `name` if there are no rates."""
    curves: dict[str, list[list[dict[str, Any]]]] = {}
    for model in models:
        mine = [e for e in entries if all(e.get(k, v) == v for k, v in model.items())]
        curves.setdefault(label(rates_of(model)) or name, []).append(mine)
    return curves


def summarize(
    metrics: Mapping[str, list], models: Sequence[Member], monitor: str
) -> dict[str, Any]:
    """Summarizes the metrics of each model as a result.

    Args:
      metrics: values of the models, by name of the metric.
      models: seed and rates of each model.
      monitor: name of the metric whose least mean over seeds selects the best rates.

    Returns:
      For one model, its metrics. For several, the means over seeds, standard deviations
      `<metric>_sd`, and `runs` with the values of each model. For a sweep, the best rates with
      their means, and `cells` with the means of all rates.
    """
    swept = bool(rates_of(models[0]))
    if len(models) == 1 and not swept:
        return {name: values[0] for name, values in metrics.items()}
    runs = [
        model | dict(zip(metrics, values, strict=True))
        for model, values in zip(models, zip(*metrics.values(), strict=True), strict=True)
    ]
    cells = []
    for rates, group in itertools.groupby(zip(models, runs, strict=True), lambda m: rates_of(m[0])):
        of_cell = [run for _, run in group]
        cell: dict[str, Any] = dict(rates)
        for name in metrics:
            values = [run[name] for run in of_cell]
            cell[name] = sum(values) / len(values)
            cell[f"{name}_sd"] = deviation(values)
        cells.append(cell)
    best = min(cells, key=lambda cell: cell[monitor])
    return best | ({"cells": cells} if swept else {}) | {"runs": runs}


def write_sweep(
    folder: pathlib.Path,
    sweep: Sequence[str],
    result: Mapping[str, Any],
    metrics: Sequence[str],
    monitor: str,
) -> None:
    """Writes `sweep.md`, a table of metrics by rates, and plots `monitor` to `sweep.png`."""
    rates = parse_sweep(sweep)
    header = [*rates, *(name.replace("_", " ") for name in metrics)]
    lines = []
    for cell in result["cells"]:
        lines.append(
            [f"{cell[name]:g}" for name in rates] + [shown(cell, name) for name in metrics]
        )
    write_text(folder / "sweep.md", markdown_table(header, lines))
    _draw(folder / "sweep.png", rates, result["cells"], monitor)


def _draw(
    path: pathlib.Path,
    rates: Mapping[str, Sequence[float]],
    cells: Sequence[Mapping[str, Any]],
    metric: str,
) -> None:
    """Draws a metric against the first rate, with a line per combination of the others."""
    with needs("zoneout_jax.training", "training"):
        from matplotlib.figure import Figure

    first, *others = rates
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for values in itertools.product(*(rates[name] for name in others)):
        line = [cell for cell in cells if [cell[name] for name in others] == list(values)]
        line.sort(key=lambda cell: cell[first])
        axes.errorbar(
            [cell[first] for cell in line],
            [cell[metric] for cell in line],
            [cell[f"{metric}_sd"] or 0 for cell in line],
            marker="o",
            capsize=3,
            label=", ".join(f"{n} {v:g}" for n, v in zip(others, values, strict=True)),
        )
    axes.set(xlabel=first, ylabel=metric.replace("_", " "))
    axes.grid(alpha=0.3)
    if others:
        axes.legend(fontsize="small")
    save_figure(figure, path)
