"""Settings that every experiment has, and how they become flags."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import math
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn, get_args, get_type_hints

import jax
import tyro

from zoneout_jax._files import local_folder

PROCESS_FLAGS = ("coordinator", "num_processes", "process_id")


class RunError(Exception):
    """A run cannot go on; the message is one line for people, and nothing that was kept is lost."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(RunError):
    """A run was stopped before its end, with a checkpoint from which it goes on."""


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a number may have: `Annotated[float, Range(0, 1)]`.

    Attributes:
      low: least value.
      high: greatest value; None means any finite one.
      above: `low` itself is not allowed.
      below: `high` itself is not allowed.
    """

    low: float
    high: float | None = None
    above: bool = False
    below: bool = False

    def __contains__(self, value: float) -> bool:
        high_enough = value > self.low if self.above else value >= self.low
        if self.high is None:
            return high_enough and math.isfinite(value)
        return high_enough and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high is not None:
            left, right = "(" if self.above else "[", ")" if self.below else "]"
            return f"in {left}{self.low}, {self.high}{right}"
        return f"above {self.low}" if self.above else f"at least {self.low}"


Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Probability = Annotated[float, Range(0, 1)]
DropRate = Annotated[float, Range(0, 1, below=True)]


def ranges(settings: Any) -> dict[str, Range]:
    """The range of each field of a dataclass, or of its items, that was given one."""

    def notes(hint: Any) -> Iterator[Any]:
        yield from getattr(hint, "__metadata__", ())
        for part in get_args(hint):
            yield from notes(part)

    return {
        name: note
        for name, hint in get_type_hints(settings, include_extras=True).items()
        for note in notes(hint)
        if isinstance(note, Range)
    }


def check_ranges(settings: Any) -> None:
    """Raises ValueError unless each field of a dataclass is in its range; None always is."""
    for name, allowed in ranges(type(settings)).items():
        value = getattr(settings, name)
        for item in value if isinstance(value, tuple) else (value,):
            if item is not None and item not in allowed:
                unbounded = allowed.high is None and not math.isfinite(item)
                finite = "finite and " if unbounded else ""
                raise ValueError(f"{name} must be {finite}{allowed}, got {item}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run, whatever the task."""

    preset: Literal["paper", "laptop", "smoke"] = "paper"
    """Settings to start from; a flag given by hand beats them."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of all randomness."""
    num_seeds: Annotated[int, Range(1, 10_000)] = 1
    """Seeds trained at once in one program: seed, seed + 1, …"""
    epochs: Count = 200
    """Epochs at most."""
    patience: Count = 25
    """Stop after so many epochs without a better validation figure."""
    batch_size: Count = 32
    """Examples in a batch, over all devices."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the operands of matrix products."""
    rng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Generator of random numbers: the same everywhere, or the hardware's own, fast on TPUs."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or gradient that is not finite: stop before the step, or leave it out."""
    steps_per_call: Annotated[int, Range(1, 100_000)] = 10
    """Training steps in one call of the compiled function."""
    checkpoint_minutes: NotNegative = 1.0
    """Save when so much time has passed since the last checkpoint."""
    checkpoint_steps: Count | None = None
    """Save also after every so many steps."""
    max_minutes: Positive | None = None
    """End with a checkpoint after so much time; the same command goes on."""
    workdir: str | None = None
    """Run directory; by default runs/<experiment>/<the settings that were changed>."""
    resume: bool = True
    """Go on with the run that the directory holds; otherwise the directory must be new."""
    raw_data_dir: str | None = None
    """Folder of raw data files; by default $ZONEOUT_RAW_DATA."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    coordinator: str | None = None
    """Address host:port of the first of several processes. On a TPU pod and under Slurm's srun
    none of these four flags is needed."""
    num_processes: Count | None = None
    """Number of processes that train together."""
    process_id: Annotated[int, Range(0)] | None = None
    """Number of this process, from 0; only process 0 writes."""
    heartbeat_timeout: Annotated[int, Range(1, 86_400)] = 100
    """Seconds of silence after which another process counts as dead, and all end."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset(
        "on_nan steps_per_call checkpoint_minutes checkpoint_steps max_minutes workdir resume "
        "raw_data_dir data_dir coordinator num_processes process_id heartbeat_timeout".split()
    )
    """Settings that decide no number of a run; they may change when it goes on."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.workdir is not None:
            local_folder(self.workdir, "workdir")
        last = self.seed + self.num_seeds - 1
        if last >= 2**32:
            raise ValueError(f"the last seed must be in [0, {2**32 - 1}], got {last}")
        if self.rng_impl == "rbg" and self.num_seeds > 1:
            raise ValueError(
                "rng_impl must be threefry2x32 for num_seeds above 1: the hardware's generator "
                "draws other numbers for many keys at once than for each alone"
            )
        together = {name: getattr(self, name) for name in PROCESS_FLAGS}
        missing = [name for name, value in together.items() if value is None]
        if missing and len(missing) < len(together):
            flags = " ".join(f"--{name}" for name in together)
            raise ValueError(f"{flags} must be given together, {missing[0]} is missing")
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 2**16):
                raise ValueError(
                    f"coordinator must be host:port with a port in [1, 65535], got "
                    f"{self.coordinator!r}"
                )
            process, processes = together["process_id"], together["num_processes"]
            if process >= processes:
                raise ValueError(
                    f"process_id must be in [0, {processes - 1}] as num_processes is "
                    f"{processes}, got {process}"
                )

    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in self.INCIDENTAL
        }

    def matmul_precision(self) -> contextlib.AbstractContextManager:
        """A context in which float32 products are just that, on every kind of device."""
        whole = self.precision == "float32"
        return jax.default_matmul_precision("float32" if whole else "default")

    def run_directory(self, experiment: str, preset: "RunConfig") -> pathlib.Path:
        """Where the run is kept: `workdir`, or a name made of what differs from the preset."""
        if self.workdir is not None:
            return local_folder(self.workdir, "workdir")
        start = preset.identity()
        changed = [f"{k}={v}" for k, v in self.identity().items() if v != start[k]]
        name = "-".join([self.preset, *changed])
        return pathlib.Path("runs") / experiment / name


def output_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Where results go: what `--out` says, or a folder below `runs`; nothing is made yet.

    Raises:
      ValueError: an address, or a file.
    """
    out = pathlib.Path("runs") / default if given is None else local_folder(given, "out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give another --out")
    return out


