"""Short versions of `tests.fault_injection` and `tests.scaling`."""

import importlib
import random
import re

import jax
import pytest

from tests import bad_commands, fault_injection, scaling


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(bad_commands.EXPERIMENTS[0], marks=pytest.mark.slow),
        *bad_commands.EXPERIMENTS[1:],
    ],
)
def test_bad_command_lines_end_with_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zoneout_jax.training.cli.prepare", None)  # nothing gets that far
    experiment = importlib.import_module(f"experiments.{name}")
    commands = bad_commands.bad_commands(name)
    first = bad_commands.EXPERIMENTS[0]
    if name == first:
        assert len(commands) > 200
    else:  # what that one has already met
        commands = sorted(set(commands) - set(bad_commands.bad_commands(first)))
    for flags in commands:
        with pytest.raises(SystemExit) as end:
            experiment.EXPERIMENT.main(["--preset=smoke", *flags])
        output = capsys.readouterr()
        assert (end.value.code, output.out) == (2, ""), flags
        assert re.fullmatch(r"error: .+\n", output.err), flags
        flag = re.match(r"-*(\w+)", flags[-1])[1]
        assert flag in output.err or len(flags) > 1 or flag == "num_processes", flags
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_runs_that_are_killed_end_with_the_same_bits(tmp_path):
    report = fault_injection.kills(fault_injection.Runs(tmp_path), 3, random.Random(1))
    assert report["kills"] >= 3
    assert report["identical"] == report["runs"]


@pytest.mark.slow
def test_two_processes_are_one_run_and_outlive_a_kill(tmp_path):
    whole, *killed, preempted = scaling.processes(tmp_path, [2])
    assert whole["exit codes"] == [0, 0]
    assert whole["curve, relative"] < 1e-5 and whole["parameters, absolute"] < 1e-4
    for end in killed:
        # JAX may end a process itself, with SIGABRT, before it can say more; 0.7 without a word.
        code, said = end["exit codes"][1 - end["killed"]], end["said"][1 - end["killed"]]
        assert code in (1, -6)
        assert end["seconds until all had ended"] < 60
        silent = code == -6 and jax.__version_info__ < (0, 8)
        assert silent or re.search("another (process|task)", said)
        assert end["exit codes of the restart"] == [0, 0] and end["restart resumed"]
    assert preempted["exit codes"] == [143, 143]
