"""Measures how far rounding makes two runs of permuted MNIST diverge, and what affects this.

    ZONEOUT_RAW_DATA=… python -m benchmarks.rounding

Trains the plain LSTM for some batches, each time in a new process: on one and on two virtual
devices; on one with the first weights changed by a ten-millionth; and on one and on two with a
larger floor of RMSProp. Reports the largest difference of a batch's loss up to given batches.
"""

import dataclasses
import json
import os
import subprocess
import sys
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import permuted_mnist
from experiments.lib.optimizers import rmsprop
from zoneout_jax.training import (
    Measurement,
    Range,
    Streams,
    parallel,
    parse_measurement,
    versions,
    write_json,
)

FLOOR = 1e-3
PAIRS = {
    "1 and 2 devices": ({"devices": 1}, {"devices": 2}),
    "1 device, first weights changed by a relative 1e-7": (
        {"devices": 1},
        {"devices": 1, "change": 1e-7},
    ),
    f"1 and 2 devices, floor {FLOOR:g}": (
        {"devices": 1, "floor": FLOOR},
        {"devices": 2, "floor": FLOOR},
    ),
}


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    preset: Literal["paper", "laptop", "smoke"] = "paper"
    """Preset of permuted MNIST."""
    batches: Annotated[int, Range(1)] = 80
    """Number of training steps."""
    at: tuple[Annotated[int, Range(1)], ...] = (20, 30, 40, 80)
    """Batches up to which the largest difference is reported."""


def losses(preset: str, batches: int, change: float = 0.0, floor: float | None = None) -> list:
    """Computes the mean loss of each of the first batches, on the devices of this process."""
    config = permuted_mnist.PRESETS[preset]
    task, streams = permuted_mnist.build(config), Streams.from_seed(0)
    optimizer = task.optimizer
    if floor is not None:
        rule = rmsprop(config.optimizer.learning_rate, decay=0.5, floor=floor)
        optimizer = optax.chain(optax.clip_by_global_norm(config.optimizer.clip_norm), rule)
    state = dataclasses.replace(task, optimizer=optimizer).initial_state(streams.init)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: x * (1 + change * rng.standard_normal(x.shape)).astype(np.float32), state.params
    )
    placement = parallel.Placement()
    state = jax.tree.map(lambda x: np.asarray(x)[None], state._replace(params=params))
    run = parallel.train_steps(task.loss, optimizer, placement, batches)
    indices = task.epoch_indices(jax.random.fold_in(streams.data, 0))
    rows = placement.rows(jnp.asarray(indices)[None])
    key, going = placement.put(jnp.stack([streams.noise])), placement.put(np.array([True]))
    data = parallel.replicate(task.data)
    with jax.default_matmul_precision("float32"):
        _, totals, counts, _ = run(placement.put(state), data, rows, 0, batches, key, going, 0)
    return (np.asarray(totals)[0, :, 0] / np.asarray(counts)[0, :, 0]).astype(float).tolist()


def in_a_process(options: Options, devices: int, **changes: float) -> np.ndarray:
    """Computes the losses in a new process with a number of virtual devices."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
    }
    arguments = {"preset": options.preset, "batches": options.batches} | changes
    code = "import json; from benchmarks.rounding import losses; "
    code += f"print(json.dumps(losses(**{arguments})))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def measure(options: Options) -> dict:
    """Runs all pairs; returns the report."""
    found = {}
    for name, pair in PAIRS.items():
        first, second = (in_a_process(options, **settings) for settings in pair)
        away = np.abs(first - second)
        found[name] = {str(n): float(f"{away[:n].max():.2g}") for n in options.at}
        print(f"{name}: {found[name]}", flush=True)
    return {
        "command": "python -m benchmarks.rounding",
        "preset": options.preset,
        "first loss": float(first[0]),
        "largest difference up to batch": found,
        "versions": versions(),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line, and writes the result."""
    about = "Measures how far rounding makes two runs diverge."
    options, out = parse_measurement(Options, argv, "benchmarks.rounding", about)
    write_json(out / "rounding.json", measure(options))
    print(f"result: {out / 'rounding.json'}")


if __name__ == "__main__":
    main()
