"""The description of an experiment, for the programs that train, tabulate or sample from it."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.lib.language_model import LanguageModel
from zoneout_jax.data import Corpus
from zoneout_jax.training import Task, launch, parse_preset, parse_sweep, program, shown

NAMES = (
    "char_ptb",
    "word_ptb",
    "text8",
    "permuted_mnist",
    "gradient_propagation",
    "seq2seq",
    "semantic_consistency",
)
"""All experiments; each is `experiments.<name>.EXPERIMENT`."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      flags: flags of the row, in addition to the preset.
      validation, test: the paper's values; None where it has none.
    """

    flags: tuple[str, ...] = ()
    validation: float | None = None
    test: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment that trains the rows of a table.

    Attributes:
      name: as in `python -m experiments.<name>`.
      about: description for `--help`.
      presets: settings by name; the first is the default, and the paper's if the paper has the
        experiment.
      build: `build(config) -> Task`.
      rows: the rows of the table by name.
      metrics: metrics of the table, in order. Published values are of the first, a
        `validation_…`, and of the `test_…` of that name.
      preset_rows: names of the rows that suit each preset; by default all.
      curves: further validation metrics to plot over the epochs.
      published_on: the corpus or images of the published values.
      model: for a language model, `model(config, corpus)` with the corpus `config.data.corpus`.
    """

    name: str
    about: str
    presets: Mapping[str, Any]
    build: Callable[[Any], Task]
    rows: Mapping[str, Row]
    metrics: tuple[str, ...]
    preset_rows: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    curves: tuple[str, ...] = ()
    published_on: str | None = None
    model: Callable[[Any, Corpus], LanguageModel] | None = None

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Trains from the command line; prints the result, with the paper's if comparable."""
        config, result = launch(self.name, self.presets, self.build, self.about, argv)
        ours = ", ".join(f"{m.replace('_', ' ')} {shown(result, m)}" for m in self.metrics)
        best = ", ".join(f"{name} {result[name]:g}" for name in parse_sweep(config.run.sweep))
        epochs = dict.fromkeys(run["best_epoch"] for run in result.get("runs", [result]))
        at = f", best at {best}" if best else f", of epoch {' and '.join(map(str, epochs))}"
        print(f"{result['name']}: {ours}{at}{self.paper(config)}")

    def published(self, row: Row) -> dict[str, float]:
        """Returns the paper's values of a row, by metric."""
        test = self.metrics[0].replace("validation", "test")
        values = {self.metrics[0]: row.validation, test: row.test}
        return {name: value for name, value in values.items() if value is not None}

    def paper(self, config: Any) -> str:
        """Formats the published values, for a run with the settings of a row of the paper."""

        def settings(config: Any) -> dict[str, Any]:
            free = ("seed", "num_seeds", "rng_impl")
            return {name: v for name, v in config.identity().items() if name not in free}

        for name, row in self.rows.items():
            published = " / ".join(f"{value:g}" for value in self.published(row).values())
            of_row = parse_preset(self.presets, row.flags)
            if published and settings(of_row) == settings(config):
                return f"; paper, {name}: {published}"
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """An experiment whose result is not a table.

    Attributes:
      name, about, presets: as in `Experiment`.
      measure: `measure(config) -> result`; writes what the experiment's docstring says.
    """

    name: str
    about: str
    presets: Mapping[str, Any]
    measure: Callable[[Any], Mapping[str, Any]]

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Measures from the command line."""
        config = parse_preset(self.presets, argv, self.about)
        with program(argv):
            self.measure(config)


def find(name: str) -> Experiment | Study:
    """Returns the experiment of a name in `NAMES`."""
    return importlib.import_module(f"experiments.{name}").EXPERIMENT
