"""Checkpoints: which is read, and what is done with one that cannot be."""

import contextlib
import math
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from zoneout_jax.training import RunError
from zoneout_jax.training.checkpoint import Checkpoints

ROOT = pathlib.Path(__file__).parents[2]


@contextlib.contextmanager
def opened(path):
    checkpoints = Checkpoints(path)
    yield checkpoints
    checkpoints.close()


def arrays(number):
    return {"x": np.full(2, number, np.float32)}, np.array([number], np.int32)


def test_checkpoints_keep_two_and_restore_the_last(tmp_path):
    with opened(tmp_path) as checkpoints:
        assert checkpoints.latest is None
        for step in (3, 5, 9):
            checkpoints.save(step, arrays(step), {"at": step, "best": math.inf})
        checkpoints.save(9, arrays(0), {"at": -1})  # is there already
    assert sorted(path.name for path in tmp_path.iterdir()) == ["5", "9"]
    with opened(tmp_path) as checkpoints:
        restored, progress = checkpoints.restore(arrays(0), pytest.fail)
    jax.tree.map(np.testing.assert_array_equal, tuple(restored), arrays(9))
    assert progress == {"at": 9, "best": math.inf}


def damage(checkpoint, how):
    """Does to the files of a checkpoint what disks and people do."""
    files = sorted(
        (f for f in checkpoint.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    if how == "emptied":
        for file in files:
            file.write_bytes(b"")
    elif how == "cut short":
        files[-1].write_bytes(files[-1].read_bytes()[:-20])
    elif how == "half removed":
        shutil.rmtree(checkpoint / "arrays")
    elif how == "another progress":
        (file,) = (checkpoint / "progress").glob("metadata")
        file.write_text(file.read_text().replace("at", "ta"))


@pytest.mark.parametrize("how", ["emptied", "cut short", "half removed", "another progress"])
def test_a_damaged_checkpoint_is_set_aside(how, tmp_path):
    folder = tmp_path / "checkpoints"
    with opened(folder) as checkpoints:
        for step in (5, 9):
            checkpoints.save(step, arrays(step), {"at": step})
    damage(folder / "9", how)
    said, hook = [], sys.unraisablehook
    with opened(folder) as checkpoints:
        restored, progress = checkpoints.restore(arrays(0), said.append)
        assert progress == {"at": 5}
        jax.tree.map(np.testing.assert_array_equal, tuple(restored), arrays(5))
        checkpoints.save(9, arrays(9), {"at": 9})
    assert len(said) == 1 and "the checkpoint of step 9 cannot be read" in said[0]
    assert (tmp_path / "unreadable_checkpoints" / "9").exists()
    with opened(folder) as checkpoints:
        left = sys.unraisablehook  # passes on what is not of orbax's reads
        assert left.args == (hook,)
        assert checkpoints.restore(arrays(0), pytest.fail)[1] == {"at": 9}
        assert sys.unraisablehook is left
        sys.unraisablehook = hook


def test_any_byte_of_the_values_counts(tmp_path):
    rng = np.random.default_rng(0)
    saved = {"x": rng.normal(size=3000).astype(np.float32)}
    with opened(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, saved, {})
    files = [f for f in (tmp_path / "checkpoints" / "1" / "arrays").rglob("*") if f.is_file()]
    file = max(files, key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with opened(tmp_path / "checkpoints") as checkpoints:
        with pytest.raises(RunError, match="no checkpoint .* can be read; none was changed"):
            checkpoints.restore(saved, lambda line: None)
    assert (tmp_path / "checkpoints" / "1").exists()


def test_reads_that_end_after_a_failed_one_print_nothing(tmp_path):
    """In a process of its own, since pytest collects what threads raise."""
    program = """
import sys, numpy as np, pathlib, time
from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.errors import RunError
folder = pathlib.Path(sys.argv[1])
saved = {f"x{n}": np.random.default_rng(n).normal(size=30_000) for n in range(20)}
checkpoints = Checkpoints(folder)
checkpoints.save(1, saved, {})
checkpoints.wait()
file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
file.write_bytes(file.read_bytes()[:1000])
for _ in range(3):
    try:
        checkpoints.restore(saved, lambda said: None)
    except RunError:
        print("refused")
    time.sleep(0.2)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "checkpoints")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ended.stdout == "refused\n" * 3
    assert "Event loop" not in ended.stderr
