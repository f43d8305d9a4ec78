"""The package and a user's program pass the type checker."""

import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 8), reason="older JAX declares other types")
def test_types():
    pytest.importorskip("mypy")
    # setup.cfg has the settings and the files to check.
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_program_runs():
    runpy.run_path(str(ROOT / "tests/typing/user_program.py"), run_name="__main__")
