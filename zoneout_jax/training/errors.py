"""How a run ends before its end, and what people are told."""

import sys
from typing import NoReturn


class RunError(Exception):
    """A run cannot go on; the message is one line for people, and nothing that was kept is lost."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(RunError):
    """A loss or gradient is not finite."""


class Stopped(RunError):
    """A run was stopped before its end, with a checkpoint from which it goes on."""


def fail(message: object) -> NoReturn:
    """Ends the program for bad input: one line on standard error, exit code 2."""
    print("error: " + one_line(message), file=sys.stderr)
    raise SystemExit(2)


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())
