"""Part 3 of `benchmarks.accelerator`: the speed of recurrent layers and their peers.

A group is a cell, a shape and a pass; its peers run in turn, round after round. Our layers draw
their masks inside the timed call; the layers of Flax and cuDNN and torch's `nn.LSTM` have no
zoneout. Precisions of products: "tf32" is JAX's default for float32 on a GPU; "float32" is full
precision; in "bfloat16" our products and the bare products have operands of that type, Flax has its
activations in it, and torch has everything in it. "Memory" is that of temporary arrays in JAX, and
in torch that of temporary arrays and results. Compile times come after the measurements, so XLA may
reuse what it tuned for the same products.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import jax_peers, linear
from benchmarks.accelerator_choices import variants
from benchmarks.accelerator_common import (
    Context,
    brief,
    precisions,
    products_in,
    side_by_side,
    table,
)
from benchmarks.jax_peers import KINDS, Peer, Shape
from benchmarks.rnn import QUICK, SHAPES, Program, measure_in_turn, ratio

ALL_SHAPES = {name: shape for name, shape in SHAPES.items() if shape.kind == "LSTM"} | {
    "B=256, T=128, H=512": Shape(256, 128, 512, 512, input_gradient=True),
    "B=64, T=1000, H=1024": Shape(64, 1000, 1024, 1024, input_gradient=True),
    "B=1024, T=64, H=256": Shape(1024, 64, 256, 256, input_gradient=True),
    **linear.SHAPES,
}
"""Shapes of `benchmarks.rnn`, larger shapes as in use today, and shapes of `benchmarks.linear`."""
ROUNDS = 7
LINEAR = "linear cells"
BASES = {"choices": "as it is", LINEAR: linear.BASE}
"""In groups without peers, the variant with which the others are compared."""


class Group(NamedTuple):
    """A group of programs that are measured in turn.

    `of` is a pass; or "choices" for our LSTM with one choice changed; or "linear cells" for linear
    cells and our LSTM.
    """

    cell: str
    shape: str
    of: str = "backward"

    def label(self) -> str:
        """Returns the name of the group."""
        of = {"backward": "forward + backward"}.get(self.of, self.of)
        return f"{self.cell}, {self.shape}, {of}"


GROUPS = (
    Group("LSTM", "B=256, T=128, H=512"),
    Group("LSTM", "char-PTB"),
    Group("GRU", "B=256, T=128, H=512"),
    Group("LSTM", "B=256, T=128, H=512", "choices"),
    Group("LSTM", "T = 4,096", LINEAR),
    Group("LSTM", "B=64, T=1000, H=1024"),
    Group("LSTM", "B=1024, T=64, H=256"),
    Group("LSTM", "char-PTB", "choices"),
    Group("LSTM", "T = 20,000", LINEAR),
    Group("LSTM", "T = 784", LINEAR),
    Group("GRU", "char-PTB"),
    Group("LSTM", "word-PTB 650"),
    Group("LSTM", "B=256, T=128, H=512", "forward"),
    Group("LSTM", "permuted MNIST"),
    Group("LSTM", "text8"),
    Group("GRU", "B=64, T=1000, H=1024"),
    Group("GRU", "B=1024, T=64, H=256"),
    Group("LSTM", "seq2seq"),
    Group("LSTM", "word-PTB 256"),
    Group("LSTM", "char-PTB", "forward"),
    Group("GRU", "word-PTB 650"),
    Group("GRU", "permuted MNIST"),
    Group("GRU", "text8"),
    Group("GRU", "seq2seq"),
    Group("GRU", "word-PTB 256"),
    Group("LSTM", "small"),
    Group("GRU", "small"),
)
"""The most important first."""
QUICK_GROUPS = (
    Group("LSTM", "quick"),
    Group("GRU", "quick"),
    Group("LSTM", "quick", "choices"),
    Group("LSTM", "quick", LINEAR),
    Group("LSTM", "quick", "forward"),
)


def measure(context: Context, result: dict[str, Any]) -> None:
    """Measures group after group while there is time, then compile times separately."""
    shapes = QUICK if context.quick else ALL_SHAPES
    groups = list(QUICK_GROUPS if context.quick else GROUPS)
    if jax.default_backend() == "cpu":
        # On a CPU the first groups would take all of the time.
        groups.sort(key=lambda group: operations(shapes[group.shape], 4))
    result["groups"] = {}
    peaks = context.found.get("there", {}).get("peaks", {})
    for group in groups:
        if context.left() <= 0:
            break
        shape = shapes[group.shape]._replace(kind=group.cell)
        found = result["groups"][group.label()] = {"shape": shape._asdict()}
        try:
            measure_group(context, group, shape, peaks, found)
        except Exception as error:
            found["error"] = brief(error)
        context.save()
    result["not reached"] = [g.label() for g in groups if g.label() not in result["groups"]]
    if context.left() > 0:
        result["compile seconds"] = compile_alone(context, shapes[groups[0].shape])


def measure_group(
    context: Context, group: Group, shape: Shape, peaks: dict[str, float], found: dict[str, Any]
) -> None:
    """Measures the peers of a group."""
    failed: dict[str, Exception] = {}
    runs: dict[str, Callable[[int], float]] = {}
    base = BASES.get(group.of)
    if base is not None:
        with products_in("default"):
            makers = linear.variants(shape) if group.of == LINEAR else variants(shape)
    else:
        makers = jax_makers(group, shape)
    for name, made in side_by_side(makers, context.deadline):
        (failed if isinstance(made, Exception) else runs)[name] = made
    if not runs:
        raise TimeoutError(f"nothing was compiled in time; failed: {[*failed]}")
    runs = {name: runs[name] for name in makers if name in runs}
    if base is None and context.torch is not None:
        try:
            runs |= torch_runs(context, group, shape)
        except (RuntimeError, OSError) as error:
            failed["torch"] = error
        # Peers of the same precision are compared, so they run next to each other.
        order = precisions()
        runs = dict(sorted(runs.items(), key=lambda run: order.index(run[0].rsplit(", ", 1)[1])))
    seconds = measure_in_turn(
        runs, context.pick(2, ROUNDS, ROUNDS), context.pick(0, 0.1, 0.05), context.deadline, failed
    )
    found["failed"] = {name: brief(error) for name, error in failed.items()}
    found["peers"] = {}
    for name, times in seconds.items():
        entry = found["peers"][name] = {"seconds": times} | getattr(runs[name], "facts", {})
        entry["microseconds a step"] = 1e6 * statistics.median(times) / shape.steps
        precision = name.rsplit(", ", 1)[-1]
        bound = roofline(shape, KINDS[group.cell].gates, group.of, precision, peaks)
        if bound:
            entry["share of the roofline"] = bound / statistics.median(times)
    for name in found["peers"]:
        compared = (name, base) if base else (f"zoneout, {name.rpartition(', ')[2]}", name)
        found["peers"][name]["ratio"] = ratio(found["peers"], *compared)


def jax_makers(group: Group, shape: Shape) -> dict[str, Callable[[], Program]]:
    """Makes functions that compile the peers of a group, by name, the most important first."""
    kind = KINDS[group.cell]
    makers = {}
    for precision in precisions():
        dtype = jnp.bfloat16 if precision == "bfloat16" else None
        types = {"gates": kind.gates, "dtype": dtype or jnp.float32}
        ours = functools.partial(jax_peers.ours, shape, dtype)
        peers = {
            "zoneout": ours,
            "Flax": functools.partial(jax_peers.in_linen, shape, kind.linen, dtype),
            "products alone": functools.partial(jax_peers.products, shape, **types),
        }
        if precision == precisions()[0]:
            peers["zoneout, plain scan"] = functools.partial(ours, implementation="scan")
        if group.cell == "LSTM" and precision != "bfloat16":
            high = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.HIGH
            peers["cuDNN in JAX"] = functools.partial(jax_peers.in_cudnn, shape, high)
        for name, peer in peers.items():
            makers[f"{name}, {precision}"] = functools.partial(
                compiled, peer, group.of, shape, precision
            )
    return makers


def compiled(peer: Callable[[], Peer], of: str, shape: Shape, precision: str) -> Program:
    """Compiles a pass of a peer."""
    with products_in(precision):
        return Program.of_peer(peer(), of, shape).compile()


def torch_runs(context: Context, group: Group, shape: Shape) -> dict[str, Callable[[int], float]]:
    """Returns torch's peers by name, on torch's device."""
    context.torch.deadline = context.deadline
    asked = context.torch.ask(shape=list(shape[:5]), kind=group.cell, precisions=precisions())
    return {name: TorchRun(context, name, group.of) for name in asked["peers"]}


class TorchRun:
    """A pass of one of torch's peers, with facts about it."""

    def __init__(self, context: Context, peer: str, of: str):
        self.facts: dict[str, Any] = {}
        self._ask = functools.partial(context.torch.ask, peer=peer, **{"pass": of})

    def __call__(self, calls: int) -> float:
        """Returns the seconds of a number of calls."""
        answer = self._ask(calls=calls)
        if "peak_bytes" in answer:
            self.facts["peak_bytes"] = answer["peak_bytes"]
        return answer["seconds"]


