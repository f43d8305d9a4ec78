"""Which modules of `zoneout_jax.data` import which, those inside functions included."""
# ruff: noqa: D103 (a test's name says what it tests)

import ast
import graphlib
import pathlib

import pytest

import zoneout_jax

PACKAGE = pathlib.Path(zoneout_jax.__file__).parent
OUTSIDE = {"_checks", "_files", "_needs"}


def imports(root: pathlib.Path) -> dict[str, set[str]]:
    """What each module of a package below `root` imports of its siblings and of others."""
    found = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0
                for alias in node.names:
                    inner = root.parent.joinpath(*node.module.split("."), f"{alias.name}.py")
                    found[name].add(
                        f"{node.module}.{alias.name}" if inner.exists() else node.module
                    )
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
    return found


def data_imports() -> dict[str, set[str]]:
    """The same of `zoneout_jax.data`, without what is not of this project."""
    return {
        name: {module for module in modules if module.startswith("zoneout_jax")}
        for name, modules in imports(PACKAGE).items()
        if name.startswith("zoneout_jax.data")
    }


def test_data_has_no_circle():
    graph = data_imports()
    assert {"zoneout_jax.data.ptb", "zoneout_jax.data.mnist"} <= graph["zoneout_jax.data.loaders"]
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("inside", [False, True])
def test_circles_are_found(tmp_path, inside):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "__init__.py").write_text("from toy.a import f")
    (tmp_path / "toy" / "a.py").write_text(
        "def f():\n    from toy import b" if inside else "import toy.b"
    )
    (tmp_path / "toy" / "b.py").write_text("from toy.a import f")
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(imports(tmp_path / "toy")).prepare()


def test_data_imports_nothing_else_of_the_package():
    modules = set().union(*data_imports().values())
    others = {module for module in modules if not module.startswith("zoneout_jax.data")}
    assert others == {f"zoneout_jax.{name}" for name in OUTSIDE}
