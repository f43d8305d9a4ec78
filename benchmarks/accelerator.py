"""What JAX's device does, right and fast, in one run of a few minutes.

    python -m benchmarks.accelerator                  # eight minutes
    python -m benchmarks.accelerator --seconds=120
    python -m benchmarks.accelerator --quick          # checks that it runs; its times mean nothing

Five parts, each written as soon as it is there: what there is, whether results are right
(`accelerator_checks`), how fast layers are beside their peers (`accelerator_speed`), char_ptb end
to end, and evidence that it learns (`accelerator_training`). Each has a share of the seconds that
are left when it begins. A part, or a peer, that fails is noted in one line, and the others go on.

Writes `accelerator.json` and `accelerator.md`, and of the last part `curves.png` and a history a
row. Ends with code 1 if what was computed is not right, or could not be checked.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from benchmarks import (
    accelerator_checks,
    accelerator_device,
    accelerator_speed,
    accelerator_training,
)
from benchmarks.accelerator_common import Context, brief
from benchmarks.rnn import torch_process
from experiments.reproduce import compiled_once
from zoneout_jax.training import (
    Measurement,
    Positive,
    parse_measurement,
    program,
    replacing,
    write_json,
)

MODULE = "benchmarks.accelerator"
COMMAND = f"python -m {MODULE}"
RESERVE = 15.0
"""Seconds for what comes after the last part: a checkpoint, curves, the end of threads."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure, and for how long."""

    seconds: Positive = 480.0
    """Seconds that all may take."""
    quick: bool = False
    """Tiny sizes: checks that it runs."""


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
      title: for people.
      share: its seconds, as a share of those of all parts.
      run: fills the dict that it is given.
      report: lines of Markdown of that dict.
    """

    title: str
    share: float
    run: Callable[[Context, dict[str, Any]], None]
    report: Callable[[dict[str, Any]], list[str]]


PARTS = {
    "there": Part("What is there", 0.06, accelerator_device.look, accelerator_device.report),
    "right": Part("Right", 0.20, accelerator_checks.check, accelerator_checks.report),
    "fast": Part("Fast", 0.36, accelerator_speed.measure, accelerator_speed.report),
    "end to end": Part(
        "End to end",
        0.14,
        accelerator_training.end_to_end,
        accelerator_training.end_to_end_report,
    ),
    "evidence": Part(
        "Evidence", 0.24, accelerator_training.evidence, accelerator_training.evidence_report
    ),
}
BEFORE_TRAINING = 3
"""Parts that compile everything anew and may have torch beside them."""


def measure(options: Options, out: pathlib.Path, end: float) -> dict[str, Any]:
    """Runs all parts, to an end of `time.monotonic`; returns what `accelerator.json` holds."""
    flags = [f"--seconds={options.seconds:g}", *(["--quick"] if options.quick else [])]
    content: dict[str, Any] = {"command": " ".join([COMMAND, *flags]), "parts": {}}

    def save():
        write_json(out / "accelerator.json", content)
        with replacing(out / "accelerator.md") as temporary:
            temporary.write_text(markdown(content))

    context = Context(options.quick, out, content["parts"], save)
    with contextlib.ExitStack() as stack:
        context.torch = stack.enter_context(torch_process())
        for number, (name, part) in enumerate(PARTS.items()):
            if number == BEFORE_TRAINING:
                stack.close()
                context.torch = None
                # Part 5 trains what part 4 has compiled.
                stack.enter_context(compiled_once())
            print(f"{part.title} …", file=sys.stderr, flush=True)
            begun = time.monotonic()
            remaining = sum(part.share for part in [*PARTS.values()][number:])
            context.deadline = begun + (end - begun) * part.share / remaining
            result = content["parts"][name] = {}
            try:
                part.run(context, result)
            except Exception as error:
                result["failed with"] = brief(error)
            result["took seconds"] = round(time.monotonic() - begun, 1)
            save()
    return content


def markdown(content: dict[str, Any]) -> str:
    """All parts for people."""
    lines = [f"`{content['command']}`", ""]
    for name, result in content["parts"].items():
        lines += [f"## {PARTS[name].title}", ""]
        if "failed with" in result:
            lines += [f"This part failed with {result['failed with']}", ""]
        with contextlib.suppress(KeyError):  # a part that is not over may lack something
            lines += PARTS[name].report(result)
        if "took seconds" in result:
            lines += [f"Took {result['took seconds']:.0f} s.", ""]
    return "\n".join(lines)


def is_right(content: dict[str, Any]) -> bool:
    """Whether all checks that ran found nothing wrong, and there were any."""
    checks = content["parts"]["right"]
    return "failed with" not in checks and not checks["wrong"]


def prepare_jax() -> None:
    """Keeps JAX's CPU beside the accelerator, and leaves memory to torch; before any array is."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line, prints the report and where it is."""
    about = "What JAX's device does, right and fast."
    options, out = parse_measurement(Options, argv, MODULE, about)
    with program(argv):
        prepare_jax()
        # What the program's process has computed so far, it has spent on imports.
        start = time.monotonic() - (time.process_time() if argv is None else 0.0)
        content = measure(options, out, start + max(options.seconds - RESERVE, 0.0))
    print(markdown(content))
    print(f"report: {out / 'accelerator.md'} and {out / 'accelerator.json'}")
    raise SystemExit(0 if is_right(content) else 1)


if __name__ == "__main__":
    main()
