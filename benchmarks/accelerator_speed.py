"""Part 3 of `benchmarks.accelerator`: recurrent layers beside their peers.

A group is a cell, a shape and a pass; its peers run in turn, round after round. Ours draws its
masks inside the timed call; Flax's layers, cuDNN's and torch's `nn.LSTM` have no zoneout. Kinds of
products: "tf32" is what JAX makes of float32 on a GPU by default, "float32" is whole, in "bfloat16"
ours and bare products have operands of that type, Flax its activations, torch everything.
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
"""Those of `benchmarks.rnn`, of users today, and of `benchmarks.linear`."""
ROUNDS = 7
LINEAR = "linear cells"
BASES = {"choices": "as it is", LINEAR: linear.BASE}
"""What is compared within a group that has no peers."""


class Group(NamedTuple):
    """What is measured in turn.

    `of` is a pass, or "choices" for ours with one choice changed, or "linear cells" for these
    beside ours.
    """

    cell: str
    shape: str
    of: str = "backward"

    def label(self) -> str:
        """Its name."""
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
"""The most worthy first."""
QUICK_GROUPS = (
    Group("LSTM", "quick"),
    Group("GRU", "quick"),
    Group("LSTM", "quick", "choices"),
    Group("LSTM", "quick", LINEAR),
    Group("LSTM", "quick", "forward"),
)


def measure(context: Context, result: dict[str, Any]) -> None:
    """Measures group after group while there is time, then compile times alone."""
    shapes = QUICK if context.quick else ALL_SHAPES
    groups = list(QUICK_GROUPS if context.quick else GROUPS)
    if jax.default_backend() == "cpu":
        # There the first ones would take all of the time.
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
        # In the order of their worth: those that are compared with each other together.
        order = precisions()
        runs = dict(sorted(runs.items(), key=lambda run: order.index(run[0].rsplit(", ", 1)[1])))
    seconds = measure_in_turn(
        runs,
        context.pick(2, ROUNDS, ROUNDS),
        context.pick(0, 0.1, 0.05),
        context.deadline,
        failed,
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
    """Functions that compile the peers of a group, by name, the most worthy first."""
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
    """A pass of a peer."""
    with products_in(precision):
        return Program.of_peer(peer(), of, shape).compile()


def torch_runs(context: Context, group: Group, shape: Shape) -> dict[str, Callable[[int], float]]:
    """Torch's peers by name, on the device that it sees."""
    asked = context.torch.ask(shape=list(shape[:5]), kind=group.cell, precisions=precisions())
    return {name: TorchRun(context, name, group.of) for name in asked["peers"]}


class TorchRun:
    """A pass of one of torch's peers, and what is known of it."""

    def __init__(self, context: Context, peer: str, of: str):
        self.facts: dict[str, Any] = {}
        self._ask = functools.partial(context.torch.ask, peer=peer, **{"pass": of})

    def __call__(self, calls: int) -> float:
        """Seconds of so many calls."""
        answer = self._ask(calls=calls)
        if "peak_bytes" in answer:
            self.facts["peak_bytes"] = answer["peak_bytes"]
        return answer["seconds"]


def compile_alone(context: Context, shape: Shape) -> dict[str, float]:
    """Seconds to compile ours and Flax's LSTM, one after the other and nothing beside them."""
    group = Group("LSTM", "", "backward")
    found = {}
    for name, make in jax_makers(group, shape).items():
        who, _, precision = name.rpartition(", ")
        wanted = who in ("zoneout", "zoneout, plain scan", "Flax")
        if wanted and precision == precisions()[0] and context.left() > 0:
            found[name] = make().facts["compile_seconds"]
    return found


def operations(shape: Shape, gates: int, of: str = "backward") -> float:
    """Operations in the products of a pass."""
    batch, steps, inputs, units = shape[:4]
    one = 2.0 * batch * steps * gates * units
    if of == "forward":
        return one * (inputs + units)
    # Forward, gradients of the weights, of the state, and of the inputs if they have one.
    return one * (2 * (inputs + units) + units + inputs * shape.input_gradient)


def roofline(
    shape: Shape, gates: int, of: str, precision: str, peaks: dict[str, float]
) -> float | None:
    """The seconds that the device cannot undercut at its measured rates; None if they lack.

    The operations at the rate of a large product, or the bytes at that of a large copy, whichever
    takes longer: inputs, outputs and kernels once, and with a backward pass the activated gates and
    one state, written and read, and the gradients of what has one. Float32 throughout. That each
    step waits for the one before is left out.
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
        # The outputs are read again for their gradient, and inputs for that of their kernel.
        numbers += 2 * kept + rows * (inputs + units) + gradients
    return max(operations(shape, gates, of) / rate, 4 * numbers / copy)


def report(result: dict[str, Any]) -> list[str]:
    """Lines for people."""
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
        lines += [f"Compiled with nothing beside it, s: {times}.", ""]
    if result.get("not reached"):
        lines += [f"Not reached: {'; '.join(result['not reached'])}.", ""]
    return lines


def shown(value: float | None, form: str) -> str:
    """A number for people."""
    return "–" if value is None else format(value, form)
