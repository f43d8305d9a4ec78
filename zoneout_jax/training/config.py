"""Settings that every experiment has, and how they become flags."""

import argparse
import contextlib
import dataclasses
import io
import itertools
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of a training run, whatever the task."""

    preset: Literal["paper", "laptop", "smoke"] = "paper"
    """Settings to start from; a flag given by hand beats them."""
    seed: int = 0
    """Seed of all randomness."""
    epochs: int = 200
    """Epochs at most."""
    patience: int = 25
    """Stop after so many epochs without a better validation figure."""
    batch_size: int = 32
    """Examples in a batch, over all devices."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Type of the operands of matrix products."""
    rng_impl: Literal["threefry2x32", "rbg"] = "threefry2x32"
    """Generator of random numbers: the same everywhere, or the hardware's own, fast on TPUs."""
    steps_per_call: int = 10
    """Training steps in one call of the compiled function."""
    checkpoint_seconds: float = 60.0
    """Save when so much time has passed since the last checkpoint."""
    workdir: str | None = None
    """Run directory; by default runs/<experiment>/<the settings that were changed>."""
    resume: bool = True
    """Go on with the run that the directory holds; otherwise the directory must be new."""
    raw_data_dir: str | None = None
    """Folder of raw data files; by default $ZONEOUT_RAW_DATA."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""

    def __post_init__(self):
        for name in ("epochs", "patience", "batch_size", "steps_per_call"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be in [0, 2^32), got {self.seed}")
        seconds = self.checkpoint_seconds
        if not seconds >= 0:
            raise ValueError(f"checkpoint_seconds must be at least 0, got {seconds}")

    def identity(self) -> dict[str, Any]:
        """The settings that decide the numbers of a run: all but where and how often it writes."""
        kept = dataclasses.asdict(self)
        for name in ("workdir", "resume", "raw_data_dir", "data_dir", "checkpoint_seconds"):
            del kept[name]
        return kept

    def run_directory(self, experiment: str, preset: "RunConfig") -> pathlib.Path:
        """Where the run is kept: `workdir`, or a name made of what differs from the preset."""
        if self.workdir is not None:
            return pathlib.Path(self.workdir)
        start = preset.identity()
        changed = [f"{k}={v}" for k, v in self.identity().items() if v != start[k]]
        name = "-".join([self.preset, *changed])
        return pathlib.Path("runs") / experiment / name


def fail(message: object) -> NoReturn:
    """Ends the program for bad input: one line on standard error, exit code 2."""
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    raise SystemExit(2)


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


def _sentence(complaint: str) -> str:
    """Of tyro's framed message the sentence after the title, and the flag that it suggests."""
    complaint = re.sub(r"\x1b\[[0-9;]*m", "", complaint)  # colours of a terminal
    lines = complaint.splitlines()
    framed = any(line.startswith("╭") for line in lines)
    words = [line.strip(" │") for line in lines if not line.startswith(("╭", "╰"))]
    words = [line for line in words if line]
    if not framed:
        del words[:2]  # title and rule
    message = itertools.takewhile(lambda line: line.strip("-─"), words)
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(message)).rstrip(".")
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
