"""Measures the cost of the training loop: steps per second of `fit` and of a bare jitted step.

    python -m benchmarks.training_loop

Both train the paper's character-level model (1000 units, batch 32, 99 predictions, zoneout 0.5 and
0.05, float32) on the embedded corpus. Each round runs a bare loop over a jitted step, with batches
gathered beforehand, and then the experiment with logs, progress and checkpoints. Of the experiment
only the second epoch counts, as the first one compiles.
"""

import dataclasses
import json
import statistics
import tempfile
import time

import jax
import optax

from experiments import char_ptb
from experiments.lib.characters import LEARNING_RATES
from experiments.lib.language_model import TILES, cross_entropy_sum, readout_init
from zoneout_jax import LSTM, Zoneout, unroll
from zoneout_jax.data import gather, shuffled_chunks
from zoneout_jax.training import Measurement, fit, parse_measurement, prepare, versions, write_json

EXPERIMENT = char_ptb.EXPERIMENT


@dataclasses.dataclass(frozen=True)
class Options(Measurement):
    """How long to measure."""

    rounds: int = 7
    """Number of rounds."""
    steps: int = 10
    """Training steps per round."""


def bare_loop(config: char_ptb.Config, steps: int):
    """Prepares a bare jitted training step; returns a function that measures steps per second."""
    corpus = config.data.load()
    features, length = config.model.hidden_features, config.data.seq_length
    cell = LSTM(corpus.vocab_size, features, learned_carry=True)
    spec = Zoneout(cells=config.zoneout.z_prob_cells, states=config.zoneout.z_prob_states)
    optimizer = optax.chain(
        optax.clip_by_global_norm(config.optimizer.clip_norm), optax.adam(LEARNING_RATES["LSTM"])
    )
    key = jax.random.key(0)
    params = {
        "lstm": cell.init(key),
        "readout": readout_init(key, (features, corpus.vocab_size), TILES),
    }
    starts = shuffled_chunks(key, len(corpus.train), length, config.run.batch_size)
    batches = [gather(corpus.train, starts[step], length) for step in range(steps)]

    @jax.jit
    def step(params, opt_state, tokens, key):
        def loss(params):
            xs = jax.nn.one_hot(tokens[:-1], corpus.vocab_size)
            _, ys = unroll(cell, params["lstm"], xs, zoneout=spec, key=key)
            total, _ = cross_entropy_sum(params["readout"], ys, tokens[1:], 1.0)
            return total / tokens[1:].size

        grads = jax.grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    state = [params, optimizer.init(params)]

    def measure() -> float:
        start = time.perf_counter()
        for number, tokens in enumerate(batches):
            state[:] = step(*state, tokens, jax.random.fold_in(key, number))
        jax.block_until_ready(state)
        return steps / (time.perf_counter() - start)

    measure()
    return measure


def whole_loop(config: char_ptb.Config) -> float:
    """Returns the steps per second of the second epoch of a run, from its log."""
    with tempfile.TemporaryDirectory() as directory:
        config = config.replace(workdir=directory)
        task, run = prepare(EXPERIMENT.name, config, char_ptb.PAPER, EXPERIMENT.build)
        fit(dataclasses.replace(task, test_evaluations={}), config.run, run)
        last = run.times_file.read_text().splitlines()[-1]
        return json.loads(last)["steps_per_second"]


def main(argv: list[str] | None = None) -> None:
    """Measures from the command line; prints and writes the result."""
    about = "Measures the cost of the training loop."
    options, out = parse_measurement(Options, argv, "benchmarks.training_loop", about)
    config = char_ptb.PAPER.replace(
        dataset="stdlib",
        train_size=(options.steps * 32 + 1) * 100,
        eval_size=6_400,
        epochs=2,
        z_prob_cells=0.5,
        z_prob_states=0.05,
    )
    measure_bare = bare_loop(config, options.steps)
    bare, whole = [], []
    for number in range(options.rounds):
        bare.append(measure_bare())
        whole.append(whole_loop(config))
        ratio = whole[-1] / bare[-1]
        print(f"round {number + 1}: bare {bare[-1]:.3f}, fit {whole[-1]:.3f}, ratio {ratio:.3f}")
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    result = {
        "command": f"python -m benchmarks.training_loop --rounds {options.rounds} "
        f"--steps {options.steps}",
        "shapes": "H=1000, B=32, T=99, vocabulary 96, float32",
        "bare_steps_per_second": bare,
        "fit_steps_per_second": whole,
        "median_ratio": statistics.median(ratios),
        "range_of_ratios": [min(ratios), max(ratios)],
        "devices": f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}",
        "versions": versions(),
    }
    write_json(out / "training_loop.json", result)
    print(json.dumps(result, indent=2))
    print(f"result: {out / 'training_loop.json'}")


if __name__ == "__main__":
    main()
