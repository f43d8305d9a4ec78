"""Measures how much memory chunks save in a gradient, by steps per chunk.

    python -m benchmarks.chunks             # half a minute; compiles only

Counts the bytes of temporary arrays of the compiled program, without inputs and parameters.
"""

import dataclasses
import sys
from typing import Annotated

import jax
import jax.numpy as jnp

from zoneout_jax import GRU, LSTM, MinGRU, Zoneout, unroll
from zoneout_jax.training import Measurement, Range, parse_measurement, versions, write_json

CELLS = {"LSTM": LSTM, "GRU": GRU, "minGRU": MinGRU}
CHUNKS = (None, 1000, "auto", 20)


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    steps: Annotated[int, Range(1)] = 20_000
    """T, the number of steps."""
    batch: Annotated[int, Range(1)] = 4
    """B, the batch size."""
    in_features: Annotated[int, Range(1)] = 64
    """F, the number of inputs."""
    hidden_features: Annotated[int, Range(1)] = 256
    """H, the number of units."""


def temporary_bytes(options: Options, kind: str, chunk: int | str | None) -> int:
    """Returns the temporary bytes of the gradient of the parameters, in training."""
    cell = CELLS[kind](options.in_features, options.hidden_features)
    xs = jax.ShapeDtypeStruct((options.steps, options.batch, options.in_features), jnp.float32)

    def loss(params, xs, key):
        _, ys = unroll(cell, params, xs, zoneout=Zoneout(states=0.05), key=key, chunk=chunk)
        return jnp.sum(jnp.square(ys))

    key = jax.random.key(0)
    params = jax.eval_shape(cell.init, key)
    compiled = jax.jit(jax.grad(loss)).lower(params, xs, key).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    about = "Memory by steps per chunk."
    options, out = parse_measurement(Options, argv, "benchmarks.chunks", about)
    results = {
        str(chunk): {kind: temporary_bytes(options, kind, chunk) for kind in CELLS}
        for chunk in CHUNKS
    }
    lines = [
        f"| `chunk`, MiB of temporary arrays | {' | '.join(CELLS)} |",
        "| --- | --- | --- | --- |",
    ]
    for chunk, found in results.items():
        lines.append(f"| {chunk} | {' | '.join(f'{b / 2**20:.0f}' for b in found.values())} |")
    table = "\n".join(lines) + "\n"
    print(table)
    command = ["python", "-m", "benchmarks.chunks", *(sys.argv[1:] if argv is None else argv)]
    shape = {name: value for name, value in vars(options).items() if name != "out"}
    content = {"command": " ".join(command), "versions": versions(), "shape": shape}
    write_json(out / "chunks.json", content | {"temporary bytes": results, "table": table})
    print(f"result: {out / 'chunks.json'}")


if __name__ == "__main__":
    main()
