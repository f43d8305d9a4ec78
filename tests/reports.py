"""Reports of the programs that test whole runs."""

import pathlib
from typing import Any

from zoneout_jax.training import versions, write_json


def write_report(out: pathlib.Path, name: str, options: Any, report: dict[str, Any]) -> None:
    """Writes a report and prints its path, which names the parts if the report is partial."""
    parts = () if options.parts == type(options).parts else options.parts
    path = out / f"{'_'.join((name, *parts))}.json"
    write_json(path, report | {"versions": versions()})
    print(f"report: {path}")
