"""Measures linear cells over long sequences, all steps at once and step by step, and our LSTM.

    python -m benchmarks.linear             # about ten minutes on two cores
    python -m benchmarks.linear --quick     # checks that it runs; ignore its times

Times forward and backward passes with zoneout, all variants in turn, round after round, in one
process. "In chunks" is the associative scan with `chunk` of about √T.
"""

import dataclasses
import functools
import math
import statistics
import sys
from collections.abc import Callable

from benchmarks.jax_peers import Shape, ours, peer, some_params
from benchmarks.rnn import Program, described, measure_in_turn
from zoneout_jax import LRU, RGLRU, LinearCell, MinGRU, MinLSTM, Zoneout, unroll
from zoneout_jax.training import Count, Measurement, markdown_table, parse_measurement, write_json

SHAPES = {f"T = {steps:,}": Shape(4, steps, 128, 128) for steps in (784, 4096, 20_000)}
QUICK = {"T = 9": Shape(2, 9, 3, 4)}
CELLS: dict[str, type[LinearCell]] = {
    "MinGRU": MinGRU,
    "MinLSTM": MinLSTM,
    "RGLRU": RGLRU,
    "LRU": LRU,
}
BASE = "LSTM"


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    rounds: Count = 7
    """Rounds of all variants."""
    quick: bool = False
    """Use a tiny shape and two rounds, to check that it runs."""


def variants(shape: Shape) -> dict[str, Callable[[], Program]]:
    """Makes functions that compile the LSTM, and each form of each linear cell."""
    spec, chunk = Zoneout(states=0.05), math.isqrt(shape.steps)
    forms = {
        "all at once": {"implementation": "associative"},
        "in chunks": {"implementation": "associative", "chunk": chunk},
        "step by step": {"implementation": "scan"},
    }

    def lower(kind, options):
        cell = kind(shape.inputs, shape.units)

        def forward(params, xs, key):
            return unroll(cell, params, xs, zoneout=spec, key=key, **options)[1]

        return Program.of_peer(peer(shape, some_params(cell.init), forward), "backward", shape)

    programs = {BASE: lambda: Program.of_peer(ours(shape), "backward", shape)} | {
        f"{cell}, {form}": functools.partial(lower, kind, options)
        for cell, kind in CELLS.items()
        for form, options in forms.items()
    }
    return {name: functools.partial(compiled, make) for name, make in programs.items()}


def compiled(make: Callable[[], Program]) -> Program:
    """Makes and compiles a program."""
    return make().compile()


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Formats a Markdown table: milliseconds, the ratio to the LSTM, and memory."""

    def shown(found):
        milliseconds = found["milliseconds"]
        time = f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:,.0f}"
        size = found["temporary_bytes"]
        size = "–" if size is None else f"{size / 1e6:,.0f}"
        return f"{time} ms, {found['ratio']:.2f}, {size} MB"

    names = next(iter(results.values()))
    lines = [[name, *(shown(found[name]) for found in results.values())] for name in names]
    return markdown_table(["forward + backward", *results], lines)


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    about = "Linear cells over long sequences."
    options, out = parse_measurement(Options, argv, "benchmarks.linear", about)
    shapes = QUICK if options.quick else SHAPES
    content = described("benchmarks.linear", argv, shapes)
    for shape_name, shape in shapes.items():
        print(f"{shape_name}: (B, T, F, H) = {shape[:4]}", file=sys.stderr)
        runs = {name: make() for name, make in variants(shape).items()}
        seconds = measure_in_turn(runs, 2 if options.quick else options.rounds)
        content["results"][shape_name] = {
            name: {
                "milliseconds": 1000 * statistics.median(times),
                "ratio": statistics.median(
                    a / b for a, b in zip(times, seconds[BASE], strict=True)
                ),
                "temporary_bytes": runs[name].facts["temporary_bytes"],
                "seconds": times,
            }
            for name, times in seconds.items()
        }
        write_json(out / "linear.json", content)
        (out / "linear.md").write_text(table(content["results"]))
    print(table(content["results"]))
    print(f"result: {out / 'linear.json'} and {out / 'linear.md'}")


if __name__ == "__main__":
    main()
