"""Run directories, logs and JSON files."""

import json
import os
import re
import subprocess

import pytest

from zoneout_jax._files import replacing
from zoneout_jax.training import (
    RunDirectory,
    RunError,
    commit,
    draw_curves,
    run_directory,
    shown,
    versions,
    write_json,
)
from zoneout_jax.training.metrics import MetricLog

SETTINGS = {"seed": 0, "sizes": (1, 2), "rate": 0.5}


def opened(path, settings=None, resume=True):
    """A run that has come to its first checkpoint."""
    run = RunDirectory(path, settings or SETTINGS, resume)
    with run.opened({}):
        (path / "checkpoints" / "10").mkdir(parents=True, exist_ok=True)
        return run


def entry(epoch, **more):
    return {"epoch": epoch, "step": 10 * epoch, "train_bpc": 1 / epoch, **more}


def test_nothing_is_written_before_the_run_begins(tmp_path):
    run = RunDirectory(tmp_path / "a" / "b", SETTINGS)
    assert not (tmp_path / "a").exists()
    assert run.history() == [] and run.result() is None
    with run.opened({"a": "float32[2]"}):
        pass
    config = json.loads((tmp_path / "a" / "b" / "config.json").read_text())
    assert config == {
        "experiment": None,
        "settings": SETTINGS | {"sizes": [1, 2]},
        "task": {"a": "float32[2]"},
        "commit": commit(),
        "versions": versions(),
    }


def test_a_directory_may_be_a_string_and_settings_must_fit_into_json(tmp_path):
    assert RunDirectory(str(tmp_path), SETTINGS).path == tmp_path
    with pytest.raises(TypeError, match="setting dtype must be what JSON can hold: .*type"):
        RunDirectory(tmp_path, {"seed": 0, "dtype": float})


def test_a_run_is_opened_again_with_its_settings_alone(tmp_path):
    first = opened(tmp_path)
    before = first.config_file.stat().st_mtime_ns
    opened(tmp_path)  # the tuple of SETTINGS is a list in JSON
    assert first.config_file.stat().st_mtime_ns == before
    for settings, words in (
        (SETTINGS | {"seed": 1}, r"another configuration \(seed is 0 there, 1 here\)"),
        (SETTINGS | {"new": "x"}, "new is None there, 'x' here"),
        (SETTINGS | {"seed": 1, "rate": 0.1}, "rate is 0.5 there, 0.1 here; seed is 0"),
        (SETTINGS | {"seed": 1, "epochs": 1}, "another configuration"),
        ({"seed": 0, "sizes": (1, 2)}, "rate is 0.5 there, None here"),
    ):
        with pytest.raises(ValueError, match=words):
            RunDirectory(tmp_path, settings).add({})


def test_the_run_of_another_experiment_is_named_before_its_settings(tmp_path):
    with RunDirectory(tmp_path, SETTINGS, experiment="words").opened({}):
        (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="holds a run of words, not of characters; use another"):
        RunDirectory(tmp_path, SETTINGS | {"seed": 1}, experiment="characters")


def test_directories_that_are_no_run(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="file is a file; use another folder"):
        RunDirectory(file, SETTINGS)
    with pytest.raises(ValueError, match="not empty and holds no run"):
        RunDirectory(tmp_path, SETTINGS)
    with pytest.raises(RunError, match="cannot write to workdir .*file/run: Not a directory"):
        below = RunDirectory(file / "run", SETTINGS)
        assert below.result() is None
        with below.opened({}):
            pass
    empty = tmp_path / "empty"
    empty.mkdir()
    opened(empty, resume=False)
    with pytest.raises(ValueError, match="not empty and resume is off; remove it"):
        RunDirectory(empty, SETTINGS, resume=False)
    assert file.read_text() == "mine"


def test_a_kill_at_the_very_start_leaves_a_directory_that_can_be_used(tmp_path):
    (tmp_path / ".lock").write_text("process 1 on a")
    (tmp_path / ".config.json.17.tmp").write_text('{"sett')
    assert opened(tmp_path).config_file.exists()


def test_two_processes_that_write_a_file_at_once(tmp_path):
    file = tmp_path / "table.md"
    with replacing(file) as first:
        first.write_text("the first")
        with replacing(file) as second:
            second.write_text("the second")
        assert file.read_text() == "the second"
    assert file.read_text() == "the first" and list(tmp_path.iterdir()) == [file]


def test_a_file_that_cannot_be_written_whole_is_left_as_it_was(tmp_path):
    file = tmp_path / "table.md"
    file.write_text("before")
    with pytest.raises(OSError, match="full"), replacing(file) as temporary:
        temporary.write_text("ha")
        raise OSError("the disk is full")
    assert file.read_text() == "before" and list(tmp_path.iterdir()) == [file]


