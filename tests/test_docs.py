"""Examples in docstrings and in the documentation run and give the printed results."""

import doctest
import importlib
import importlib.util
import pathlib
import pkgutil
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import zoneout_jax

ROOT = pathlib.Path(__file__).parents[1]
MODULES = [m.name for m in pkgutil.iter_modules(zoneout_jax.__path__) if not m.ispkg]
COMMON = {"jax": jax, "jnp": jnp, "nn": nn, "nnx": nnx}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"zoneout_jax.{name}")
    names = COMMON | vars(zoneout_jax) | vars(module)
    if part := re.match("_(linen|nnx)_", name):
        names |= vars(importlib.import_module(f"zoneout_jax.{part[1]}"))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, f"zoneout_jax.{name}", globs=names):
        runner.run(test)
    assert not runner.failures


def blocks():
    """Yields the Python blocks of the documentation."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(found):
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("block", [*blocks()])
def test_blocks_run_in_an_empty_file(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda p: p.stem)
def test_reference_names_every_public_object(page):
    name = "zoneout_jax" if page.stem == "zoneout_jax" else f"zoneout_jax.{page.stem}"
    module = importlib.import_module(name)
    # Modules without __all__ export names as `from … import x as x`.
    exported = re.findall(r" as (\w+)$", pathlib.Path(module.__file__).read_text(), re.MULTILINE)
    listed = re.findall(
        r"^\.\. (?:auto(?!module)\w+|py:data):: (\w+)", page.read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted(getattr(module, "__all__", exported))


def test_links_of_the_readme_lead_to_files_and_are_whole_on_a_package_index():
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    link = re.compile(r'\[[^]]*\]\((.*?)\)|src="(.*?)"')
    paths = ["".join(found) for found in link.findall((ROOT / "README.md").read_text())]
    whole = ["".join(found) for found in link.findall(setup.readme())]
    assert len(paths) == len(whole) >= 10 and sum(path.endswith(".png") for path in paths) >= 1
    for path, address in zip(paths, whole, strict=True):
        if path.startswith(("#", "https://")):
            assert address == path
            continue
        file = ROOT / path.partition("#")[0]
        kind = "raw" if file.suffix == ".png" else "tree" if file.is_dir() else "blob"
        assert file.exists() and file.is_relative_to(ROOT), path
        assert address == f"{setup.repository()}/{kind}/v{zoneout_jax.__version__}/{path}"
