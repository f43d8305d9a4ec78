"""Language models of a text of the user's own."""

import re

import pytest

from experiments import char_ptb, sample, word_ptb

CHAR, WORDS = char_ptb.EXPERIMENT, word_ptb.EXPERIMENT


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("experiment", [CHAR, pytest.param(WORDS, marks=pytest.mark.slow)])
def test_training_going_on_and_sampling(experiment, tmp_path, capsys):
    path, run = tmp_path / "own.txt", tmp_path / "run"
    moved = tmp_path / "elsewhere" / path.name
    path.write_text("so it goes — and on\n" * 800, encoding="utf-8")
    flags = ["--preset=smoke", f"--dataset={path}", f"--workdir={run}"]
    experiment.main(flags)
    said = capsys.readouterr().out
    size = experiment.presets["smoke"].data.train_size
    assert re.search(f"on own.txt.*, {size:,} of [0-9,]+ symbols:", said)
    assert "paper:" not in said
    prompt = "so" if experiment is CHAR else "so it"
    sample.main([str(run), f"--prompt={prompt}", "--length=5"])
    assert capsys.readouterr().out.startswith(prompt)
    moved.parent.mkdir()
    path.rename(moved)
    sample.main([str(run), f"--prompt={prompt}", "--length=5", f"--dataset={moved}"])
    assert capsys.readouterr().out.startswith(prompt)
    path.write_text("another text\n" * 800)
    for again in (lambda: experiment.main(flags), lambda: sample.main([str(run)])):
        with pytest.raises(SystemExit) as end:
            again()
        assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count(f"workdir {run} holds a run on other data (data is ") == 2


def test_a_text_shorter_than_the_size_is_read_whole(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("so it goes\n" * 100)
    config = CHAR.presets["smoke"].replace(dataset=str(path), train_size=10_000, seq_length=10)
    assert CHAR.build(config).name.endswith(", 990 of 990 symbols")


@pytest.mark.parametrize("experiment", [CHAR, WORDS])
def test_no_such_text(experiment, capsys):
    with pytest.raises(SystemExit) as end:
        experiment.main(["--preset=smoke", "--dataset=pbt"])
    assert end.value.code == 2
    assert "dataset must be ptb, stdlib or a text file, got 'pbt'" in capsys.readouterr().err


def test_a_text_that_is_too_short(tmp_path, capsys):
    path = tmp_path / "own.txt"
    path.write_text("so it goes\n" * 24)  # 13 characters are left to validate
    with pytest.raises(SystemExit) as end:
        CHAR.main(["--preset=smoke", f"--dataset={path}", "--seq_length=20"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert "the validation text of own.txt char (" in error
    assert ") has only 13 symbols, fewer than seq_length 20; choose a smaller seq_length" in error
