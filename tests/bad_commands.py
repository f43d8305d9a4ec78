"""Bad command lines of the experiments, made from the types and ranges of their flags."""

import concurrent.futures
import dataclasses
import os
import pathlib
import random
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from experiments.lib.experiment import find
from zoneout_jax.training import Range, Settings
from zoneout_jax.training.settings import ranges

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = ("char_ptb", "word_ptb", "text8", "permuted_mnist", "seq2seq")


def atoms(hint: Any) -> Iterator[Any]:
    """Yields the plain types and Literals of a type hint."""
    if get_origin(hint) is Annotated:
        yield from atoms(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from atoms(part)
    else:
        yield hint


def bad_values(hint: Any, allowed: Range | None) -> Iterator[str]:
    """Yields values, as typed, that a flag of a type and range does not accept."""
    parts = set(atoms(hint))
    choices = [
        str(value) for part in parts if get_origin(part) is Literal for value in get_args(part)
    ]
    if choices:
        yield from ("", "nothing", choices[0].swapcase(), choices[0] + "x")
    if parts & {int, float}:
        yield from ("", "x", "1,5", "0x", "--", "[1]", "nan", "inf", "-inf", "1e999")
    if int in parts:
        yield from ("1.5", "1e3")
    if allowed is not None:
        below = allowed.low if allowed.above else allowed.low - 1
        yield from (f"{below:.0f}", f"{allowed.low - 12345:.0f}")
        if allowed.high is not None:
            above = allowed.high if allowed.below else allowed.high + 1
            yield from (f"{above:.0f}", f"{10 * allowed.high + 5:.0f}")


def flags(settings: type[Settings]) -> Iterator[tuple[str, Any, Range | None]]:
    """Yields name, type and range of each flag of some settings and of their parts."""
    hints, allowed = get_type_hints(settings, include_extras=True), ranges(settings)
    for field in dataclasses.fields(settings):
        hint = hints[field.name]
        if isinstance(hint, type) and issubclass(hint, Settings):
            yield from flags(hint)
        else:
            yield field.name, hint, allowed.get(field.name)


def bad_commands(experiment: str) -> list[tuple[str, ...]]:
    """Lists each flag of an experiment with each bad value, and unknown arguments."""
    settings = type(find(experiment).presets["smoke"])
    here = "--coordinator=here"
    return [
        *(("--no_such_flag",), ("--epoch=3",), ("stray",), ("--preset",), ("--batch_size",)),
        *(("--num_processes=2",), (here, "--num_processes=2", "--process_id=0")),
        *((f"{here}:1", "--num_processes=2", "--process_id=2"), ("--dataset=none",)),
        *(
            (f"--{name}={value}",)
            for name, hint, allowed in flags(settings)
            for value in bad_values(hint, allowed)
        ),
    ]


def commands(folder: pathlib.Path, at_least: int, rng: random.Random) -> dict[str, Any]:
    """Calls experiments with bad command lines, each in a separate process."""
    lines = [(name, words) for name in EXPERIMENTS for words in bad_commands(name)]
    chosen = rng.sample(lines, min(at_least, len(lines)))
    folder.mkdir()
    raw = {"ZONEOUT_RAW_DATA": os.environ.get("ZONEOUT_RAW_DATA", "")}
    environment = os.environ | raw | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}

    def call(line: tuple[str, tuple[str, ...]]) -> dict[str, Any]:
        name, words = line
        start = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", "--preset=smoke", *words],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - start
        one_line = done.stderr.count("\n") == 1 and not done.stdout
        well = done.returncode == 2 and one_line and done.stderr.startswith("error: ")
        return {
            "command": " ".join((name, *words)),
            "exit code": done.returncode,
            "said": done.stderr.strip()[-300:],
            "seconds": round(seconds, 2),
            "as it should": well and seconds < 10,
        }

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(call, chosen))
    left = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    report = {
        "possible": len(lines),
        "called": len(found),
        "as they should": sum(line["as it should"] for line in found),
        "others": [line for line in found if not line["as it should"]],
        "slowest seconds": max(line["seconds"] for line in found),
        "files left behind": left,
        "examples": found[:10],
    }
    print(
        f"{report['as they should']} of {report['called']} as they should, {len(left)} files left"
    )
    for line in report["others"]:
        print(f"BAD {line}")
    return report
