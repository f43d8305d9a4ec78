"""All results on a page: committed ones, and those of fake run directories."""

import json
import pathlib
import re

import pytest

from experiments import report
from experiments.lib import results
from experiments.lib.experiment import NAMES, Experiment, find

ROOT = pathlib.Path(__file__).parents[2]


def write_run(folder, settings=(), result=None, epochs=2, **config):
    """A run directory of char_ptb."""
    folder.mkdir(parents=True)
    content = {"experiment": "char_ptb", "settings": {"preset": "paper"} | dict(settings)}
    (folder / "config.json").write_text(json.dumps(content | config))
    lines = [
        json.dumps({"epoch": n, "step": n, "train_bpc": 3.0 - n, "validation_bpc": 2.5 - n / 8})
        for n in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def lines_of(page, name):
    """Lines of the Markdown tables that have this cell."""
    return [line for line in page.splitlines() if f"| {name} |" in line]


def make(folder, out):
    report.main([str(folder), f"--out={out}"])
    return out.read_text()


def test_a_row_that_is_done_one_that_is_not_and_one_of_other_settings(tmp_path, capsys):
    runs = tmp_path / "mine"
    done = {"validation_bpc": 1.3571, "validation_carried_bpc": 1.3, "test_bpc": 1.2345}
    write_run(runs / "done", {"weight_noise": 0.075}, done, commit="abc123", versions={"jax": "9"})
    write_run(runs / "on", {"norm_cost_coeff": 50.0, "seed": 3})
    write_run(runs / "other", {"weight_noise": 0.5, "augment": False}, done)
    page = make(runs, tmp_path / "out" / "page.md")
    assert capsys.readouterr().out == f"report: {tmp_path / 'out' / 'page.md'}\n"
    (line,) = [line for line in lines_of(page, "weight noise") if "mine" in line]
    assert "| 1.507 / 1.344 | done | 1.357 | 1.300 | 1.234 | 1 | `--weight_noise=0.075` |" in line
    assert line.endswith(f"[{runs}/done](../mine/done) |")
    (line,) = [line for line in lines_of(page, "norm stabilizer") if "mine" in line]
    assert "| not done | 2.250 | – | – | 1 | `--norm_cost_coeff=50.0 --seed=3` |" in line
    (line,) = [line for line in page.splitlines() if "--no_augment" in line and "[" in line]
    assert line.startswith("| – | done | 1.357 |") and "--weight_noise=0.5" in line
    assert "`python -m experiments.char_ptb --weight_noise=0.075` | abc123 |" in page
    assert "Versions: jax 9." in page
    unrun = sum("| not run yet |" in line for line in page.split("## Word-level")[0].splitlines())
    assert f"{unrun} of 11 rows have not been run yet." in page


def test_seeds_and_a_run_cut_short(tmp_path):
    runs = [{"seed": s, "validation_bpc": 1 + s / 10, "test_bpc": 2.0} for s in (0, 1)]
    write_run(tmp_path / "run", {"epochs": 3, "num_seeds": 2}, runs[0] | {"runs": runs})
    page = make(tmp_path / "run", tmp_path / "page.md")
    (line,) = [line for line in lines_of(page, "LSTM") if "run](run)" in line]
    assert "| 3 of at most 200 epochs | 1.050 ± 0.071 | – | 2.000 ± 0.000 | 2 |" in line


def test_several_models_that_are_not_done(tmp_path):
    runs = {"seeds": {"num_seeds": 2}, "grid": {"num_seeds": 2, "sweep": ["z_prob_cells=0,0.5"]}}
    for name, settings in runs.items():
        log = write_run(tmp_path / name, settings) / "metrics.jsonl"
        entries = [json.loads(line) for line in log.read_text().splitlines()]
        rates = [{"z_prob_cells": r} for r in (0, 0.5)] if "sweep" in settings else [{}]
        models = [rate | {"seed": seed} for rate in rates for seed in (0, 1)]
        lines = [
            json.dumps(model | entry | {"validation_bpc": entry["validation_bpc"] + model["seed"]})
            for entry in entries
            for model in models
        ]
        log.write_text("\n".join(lines))
    page = make(tmp_path, tmp_path / "page.md")
    (seeds,) = [line for line in page.splitlines() if "seeds](seeds)" in line]
    assert "| not done | 2.750 ± 0.707 | – | – | 2 |" in seeds  # 2.25 and 3.25
    (grid,) = [line for line in page.splitlines() if "grid](grid)" in line]
    assert "| not done | – | – | – |" in grid  # the best rates are not known yet


def test_a_folder_named_like_an_experiment_is_not_a_run_of_it(tmp_path):
    write_run(tmp_path / "char_ptb-mine", {"width": 3}, {"validation_bpc": 1.0}, experiment=None)
    write_run(tmp_path / "run")
    assert "char_ptb-mine" not in make(tmp_path, tmp_path / "page.md")


def test_the_best_rates_of_a_grid(tmp_path):
    rates = ((0.0, 1.5), (0.5, 1.25))
    runs = [
        {"z_prob_cells": rate, "seed": seed, "validation_bpc": bpc + seed / 10}
        for rate, bpc in rates
        for seed in (0, 1)
    ]
    settings = {"sweep": ["z_prob_cells=0,0.5"], "num_seeds": 2}
    write_run(tmp_path / "run", settings, {"z_prob_cells": 0.5, "cells": [{}], "runs": runs})
    page = make(tmp_path / "run", tmp_path / "page.md")
    (line,) = [line for line in page.splitlines() if "run](run)" in line]
    assert "| done; best: z_prob_cells 0.5 | 1.300 ± 0.071 | – | – | 2 |" in line
    assert "--num_seeds=2 --sweep z_prob_cells=0,0.5`" in line


def test_html_is_one_file_with_curves_as_svg(tmp_path, monkeypatch):
    study = tmp_path / "committed/semantic_consistency"
    study.mkdir(parents=True)
    (study / "picture.png").write_bytes(b"PNG")
    monkeypatch.setattr(report, "COMMITTED", study.parent)
    write_run(tmp_path / "run<1>", result={"validation_bpc": 1.5})
    page = make(tmp_path / "run<1>", tmp_path / "page.html")
    assert page.count("<svg") == 1 and "run&lt;1&gt;" in page and "run<1>" not in page
    assert "data:image/png;base64,UE5H" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page.replace("xlink:", ""))
    assert "<td>not run yet</td>" in page and "<th>published</th>" in page


