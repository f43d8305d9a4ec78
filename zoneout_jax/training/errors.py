"""Errors that end a run early, and their messages."""

import sys
from typing import NoReturn


class RunError(Exception):
    """A run cannot continue; the message is one line, and nothing that was saved is lost."""

    def __init__(self, message: str, exit_code: int = 1):
        super().__init__(message)
        self.exit_code = exit_code


ADVICE = "start again with other settings, such as a smaller learning rate"
"""What to do after a divergence."""


class Diverged(RunError):
    """A loss or gradient is not finite."""


class Stopped(RunError):
    """A run was stopped early, with a checkpoint from which it can resume."""


def fail(message: object) -> NoReturn:
    """Ends the program for bad input: one line on standard error, exit code 2."""
    print("error: " + one_line(message), file=sys.stderr)
    raise SystemExit(2)


def one_line(message: object) -> str:
    """Returns a message without line breaks."""
    return " ".join(str(message).split())