def test_two_runs_at_once_in_one_directory(tmp_path):
    first = RunDirectory(tmp_path, SETTINGS)
    with first.opened({}):
        with pytest.raises(
            RunError, match=rf"in use by another run \(process {os.getpid()}"
        ) as error:
            opened(tmp_path)
        assert error.value.exit_code == 2
    opened(tmp_path)


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    run = RunDirectory(tmp_path / "file" / "run", SETTINGS)
    with pytest.raises(RunError, match="cannot write to workdir .*Not a directory") as error:
        with run.opened({}):
            pass
    assert error.value.exit_code == 2


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_begins_with_what_the_checkpoint_knows(tmp_path):
    run = opened(tmp_path)
    log = MetricLog(run, 0, [], [])
    for epoch in (1, 2, 3):
        log.append([entry(epoch)], {"step": 10 * epoch, "seconds": 0.5})
    log.close()
    assert run.history() == [entry(1), entry(2), entry(3)]
    # Whatever a kill or a full disk has left there.
    run.metrics_file.write_text(json.dumps(entry(9)) + '\n{"epoch": 4, "st')
    run.times_file.unlink()
    log = MetricLog(run, 10, [entry(1)], [{"step": 10, "seconds": 0.5}])
    assert run.history() == [entry(1)]
    log.append([entry(2), entry(2, seed=1)], {"step": 20, "seconds": 4.5})
    log.close()
    assert run.history() == [entry(1), entry(2), entry(2, seed=1)]
    assert [line["step"] for line in lines(run.times_file)] == [10, 20]


def test_events_hold_the_metrics(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    run = opened(tmp_path)
    log = MetricLog(run, 0, [], [])
    log.append([entry(1, seed=7)], {"step": 10, "seconds": 0.5})
    log.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    content, events = file.read_bytes(), []
    while content:  # a record: length, its checksum, data, its checksum
        size = int.from_bytes(content[:8], "little")
        events.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    values = {v.tag: (e.step, v.simple_value) for e in events for v in e.summary.value}
    assert values == {"train_bpc/seed7": (10, 1.0), "seconds": (10, 0.5)}


def test_log_says_what_it_cannot_write(tmp_path):
    run = opened(tmp_path)
    log = MetricLog(run, 0, [], [])
    run.metrics_file.unlink()
    with pytest.raises(RunError, match="cannot write .*metrics.jsonl: No such file"):
        log.append([entry(1)], {"step": 10})
    run.metrics_file.mkdir()
    with pytest.raises(RunError, match="cannot write .*metrics.jsonl: Is a directory"):
        log.append([entry(1)], {"step": 10})


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", '{"settings": 3}'])
def test_a_configuration_that_cannot_be_read(content, tmp_path):
    opened(tmp_path).config_file.write_text(content)
    with pytest.raises(ValueError, match="config.json cannot be read .* use another folder"):
        RunDirectory(tmp_path, SETTINGS)


@pytest.mark.parametrize("content", ["", '{"a":', "[]"])
def test_a_result_that_cannot_be_read_is_made_anew(content, tmp_path):
    run = opened(tmp_path)
    run.result_file.write_text(content)
    assert run.result() is None


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


def test_figures_are_shown_with_their_deviation():
    assert shown({"bpc": 1.23456}, "bpc") == "1.2346"
    assert shown({"bpc": 1.23456, "bpc_sd": 0.01}, "bpc") == "1.2346 ± 0.0100"


def test_another_run_that_begins_in_the_meantime(tmp_path):
    first, second = (RunDirectory(tmp_path / "run", {"seed": seed}) for seed in (0, 1))
    with first.opened({}):
        (first.path / "checkpoints" / "10").mkdir(parents=True)
    with pytest.raises(RunError, match="seed is 0 there, 1 here") as error, second.opened({}):
        pass
    assert error.value.exit_code == 2
    with RunDirectory(tmp_path / "run", {"seed": 0}).opened({}):
        pass


def test_commit(tmp_path, monkeypatch):
    """Of the checkout; unknown if the package is not under its control."""
    elsewhere = tmp_path / "zoneout_jax" / "run_directory.py"
    elsewhere.parent.mkdir()
    elsewhere.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "another project"], check=True)
    monkeypatch.setattr(run_directory, "__file__", str(elsewhere))
    assert commit() == "unknown"
    subprocess.run([*git, "add", "."], check=True)
    assert re.fullmatch("[0-9a-f]{12}-dirty", commit())
    subprocess.run([*git, "commit", "-q", "-m", "the package"], check=True)
    assert re.fullmatch("[0-9a-f]{12}", commit())
