"""Learning to add: a toy sequence-to-sequence task of the authors' repository.

    python -m experiments.seq2seq                                          # baseline
    python -m experiments.seq2seq --z_prob_cells=0.5 --z_prob_states=0.05  # zoneout

A network reads `____12345+678` symbol by symbol and writes `13023__`. The paper has no results for
this task.

Settings: encoder and decoder are two-layer LSTMs of 128 units; weights uniform within ±0.08; Adam
with learning rate 0.01, batches of 32, gradients not clipped; 4,000 epochs of 20 batches. In
training the decoder is fed with the answer; in evaluation with its own most likely symbols, with
masks at their expectation. Operands of k `digits` are at most 10^k. The curriculum starts at k = 2,
and k grows by 1 when the validation error falls below 0.1. At k = 5, the last, the learning rate is
multiplied by 0.95 whenever the error rises.

Two defaults differ from the authors' code: preset `repository` has, as in that code, layers that
output their new state before zoneout, and 40 epochs. The evaluation also differs, in all presets.
Preset `laptop` has 400 epochs of up to three digits. With `--no_two_networks` one network is both
encoder and decoder; it needs more epochs.

Metrics: `error` is the share of answers with any wrong symbol, over `eval_size` additions of up to
the current number of digits. Each has an operand above 10, and training never draws any of them.
With few digits there are fewer such additions, and some count more than once. `nats` is the cross
entropy per symbol. `test_error` is over 4,096 other additions of up to the greatest number of
digits. The best epoch is the one with the least `to_come`: the error plus the number of digits that
are still to come.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.adder import (
    AdderConfig,
    AdderOptimizerConfig,
    curriculum,
    given,
    init,
    language_model_of,
    optimizer,
    read,
    training_sums,
    write,
)
from experiments.lib.addition import MIN_DIGITS, AdditionConfig, different, draw_pairs
from experiments.lib.addition import text as as_text
from experiments.lib.experiment import Experiment, Row
from experiments.lib.language_model import LanguageModelConfig
from zoneout_jax.data import pad_rows
from zoneout_jax.training import AXIS, Evaluation, RunConfig, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageModelConfig):
    """Settings of the experiment."""

    preset: Literal["long", "repository", "laptop", "smoke"] = "long"
    model: AdderConfig = AdderConfig(hidden_features=128, num_layers=2)
    optimizer: AdderOptimizerConfig = AdderOptimizerConfig(learning_rate=0.01, clip_norm=None)
    data: AdditionConfig = AdditionConfig()
    run: RunConfig = RunConfig(epochs=4000, patience=1_000_000, steps_per_call=100)

    def __post_init__(self):
        super().__post_init__()
        for name in self.zoneout.RATES:
            if getattr(self.zoneout, name) == 1:
                raise ValueError(f"{name} must be in [0, 1), got 1.0")


LONG = Config()
PRESETS = {
    "long": LONG,
    "repository": LONG.replace(preset="repository", output="candidate", epochs=40, eval_size=4096),
    "laptop": LONG.replace(preset="laptop", digits=3, epochs=400),
    "smoke": LONG.replace(
        preset="smoke",
        digits=3,
        hidden_features=16,
        batch_size=8,
        batches_per_epoch=5,
        epochs=2,
        eval_size=64,
        eval_batch_size=64,
    ),
}

TEST_SIZE = 4096
"""Number of test additions."""


def build(config: Config) -> Task:
    """Makes the task for `zoneout_jax.training.fit`."""
    adder, additions = language_model_of(config), config.data

    def level_of(digits):
        return digits.astype(jnp.int32) - MIN_DIGITS

    def loss(params, model_state, batch, key):
        pair_key, noise_key = jax.random.split(key)
        digits = model_state["digits"].astype(jnp.int32)
        questions, answers = additions.encode(draw_pairs(pair_key, batch.indices, digits, "train"))
        mode = {"noise": config.regularizers.weight_noise, "axis_name": AXIS}
        mode["rates"] = model_state.get("rates")
        return training_sums(adder, params, questions, answers, noise_key, **mode), model_state

    def read_questions(params, model_state, questions):
        mode = {"deterministic": True, "rates": model_state.get("rates")}
        return read(adder, params, questions, **mode), mode

    def answer(params, model_state, carry, batch):
        return write(adder, params, carry, batch, additions.target_length, model_state.get("rates"))

    def evaluation_loss(params, model_state, batch):
        pairs, counted = batch.take()
        questions, answers = additions.encode(pairs)
        carry, mode = read_questions(params, model_state, questions)
        weights = jnp.broadcast_to(counted / additions.target_length, answers.T.shape)
        (nats, _), _ = adder.sums(params, given(answers), answers.T, weights, carry, **mode)
        wrong = jnp.any(answer(params, model_state, carry, len(questions)) != answers, 1)
        return {"nats": nats, "error": jnp.sum(counted * wrong)}, jnp.sum(counted)

    def validation_loss(params, model_state, batch):
        digits = model_state["digits"]
        of_level = batch._replace(data=batch.data[:, level_of(digits)])
        totals, count = evaluation_loss(params, model_state, of_level)
        to_come = totals["error"] + count * (additions.digits - digits)
        return totals | {"digits": count * digits, "to_come": to_come}, count

    fixed = jax.random.key(0, impl="threefry2x32")
    draw = jax.jit(draw_pairs, static_argnames="part")
    numbers = jnp.arange(additions.eval_size)
    levels = range(MIN_DIGITS, additions.digits + 1)
    by_level = [draw(fixed, numbers, digits, part="validation") for digits in levels]
    validation = jnp.stack(by_level, 1)
    test = draw(fixed, jnp.arange(TEST_SIZE), additions.digits, part="test")
    shown_pairs = jnp.stack([different(pairs, 3) for pairs in by_level])

    @jax.jit
    def answer_shown_pairs(params, model_state):
        questions, answers = additions.encode(shown_pairs[level_of(model_state["digits"])])
        carry, _ = read_questions(params, model_state, questions)
        return questions, answers, answer(params, model_state, carry, len(questions))

    def describe(params, model_state):
        return "; ".join(
            f"{as_text(question)} = {as_text(right)}, answered {as_text(found) or 'nothing'}"
            for question, right, found in zip(*answer_shown_pairs(params, model_state), strict=True)
        )

    def rows(size):
        return pad_rows(np.arange(size), additions.eval_batch_size)

    examples = jnp.tile(jnp.arange(config.run.batch_size), (additions.batches_per_epoch, 1))
    start = {
        "digits": jnp.float32(min(additions.start_digits, additions.digits)),
        "last_error": jnp.float32(jnp.inf),
        "age": jnp.int32(0),
    }
    return Task(
        name="seq2seq",
        init=lambda key: init(config, adder, key),
        optimizer=optimizer(config),
        loss=loss,
        data=(),
        epoch_indices=lambda key: examples,
        metric="nats",
        validation=Evaluation(validation_loss, validation, rows(additions.eval_size)),
        monitor="to_come",
        test_evaluations={"test": Evaluation(evaluation_loss, test, rows(TEST_SIZE))},
        model_state=lambda params: start,
        end_epoch=curriculum(config, adder),
        describe=describe,
        metadata={"dataset": f"additions of up to {additions.digits} digits"},
    )


EXPERIMENT = Experiment(
    name="seq2seq",
    about="Learning to add.",
    presets=PRESETS,
    build=build,
    rows={"LSTM": Row(), "zoneout": Row(("--z_prob_cells=0.5", "--z_prob_states=0.05"))},
    metrics=("validation_digits", "validation_error", "test_error"),
    curves=("digits", "error"),
)

if __name__ == "__main__":
    EXPERIMENT.main()
