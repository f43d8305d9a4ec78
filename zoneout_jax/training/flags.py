"""Makes settings from command-line flags."""

import argparse
import contextlib
import dataclasses
import difflib
import io
import itertools
import pathlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from zoneout_jax.training.errors import fail
from zoneout_jax.training.files import new_folder
from zoneout_jax.training.settings import Settings

UNREADABLE = re.compile(
    r"(?:Error parsing )?-*(?P<name>\w+): "
    r"(?:invalid literal for int\(\) with base 10: (?P<integer>.*)"
    r"|could not convert string to float: (?P<number>.*)"
    r"|no type matching (?P<union>\S+) could be instantiated from \[(?P<given>.*?)\]\..*)"
)
"""What tyro says of a value that cannot be read."""
KINDS = {
    "INT": "an integer",
    "FLOAT": "a number",
    "{None}": "None",
    "STR": "text",
    "PATH": "a path",
}
"""What tyro calls types, in words."""

SCREEN = 30
"""Flags that `--help` describes; of more flags it lists only names, types and defaults."""


def command() -> str:
    """Returns the command that started the program, without its arguments."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        return shlex.join(["python", sys.argv[0]])
    return f"python -m {spec.name.removesuffix('.__main__')}"


def parse(start: Any, argv: Sequence[str] | None, about: str) -> Any:
    """Makes a dataclass from flags.

    Args:
      start: a dataclass type, or an instance whose values are the defaults.
      argv: arguments; None means `sys.argv[1:]`.
      about: description in its help. With more than `SCREEN` flags, `--help` lists them and
        `--help-verbose` describes them.

    Raises:
      SystemExit: code 2 after one line on standard error for invalid flags, 0 after help.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    is_type = isinstance(start, type)
    defaults = {} if is_type else {"default": start}
    kind = start if is_type else type(start)
    known = types(kind)
    _check_repeated(argv, known)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            settings, unknown = tyro.cli(
                kind,
                args=argv,
                prog=command(),
                description=about,
                use_underscores=True,
                compact_help=len(known) > SCREEN,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
                **defaults,
            )
    except SystemExit as end:
        if end.code == 0:
            raise
        fail(_sentence(complaint.getvalue()))
    if unknown:
        fail(_unknown(unknown[0], [*known], start.flat() if isinstance(start, Settings) else {}))
    return settings


def _check_repeated(argv: Sequence[str], known: Mapping[str, Any]) -> None:
    """Ends the program if a flag of several values is given twice: the second would replace all."""
    given = [word.partition("=")[0].lstrip("-") for word in argv if word.startswith("--")]
    for name in given:
        hint = known.get(name)
        is_tuple = any(get_origin(part) is tuple for part in (hint, *get_args(hint)))
        if given.count(name) > 1 and is_tuple:
            fail(f"--{name} is given twice: give all its values at once")


def types(kind: type) -> dict[str, Any]:
    """Returns the types of the settings of a dataclass and of its parts, by name."""
    found: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        part = hints[field.name]
        if isinstance(part, type) and issubclass(part, Settings):
            found |= types(part)
        else:
            found[field.name] = part
    return found


def _unknown(argument: str, known: Sequence[str], defaults: Mapping[str, Any]) -> str:
    """Returns the message for an unknown argument, with the flags that may be meant."""
    name = argument.partition("=")[0]
    wanted = name.lstrip("-").replace("-", "_").removeprefix("no_").lower()
    if isinstance(defaults.get(wanted), bool):  # only the flag that changes it exists
        state, other = ("on", f"--no_{wanted}") if defaults[wanted] else ("off", f"--{wanted}")
        return f"{name} is not needed: {wanted} is {state}, and {other} changes it"
    near = [flag for flag in known if "".join(word[0] for word in flag.split("_")) == wanted]
    near += [flag for flag in known if wanted and flag.endswith(f"_{wanted}")]
    near += difflib.get_close_matches(wanted, known, cutoff=0.7)
    near += [flag for flag in known if difflib.get_close_matches(wanted, flag.split("_"))]
    flags = " or ".join(f"--{flag}" for flag in dict.fromkeys(near[:3]))
    hint = f"did you mean {flags}? " if flags and argument.startswith("-") else ""
    return f"there is no {name}; {hint}--help lists the flags"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement(Settings):
    """Settings that all measuring programs share."""

    out: pathlib.Path | None = None
    """Folder of the result, which replaces an older one there; default: a new folder in runs."""


def parse_measurement(
    start: Any, argv: Sequence[str] | None, module: str, about: str
) -> tuple[Any, pathlib.Path]:
    """Makes settings from flags, and creates the folder of the result.

    Args:
      start: a `Measurement` type.
      argv, about: as in `parse`.
      module: the program, as in `python -m <module>`.

    Raises:
      SystemExit: as in `parse`; also code 2 after one line if the folder cannot be created.
    """
    options = parse(start, argv, about)
    try:
        return options, new_folder(options.out, module.replace(".", "/"))
    except (ValueError, OSError) as error:
        fail(error)


def _sentence(complaint: str) -> str:
    """Extracts the sentence below the title of a framed message of tyro."""
    complaint = re.sub(r"\x1b\[[0-9;]*m", "", complaint)  # terminal colors
    lines = complaint.splitlines()
    framed = any(line.startswith("╭") for line in lines)
    words = [line.strip(" │") for line in lines if not line.startswith(("╭", "╰"))]
    words = [line for line in words if line]
    if not framed:
        del words[:2]  # title and rule
    first = itertools.takewhile(lambda line: line.strip("-─"), words)
    message = re.sub(r"^Error parsing \w+: ", "", " ".join(first)).rstrip(".")
    if found := UNREADABLE.match(message):
        kinds = found["union"] or ("INT" if found["integer"] else "FLOAT")
        wanted = " or ".join(KINDS.get(kind, kind) for kind in kinds.split("|"))
        value = found["given"] or found["integer"] or found["number"]
        message = f"--{found['name']} must be {wanted}, got {value}"
    return f"{message}; --help lists the flags"


def parse_preset(
    presets: Mapping[str, Settings], argv: Sequence[str] | None, about: str = ""
) -> Any:
    """Makes settings from flags; the defaults are the settings that `--preset` names.

    Args:
      presets: settings by name; the first is the default.
      argv, about: as in `parse`.

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
    return parse(presets[preset], argv, about)
