"""What a user meets who gets a command wrong: one line, exit code 2, nothing written."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from experiments import char_ptb, reproduce, text8
from tests.processes import environment
from zoneout_jax.data import ptb
from zoneout_jax.training import parse, parse_preset

ROOT = pathlib.Path(__file__).parents[2]
CHAR = char_ptb.EXPERIMENT


@pytest.fixture
def no_network(monkeypatch):
    """A machine without network and without folders named in the environment."""

    def unreachable(*arguments, **options):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.delenv("ZONEOUT_RAW_DATA", raising=False)
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)


def complaint(main, flags, capsys):
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main(flags)
    output = capsys.readouterr()
    assert end.value.code == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.endswith("\n")
    assert output.err.count("\n") == 1
    return output.err


def files(folder):
    return sorted(folder.rglob("*"))


def test_raw_file_that_is_nowhere(tmp_path, capsys, no_network):
    (tmp_path / "raw").mkdir()
    flags = [f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}"]
    flags += [f"--raw_data_dir={tmp_path / 'raw'}"]
    error = complaint(CHAR.main, flags, capsys)
    assert "ptb/ptb.train.txt" in error and "no network" in error and "--raw_data_dir" in error
    assert files(tmp_path) == [tmp_path / "raw"]


@pytest.mark.parametrize(
    "by", ["--data_dir", "--raw_data_dir", "TFDS_DATA_DIR", "ZONEOUT_RAW_DATA"]
)
@pytest.mark.parametrize("folder", ["~nobody at all/x", "gs://bucket/x"])
def test_data_folders_that_cannot_be(by, folder, tmp_path, capsys, no_network, monkeypatch):
    flags = ["--preset=smoke", "--dataset=ptb", f"--workdir={tmp_path / 'run'}"]
    if by.startswith("--"):
        flags.append(f"{by}={folder}")
    else:
        monkeypatch.setenv(by, folder)
    error = complaint(CHAR.main, flags, capsys)
    assert by in error and folder in error
    assert files(tmp_path) == []


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_raw_file_with_another_content(split, tmp_path, capsys, no_network, monkeypatch):
    raw = tmp_path / "raw" / "ptb"
    raw.mkdir(parents=True)
    # The other files are right as far as the experiment can tell.
    for name, raw_file in ptb.RAW_FILES.items():
        if not raw_file.path.endswith(f"ptb.{split}.txt"):
            (tmp_path / "raw" / raw_file.path).write_bytes(b"")
            empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
            known = type(raw_file)(raw_file.path, raw_file.url, empty)
            monkeypatch.setitem(ptb.RAW_FILES, name, known)
    (raw / f"ptb.{split}.txt").write_text(" another text \n")
    before = files(tmp_path)
    flags = [f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}"]
    flags += [f"--raw_data_dir={tmp_path / 'raw'}"]
    error = complaint(CHAR.main, flags, capsys)
    assert f"ptb.{split}.txt" in error and "SHA-256" in error
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (b"anarchism", "ends after 9 characters, expected 100,000,000"),
        (b"Anarchism", "byte 0 is b'A'"),
    ],
    ids=["short", "capital"],
)
def test_another_file_than_text8(text, fault, tmp_path, capsys, no_network):
    path = tmp_path / "raw" / "text8" / "text8"
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    before = files(tmp_path)
    flags = [f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path / 'data'}"]
    error = complaint(text8.EXPERIMENT.main, [*flags, f"--raw_data_dir={tmp_path / 'raw'}"], capsys)
    assert f"{path} is not the expected text8/text8: " in error and fault in error
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "flag",
    [
        "--z_prob_cells=nan",
        "--z_prob_states=-0.1",
        "--drop_prob_igates=inf",
        "--learning_rate=0",
        "--learning_rate=nan",
        "--clip_norm=-1",
        "--hidden_features=0",
        "--seq_length=1",
        "--eval_streams=0",
        "--eval_batch_size=0",
        "--clip_by=nothing",
        "--char_convention=other",
        "--seed=-1",
    ],
)
def test_values_out_of_range(flag, tmp_path, capsys):
    flags = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", flag]
    error = complaint(CHAR.main, flags, capsys)
    assert flag.strip("-").split("=")[0] in error
    assert files(tmp_path) == []


@pytest.mark.parametrize("flag", ["--train_size", "--eval_size"])
@pytest.mark.parametrize("size", [-5, 0, 1, 19])
def test_texts_that_are_too_short(flag, size, tmp_path, capsys):
    flags = ["--preset=smoke", f"--workdir={tmp_path / 'run'}", f"{flag}={size}"]
    complaint(CHAR.main, flags, capsys)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["char_ptb", "--rows", "CNN"], "unknown row 'CNN'; choose from LSTM, weight noise"),
        (["char_ptb", "--seeds", "1", "1"], "one or more distinct values"),
        (["char_ptb", "--seeds", "x"], "--seeds"),
        (["char_ptb", "--epochs=-1"], "epochs must be at least 1"),
        (["char_ptb", "--epochs=0"], "epochs must be at least 1"),
        (["char_ptb", "--preset=nope"], "nope"),
        (["nope"], "nope"),
        ([], "EXPERIMENT"),
    ],
)
def test_reproduce(flags, words, tmp_path, capsys):
    preset = [] if "--preset=nope" in flags else ["--preset=smoke"]
    error = complaint(reproduce.main, [*flags, *preset, f"--out={tmp_path / 'out'}"], capsys)
    assert words.lower() in error.lower()
    assert files(tmp_path) == []


def test_the_command_in_a_table_can_be_given_again():
    rows = ("plain RNN + zoneout", "LSTM")
    options = reproduce.Options(experiment="char_ptb", preset="smoke", rows=rows, seeds=(3, 4))
    words = shlex.split(shlex.join(reproduce._arguments(options)))
    assert parse(reproduce.Options, words, "") == options


def test_reproduce_where_a_file_lies(tmp_path, capsys):
    file = tmp_path / "out"
    file.write_text("mine")
    error = complaint(reproduce.main, ["char_ptb", "--preset=smoke", f"--out={file}"], capsys)
    assert f"{file} is a file" in error and file.read_text() == "mine"


def test_reproduce_keeps_the_table_of_another_experiment(tmp_path, capsys):
    table = json.dumps({"experiment": "char_ptb", "preset": "smoke"})
    (tmp_path / "table.json").write_text(table)
    for flags, words in (
        (["word_ptb", "--preset=smoke"], "holds a table of experiment char_ptb, not word_ptb"),
        (["char_ptb", "--preset=laptop"], "holds a table of preset smoke, not laptop"),
    ):
        assert words in complaint(reproduce.main, [*flags, f"--out={tmp_path}"], capsys)
    assert (
        files(tmp_path) == [tmp_path / "table.json"]
        and (tmp_path / "table.json").read_text() == table
    )


def test_folders_of_data_of_an_experiment_without_data(tmp_path, capsys):
    flags = ["seq2seq", "--preset=smoke", f"--out={tmp_path / 'out'}", "--raw_data_dir=x"]
    assert "seq2seq has no --raw_data_dir; leave it out" in complaint(reproduce.main, flags, capsys)


def test_a_flag_of_several_values_that_is_given_twice(capsys):
    flags = ["--preset=smoke", "--sweep=z_prob_cells=0,1", "--sweep", "z_prob_states=0.5"]
    assert "--sweep is given twice: give all" in complaint(CHAR.main, flags, capsys)
    for flag, values in (("--seeds", "01"), ("--rows", ("LSTM", "zoneout"))):
        flags = ["char_ptb", "--preset=smoke", flag, values[0], flag, values[1]]
        assert f"{flag} is given twice" in complaint(reproduce.main, flags, capsys)


def test_an_interrupt_after_the_last_step_of_a_row_ends_the_table(tmp_path, monkeypatch):
    rows = []

    def train(table, name, seeds, config, stop):
        rows.append(name)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(reproduce.Table, "train", train)
    flags = ["char_ptb", "--preset=smoke", "--seeds", "0", f"--out={tmp_path / 'out'}"]
    with pytest.raises(SystemExit) as end:
        reproduce.main(flags)
    assert end.value.code == 130 and rows == ["LSTM"]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_reproduce_checks_every_seed_before_it_trains(seed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reproduce, "fit", None)
    flags = ["char_ptb", "--preset=smoke", "--epochs=1", "--seeds", "0", str(seed)]
    error = complaint(reproduce.main, [*flags, f"--out={tmp_path / 'out'}"], capsys)
    assert "seeds must be in [0, 4294967295]" in error
    assert files(tmp_path) == []


def test_a_real_process_says_no_more_than_the_line(tmp_path):
    command = [sys.executable, "-m", "experiments.char_ptb", "--preset=smoke", "--batch_size=12"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        env=environment(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: a batch of 12 cannot be split evenly over the 8 devices; choose a multiple of 8\n"
    )
    assert files(tmp_path) == []


def listed(settings):
    """Settings as they come back from a file: with lists in the place of tuples."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}


