"""Measures the effect of each choice of the fused path, with one choice changed at a time.

    python -m benchmarks.choices            # about five minutes on two cores

Times forward and backward passes of the LSTM with zoneout 0.5 and 0.05, at the shapes of
`benchmarks.rnn`. All variants run in turn, round after round, in one process.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp

from benchmarks.jax_peers import Peer, Shape, ours
from benchmarks.rnn import QUICK, SHAPES, Program, measure_in_turn
from zoneout_jax import _fused, _unroll, _zoneout
from zoneout_jax.training import Measurement, parse_measurement, versions, write_json


def bits_of_jax(key, steps, examples, features):
    """Draws the words with `jax.random.bits`, one generator call for each word."""

    def draw(number):
        keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.fold_in(key, n), number))(examples)
        bits = functools.partial(jax.random.bits, shape=(steps, features), dtype=jnp.uint32)
        return jax.vmap(bits, out_axes=1)(keys)

    return draw(0), draw(1)


def always(answer: bool) -> Callable[..., bool]:
    """Returns a function that always returns `answer`."""
    return lambda *_: answer


LSTMS = {n: s for n, s in SHAPES.items() if s.kind == "LSTM" and n != "text8"}
CHANGES = {
    "as it is": {},
    "transposed": {(_unroll, "_is_better_transposed"): always(True)},
    "not transposed": {(_unroll, "_is_better_transposed"): always(False)},
    "input in the step": {(_unroll, "_multiplies_own_input"): always(True)},
    "input before": {(_unroll, "_multiplies_own_input"): always(False)},
    "words of jax.random.bits": {(_zoneout, "random_words"): bits_of_jax},
    "derivatives left to JAX": {(_unroll, "scan_fused"): _fused.scan},
    "plain scan": {
        (_unroll, "scan_fused"): _fused.scan,
        (_unroll, "_is_better_transposed"): always(False),
        (_unroll, "_multiplies_own_input"): always(False),
    },
}
"""Functions to replace, by variant."""


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """What to measure."""

    rounds: int = 7
    """Rounds of all variants."""
    quick: bool = False
    """Use a tiny shape and two rounds, to check that it runs."""


@contextlib.contextmanager
def changed(replacements: dict) -> Iterator[None]:
    """Replaces functions in a context; raises RuntimeError if one of them was not called."""
    with contextlib.ExitStack() as stack:
        used = {}
        for (owner, name), function in replacements.items():
            used[name] = mock.Mock(side_effect=function)
            stack.enter_context(mock.patch.object(owner, name, used[name]))
        yield
    for name, function in used.items():
        if not function.called:
            raise RuntimeError(f"{name} was replaced, but nothing called it")


def lower_variants(shape: Shape) -> dict[str, Program]:
    """Lowers our LSTM with each change; the programs are yet to be compiled."""
    peer = ours(shape)
    variants = {}
    for name, replacements in CHANGES.items():
        with changed(replacements):
            # A new function each time; otherwise JAX would reuse the first one.
            variants[name] = Program.of_peer(
                Peer(*peer[:2], lambda *a: peer.backward(*a)), "backward", shape
            )
    return variants


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    options, out = parse_measurement(Options, argv, "benchmarks.choices", "Effect of each choice.")
    shapes = QUICK if options.quick else LSTMS
    results = {}
    for name, shape in shapes.items():
        variants = {name: run.compile() for name, run in lower_variants(shape).items()}
        seconds = measure_in_turn(variants, 2 if options.quick else options.rounds)
        base = seconds["as it is"]
        results[name] = {
            variant: {
                "milliseconds": 1000 * statistics.median(seconds[variant]),
                "ratio": statistics.median(
                    a / b for a, b in zip(seconds[variant], base, strict=True)
                ),
                "temporary_bytes": variants[variant].facts["temporary_bytes"],
            }
            for variant in variants
        }
        for variant, found in results[name].items():
            print(f"{name:15} {variant:25} {found['milliseconds']:8.1f} ms {found['ratio']:5.2f}")
    command = ["python", "-m", "benchmarks.choices", *(sys.argv[1:] if argv is None else argv)]
    content = {"command": " ".join(command), "versions": versions(), "results": results}
    write_json(out / "choices.json", content)
    print(f"result: {out / 'choices.json'}")


if __name__ == "__main__":
    main()
