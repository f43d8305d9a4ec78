"""Examples in docstrings and in the documentation run, and show what they say."""

import doctest
import importlib
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
REPOSITORY = "https://github.com/zoneout-jax/zoneout_jax"
PICTURES = "https://raw.githubusercontent.com/zoneout-jax/zoneout_jax/main"
MODULES = [m.name for m in pkgutil.iter_modules(zoneout_jax.__path__) if not m.ispkg]
COMMON = {"jax": jax, "jnp": jnp, "nn": nn, "nnx": nnx}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(f"zoneout_jax.{name}")
    names = COMMON | vars(zoneout_jax) | vars(module)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, f"zoneout_jax.{name}", globs=names):
        runner.run(test)
    assert not runner.failures


def blocks():
    """Blocks of Python in the documentation."""
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        found = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
        for number, block in enumerate(found):
            yield pytest.param(block, id=f"{page.name}-{number}")


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("block", [*blocks()])
def test_blocks_run_in_an_empty_file(block):
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("page", sorted((ROOT / "docs/api").glob("*.md")), ids=lambda p: p.stem)
def test_reference_names_every_public_object(page):
    name = "zoneout_jax" if page.stem == "zoneout_jax" else f"zoneout_jax.{page.stem}"
    module = importlib.import_module(name)
    # Where there is no __all__, names are exported as `from … import x as x`.
    exported = re.findall(r" as (\w+)$", pathlib.Path(module.__file__).read_text(), re.MULTILINE)
    listed = re.findall(r"^\.\. auto(?!module)\w+:: (\w+)", page.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(getattr(module, "__all__", exported))


def test_addresses_in_the_readme_work_on_a_package_index():
    readme = (ROOT / "README.md").read_text()
    pictures = re.findall(r'!\[[^]]*\]\((.*?)\)|src="(.*?)"', readme)
    badge = r"!\[[^]]*\]\([^)]*badge[^)]*\)"
    pictures = [address for address in map("".join, pictures) if "badge" not in address]
    links = re.findall(r"(?<!!)\[[^]]*\]\((.*?)\)", re.sub(badge, "", readme))
    assert pictures and len(links) >= 10
    for address in pictures:
        assert address.startswith(f"{PICTURES}/"), address
        assert (ROOT / address.removeprefix(f"{PICTURES}/")).is_file(), address
    for address in links:
        assert address.startswith(("#", "https://")), address
        if address.startswith(REPOSITORY) and "/actions/" not in address:
            kind, _, path = address.removeprefix(f"{REPOSITORY}/").partition("/main/")
            there = ROOT / path.partition("#")[0]
            assert there.is_dir() if kind == "tree" else kind == "blob" and there.is_file(), address