def test_every_row_of_the_paper_is_there_with_its_values():
    page = (ROOT / "docs/reproduction.md").read_text()
    for name in NAMES:
        experiment = find(name)
        if isinstance(experiment, Experiment):
            for row in experiment.preset_rows.get("paper", experiment.rows):
                published = experiment.published(experiment.rows[row])
                values = [f"{value:g}" for value in published.values()]
                of_row = [line for line in page.splitlines() if line.startswith(f"| {row} |")]
                assert any(all(value in line for value in values) for line in of_row), row


def test_the_page_of_the_documentation_is_of_today(tmp_path):
    page = ROOT / "docs/reproduction.md"
    blocks = report.page((), as_html=False)
    assert page.read_text() == report.to_markdown(blocks, page), (
        "make it again: python -m experiments.report --out docs/reproduction.md"
    )


def test_what_is_noted_of_folders_is_there():
    for name, noted in results.read(results.NOTES).items():
        assert (results.COMMITTED / name).is_dir(), name
        assert noted.keys() <= {"command", "commit", "hardware", "note", "settings"}, name


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (None, None, "has no results"),
        ("config.json", "no json", "cannot be read"),
        ("config.json", '{"experiment": "char_ptb"}', "is not a result"),
        ("table.json", '{"experiment": "chess"}', "chess"),
    ],
)
def test_what_is_no_result(file, content, words, tmp_path, capsys):
    if file:
        (tmp_path / file).write_text(content)
    with pytest.raises(SystemExit) as end:
        make(tmp_path, tmp_path / "page.md")
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error, error
    assert not (tmp_path / "page.md").exists()


def test_out_must_be_a_page(capsys):
    with pytest.raises(SystemExit) as end:
        report.main(["--out=page.pdf"])
    assert end.value.code == 2 and "out must end in .html or .md" in capsys.readouterr().err
