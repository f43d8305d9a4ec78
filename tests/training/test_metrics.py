"""Run directories, logs and JSON files."""

import json
import os

import pytest

from zoneout_jax.training import RunDirectory, draw_curves, write_json
from zoneout_jax.training.metrics import MetricLog, versions

SETTINGS = {"seed": 0, "sizes": (1, 2), "rate": 0.5}


def opened(path, settings=None, resume=True):
    run = RunDirectory(path, settings or SETTINGS, resume)
    run.begin()
    return run


def entry(epoch, **more):
    return {"epoch": epoch, "step": 10 * epoch, "train_bpc": 1 / epoch, **more}


def test_nothing_is_written_before_the_run_begins(tmp_path):
    run = RunDirectory(tmp_path / "a" / "b", SETTINGS)
    assert not (tmp_path / "a").exists()
    assert run.history() == [] and run.result() is None
    run.begin()
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config == {"settings": SETTINGS | {"sizes": [1, 2]}, "versions": versions()}


def test_a_run_is_opened_again_with_its_settings_alone(tmp_path):
    first = opened(tmp_path)
    before = first.config_file.stat().st_mtime_ns
    opened(tmp_path)  # the tuple of SETTINGS is a list in JSON
    assert first.config_file.stat().st_mtime_ns == before
    for settings, words in (
        (SETTINGS | {"seed": 1}, r"another configuration \(seed is 0 there, 1 here\)"),
        (SETTINGS | {"new": "x"}, "new is None there, 'x' here"),
        (SETTINGS | {"seed": 1, "rate": 0.1}, "rate is 0.5 there, 0.1 here; seed is 0"),
        ({"seed": 0, "sizes": (1, 2)}, "rate is 0.5 there, None here"),
    ):
        with pytest.raises(ValueError, match=words):
            RunDirectory(tmp_path, settings)


def test_directories_that_are_no_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="file is a file; give another --workdir"):
        RunDirectory(file, SETTINGS)
    with pytest.raises(ValueError, match="not empty and no run's"):
        RunDirectory(tmp_path, SETTINGS)
    empty = tmp_path / "empty"
    empty.mkdir()
    opened(empty, resume=False)
    with pytest.raises(ValueError, match="not empty; remove it, or leave out --no-resume"):
        RunDirectory(empty, SETTINGS, resume=False)
    assert file.read_text() == "mine"


def test_log_drops_half_a_line_and_what_comes_after_the_checkpoint(tmp_path):
    run = opened(tmp_path)
    log = MetricLog(run, 0)
    for epoch in (1, 2, 3):
        log.append(entry(epoch))
    log.close()
    assert run.history() == log.history == [entry(1), entry(2), entry(3)]
    with run.metrics_file.open("a") as file:
        file.write('{"epoch": 4, "st')
    log = MetricLog(run, 25)
    assert log.history == [entry(1), entry(2)]
    assert run.metrics_file.read_text() == "".join(json.dumps(entry(e)) + "\n" for e in (1, 2))
    log.append(entry(3, seconds=4.5))
    log.close()
    assert run.history() == [entry(1), entry(2), entry(3, seconds=4.5)]


def test_half_a_line_may_be_whole_json(tmp_path):
    run = opened(tmp_path)
    run.metrics_file.write_text(json.dumps(entry(1)) + "\n" + json.dumps(entry(2)))
    log = MetricLog(run, 100)
    log.close()
    assert log.history == [entry(1)]


def test_log_forgets_everything_without_a_checkpoint(tmp_path):
    run = opened(tmp_path)
    log = MetricLog(run, 0)
    log.append(entry(1))
    log.close()
    log = MetricLog(run, 0)
    log.close()
    assert log.history == [] and run.metrics_file.read_text() == ""


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    write_json(path, {"a": [1, "é"]})
    assert json.loads(path.read_text()) == {"a": [1, "é"]}
    assert path.read_text().endswith("}\n")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})

    def killed(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": [1, "é"]}


def test_curves_of_many_runs(tmp_path):
    history = [{"epoch": e, "train_bpc": 2 / e, "validation_bpc": 3 / e} for e in (1, 2)]
    path = tmp_path / "curves.png"
    draw_curves(path, {"a": [history, history[:1]], "b": [history]}, "bpc")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert list(tmp_path.iterdir()) == [path]
    draw_curves(path, {"a": [history]}, "bpc", splits=("validation",))