def new_folder(given: pathlib.Path | None, default: str) -> pathlib.Path:
    """Makes the folder of a measurement: what `--out` says, or a new one below `runs`.

    It is made before anything is measured, so that nothing is measured in vain.

    Raises:
      ValueError: an address, a file, or a folder that was not named and is there already.
      OSError: the folder cannot be made.
    """
    out = output_folder(given, f"{default}/{time.strftime('%Y-%m-%d_%H-%M-%S')}")
    try:
        out.mkdir(parents=True, exist_ok=given is not None)
    except FileExistsError:
        raise ValueError(f"{out} is there already; name a folder with --out") from None
    return out


def fail(message: object) -> NoReturn:
    """Ends the program for bad input: one line on standard error, exit code 2."""
    print("error: " + one_line(message), file=sys.stderr)
    raise SystemExit(2)


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def parse(start: Any, argv: Sequence[str] | None, prog: str, about: str) -> Any:
    """Makes a dataclass from flags.

    Args:
      start: a dataclass type, or an instance whose values are the defaults.
      argv: arguments; those of the program if None.
      prog: name of the program for its help.
      about: description for its help.

    Raises:
      SystemExit: code 2 after one line on standard error for flags that are not understood, 0
        after help.
    """
    is_type = isinstance(start, type)
    defaults = {} if is_type else {"default": start}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                start if is_type else type(start),
                args=sys.argv[1:] if argv is None else argv,
                prog=prog,
                description=about,
                use_underscores=True,
                **defaults,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        fail(_sentence(complaint.getvalue()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The setting of every program that measures."""

    out: pathlib.Path | None = None
    """Folder of the result, which replaces one that is there; by default a new one below runs."""


def parse_measurement(
    start: Any, argv: Sequence[str] | None, module: str, about: str
) -> tuple[Any, pathlib.Path]:
    """Makes settings from flags, and the folder of the result.

    Args:
      start: a `Measurement` type.
      argv, about: as in `parse`.
      module: the program, as in `python -m <module>`.

    Raises:
      SystemExit: as in `parse`, and code 2 after one line for a folder that cannot be had.
    """
    options = parse(start, argv, f"python -m {module}", about)
    try:
        return options, new_folder(options.out, module.replace(".", "/"))
    except (ValueError, OSError) as error:
        fail(error)


def _sentence(complaint: str) -> str:
    """Of tyro's framed message the sentence after the title, and the flag that it suggests."""
    complaint = re.sub(r"\x1b\[[0-9;]*m", "", complaint)  # colours of a terminal
    lines = complaint.splitlines()
    framed = any(line.startswith("╭") for line in lines)
    words = [line.strip(" │") for line in lines if not line.startswith(("╭", "╰"))]
    words = [line for line in words if line]
    if not framed:
        del words[:2]  # title and rule
    first = itertools.takewhile(lambda line: line.strip("-─"), words)
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(first)).rstrip(".")
    meant = re.search(r"Perhaps you meant:?\W*(--\w+)", complaint)
    hint = f"did you mean {meant[1]}? " if meant else ""
    return f"{message}; {hint}--help lists the flags"


def parse_preset(
    presets: Mapping[str, RunConfig], argv: Sequence[str] | None, prog: str, about: str
) -> Any:
    """Makes settings from flags, starting from those that `--preset` names.

    Args:
      presets: settings by name; the first is the default.
      argv, prog, about: as in `parse`.

    Raises:
      SystemExit: as in `parse`.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--preset", default=next(iter(presets)))
    try:
        preset = finder.parse_known_args(argv)[0].preset
    except argparse.ArgumentError as error:
        fail(error)
    if preset not in presets:
        fail(f"unknown preset {preset!r}; choose one of {', '.join(presets)}")
    return parse(presets[preset], argv, prog, about)
