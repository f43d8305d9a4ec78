"""Part 1 of `benchmarks.accelerator`: device, versions and peak rates."""

import importlib.metadata
import shutil
import statistics
import subprocess
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator_common import Context, brief, precisions, products_in, side_by_side
from benchmarks.rnn import Program, cores, measure_in_turn
from zoneout_jax.training import commit, versions

PACKAGES = (
    *("jaxlib", "flax", "torch", "jax-cuda12-plugin", "jax-cuda13-plugin"),
    *("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-cublas-cu12", "nvidia-cublas"),
)
QUERY = "name,driver_version,memory.total,power.limit,clocks.max.sm"
CHAIN = 4
"""Products per call; several, so that the overhead of the call is small."""
LOOP = 1000
"""Steps of the empty loop."""


def look(context: Context, result: dict[str, Any]) -> None:
    """Records the device, the versions and the peak rates."""
    device = jax.devices()[0]
    result |= {
        "platform": device.platform,
        "device": f"{jax.device_count()} × {device.device_kind}",
        "driver": driver(),
        "cores": cores(),
        "commit": commit(),
        "versions": versions() | {n: v for n in PACKAGES if (v := version(n))},
    }
    context.save()
    size = context.pick(64, 1024, 8192)
    length = context.pick(2**12, 2**22, 2**28)
    failed = result["failed"] = {}
    programs = {}
    for name, made in side_by_side(loads(size, length), context.deadline):
        if isinstance(made, Exception):
            failed[name] = brief(made)
        else:
            programs[name] = made
    errors: dict[str, Exception] = {}
    seconds = measure_in_turn(
        programs, context.pick(2, 7, 7), context.pick(0, 0.1, 0.05), context.deadline, errors
    )
    failed |= {name: brief(error) for name, error in errors.items()}
    work = {"copy": 8 * length, "step of an empty loop": LOOP}
    for name, times in seconds.items():
        result["peaks"] = result.get("peaks", {}) | {
            name: work.get(name, CHAIN * 2 * size**3) / statistics.median(times)
        }


def loads(size: int, length: int) -> dict[str, Callable[[], Program]]:
    """Makes functions that compile chains of products, a float32 copy, and an empty loop."""

    def product(precision):
        dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
        # Repeated products neither grow nor vanish.
        square = jax.random.normal(jax.random.key(0), (size, size)) / size**0.5

        def run(a):
            b = a
            for _ in range(CHAIN):
                b = jnp.matmul(b, a)
            return b

        with products_in(precision):
            return Program(run, square.astype(dtype)).compile()

    def copy():
        return Program(lambda x: x + 1, jnp.zeros(length)).compile()

    def loop():
        def run(x):
            return jax.lax.scan(lambda c, _: (c / 2 + 1, None), x, length=LOOP)[0]

        return Program(run, jnp.zeros(8)).compile()

    makers = {f"product, {p}": lambda p=p: product(p) for p in precisions()}
    return makers | {"copy": copy, "step of an empty loop": loop}


def version(package: str) -> str | None:
    """Returns the version of a package, or None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """Returns what NVIDIA's driver says about the GPUs, or None without a driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return brief(error)
    return "; ".join(asked.stdout.splitlines())


def report(result: dict[str, Any]) -> list[str]:
    """Formats the results as lines of Markdown."""
    lines = [f"{result['device']}, {result['cores']} cores, commit {result['commit']}", ""]
    if result["driver"]:
        lines += [f"{QUERY.replace(',', ', ')}: {result['driver']}", ""]
    lines += [", ".join(f"{name} {v}" for name, v in result["versions"].items()), ""]
    for name, rate in result.get("peaks", {}).items():
        if name == "copy":
            text = f"{rate / 1e9:,.3g} GB/s read and written"
        elif name == "step of an empty loop":
            text = f"{1e6 / rate:.3g} µs"
        else:
            text = f"{rate / 1e12:,.3g} TFLOP/s"
        lines.append(f"- {name}: {text}")
    return [*lines, *(f"- {name}: {error}" for name, error in result["failed"].items()), ""]
