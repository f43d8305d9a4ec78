"""Settings and how they become flags."""

import dataclasses
import math
import pathlib
import types
from typing import Literal

import jax
import pytest

from zoneout_jax.training import (
    Count,
    Range,
    RunConfig,
    Settings,
    new_folder,
    output_folder,
    parse_preset,
)
from zoneout_jax.training.cli import path
from zoneout_jax.training.settings import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model(Settings):
    """The layers."""

    units: Count = 3
    """Units of a layer."""
    learning_rate: float = 0.1
    """Step size."""
    text: str = "own.txt"
    """A file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of an experiment."""

    preset: Literal["paper", "smoke"] = "paper"
    """Settings to start from."""
    model: Model = Model()
    run: RunConfig = RunConfig()


PAPER = Config()
PRESETS = {"paper": PAPER, "smoke": PAPER.replace(preset="smoke", epochs=2, batch_size=8)}


def parsed(*flags):
    return parse_preset(PRESETS, flags)


def test_flags_beat_the_preset_wherever_they_stand():
    assert parsed() == PRESETS["paper"]
    assert parsed("--preset=smoke") == parsed("--preset", "smoke") == PRESETS["smoke"]
    wanted = PRESETS["smoke"].replace(epochs=7)
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
        (
            {"coordinator": "a:1"},
            "coordinator, num_processes, process_id must be given together, num_proc",
        ),
        ({"num_processes": 2, "process_id": 0}, "coordinator is missing"),
        ({"coordinator": "a:65536", "num_processes": 2, "process_id": 0}, "got 'a:65536'"),
        ({"rng_impl": "rbg", "num_seeds": 2}, "rng_impl must be threefry2x32 for several models"),
        ({"workdir": "gs://bucket/run"}, "workdir must be a local folder, got gs://bucket/run"),
        ({"workdir": "~nobody at all/run"}, "workdir: there is no home folder for ~nobody at all/"),
        ({"sweep": ("rate",)}, "sweep must be name=rate,rate,…, got 'rate'"),
        ({"sweep": ("rate=0,x",)}, "sweep must be name=rate,rate,…, got 'rate=0,x'"),
        ({"sweep": ("rate=0,0",)}, "each name and rate once, got 'rate=0,0'"),
        ({"sweep": ("rate=0", "rate=1")}, "each name and rate once"),
        ({"rng_impl": "rbg", "sweep": ("rate=0,1",)}, "for several models"),
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
        (["--epochs=0"], "epochs must be at least 1, got 0"),
        (["--precision=float8"], "float8"),
        (["--epoch=3"], "there is no --epoch; did you mean --epochs? --help lists the flags"),
        (["--lr=3"], "there is no --lr; did you mean --learning_rate? --help"),
        (["--epochs=x"], "--epochs must be an integer, got 'x'; --help"),
        (["--num_processes=nan"], "--num_processes must be None or an integer, got 'nan'; --help"),
        (["--checkpoint_minutes=often"], "--checkpoint_minutes must be a number, got 'often'"),
        (["--rate", "3"], "there is no --rate; did you mean --learning_rate? --help"),
        (["--hidden_units=3"], "there is no --hidden_units; --help"),
        (["--nonsense"], "there is no --nonsense; --help lists the flags"),
        (["--no-resum"], "did you mean --resume?"),
        (["--resume"], "--resume is not needed: resume is on, and --no_resume changes it"),
        (["--units=0"], "units must be at least 1, got 0"),
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
    elsewhere = config.replace(
        workdir="w",
        resume=False,
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
        assert config.replace(**changes).identity() != config.identity()


def test_run_directory_is_named_after_what_was_changed():
    smoke = PRESETS["smoke"]
    changed = smoke.replace(seed=3, units=9, checkpoint_minutes=2.0)
    runs = pathlib.Path("runs")
    assert path("x", smoke, smoke) == runs / "x" / "smoke"
    assert path("x", changed, smoke) == runs / "x" / "smoke-units=9-seed=3"
    assert path("x", changed.replace(workdir="a/b"), smoke) == pathlib.Path("a/b")
    at_home = changed.replace(workdir="~/runs/a:b")
    assert path("x", at_home, smoke) == pathlib.Path.home() / "runs" / "a:b"
    swept = smoke.replace(sweep=("a=1,2", "b=3"), text="../a.txt")
    assert path("x", swept, smoke) == runs / "x" / "smoke-text=.._a.txt-sweep=a=1,2+b=3"
    long, other = (path("x", smoke.replace(text="ä" * 300 + end), smoke) for end in "ab")
    assert long != other and len(long.name.encode()) <= 200 and long.name.startswith("smoke-text=ä")
    longer = changed.replace(epochs=9)  # the run goes on where it is
    assert path("x", longer, smoke) == path("x", changed, smoke)


def test_settings_are_changed_wherever_they_are():
    changed = PAPER.replace(preset="smoke", units=5, seed=2)
    assert (changed.preset, changed.model.units, changed.run.seed) == ("smoke", 5, 2)
    assert changed.run.epochs == PAPER.run.epochs and PAPER.model.units == 3
    flat = changed.flat()
    assert (flat["units"], flat["seed"], flat["workdir"]) == (5, 2, None)
    assert "workdir" not in changed.identity() and "model" not in flat
    with pytest.raises(TypeError, match="Config has no setting unit"):
        PAPER.replace(unit=1)
    with pytest.raises(ValueError, match="units must be at least 1, got 0"):
        PAPER.replace(units=0)


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
    monkeypatch.setattr("zoneout_jax.training.files.time", clock)
    folder = new_folder(None, "a/b")
    assert folder == pathlib.Path("runs/a/b/now") and folder.is_dir()
    with pytest.raises(ValueError, match="runs/a/b/now already exists; name a folder with --out"):
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
