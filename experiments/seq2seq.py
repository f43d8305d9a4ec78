"""Learning to add: a toy sequence-to-sequence task of the authors' repository.

    python -m experiments.seq2seq                                          # baseline
    python -m experiments.seq2seq --z_prob_cells=0.5 --z_prob_states=0.05  # zoneout

A network reads `____12345+678` symbol by symbol and writes `13023__`. The paper has no figures of
this task.

Settings: one two-layer LSTM of 128 units is encoder and decoder; weights uniform within ±0.08; Adam
at 0.01 on batches of 32, gradients not clipped; 4,000 epochs of 20 batches. In training the decoder
is fed with the answer, in evaluation with its own likeliest symbols, masks at their expectation.
Operands of k `digits` are at most 10^k. From k = 2, the curriculum goes on to the next when the
validation error falls below 0.1; at 5, the last, the learning rate is multiplied by 0.95 whenever
the error rises. All this is as in the authors' code but for the evaluation, the epochs, and what
preset `repository` has as there: encoder and decoder with weights of their own, layers that hand on
their new state before zoneout, 40 epochs. `laptop` has 400 epochs of up to three digits.

Figures: `error` (share of answers with any wrong symbol) over `eval_size` additions of up to the
current number of digits, with an operand above 10, none of which training ever draws; with few
digits there are not so many, and some count more than once. `nats`, the cross entropy of a symbol.
`test_error`, over 4,096 others of up to the greatest number of digits. The epoch kept is the one
with the least `to_come`, the error plus the number of digits that are still to come.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.addition import (
    GO,
    MAX_DIGITS,
    MIN_DIGITS,
    SYMBOLS,
    check_lengths,
    draw_pairs,
    encode,
)
from experiments.addition import text as as_text
from experiments.language_model import (
    LanguageModel,
    LanguageModelConfig,
    language_model,
    make_optimizer,
)
from zoneout_jax import weight_noise
from zoneout_jax.data import pad_rows
from zoneout_jax.training import (
    AXIS,
    Count,
    DropRate,
    Evaluation,
    Positive,
    Probability,
    Range,
    Task,
    launch,
    shown,
)
from zoneout_jax.training.state import TrainState

Digits = Annotated[int, Range(MIN_DIGITS, MAX_DIGITS)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageModelConfig):
    """Settings of the experiment."""

    preset: Literal["long", "repository", "laptop", "smoke"] = "long"
    """Settings to start from; a flag given by hand beats them."""
    epochs: Count = 4000
    """Epochs at most."""
    patience: Count = 1_000_000
    """Stop after so many epochs without a better validation figure."""
    steps_per_call: Annotated[int, Range(1, 100_000)] = 100
    """Training steps in one call of the compiled function."""
    hidden_features: Count = 128
    """Units of a layer."""
    num_layers: Annotated[int, Range(1, 100)] = 2
    """Layers."""
    two_networks: bool = False
    """Encoder and decoder have weights of their own."""
    output: Literal["state", "candidate"] = "state"
    """What a layer hands on: its zoned-out state, or the new one before zoneout."""
    init_width: Positive = 0.08
    """Weights start uniform within ± this."""
    learning_rate: Positive = 0.01
    """Step size at the start."""
    clip_norm: Positive | None = None
    """Largest global norm; None for any."""
    z_prob_cells: DropRate = 0.0
    """Zoneout: probability that a cell keeps its previous value."""
    z_prob_states: DropRate = 0.0
    """Zoneout: probability that a hidden state keeps its previous value."""
    drop_prob_igates: DropRate = 0.0
    """Recurrent dropout: probability that the update of a cell is dropped."""
    batches_per_epoch: Count = 20
    """Batches between two validations."""
    digits: Digits = 5
    """Operands are at most 10 to the power of this at the end of the curriculum."""
    start_digits: Digits = 2
    """And at its start, if `digits` is not less."""
    good_error: Probability = 0.1
    """Validation error below which the number of digits grows."""
    lr_decay: Annotated[float, Range(0, 1, above=True)] = 0.95
    """Factor of the step size when the error rises at the greatest number of digits."""
    restart: bool = False
    """Begin again with new weights if the error is above 0.85 in the 17th epoch (authors' code)."""
    input_length: Count = 13
    """Symbols of a question, padding included."""
    target_length: Count = 7
    """Symbols of an answer, padding included."""
    reverse: bool = False
    """Questions are written from right to left (Sutskever et al. 2014)."""
    eval_size: Count = 512
    """Additions of a validation."""
    eval_batch_size: Count = 512
    """Additions evaluated at once."""

    def __post_init__(self):
        super().__post_init__()
        if self.norm_cost_coeff:
            raise ValueError("seq2seq has no norm stabilizer: leave out norm_cost_coeff")
        check_lengths(self.digits, self.input_length, self.target_length)


PRESETS = {
    "long": Config(),
    "repository": Config(
        preset="repository", two_networks=True, output="candidate", epochs=40, eval_size=4096
    ),
    "laptop": Config(preset="laptop", digits=3, epochs=400),
    "smoke": Config(
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

ROWS = {
    "LSTM": ((), {}),
    "zoneout": (("--z_prob_cells=0.5", "--z_prob_states=0.05"), {}),
}
"""Flags of the rows; nothing is published."""

FIGURES = ("validation_digits", "validation_error", "test_error")
"""Figures to tabulate."""

CURVES = ("digits", "error")
"""Figures to draw over the epochs."""

TEST_SIZE = 4096
"""Additions of the test."""

RESTART_AGE = 16
"""Epochs before the one in which a model may be found to be stuck."""
STUCK = 0.85
"""Error above which it is."""


def model(config: Config) -> LanguageModel:
    """The language model that encoder and decoder are; `training_sums` adds the weight noise."""
    return language_model(
        dataclasses.replace(config, weight_noise=0.0),
        len(SYMBOLS),
        init_width=config.init_width,
        learned_carry=False,
        output=config.output,
    )


def init(config: Config, adder: LanguageModel, key: jax.Array) -> Any:
    """Parameters of the decoder, and in `encoder` those of the encoder if they are others."""
    params = adder.init(key)
    if config.two_networks:
        params["encoder"] = {"layers": adder.init(jax.random.fold_in(key, 1))["layers"]}
    return params


def read(adder: LanguageModel, params: Any, questions: jax.Array, **mode: Any) -> Any:
    """The state after questions `[N, Q]`; `mode` as in `LanguageModel.sums`."""
    return adder.read(params.get("encoder", params), questions.T, **mode)


def training_sums(
    adder: LanguageModel,
    params: Any,
    questions: jax.Array,
    answers: jax.Array,
    key: jax.Array,
    noise: float = 0.0,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Σ nats and number of the symbols of answers, each predicted from the right ones before it.

    Args:
      adder, params: the model.
      questions, answers: `[N, Q]` and `[N, A]`.
      key, axis_name: as in `LanguageModel.sums`.
      noise: standard deviation of noise on the weights, one draw for question and answer.
    """
    if noise:
        params = weight_noise(params, jax.random.fold_in(key, 2**31), noise)
    question_key, answer_key = jax.random.split(key)
    carry = read(adder, params, questions, key=question_key, axis_name=axis_name)
    weights = jnp.ones(answers.T.shape)
    mode = {"key": answer_key, "axis_name": axis_name}
    return adder.sums(params, given(answers), answers.T, weights, carry, **mode)[0]


def given(answers: jax.Array) -> jax.Array:
    """What the symbols of answers `[N, A]` are predicted from, `[A, N]`: go, then the others."""
    return jnp.concatenate([go(len(answers)), answers.T[:-1]])


def go(batch: int) -> jax.Array:
    """What is before the first symbol of answers, `[1, N]`."""
    return jnp.full((1, batch), GO, jnp.int32)


def write(adder: LanguageModel, params: Any, carry: Any, batch: int, length: int) -> jax.Array:
    """Answers `[N, length]` of the likeliest symbols, each predicted from those before it."""

    def next_symbol(state, _):
        last, carry = state
        logits, carry = adder.logits(params, last, carry)
        symbols = jnp.argmax(logits[-1], -1)
        return (symbols[None], carry), symbols

    return jax.lax.scan(next_symbol, (go(batch), carry), length=length)[1].T


def curriculum(config: Config, adder: LanguageModel) -> Callable[..., TrainState]:
    """What changes after an epoch: digits, step size and, if asked for, the weights.

    The first error at the greatest number of digits is compared with the last of fewer digits, as
    in the authors' code, so that the step size falls there.
    """

    def end_epoch(state, figures, key):
        error, digits = figures["error"], state.params["digits"]
        last, age = state.memory["last_error"], state.memory["age"]
        at_the_top = digits >= config.digits
        rises = at_the_top & (error > last)
        rates = state.opt_state.hyperparams
        rate = rates["learning_rate"] * jnp.where(rises, config.lr_decay, 1.0)
        next_digits = digits + (~at_the_top & (error < config.good_error))
        state = state._replace(
            params=state.params | {"digits": next_digits},
            opt_state=state.opt_state._replace(hyperparams=rates | {"learning_rate": rate}),
            memory={"last_error": error, "age": age + 1},
        )
        if not config.restart:
            return state
        params = init(config, adder, key) | {"digits": digits}
        fresh = state._replace(
            params=params,
            opt_state=optimizer(config).init(params),
            memory={"last_error": last, "age": jnp.zeros_like(age)},
        )
        stuck = (age == RESTART_AGE) & (error > STUCK)
        return jax.tree.map(lambda new, old: jnp.where(stuck, new, old), fresh, state)

    return end_epoch


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer, with its step size in its state."""

    def weights(params):
        return {name: name != "digits" for name in params}

    @optax.inject_hyperparams
    def rule(learning_rate):
        return optax.masked(make_optimizer(config, learning_rate), weights)

    return rule(config.learning_rate)


def different(pairs: jax.Array, number: int) -> jax.Array:
    """The first pairs that differ from each other; again from the start if there are too few."""
    _, first = np.unique(pairs, axis=0, return_index=True)
    return pairs[np.resize(np.sort(first), number)]


def build(config: Config) -> Task:
    """The experiment as a task for `zoneout_jax.training.fit`."""
    adder = model(config)

    def first_params(key):
        # Beside the weights, as evaluations are given nothing else; the optimizer leaves it alone.
        digits = jnp.float32(min(config.start_digits, config.digits))
        return init(config, adder, key) | {"digits": digits}

    def written(pairs):
        return encode(pairs, config.input_length, config.target_length, config.reverse)

    def place(digits):
        return digits.astype(jnp.int32) - MIN_DIGITS

    def loss(params, data, examples, key, memory):
        pair_key, noise_key = jax.random.split(key)
        pairs = draw_pairs(pair_key, examples, params["digits"].astype(jnp.int32), "train")
        noise = config.weight_noise
        return *training_sums(adder, params, *written(pairs), noise_key, noise, AXIS), memory

    def final_loss(params, pairs, examples):
        counted = (examples >= 0).astype(jnp.float32)
        questions, answers = written(pairs[jnp.maximum(examples, 0)])
        carry = read(adder, params, questions, deterministic=True)
        weights = jnp.broadcast_to(counted / config.target_length, answers.T.shape)
        (nats, _), _ = adder.sums(
            params, given(answers), answers.T, weights, carry, deterministic=True
        )
        found = write(adder, params, carry, len(examples), config.target_length)
        error = jnp.sum(counted * jnp.any(found != answers, 1))
        return {"nats": nats, "error": error}, jnp.sum(counted)

    def validation_loss(params, pairs, examples):
        digits = params["digits"]
        totals, count = final_loss(params, pairs[place(digits)], examples)
        to_come = totals["error"] + count * (config.digits - digits)
        return totals | {"digits": count * digits, "to_come": to_come}, count

    numbers = jnp.arange(config.eval_size)
    fixed = jax.random.key(0, impl="threefry2x32")
    draw = jax.jit(draw_pairs, static_argnames="part")
    validation = [
        draw(fixed, numbers, digits, part="validation")
        for digits in range(MIN_DIGITS, config.digits + 1)
    ]
    validation = jnp.stack(validation)
    test = draw(fixed, jnp.arange(TEST_SIZE), config.digits, part="test")
    shown_pairs = jnp.stack([different(pairs, 3) for pairs in validation])

    @jax.jit
    def some(params):
        questions, answers = written(shown_pairs[place(params["digits"])])
        carry = read(adder, params, questions, deterministic=True)
        found = write(adder, params, carry, len(questions), config.target_length)
        return questions, answers, found

    def rows(size):
        return pad_rows(np.arange(size), config.eval_batch_size)

    def show(params):
        return "; ".join(
            f"{as_text(question)} = {as_text(right)}, answered {as_text(found) or 'nothing'}"
            for question, right, found in zip(*some(params), strict=True)
        )

    return Task(
        name="seq2seq",
        init=first_params,
        optimizer=optimizer(config),
        loss=loss,
        data=(),
        plan=lambda key: jnp.tile(jnp.arange(config.batch_size), (config.batches_per_epoch, 1)),
        steps_per_epoch=config.batches_per_epoch,
        metric="nats",
        figure=lambda nats: nats,
        validation=Evaluation(validation_loss, validation, rows(config.eval_size)),
        chosen_by="to_come",
        final={"test": Evaluation(final_loss, test, rows(TEST_SIZE))},
        memory=lambda params: {"last_error": jnp.float32(jnp.inf), "age": jnp.int32(0)},
        end_epoch=curriculum(config, adder),
        show=show,
        facts={"dataset": f"additions of up to {config.digits} digits"},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment and prints our figures."""
    result = launch("seq2seq", PRESETS, build, "Learning to add.", argv)
    print(
        f"{result['name']}: digits {result['validation_digits']:g}, error "
        f"{shown(result, 'validation_error')} validation, of epoch {result['best_epoch']}; with "
        f"all digits {shown(result, 'test_error')} test"
    )


if __name__ == "__main__":
    main()