def compile_alone(context: Context, shape: Shape) -> dict[str, float]:
    """Measures the seconds to compile our LSTM and Flax's, one at a time."""
    group = Group("LSTM", "", "backward")
    found = {}
    for name, make in jax_makers(group, shape).items():
        who, _, precision = name.rpartition(", ")
        wanted = who in ("zoneout", "zoneout, plain scan", "Flax")
        if wanted and precision == precisions()[0] and context.left() > 0:
            found[name] = make().facts["compile_seconds"]
    return found


def operations(shape: Shape, gates: int, of: str = "backward") -> float:
    """Counts the operations of the products in a pass."""
    batch, steps, inputs, units = shape[:4]
    one = 2.0 * batch * steps * gates * units
    if of == "forward":
        return one * (inputs + units)
    # Forward pass; gradients of the weights, of the state, and of the inputs if asked for.
    return one * (2 * (inputs + units) + units + inputs * shape.input_gradient)


def roofline(
    shape: Shape, gates: int, of: str, precision: str, peaks: dict[str, float]
) -> float | None:
    """Computes the least seconds of a pass at the device's measured rates; None without rates.

    This is the longer of two times: all operations at the rate of a large product, and all bytes at
    the rate of a large copy. Inputs, outputs and kernels count once. A backward pass adds the
    activated gates and one state, written and read, and all gradients. All numbers are float32. The
    bound ignores that each step waits for the previous step.
    """
    rate, copy = peaks.get(f"product, {precision}"), peaks.get("copy")
    if rate is None or copy is None:
        return None
    batch, steps, inputs, units = shape[:4]
    rows, kernels = batch * steps, gates * units * (inputs + units)
    numbers = rows * (inputs + units) + kernels
    if of == "backward":
        kept = rows * (gates + 1) * units
        gradients = kernels + rows * inputs * shape.input_gradient
        # Outputs are read again for their gradient, inputs for the gradient of their kernel.
        numbers += 2 * kept + rows * (inputs + units) + gradients
    return max(operations(shape, gates, of) / rate, 4 * numbers / copy)


