"""Compares recurrent layers: ours with zoneout, Flax's without, torch's, and bare products.

    python -m benchmarks.rnn                        # all shapes; about half an hour on two cores
    python -m benchmarks.rnn --shapes char-PTB --rounds 7
    python -m benchmarks.rnn --quick                # checks that it runs; ignore its times

All peers run in turn, round after round, in one run on one machine, so that other load affects all
of them. Our layers draw their masks inside the timed call. Flax's cells (the LSTM is the
OptimizedLSTMCell) and torch's cells have no zoneout, and run in float32 unless the name says
otherwise. A ratio is the median over rounds of the ratios within a round. "Forward" computes the
outputs, with masks, and keeps nothing for a backward pass; "forward + backward" computes the
gradients of half the sum of the squared outputs. Compile times include tracing.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import json
import math
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.jax_peers import Peer, Shape, make_peers
from zoneout_jax.training import (
    Count,
    Measurement,
    markdown_table,
    parse_measurement,
    versions,
    write_json,
)

SHAPES = {
    "char-PTB": Shape(32, 100, 50, 1000),
    "permuted MNIST": Shape(100, 784, 1, 100),
    "word-PTB 256": Shape(20, 35, 256, 256, input_gradient=True),
    "word-PTB 650": Shape(20, 35, 650, 650, input_gradient=True),
    "seq2seq": Shape(32, 13, 12, 128),
    "small": Shape(32, 64, 32, 64),
    "GRU": Shape(64, 128, 64, 256, kind="GRU"),
    "GRU, small": Shape(32, 64, 32, 64, kind="GRU"),
    "GRU, permuted MNIST": Shape(100, 784, 1, 100, kind="GRU"),
    "text8": Shape(128, 180, 27, 2000),
}
QUICK = {"quick": Shape(2, 3, 4, 8, input_gradient=True)}
PASSES = ("forward", "backward")
GOALS = (
    ("zoneout", "Flax Linen"),
    ("zoneout, bfloat16 products", "Flax Linen"),
    ("zoneout", "torch loop with zoneout"),
    ("zoneout", "torch"),
    ("zoneout, bfloat16 products", "Flax Linen, bfloat16"),
    ("zoneout", "matrix products alone"),
    ("zoneout", "matrix products alone, transposed"),
    ("zoneout", "zoneout off"),
)
"""Ratios to report."""
ANSWER_SECONDS = 300
"""Longest time of torch's process for an answer."""
SAMPLE_SECONDS = 0.2
"""Seconds of a sample: a fast peer is called as often as fits into about this time."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure, and for how long."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Names of the shapes to measure."""
    rounds: Count = 9
    """Rounds of all peers."""
    text8_rounds: Count = 3
    """Rounds at the shape of text8, where a call takes many seconds."""
    quick: bool = False
    """Use a tiny shape and two rounds, to check that it runs."""

    def __post_init__(self):
        super().__post_init__()
        for name in self.shapes:
            if name not in SHAPES:
                raise ValueError(f"shapes must be among {', '.join(SHAPES)}; got {name!r}")


class Program:
    """A function of arrays that is lowered, then compiled, then timed."""

    def __init__(self, function: Callable, *arguments: Any):
        start = time.perf_counter()
        self._arguments = arguments
        self._lowered = jax.jit(function).lower(*arguments)
        self._lowering = time.perf_counter() - start

    @classmethod
    def of_peer(cls, peer: Peer, of: str, shape: Shape) -> "Program":
        """Lowers a pass of a JAX peer for a shape."""
        xs = jax.random.normal(
            jax.random.key(1), (shape.steps, shape.batch, shape.inputs), jnp.float32
        )
        return cls(getattr(peer, of), peer.params, xs, jax.random.key(2))

    def compile(self, options: dict[str, str] | None = None) -> "Program":
        """Compiles the function, with options of XLA; returns itself."""
        start = time.perf_counter()
        self._run = self._lowered.compile(compiler_options=options)
        self.facts = {
            "compile_seconds": self._lowering + time.perf_counter() - start,
            "temporary_bytes": getattr(self._run.memory_analysis(), "temp_size_in_bytes", None),
        }
        return self

    def __call__(self, calls: int) -> float:
        """Returns the seconds of a number of calls."""
        start = time.perf_counter()
        for _ in range(calls):
            jax.block_until_ready(self._run(*self._arguments))
        return time.perf_counter() - start


