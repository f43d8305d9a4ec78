"""Notebooks match their `.py`, were run without errors, and fetch this release."""

import configparser
import pathlib
import re
import subprocess

import nbformat
import pytest

import zoneout_jax
from notebooks import execute

ROOT = pathlib.Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
REPOSITORY = re.search("Source = (.*)", SETUP["metadata"]["project_urls"])[1]
NAME = REPOSITORY.removeprefix("https://github.com/")


def committed(name):
    return nbformat.read(execute.FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", execute.NAMES)
def test_notebook_is_its_script_and_was_run(name):
    notebook, script = committed(name), execute.read(name)
    nbformat.validate(notebook)
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in script.cells
    ]
    assert [c.execution_count for c in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert not [o for c in code(notebook) for o in c.outputs if o.output_type == "error"]
    if name in execute.PICTURED:
        picture = (execute.FOLDER / f"{name}.png").read_bytes()
        assert picture == execute.first_picture(notebook)
    assert (execute.FOLDER / f"{name}.ipynb").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", execute.NAMES)
def test_notebook_fetches_this_release(name):
    release = f"v{zoneout_jax.__version__}"
    title, first = execute.read(name).cells[:2]
    colab = f"https://colab.research.google.com/github/{NAME}/blob/{release}/notebooks/{name}.ipynb"
    assert f"]({colab})" in title.source
    assert f'REPOSITORY, RELEASE = "{REPOSITORY}", "{release}"' in first.source
    others = [execute.read(other).cells[1].source for other in execute.NAMES[1:]]
    assert len(set(others)) == 1, "the first cells differ"


def test_address_is_said_in_one_place():
    """Only setup.cfg and the notebooks, which run without a checkout, name the address."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    texts = [file for file in files if file.suffix not in (".png", ".npz") and file.is_file()]
    naming = {file.relative_to(ROOT) for file in texts if NAME in file.read_text()}
    notebooks = {path for path in naming if path.parent.name == "notebooks"}
    assert naming - notebooks == {pathlib.Path("setup.cfg")}


def test_readme_lists_every_notebook():
    readme = (ROOT / "README.md").read_text()
    for name in execute.NAMES:
        assert f"](notebooks/{name}.ipynb)" in readme, name


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    monkeypatch.setattr(execute, "NAMES", ("1_good", "2_bad", "3_after"))
    (tmp_path / "1_good.py").write_text("# %% [markdown]\n# Sum\n\n# %%\nprint(1 + 1)\n")
    (tmp_path / "2_bad.py").write_text("# %%\n1 / 0\n")
    (tmp_path / "3_after.py").write_text("# %%\n1\n")
    return tmp_path


def test_execute_keeps_outputs_and_stops_at_an_error(folder, capfd):
    (folder / "2_bad.ipynb").write_text("as it was")
    out = f"--out={folder}"
    with pytest.raises(SystemExit) as exit:
        execute.main(["1_good", "2_bad", "3_after", out])
    assert exit.value.code == 1
    said = capfd.readouterr()
    assert re.search(r"^1_good: \d+ s, [\d,]+ MiB$", said.out, re.MULTILINE)
    assert "2_bad" in said.err and "ZeroDivisionError" in said.err
    assert (folder / "2_bad.ipynb").read_text() == "as it was"
    assert not (folder / "3_after.ipynb").exists()
    notebook = nbformat.read(folder / "1_good.ipynb", as_version=4)
    assert [cell.source for cell in notebook.cells] == ["Sum", "print(1 + 1)"]
    assert notebook.cells[1].outputs[0].text == "2\n"
    before = (folder / "1_good.ipynb").read_bytes()
    execute.main(["1_good", out])
    assert (folder / "1_good.ipynb").read_bytes() == before
    assert not list(folder.glob(".*")) and not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("flags", [["06_none"], ["1_good", "--all"]])
def test_bad_flags(folder, capsys, flags):
    with pytest.raises(SystemExit) as exit:
        execute.main(flags)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ")
    assert not list(folder.glob("*.ipynb"))
