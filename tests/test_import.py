"""What an import of the library loads."""

import ast
import configparser
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

import zoneout_jax
import zoneout_jax.linen

ROOT = pathlib.Path(__file__).parents[1]
HEAVY = (
    "flax optax orbax tensorflow_datasets tensorflow tyro matplotlib rich tensorboardX torch chex"
)


def loaded(module, names):
    """Lists which of `names` a new process has loaded after an import of `module`."""
    code = f"import sys, {module}; print(*(m for m in '{names}'.split() if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_import_loads_jax_and_numpy_only():
    assert loaded("zoneout_jax", f"jax {HEAVY}") == ["jax"]


@pytest.mark.parametrize("face", ["linen", "nnx"])
def test_faces_bring_flax(face):
    assert loaded(f"zoneout_jax.{face}", "flax tensorflow_datasets tyro matplotlib") == ["flax"]


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("linen", "flax", "flax"),
        ("nnx", "flax", "flax"),
        ("training", "absl", "training"),
        ("training", "optax", "training"),
        ("training", "orbax", "training"),
        ("training", "tyro", "training"),
        ("data.digits", "sklearn", "training"),
        ("data.mnist", "PIL", "training"),
        ("data.ptb", "tensorflow_datasets", "training"),
        ("data.text8", "tensorflow_datasets", "training"),
    ],
)
def test_a_missing_package_names_the_extra(module, package, extra):
    code = f"import sys; sys.modules['{package}'] = None; import zoneout_jax.{module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        f"ModuleNotFoundError: zoneout_jax.{module} needs {package}: "
        f'pip install "zoneout_jax[{extra}]"'
    )


def normal(distributions):
    """Normalizes names as package indexes do."""
    return {re.sub("[-_.]+", "-", name).lower() for name in distributions}


@pytest.mark.parametrize(("extra", "files"), [("flax", "*.py"), ("training", "*/*.py")])
def test_what_is_imported_is_declared(extra, files):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = setup["options"]["install_requires"], setup["options.extras_require"][extra]
    declared = normal(re.findall(r"^[\w.-]+", "\n".join(lists), re.MULTILINE))
    imported = set()
    for path in (ROOT / "zoneout_jax").glob(files):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    brought_by = importlib.metadata.packages_distributions()
    known = sys.stdlib_module_names | {"zoneout_jax", "typing_extensions"}  # for type checkers
    for name in imported - known:
        assert declared & normal(brought_by[name]), f"{name} is not in [{extra}]"


def test_completion_shows_what_is_public():
    assert {"_zoneout", "_cell", "jax"}.isdisjoint(dir(zoneout_jax))
    assert {"unroll", "zoneout", "linen", "__version__"} <= set(dir(zoneout_jax))
    assert all(hasattr(zoneout_jax, name) for name in dir(zoneout_jax))
