"""Checks and measures JAX's device in one run of a few minutes.

    python -m benchmarks.accelerator                  # eight minutes
    python -m benchmarks.accelerator --seconds=120
    python -m benchmarks.accelerator --quick          # checks that it runs; ignore its times

There are five parts, and each is written when it is done: the device (`accelerator_device`), the
correctness of results (`accelerator_checks`), the speed of layers and their peers
(`accelerator_speed`), char_ptb end to end, and evidence that it learns (`accelerator_training`).
Each part gets a share of the seconds that are left when it starts. If a part or a peer fails, one
line notes this, and the others continue.

Writes `accelerator.json` and `accelerator.md`; the last part also writes `curves.png` and a history
for each row. The exit code is 1 if a result is wrong, or if no cell could be checked in time.
"""

import contextlib
import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental.compilation_cache import compilation_cache

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
    write_json,
    write_text,
)

MODULE = "benchmarks.accelerator"
COMMAND = f"python -m {MODULE}"
RESERVE = 15.0
"""Seconds kept for the end of the last part: a checkpoint, curves, threads that end."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure, and for how long."""

    seconds: Positive = 480.0
    """Seconds for all parts together."""
    quick: bool = False
    """Use tiny sizes, to check that it runs."""


class Part(NamedTuple):
    """A part of the measurement.

    Attributes:
      title: heading in the report.
      share: its share of the seconds of all parts.
      run: fills the dict of its results.
      report: formats that dict as lines of Markdown.
    """

    title: str
    share: float
    run: Callable[[Context, dict[str, Any]], None]
    report: Callable[[dict[str, Any]], list[str]]


PARTS = {
    "there": Part("Device", 0.06, accelerator_device.look, accelerator_device.report),
    "right": Part("Correctness", 0.20, accelerator_checks.check, accelerator_checks.report),
    "fast": Part("Speed", 0.36, accelerator_speed.measure, accelerator_speed.report),
    "end to end": Part(
        "End to end", 0.14, accelerator_training.end_to_end, accelerator_training.end_to_end_report
    ),
    "evidence": Part(
        "Learning", 0.24, accelerator_training.evidence, accelerator_training.evidence_report
    ),
}
BEFORE_TRAINING = 3
"""Number of parts before training. They compile without a cache, also if the user has set one up,
and may use torch's process."""


def measure(options: Options, out: pathlib.Path, end: float) -> dict[str, Any]:
    """Runs all parts until `end` of `time.monotonic`; returns the content of `accelerator.json`."""
    flags = [f"--seconds={options.seconds:g}", *(["--quick"] if options.quick else [])]
    content: dict[str, Any] = {"command": " ".join([COMMAND, *flags]), "parts": {}}

    def save():
        write_json(out / "accelerator.json", content)
        write_text(out / "accelerator.md", markdown(content))

    context = Context(options.quick, out, content["parts"], save)
    with contextlib.ExitStack() as stack:
        context.torch = stack.enter_context(torch_process())
        stack.enter_context(uncached())
        for number, (name, part) in enumerate(PARTS.items()):
            if number == BEFORE_TRAINING:
                stack.close()
                context.torch = None
                # Part 5 trains with the programs that part 4 has compiled.
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


@contextlib.contextmanager
def uncached() -> Iterator[None]:
    """Compiles without a cache, so that compile times are those of the compiler."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX decides once if it uses a cache
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def markdown(content: dict[str, Any]) -> str:
    """Formats all parts as Markdown."""
    lines = [f"`{content['command']}`", ""]
    for name, result in content["parts"].items():
        lines += [f"## {PARTS[name].title}", ""]
        if "failed with" in result:
            lines += [f"This part failed with {result['failed with']}", ""]
        with contextlib.suppress(KeyError):  # an unfinished part may lack keys
            lines += PARTS[name].report(result)
        if "took seconds" in result:
            lines += [f"This part took {result['took seconds']:.0f} s.", ""]
    return "\n".join(lines)


def is_right(content: dict[str, Any]) -> bool:
    """Tells whether the part of the checks ended, checked some cells, and found nothing wrong."""
    checks = content["parts"]["right"]
    return "failed with" not in checks and bool(checks["cells"]) and not checks["wrong"]


def prepare_jax() -> None:
    """Keeps the CPU as a second platform and leaves memory to torch; call before making arrays."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    platforms = jax.config.jax_platforms
    if platforms and "cpu" not in platforms.split(","):
        jax.config.update("jax_platforms", f"{platforms},cpu")


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints the report and its files."""
    about = "Checks and measures JAX's device."
    options, out = parse_measurement(Options, argv, MODULE, about)
    with program(argv):
        prepare_jax()
        # The process time so far went into imports, which count too.
        start = time.monotonic() - (time.process_time() if argv is None else 0.0)
        content = measure(options, out, start + max(options.seconds - RESERVE, 0.0))
    print(markdown(content))
    print(f"report: {out / 'accelerator.md'} and {out / 'accelerator.json'}")
    raise SystemExit(0 if is_right(content) else 1)


if __name__ == "__main__":
    main()
