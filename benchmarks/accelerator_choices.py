"""Variants of our LSTM with one choice changed, for part 3 of `benchmarks.accelerator`."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.choices import always, changed, lower_variants
from benchmarks.jax_peers import SPEC, Peer, Shape, ours, peer, some_params
from benchmarks.rnn import Program
from zoneout_jax import LSTM, Masks, _unroll, unroll
from zoneout_jax._threefry import threefry2x32

COMMANDS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
LOOPS = {"xla_gpu_enable_command_buffer": f"{COMMANDS},CONDITIONAL,WHILE"}
OPTIONS = {
    "command buffers of whole loops": LOOPS,
    "command buffers of whole loops, even short ones": LOOPS
    | {"xla_gpu_graph_min_graph_size": "1"},
    "no command buffers": {"xla_gpu_enable_command_buffer": ""},
}
"""Options of XLA: the commands that go into command buffers on a GPU. By default some of each
iteration do, and only where several follow one another."""


def variants(shape: Shape) -> dict[str, Callable[[], Program]]:
    """Makes functions that compile the LSTM, forward and backward, each with one choice changed."""

    def lower(peer: Peer) -> Program:
        return Program.of_peer(peer, "backward", shape)

    programs = lower_variants(shape)
    programs |= {f"unroll={n}": lower(ours(shape, unroll=n)) for n in (2, 4, 8)}
    chunk = math.isqrt(shape.steps)
    programs[f"chunk={chunk}"] = lower(ours(shape, chunk=chunk))
    with changed({(_unroll, "_is_better_transposed"): always(False)}):
        programs["words in the step"] = lower(with_words_in_step(shape))
    options = OPTIONS if jax.default_backend() == "gpu" else {}
    programs |= {name: lower(ours(shape)) for name in options}
    return {n: functools.partial(p.compile, options.get(n)) for n, p in programs.items()}


def with_words_in_step(shape: Shape) -> Peer:
    """Makes our LSTM with masks drawn in each step, again in the backward pass, and not stored."""
    cell = DrawsInStep(shape.inputs, shape.units, cells=SPEC.cells, states=SPEC.states)

    def forward(params, xs, key):
        return unroll(cell, params, xs, masks=keys_as_masks(key, shape.batch))[1]

    return peer(shape, some_params(cell.init), forward)


def keys_as_masks(key: jax.Array, batch: int) -> Masks:
    """Packs the two words of each example's key, each `[1, B, 1]`, as masks of a sequence."""
    examples = jnp.arange(batch, dtype=jnp.int32)
    keys = jax.random.key_data(jax.vmap(lambda n: jax.random.fold_in(key, n))(examples))
    return Masks(cells=keys[None, :, :1], states=keys[None, :, 1:])


@dataclasses.dataclass(frozen=True)
class DrawsInStep(LSTM):
    """An LSTM that draws in its steps the masks that are otherwise drawn before the loop.

    Its masks argument is the result of `keys_as_masks`. Its carry ends with the number of the step,
    as an array of the shape of c and h.
    """

    cells: float = 0.0
    states: float = 0.0

    carry_names = ("c", "h", "number")
    elementwise = False

    def update(self, params, carry, gates, rest, masks, normalize=None):
        """Draws the masks of the step, and applies the LSTM's equations."""
        c, h, number = carry
        unit = jax.lax.broadcasted_iota(jnp.uint32, c.shape, 1)
        words, _ = threefry2x32((masks.cells, masks.states), (number.astype(jnp.uint32), unit))
        drawn = Masks(
            cells=(words & 0xFFFF) < jnp.uint32(round(self.cells * 65536)),
            states=(words >> 16) < jnp.uint32(round(self.states * 65536)),
        )
        new, output = super().update(params, (c, h), gates, rest, drawn)
        return (*new, number + 1), output
