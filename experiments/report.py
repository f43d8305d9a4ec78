"""Makes one page of all results, next to the published ones.

    python -m experiments.report                                   # runs/report.html
    python -m experiments.report runs/char_ptb --out report.html   # with your own runs
    python -m experiments.report --out docs/reproduction.md        # the page of the documentation

The page covers run directories, tables of `reproduce` and pictures, in `experiments/results` and in
the given folders. For each row of an experiment it shows the published values, our values, the
flags and the state. Pictures, commands, commits, versions and hardware follow.
"""

import dataclasses
import io
import pathlib
import statistics
from collections.abc import Mapping, Sequence

import tyro

from experiments.lib.experiment import NAMES, Experiment, Study, find
from experiments.lib.pages import Block, Picture, to_html, to_markdown
from experiments.lib.results import COMMITTED, History, Result, collect, notes
from zoneout_jax.training import curves_figure, deviation, parse, program, write_text

DASH = "–"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the page shows, and where it is written."""

    folders: tyro.conf.Positional[tuple[pathlib.Path, ...]] = ()
    """Folders of results, in addition to experiments/results."""
    out: pathlib.Path = pathlib.Path("runs/report.html")
    """File of the page: .html (a single file) or .md (Markdown)."""

    def __post_init__(self):
        if self.out.suffix not in (".html", ".md"):
            raise ValueError(f"out must end in .html or .md, got {self.out}")


def page(folders: Sequence[pathlib.Path], as_html: bool) -> list[Block]:
    """Makes the page of the committed results and of further folders.

    Args:
      folders: further folders.
      as_html: draw learning curves; if False, show the pictures in the folders.

    Raises:
      ValueError: a folder has no results, or its results cannot be read.
    """
    roots = [*sorted(path for path in COMMITTED.iterdir() if path.is_dir()), *folders]
    found = {root: collect(root) for root in roots}
    for folder in folders:
        if not found[folder]:
            raise ValueError(f"{folder} has no results: no run of an experiment, and no table.json")
    blocks: list[Block] = [
        "# Reproduction",
        "This page has our results for the paper's experiments, next to the published values."
        " Published values are validation / test, from the first version of the paper. Results of"
        " several seeds are mean ± standard deviation. Results of an unfinished run are from its"
        " last epoch."
        f" [experiments/results/README.md]({COMMITTED / 'README.md'}) explains the numbers. The"
        " command `python -m experiments.report` makes this page.",
    ]
    for name in NAMES:
        experiment = find(name)
        here = {root: of_root.get(name, []) for root, of_root in found.items()}
        blocks.append(f"## {experiment.about.rstrip('.?')}")
        if isinstance(experiment, Experiment):
            blocks += tables(
                experiment, [result for of_root in here.values() for result in of_root]
            )
        for root, results in here.items():
            if results or isinstance(experiment, Study) and root.name.startswith(name):
                blocks += [f"### {label(root)}", *pictures(root, experiment, results, as_html)]
                blocks += provenance(root, results)
    return blocks


def tables(experiment: Experiment, results: Sequence[Result]) -> list[Block]:
    """Makes a table of all rows of the paper, run or not, and a table of the other results."""
    metrics = [metric.replace("_", " ") for metric in experiment.metrics]
    start = next(iter(experiment.presets))
    rows = [["row", "published", "state", *metrics, "seeds", "flags", "folder"]]
    names = experiment.preset_rows.get(start, experiment.rows)
    for name in names:
        row = experiment.rows[name]
        ends = [DASH if v is None else f"{v:g}" for v in (row.validation, row.test)]
        head = [name, " / ".join(ends) if experiment.published(row) else DASH]
        run = [result for result in results if result.first and result.row == name]
        rows += [[*head, r.state, *numbers(experiment, r), code(r.flags), link(r)] for r in run]
        if not run:
            flags = code(" ".join(row.flags))
            rows.append([*head, "not run yet", *[DASH] * len(metrics), DASH, flags, DASH])
    others = [["row", "state", *metrics, "seeds", "flags", "folder"]]
    for r in (result for result in results if not result.first):
        ours = numbers(experiment, r)
        others.append([r.row or DASH, r.state, *ours, code(r.flags), link(r)])
    corpus, missing = experiment.published_on, sum("not run yet" in line for line in rows)
    about = f"Published values are for {corpus}." if corpus else "There are no published values."
    about += f" {missing} of {len(names)} rows have not been run yet." if missing else ""
    blocks: list[Block] = [
        f"The command is `python -m experiments.{experiment.name}` with the flags. {about}",
        rows,
    ]
    return blocks + (["Other settings, not those of the rows above:", others] if others[1:] else [])


def numbers(experiment: Experiment, result: Result) -> list[str]:
    """Formats the metrics and the number of seeds."""
    values = [result.values.get(metric, []) for metric in experiment.metrics]
    return [*map(shown, values), str(max(map(len, values)) or DASH)]


def code(text: str) -> str:
    """Formats text as code; empty text stays empty."""
    return f"`{text}`" if text else ""


def link(result: Result) -> str:
    """Makes a link to the folder of a result."""
    return f"[{label(result.folder)}]({result.folder.resolve()})"


def provenance(root: pathlib.Path, results: Sequence[Result]) -> list[Block]:
    """Makes a table of where the results of a folder come from."""
    about = {result.folder: result.about for result in results} or {root: notes(root)}
    columns = ("command", "commit", "hardware", "note")
    lines = [["folder", *columns]]
    for folder, of in about.items():
        command, *others = (of.get(name, DASH) for name in columns)
        lines.append([label(folder), code(command), *others])
    used = [", ".join(map(" ".join, of.get("versions", {}).items())) for of in about.values()]
    versions = " or ".join(filter(None, dict.fromkeys(used)))
    return [lines, f"Versions: {versions}."] if versions else [lines]


def pictures(
    root: pathlib.Path, experiment: Experiment | Study, results: Sequence[Result], as_html: bool
) -> list[Picture]:
    """Draws the learning curves of a folder, or returns the pictures in it."""
    curves: dict[str, list[History]] = {}
    for result in results:
        for model, histories in result.curves.items():
            curves.setdefault(model, []).extend(histories)
    curves = {model: histories for model, histories in curves.items() if any(histories)}
    if not (as_html and curves):
        return [Picture(file.stem, file=file) for file in sorted(root.glob("*.png"))]
    assert isinstance(experiment, Experiment)
    names = next(iter(curves.values()))[0][0]
    trained = [name.removeprefix("train_") for name in names if name.startswith("train_")]
    drawn = [draw(curves, metric) for metric in trained if f"validation_{metric}" in names]
    return drawn + [draw(curves, metric, ("validation",)) for metric in experiment.curves]


def draw(
    curves: Mapping[str, Sequence[History]],
    metric: str,
    splits: Sequence[str] = ("train", "validation"),
) -> Picture:
    """Draws learning curves as SVG."""
    file = io.StringIO()
    curves_figure(curves, metric, splits).savefig(file, format="svg", metadata={"Date": None})
    return Picture(metric, svg=file.getvalue())


def shown(values: Sequence[float]) -> str:
    """Formats the mean and the standard deviation of a metric."""
    if not values:
        return DASH
    mean, sd = statistics.fmean(values), deviation(values)
    digits = 1 if mean >= 10 else 3
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ± {sd:.{digits}f}")


def label(folder: pathlib.Path) -> str:
    """Returns the name of a folder: its path within the committed results, or as it was given."""
    inside = folder.is_relative_to(COMMITTED)
    return (folder.relative_to(COMMITTED) if inside else folder).as_posix()


def main(argv: Sequence[str] | None = None) -> None:
    """Makes the page from the command line."""
    options = parse(Options, argv, "Makes one page of our and the published results.")
    with program(argv):
        as_html = options.out.suffix == ".html"
        blocks = page(options.folders, as_html)
        text = to_html(blocks) if as_html else to_markdown(blocks, options.out.resolve())
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_text(options.out, text)
        print(f"report: {options.out}")


if __name__ == "__main__":
    main()
