"""Measures how much memory chunks save in a gradient, and the time they cost.

    python -m benchmarks.chunks             # some minutes on two cores

Counts the bytes of temporary arrays of the compiled program, without inputs and parameters, and
times all sizes of chunks in turn, round after round.
"""

import dataclasses
import sys
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.jax_peers import some_params
from benchmarks.rnn import Program, measure_in_turn, ratio
from zoneout_jax import GRU, LSTM, MinGRU, Zoneout, unroll
from zoneout_jax.training import (
    Count,
    Measurement,
    markdown_table,
    parse_measurement,
    versions,
    write_json,
)

CELLS = {"LSTM": LSTM, "GRU": GRU, "minGRU": MinGRU}
CHUNKS = (None, 1000, "auto", 20)


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    steps: Count = 20_000
    """T, the number of steps."""
    batch: Count = 4
    """B, the batch size."""
    in_features: Count = 64
    """F, the number of inputs."""
    hidden_features: Count = 256
    """H, the number of units."""
    rounds: Count = 7
    """Rounds of all sizes of chunks."""


def gradient(options: Options, kind: str, chunk: int | str | None) -> Program:
    """Compiles the gradient of the parameters, in training."""
    cell = CELLS[kind](options.in_features, options.hidden_features)
    shape = options.steps, options.batch, options.in_features
    xs = jax.random.normal(jax.random.key(1), shape, jnp.float32)

    def loss(params, xs, key):
        _, ys = unroll(cell, params, xs, zoneout=Zoneout(states=0.05), key=key, chunk=chunk)
        return jnp.sum(jnp.square(ys))

    return Program(jax.grad(loss), some_params(cell.init), xs, jax.random.key(2)).compile()


def measure(options: Options, kind: str) -> dict[str, dict[str, Any]]:
    """Measures a cell with all sizes of chunks; ratios are to no chunks, in the same round."""
    runs = {str(chunk): gradient(options, kind, chunk) for chunk in CHUNKS}
    found = {
        name: {"temporary_bytes": runs[name].facts["temporary_bytes"], "seconds": times}
        for name, times in measure_in_turn(runs, options.rounds).items()
    }
    return {name: of | {"ratio": ratio(found, name, "None")} for name, of in found.items()}


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    about = "Memory and time by steps per chunk."
    options, out = parse_measurement(Options, argv, "benchmarks.chunks", about)
    results = {kind: measure(options, kind) for kind in CELLS}

    def shown(found):
        return f"{found['temporary_bytes'] / 2**20:.0f}, {found['ratio']:.2f}"

    lines = [[c, *(shown(found[c]) for found in results.values())] for c in map(str, CHUNKS)]
    table = markdown_table(["`chunk`: MiB of temporary arrays, time", *CELLS], lines)
    print(table)
    command = ["python", "-m", "benchmarks.chunks", *(sys.argv[1:] if argv is None else argv)]
    shape = {name: value for name, value in vars(options).items() if name != "out"}
    content = {"command": " ".join(command), "versions": versions(), "shape": shape}
    write_json(out / "chunks.json", content | {"results": results, "table": table})
    print(f"result: {out / 'chunks.json'}")


if __name__ == "__main__":
    main()
