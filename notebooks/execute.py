"""Runs the notebooks and keeps their outputs.

    python -m notebooks.execute                             # all of them, in order
    python -m notebooks.execute 03_gradient_propagation     # some
    python -m notebooks.execute --out notebooks             # in the place of those in this folder

Runs each `.py` (jupytext's percent format) in a new kernel, with this folder as its working
directory. Writes it with its outputs to an `.ipynb` in `--out`, and the pictures that the
README shows also to a `.png`. Stops at the first error, and leaves the files of that notebook
as they were. Prints the time and the largest resident memory of each kernel.
"""

import base64
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import jupytext
import nbformat
import tyro
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from zoneout_jax.training import Measurement, fail, parse_measurement

FOLDER = pathlib.Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("[0-9]*.py")))
PICTURED = NAMES[:2]
"""Notebooks with a picture in the README."""
CELL_SECONDS = 600
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PEAK = "from zoneout_jax.training.progress import host_peak_bytes; print(host_peak_bytes())"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Measurement):
    """What to run."""

    names: tyro.conf.Positional[tuple[str, ...]] = NAMES
    """Notebooks by name, without their ending; by default all."""

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.names if name not in NAMES]
        if unknown:
            raise ValueError(f"unknown notebook {unknown[0]!r}; choose of {', '.join(NAMES)}")


def read(name: str) -> nbformat.NotebookNode:
    """The notebook of a `.py`, without outputs."""
    notebook = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # else drawn at random: every run would change the file
        cell.metadata = nbformat.NotebookNode()
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def execute(name: str, out: pathlib.Path) -> int:
    """Runs a notebook and writes it with its outputs to a folder.

    Returns:
      Peak memory in bytes.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = read(name)
    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    notebook.cells.append(nbformat.v4.new_code_cell(PEAK))
    client.execute()
    peak = notebook.cells.pop().outputs[0].text
    picture = first_picture(notebook) if name in PICTURED else None
    save(out / f"{name}.ipynb", nbformat.writes(notebook).encode() + b"\n")
    if picture is not None:
        save(out / f"{name}.png", picture)
    return int(peak)


def first_picture(notebook: nbformat.NotebookNode) -> bytes:
    """The first picture among the outputs, as PNG."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    return base64.b64decode(next(each["image/png"] for each in data if "image/png" in each))


def save(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs notebooks from the command line."""
    options, out = parse_measurement(Options, argv, "notebooks.execute", "Runs the notebooks.")
    for name in options.names:
        begin = time.monotonic()
        try:
            peak = execute(name, out)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except OSError as error:
            fail(error)
        print(f"{name}: {time.monotonic() - begin:.0f} s, {peak / 2**20:,.0f} MiB", flush=True)
    print(f"notebooks: {out}")


if __name__ == "__main__":
    main()
