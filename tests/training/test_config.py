"""Settings and how they become flags."""

import dataclasses
import math
import pathlib
import types

import jax
import pytest

from zoneout_jax.training import Range, RunConfig, new_folder, output_folder, parse_preset
from zoneout_jax.training.config import ranges

PRESETS = {"paper": RunConfig(), "smoke": RunConfig(preset="smoke", epochs=2, batch_size=8)}


def parsed(*flags):
    return parse_preset(PRESETS, flags, "prog", "about")


def test_flags_beat_the_preset_wherever_they_stand():
    assert parsed() == PRESETS["paper"]
    assert parsed("--preset=smoke") == parsed("--preset", "smoke") == PRESETS["smoke"]
    wanted = dataclasses.replace(PRESETS["smoke"], epochs=7)
    assert parsed("--epochs=7", "--preset=smoke") == wanted
    assert parsed("--preset=smoke", "--epochs", "7") == wanted
    assert parsed("--no_resume") == parsed("--no-resume")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"patience": 0}, "patience"),
        ({"batch_size": -1}, "batch_size"),
        ({"steps_per_call": 0}, "steps_per_call"),
        ({"seed": -1}, "seed must be in"),
        ({"seed": 2**32}, "seed must be in"),
        ({"seed": 2**32 - 2, "num_seeds": 3}, "the last seed must be in"),
        ({"checkpoint_minutes": -1.0}, "checkpoint_minutes must be at least 0, got -1.0"),
        ({"checkpoint_minutes": float("nan")}, "checkpoint_minutes must be finite and at least 0"),
        ({"checkpoint_steps": 0}, "checkpoint_steps must be at least 1"),
        ({"max_minutes": 0.0}, "max_minutes must be above 0, got 0.0"),
        ({"max_minutes": float("inf")}, "max_minutes must be finite and above 0, got inf"),
        ({"coordinator": "a:1"}, "--num_processes --process_id must be given together, num_proc"),
        ({"num_processes": 2, "process_id": 0}, "coordinator is missing"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 0}, "got 'a:65536'"),
        ({"rng_impl": "rbg", "num_seeds": 2}, "rng_impl must be threefry2x32 for num_seeds"),
        ({"workdir": "gs://bucket/run"}, "workdir must be a local folder, got gs://bucket/run"),
        ({"workdir": "~nobody at all/run"}, "workdir: there is no home folder for ~nobody at all/"),
        ({"steps_per_call": 3 * 10**9}, r"steps_per_call must be in \[1, 100000\]"),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "must be host:port with a port in .* got 'a'",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            r"process_id must be in \[0, 1\] as num_processes is 2, got 2",
        ),
    ],
)
def test_settings_that_make_no_sense(changes, words):
    with pytest.raises(ValueError, match=words):
        RunConfig(**changes)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--epochs=x"], "--epochs"),
        (["--epochs=0"], "epochs must be at least 1, got 0"),
        (["--precision=float8"], "float8"),
        (["--epoch=3"], "did you mean --epochs?"),
        (["--preset=nope"], "unknown preset 'nope'; choose one of paper, smoke"),
        (["--preset"], "--preset"),
        (["stray"], "stray"),
        (["--seed"], "--seed"),
    ],
)
def test_bad_flags_are_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as end:
        parsed(*flags)
    output = capsys.readouterr()
    assert end.value.code == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert words in output.err


def test_help_is_no_failure(capsys):
    with pytest.raises(SystemExit) as end:
        parsed("--help")
    assert end.value.code == 0
    assert "--batch_size" in capsys.readouterr().out


def test_where_a_run_is_kept_does_not_change_what_it_is():
    config = PRESETS["smoke"]
    elsewhere = dataclasses.replace(
        config,
        workdir="w",
        resume=False,
        raw_data_dir="r",
        data_dir="d",
        checkpoint_minutes=2.0,
        checkpoint_steps=7,
        max_minutes=1.0,
        steps_per_call=3,
        on_nan="skip",
        coordinator="a:1",
        num_processes=2,
        process_id=1,
        heartbeat_timeout=5,
    )
    assert elsewhere.identity() == config.identity()
    for changes in ({"seed": 1}, {"epochs": 3}, {"num_seeds": 2}, {"patience": 1}):
        assert dataclasses.replace(config, **changes).identity() != config.identity()


def test_run_directory_is_named_after_what_was_changed():
    smoke = PRESETS["smoke"]
    changed = dataclasses.replace(smoke, seed=3, epochs=9, checkpoint_minutes=2.0)
    runs = pathlib.Path("runs")
    assert smoke.run_directory("x", smoke) == runs / "x" / "smoke"
    assert changed.run_directory("x", smoke) == runs / "x" / "smoke-seed=3-epochs=9"
    named = dataclasses.replace(changed, workdir="a/b")
    assert named.run_directory("x", smoke) == pathlib.Path("a/b")
    at_home = dataclasses.replace(changed, workdir="~/runs/a:b")
    assert at_home.run_directory("x", smoke) == pathlib.Path.home() / "runs" / "a:b"


def test_where_results_go(tmp_path):
    assert output_folder(None, "a/b") == pathlib.Path("runs/a/b")
    assert output_folder(pathlib.Path("~/a"), "b") == pathlib.Path.home() / "a"
    with pytest.raises(ValueError, match="out must be a local folder, got gs:/bucket"):
        output_folder(pathlib.Path("gs://bucket"), "b")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; give another --out"):
        output_folder(tmp_path / "file", "b")


def test_a_measurement_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock = types.SimpleNamespace(strftime=lambda form: "now")
    monkeypatch.setattr("zoneout_jax.training.config.time", clock)
    folder = new_folder(None, "a/b")
    assert folder == pathlib.Path("runs/a/b/now") and folder.is_dir()
    with pytest.raises(ValueError, match="runs/a/b/now is there already; name a folder with --out"):
        new_folder(None, "a/b")
    assert new_folder(folder, "a/b") == folder  # as it was named
    assert new_folder(pathlib.Path("c/d"), "a/b").is_dir()


@pytest.mark.parametrize(("precision", "wanted"), [("float32", "float32"), ("bfloat16", "default")])
def test_precision_of_products(precision, wanted):
    with RunConfig(precision=precision).matmul_precision():
        assert jax.config.jax_default_matmul_precision == wanted


@pytest.mark.parametrize(
    ("allowed", "inside", "outside", "words"),
    [
        (Range(0, 1), (0, 0.5, 1), (-0.1, 1.1, math.nan, math.inf), "in [0, 1]"),
        (Range(0, 1, above=True), (0.1, 1), (0, 2), "in (0, 1]"),
        (Range(2), (2, 1e9), (1, math.inf, -math.inf, math.nan), "at least 2"),
        (Range(0, above=True), (1e-9,), (0, -1, math.inf), "above 0"),
    ],
)
def test_ranges(allowed, inside, outside, words):
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)
    assert str(allowed) == words


def test_every_number_of_a_run_has_a_range():
    numbers = {
        field.name
        for field in dataclasses.fields(RunConfig)
        if isinstance(field.default, int | float) and not isinstance(field.default, bool)
    }
    assert numbers <= set(ranges(RunConfig))