@pytest.mark.parametrize("preset", list(CHAR.presets))
def test_presets_are_what_they_are_called(preset):
    config = parse_preset(CHAR.presets, [f"--preset={preset}"])
    assert config == CHAR.presets[preset] and config.preset == preset
    assert json.loads(json.dumps(config.identity())) == listed(config.identity())
    changed = parse_preset(CHAR.presets, ["--hidden_features=24", f"--preset={preset}"])
    assert changed == config.replace(hidden_features=24) != config


def test_rows_of_the_table_are_flags_that_are_understood():
    for row in CHAR.rows.values():
        parse_preset(CHAR.presets, row.flags)
        assert set(CHAR.published(row)) <= set(CHAR.metrics)


@pytest.mark.parametrize(
    ("start", "flag", "described"),
    [
        (char_ptb.PAPER, "--help", False),
        (char_ptb.PAPER, "--help-verbose", True),
        (reproduce.Options, "--help", True),
    ],
)
def test_help_fits_a_screen_or_two(start, flag, described, capsys):
    with pytest.raises(SystemExit) as end:
        parse(start, [flag], "")
    assert end.value.code == 0
    output = capsys.readouterr().out
    assert "--raw_data_dir" in output and ("$ZONEOUT_RAW_DATA" in output) == described
    assert output.count("\n") < 90 or flag != "--help"