class Torch:
    """The process that runs torch's peers, with one thread per core.

    Attributes:
      deadline: time of `time.monotonic` by which an answer must come.
    """

    deadline = math.inf

    def __init__(self, device: str):
        command = [sys.executable, "-m", "benchmarks.torch_peers", str(cores()), device]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **order) -> dict:
        """Sends an order to the process, and returns its answer.

        Raises:
          RuntimeError: the order failed, or the process has ended or does not answer.
        """
        if self._process.poll() is not None:
            raise RuntimeError("torch process ended")
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        seconds = min(ANSWER_SECONDS, max(self.deadline - time.monotonic(), 1))
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            self._stop()
            raise RuntimeError(f"torch did not answer within {seconds:.0f} s")
        line = self._process.stdout.readline() or '{"error": "torch process ended"}'
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            self._stop()  # the answer to this order would be taken for that to the next one
            raise RuntimeError(f"torch's process said {line[:200]!r}") from error
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def seconds(self, peer: str, of: str, calls: int) -> float:
        """Returns the seconds of a number of calls of a pass of a peer."""
        return self.ask(peer=peer, calls=calls, **{"pass": of})["seconds"]

    def close(self) -> None:
        """Ends the process."""
        try:
            self._process.communicate(timeout=10)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def torch_process() -> Iterator[Torch | None]:
    """Runs torch's process on the kind of device of JAX; yields None where torch cannot."""
    device = {"cpu": "cpu", "gpu": "cuda"}.get(jax.default_backend())
    if device is None or importlib.util.find_spec("torch") is None:
        yield None
        return
    with contextlib.closing(Torch(device)) as torch:
        yield torch


def measure_in_turn(
    runs: Mapping[str, Callable[[int], float]],
    rounds: int,
    sample_seconds: float = SAMPLE_SECONDS,
    deadline: float = math.inf,
    failed: dict[str, Exception] | None = None,
) -> dict[str, list[float]]:
    """Measures the seconds per call of each function in each round.

    Each round starts with another function.

    Args:
      runs: functions that take a number of calls and return their seconds, the most important
        first.
      rounds: maximum number of rounds.
      sample_seconds: a function is called as often per round as fits into about this time.
      deadline: time of `time.monotonic` by which to end. A round that would end later is not
        started; if this is the first round, the result is of single calls.
      failed: takes the exceptions of functions, whose times are then left out, and the others
        continue; None raises them.
    """
    once = {}
    for name, run in runs.items():
        if time.monotonic() > deadline:
            break
        try:
            run(1)
            once[name] = run(1)
        except Exception as error:
            if failed is None:
                raise
            failed[name] = error
    calls = {name: max(1, round(sample_seconds / seconds)) for name, seconds in once.items()}
    round_seconds = sum(calls[name] * once[name] for name in once)
    names, found = list(once), {name: [] for name in once}
    for number in range(rounds):
        if not names or time.monotonic() + round_seconds > deadline:
            return found if number else {name: [seconds] for name, seconds in once.items()}
        first = number % len(names)
        for name in names[first:] + names[:first]:
            try:
                found[name].append(runs[name](calls[name]) / calls[name])
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
                names.remove(name)
                del found[name]
    return found


def cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def measure(shape: Shape, rounds: int, torch: Torch | None) -> dict:
    """Measures the seconds per call of each pass of each peer, and records the compiler's facts."""
    result, peers = {}, make_peers(shape)
    for of in PASSES:
        compiled = {n: Program.of_peer(peer, of, shape).compile() for n, peer in peers.items()}
        facts = {name: run.facts for name, run in compiled.items()}
        if of == "backward":
            compared = {name: peers[name] for name in ("zoneout", "Flax Linen")}
            for name, seconds in compile_in_turn(compared, of, shape, rounds).items():
                facts[name]["compile_seconds"] = seconds
        runs = dict(compiled)
        if torch is not None:
            for name in torch.ask(shape=list(shape[:5]), kind=shape.kind)["peers"]:
                runs[name] = functools.partial(torch.seconds, name, of)
        seconds = measure_in_turn(runs, rounds)
        result[of] = {name: {"seconds": seconds[name]} | facts.get(name, {}) for name in runs}
    return result


def compile_in_turn(
    peers: Mapping[str, Peer], of: str, shape: Shape, rounds: int
) -> dict[str, list[float]]:
    """Measures the seconds to trace and compile a pass of each peer, once in each round."""
    found: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            jax.clear_caches()
            found[name].append(Program.of_peer(peer, of, shape).compile().facts["compile_seconds"])
    return found


def ratio(peers: dict, ours: str, other: str, key: str = "seconds") -> float | None:
    """Computes the median of the ratios within rounds, or the ratio of two single numbers."""
    if not {ours, other} <= peers.keys():
        return None
    one, two = (peers[name].get(key) for name in (ours, other))
    if one is None or two is None:
        return None
    if isinstance(one, list):
        return statistics.median(a / b for a, b in zip(one, two, strict=True))
    return one / two


def table(results: dict) -> str:
    """Formats Markdown tables: ratios by shape, and medians of each peer."""
    lines = []
    more = [("zoneout", "Flax Linen", key) for key in ("temporary_bytes", "compile_seconds")]
    whats = {"temporary_bytes": "memory of ", "compile_seconds": "compile time of "}
    for ours, other, *key in (*GOALS, *more):
        found = [ratio(result["backward"], ours, other, *key) for result in results.values()]
        cells = ["–" if value is None else f"{value:.2f}" for value in found]
        what = whats[key[0]] if key else ""
        lines.append([f"{what}{ours} / {other}", *cells])
    tables = [markdown_table(["forward + backward", *results], lines)]
    for of, title in (("backward", "forward + backward"), ("forward", "forward")):
        lines = []
        for name in dict.fromkeys(name for result in results.values() for name in result[of]):
            cells = [
                f"{1000 * statistics.median(result[of][name]['seconds']):.3g}"
                if name in result[of]
                else "–"
                for result in results.values()
            ]
            lines.append([name, *cells])
        tables.append(markdown_table([f"{title}, ms", *results], lines))
    return "\n".join(tables)


def described(module: str, argv: list[str] | None, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """Returns the content of a results file without results: command, shapes, devices, versions."""
    command = ["python", "-m", module, *(sys.argv[1:] if argv is None else argv)]
    return {
        "command": " ".join(command),
        "shapes": {name: shape._asdict() for name, shape in shapes.items()},
        "devices": f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}",
        "cores": cores(),
        "versions": versions(),
        "results": {},
    }


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    about = "Compares recurrent layers."
    options, out = parse_measurement(Options, argv, "benchmarks.rnn", about)
    shapes = QUICK if options.quick else {name: SHAPES[name] for name in options.shapes}
    content = described("benchmarks.rnn", argv, shapes)
    content["versions"]["torch"] = "not installed"
    with torch_process() as torch:
        if torch is not None:
            content["versions"]["torch"] = torch.ask(shape=[1, 1, 1, 1, False])["version"]
        for name, shape in shapes.items():
            rounds = options.text8_rounds if name == "text8" else options.rounds
            print(f"{name}: {shape.kind}, (B, T, F, H) = {shape[:4]}", file=sys.stderr)
            content["results"][name] = measure(shape, 2 if options.quick else rounds, torch)
            # Written after each shape, so that an interrupted run keeps its results.
            write_json(out / "rnn.json", content)
            (out / "rnn.md").write_text(table(content["results"]))
    print(table(content["results"]))
    print(f"result: {out / 'rnn.json'} and {out / 'rnn.md'}")


if __name__ == "__main__":
    main()
