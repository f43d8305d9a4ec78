"""Runs beside the authors' log."""

import json

import pytest

from experiments import authors_log


def run_of(folder, metrics):
    """A run directory with metrics of training and validation by epoch."""
    folder.mkdir()
    lines = [
        json.dumps({"epoch": n, "step": 10 * n, "train_bpc": t, "validation_bpc": v})
        for n, (t, v) in enumerate(metrics, 1)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder)


def test_the_log_is_that_of_the_paper():
    log = authors_log.read(authors_log.LOG)
    assert [entry["epoch"] for entry in log] == list(range(1, 111))
    assert [e["validation_bpc"] for e in log[:4]] == [1.7333, 1.6021, 1.5444, 1.5107]
    assert min(e["validation_bpc"] for e in log) == 1.3644


def test_table_and_picture(tmp_path, capsys):
    runs = [
        run_of(tmp_path / "one", [(2.0, 1.74), (1.7, 1.6)]),
        run_of(tmp_path / "other", [(2.2, 1.7333)]),
    ]
    authors_log.main([*runs, f"--out={tmp_path / 'out'}"])
    table = (tmp_path / "out/table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert rows == [
        ["one", "1", "2.1583", "2.0000", "-0.1583", "1.7333", "1.7400", "+0.0067"],
        ["one", "2", "1.6831", "1.7000", "+0.0169", "1.6021", "1.6000", "-0.0021"],
        ["other", "1", "2.1583", "2.2000", "+0.0417", "1.7333", "1.7333", "+0.0000"],
    ]
    assert (tmp_path / "out/curves.png").read_bytes().startswith(b"\x89PNG")


def test_runs_that_cannot_be_told_apart(tmp_path, capsys):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
    same = [run_of(tmp_path / part / "run", [(2.0, 1.7)]) for part in ("a", "b")]
    seeds = tmp_path / "seeds"
    run_of(seeds, [(2.0, 1.7)])
    (seeds / "metrics.jsonl").write_text((seeds / "metrics.jsonl").read_text() * 2)
    for runs, words in (
        (same, "of different names"),
        ([seeds], "several models; give runs of one"),
    ):
        with pytest.raises(SystemExit) as end:
            authors_log.main([*map(str, runs), f"--out={tmp_path / 'out'}"])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "is not a run of char_ptb"),
        ("", "has not finished an epoch"),
        ("{}\n", "is not a run of char_ptb"),
        ("no json\n", "is not a run of char_ptb"),
    ],
)
def test_what_is_no_run(content, words, tmp_path, capsys):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(SystemExit) as end:
        authors_log.main([str(tmp_path), f"--out={tmp_path / 'out'}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "out").exists()
