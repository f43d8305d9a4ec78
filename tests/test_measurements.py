"""Measuring programs put their results into the right folder; nothing is measured here."""

import importlib
import json
import types

import pytest

from tests import fault_injection
from tests.reports import write_report

PROGRAMS = {
    "benchmarks.accelerator": "benchmarks/accelerator",
    "benchmarks.choices": "benchmarks/choices",
    "benchmarks.chunks": "benchmarks/chunks",
    "benchmarks.linear": "benchmarks/linear",
    "benchmarks.outside_compiled": "benchmarks/outside_compiled",
    "benchmarks.rnn": "benchmarks/rnn",
    "benchmarks.rounding": "benchmarks/rounding",
    "benchmarks.training_loop": "benchmarks/training_loop",
    "experiments.semantic_consistency": "semantic_consistency/repository",
    "notebooks.execute": "notebooks/execute",
    "tests.fault_injection": "tests/fault_injection",
    "tests.scaling": "tests/scaling",
}


def refusal(program, flags, capsys):
    with pytest.raises(SystemExit) as end:
        module = importlib.import_module(program)
        (module if hasattr(module, "main") else module.EXPERIMENT).main(flags)
    said = capsys.readouterr()
    assert end.value.code == 2 and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(("program", "folder"), PROGRAMS.items())
def test_results_go_to_a_new_folder(program, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    clock = types.SimpleNamespace(strftime=lambda form: "now")
    monkeypatch.setattr("zoneout_jax.training.files.time", clock)
    (tmp_path / "runs" / folder / "now").mkdir(parents=True)
    said = refusal(program, [], capsys)
    assert said == f"error: runs/{folder}/now already exists; name a folder with --out\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_file_is_no_folder(program, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert refusal(program, [f"--out={file}"], capsys) == (
        f"error: {file} is a file; give another --out\n"
    )
    assert "[Errno 20]" in refusal(program, [f"--out={file / 'folder'}"], capsys)


@pytest.mark.parametrize(
    ("parts", "name"),
    [(fault_injection.Options.parts, "report.json"), (("days",), "report_days.json")],
)
def test_a_report_without_all_parts_has_another_name(parts, name, tmp_path, capsys):
    options = fault_injection.Options(parts=parts)
    write_report(tmp_path, "report", options, {"days": []})
    report = json.loads((tmp_path / name).read_text())
    assert report["days"] == [] and "jax" in report["versions"]
    assert capsys.readouterr().out == f"report: {tmp_path / name}\n"