def report(result: dict[str, Any]) -> list[str]:
    """Formats the results as lines of Markdown."""
    lines = []
    for label, found in result["groups"].items():
        lines += [f"**{label}**, (B, T, F, H) = {tuple(found['shape'].values())[:4]}", ""]
        if "error" in found:
            lines += [f"- {found['error']}", ""]
            continue
        base = next((base for of, base in BASES.items() if label.endswith(of)), None)
        header = ["variant", "µs a step", f"variant / {base}"]
        if base is None:
            header = ["peer", "µs a step", "ours / peer", "of the roofline"]
        rows = []
        for name, peer in found["peers"].items():
            row = [name, f"{peer['microseconds a step']:.3g}", shown(peer["ratio"], ".2f")]
            row += [] if base else [shown(peer.get("share of the roofline"), ".0%")]
            row += [shown(peer.get("compile_seconds"), ".1f")]
            size = peer.get("temporary_bytes", peer.get("peak_bytes"))
            row += [shown(None if size is None else size / 1e6, ",.0f")]
            rows.append([*row, str(len(peer["seconds"]))])
        lines += table([*header, "compiled, s", "memory, MB", "rounds"], rows)
        lines += [f"- {name}: {error}" for name, error in found["failed"].items()]
        lines += [""] if found["failed"] else []
    alone = result.get("compile seconds", {})
    if alone:
        times = ", ".join(f"{name} {seconds:.1f}" for name, seconds in alone.items())
        lines += [f"Compile times, one program at a time, s: {times}.", ""]
    if result.get("not reached"):
        lines += [f"Not reached: {'; '.join(result['not reached'])}.", ""]
    return lines


def shown(value: float | None, form: str) -> str:
    """Formats a number; None is a dash."""
    return "–" if value is None else format(value, form)
