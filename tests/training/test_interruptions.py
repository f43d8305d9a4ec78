"""Runs that end before their end, and go on: crashes, signals, time that is up, full disks."""

import dataclasses
import errno
import json
import os
import signal

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from tests.training.quadratic import (
    CONFIG,
    Cut,
    cut_at,
    history,
    last_checkpoint,
    quadratic,
    start,
    untimed,
)
from zoneout_jax.training import RunError, Stopped, loop

pytestmark = pytest.mark.usefixtures("standard_promotion")


# 4 and 13 within an epoch, 5 and 15 at the end of one, before it is validated.
@pytest.mark.parametrize(
    ("step", "every"),
    [(4, 1), (5, 1), pytest.param(13, 1, marks=pytest.mark.slow), (15, 3), (13, None)],
)
def test_a_crash_at_any_step_changes_no_figure(step, every, tmp_path, monkeypatch):
    def crash():
        raise Cut

    task = quadratic(validation_target=0.65, optimizer=optax.adam(0.1))
    config = dataclasses.replace(CONFIG, epochs=4, steps_per_call=1)
    monkeypatch.setattr(loop, "draw_curves", lambda *arguments: None)  # slow
    whole = start(task, tmp_path / "whole", config)
    config = dataclasses.replace(config, checkpoint_steps=every)
    with monkeypatch.context() as patch:
        cut_at(patch, step, crash)
        with pytest.raises(Cut):
            start(task, tmp_path / "cut", config)
    result = start(task, tmp_path / "cut", config)
    assert result["resumed"] == (1 if every else 0)
    assert untimed(result) == untimed(whole)
    cut, uncut = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("cut", "whole"))
    assert cut == uncut
    states = [last_checkpoint(tmp_path / name, task)[0] for name in ("cut", "whole")]
    jax.tree.map(np.testing.assert_array_equal, *states)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 4), (signal.SIGTERM, 10)])
def test_a_signal_ends_the_run_with_a_checkpoint(number, step, tmp_path, monkeypatch):
    whole = start(quadratic(), tmp_path / "whole")
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        cut_at(patch, step, lambda: os.kill(os.getpid(), number))
        words = f"stopped by {signal.Signals(number).name} at step {step}"
        with pytest.raises(Stopped, match=words) as stop:
            start(quadratic(), tmp_path / "cut")
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(number) == before
    assert last_checkpoint(tmp_path / "cut", quadratic())[1]["step"] == step
    assert untimed(start(quadratic(), tmp_path / "cut")) == untimed(whole)


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    cut_at(monkeypatch, 4, twice)
    with pytest.raises(KeyboardInterrupt, match="stopped at once; the last checkpoint is intact"):
        start(quadratic(), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_run_cut_off_before_its_final_figures_only_measures_them(tmp_path, monkeypatch):
    whole = start(quadratic(), tmp_path / "whole")

    def crash(self):
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(loop._Fit, "_finish", crash)
        with pytest.raises(Cut):
            start(quadratic(), tmp_path / "cut")
    monkeypatch.setattr(loop._Fit, "_epoch", None)
    assert untimed(start(quadratic(), tmp_path / "cut")) == untimed(whole)


def test_time_that_is_up_ends_the_run_with_a_checkpoint(tmp_path):
    whole = start(quadratic(), tmp_path / "whole")
    config = dataclasses.replace(CONFIG, max_minutes=1e-9)
    steps = []
    for _ in range(3):
        with pytest.raises(Stopped, match=r"at step \d+, as max_minutes have passed") as stop:
            start(quadratic(), tmp_path / "cut", config)
        assert stop.value.exit_code == 0
        steps.append(last_checkpoint(tmp_path / "cut", quadratic())[1]["step"])
    assert steps == [2, 4, 5]
    assert untimed(start(quadratic(), tmp_path / "cut")) == untimed(whole)


@pytest.mark.parametrize("changed", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_other_versions_are_told_of_when_a_run_goes_on(changed, tmp_path, monkeypatch, capsys):
    def crash():
        raise Cut

    config = dataclasses.replace(CONFIG, checkpoint_steps=1)
    with monkeypatch.context() as patch, pytest.raises(Cut):
        cut_at(patch, 8, crash)
        start(quadratic(), tmp_path, config)
    if changed:
        content = json.loads((tmp_path / "config.json").read_text())
        now, content["versions"]["jax"] = content["versions"]["jax"], "0.1"
        content["commit"] = "c0ffee"
        (tmp_path / "config.json").write_text(json.dumps(content))
    start(quadratic(), tmp_path, config)
    said = capsys.readouterr().err
    assert "resuming from step" in said and ("numbers may differ" in said) == changed
    assert not changed or f"has changed: jax 0.1 then, {now} now" in said
    assert not changed or "commit c0ffee then" in said


def test_many_seeds_go_on_where_they_were_cut_off(tmp_path, monkeypatch):
    def crash():
        raise Cut

    config = dataclasses.replace(CONFIG, num_seeds=3, checkpoint_steps=3)
    whole = start(quadratic(), tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        cut_at(patch, 15, crash)
        with pytest.raises(Cut):
            start(quadratic(), tmp_path / "cut", config)
    assert untimed(start(quadratic(), tmp_path / "cut", config)) == untimed(whole)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


def test_a_disk_that_is_full_while_saving(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(loop, "draw_curves", lambda *arguments: None)
    config = dataclasses.replace(CONFIG, checkpoint_steps=2)
    with monkeypatch.context() as patch:
        cut_at(patch, 5, lambda: patch.setattr(ocp.CheckpointManager, "save", full))
        words = "cannot write .*: No space left on device; the checkpoint of step 4 is intact"
        with pytest.raises(RunError, match=words):
            start(quadratic(), tmp_path, config)
    result = start(quadratic(), tmp_path, config)
    assert result["resumed"] == 1 and result["steps"] == 30
