"""What importing the library brings along."""

import subprocess
import sys

import pytest

import zoneout_jax
import zoneout_jax.linen

HEAVY = (
    "flax optax orbax tensorflow_datasets tensorflow tyro matplotlib rich tensorboardX torch chex"
)


def loaded(module, names):
    """Which of `names` a fresh process has loaded after importing `module`."""
    code = f"import sys, {module}; print(*(m for m in '{names}'.split() if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_jax_and_numpy_only():
    assert loaded("zoneout_jax", f"jax {HEAVY}") == ["jax"]


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_faces_bring_flax(face):
    assert loaded(f"zoneout_jax.{face}", "flax tensorflow_datasets tyro matplotlib") == ["flax"]


def test_completion_shows_what_is_public():
    assert {"zoneout", "cells", "jax"}.isdisjoint(dir(zoneout_jax))
    assert {"unroll", "linen", "__version__"} <= set(dir(zoneout_jax))
    assert all(hasattr(zoneout_jax, name) for name in dir(zoneout_jax))
