"""Model, optimizer and curriculum of `experiments.seq2seq`.

The model is a language model that reads questions and writes answers.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.lib.addition import GO, SYMBOLS
from experiments.lib.language_model import LanguageModel, language_model
from experiments.lib.settings import ModelConfig, OptimizerConfig
from zoneout_jax import weight_noise
from zoneout_jax.training import Positive, Range, TrainState

RESTART_AGE = 16
"""Epochs before the one in which a stuck model restarts."""
STUCK = 0.85
"""Error above which a model is stuck."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderConfig(ModelConfig):
    """Settings of the encoder and the decoder."""

    two_networks: bool = True
    """Use separate weights for the encoder and the decoder."""
    output: Literal["state", "candidate"] = "state"
    """Output of a layer: its zoned-out state, or the new state before zoneout."""
    init_width: Positive = 0.08
    """Initial weights are uniform within ± this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderOptimizerConfig(OptimizerConfig):
    """The optimizer and the decay of its learning rate."""

    lr_decay: Annotated[float, Range(0, 1, above=True)] = 0.95
    """Factor of the learning rate when the error rises at the greatest number of digits."""
    restart: bool = False
    """Restart with new weights if the error is above 0.85 in the 17th epoch (authors' code)."""


def language_model_of(config: Any) -> LanguageModel:
    """Makes the model of encoder and decoder; `training_sums` adds the weight noise."""
    return language_model(
        config.replace(weight_noise=0.0),
        len(SYMBOLS),
        init_width=config.model.init_width,
        learned_carry=False,
        output=config.model.output,
    )


def init(config: Any, adder: LanguageModel, key: jax.Array) -> Any:
    """Makes the parameters of the decoder; separate ones of the encoder are in `encoder`."""
    params = adder.init(key)
    if config.model.two_networks:
        params["encoder"] = {"layers": adder.init(jax.random.fold_in(key, 1))["layers"]}
    return params


def read(adder: LanguageModel, params: Any, questions: jax.Array, **mode: Any) -> Any:
    """Returns the state after questions `[N, Q]`; `mode` is as in `LanguageModel.sums`."""
    return adder.read(params.get("encoder", params), questions.T, **mode)


def training_sums(
    adder: LanguageModel,
    params: Any,
    questions: jax.Array,
    answers: jax.Array,
    key: jax.Array,
    noise: float = 0.0,
    **mode: Any,
) -> tuple[jax.Array, jax.Array]:
    """Computes Σ nats of answers and their number of symbols.

    Each symbol is predicted from the right symbols before it.

    Args:
      adder, params: the model.
      questions, answers: `[N, Q]` and `[N, A]`.
      key: random key of masks and noise.
      **mode: `axis_name` and `rates` as in `LanguageModel.sums`.
      noise: standard deviation of noise on the weights, one draw for question and answer.
    """
    if noise:
        params = weight_noise(params, jax.random.fold_in(key, 2**31), noise)
    question_key, answer_key = jax.random.split(key)
    carry = read(adder, params, questions, key=question_key, **mode)
    weights = jnp.ones(answers.T.shape)
    mode = {"key": answer_key} | mode
    return adder.sums(params, given(answers), answers.T, weights, carry, **mode)[0]


def given(answers: jax.Array) -> jax.Array:
    """Returns the decoder's inputs `[A, N]` for answers `[N, A]`: go, then all but the last."""
    return jnp.concatenate([go(len(answers)), answers.T[:-1]])


def go(batch: int) -> jax.Array:
    """Returns the input before the first symbol of each answer, `[1, N]`."""
    return jnp.full((1, batch), GO, jnp.int32)


def write(
    adder: LanguageModel, params: Any, carry: Any, batch: int, length: int, rates: Any = None
) -> jax.Array:
    """Decodes answers `[N, length]`: each symbol is the most likely one after those before it."""

    def next_symbol(state, _):
        last, carry = state
        logits, carry = adder.logits(params, last, carry, rates)
        symbols = jnp.argmax(logits[-1], -1)
        return (symbols[None], carry), symbols

    return jax.lax.scan(next_symbol, (go(batch), carry), length=length)[1].T


def curriculum(config: Any, adder: LanguageModel) -> Callable[..., TrainState]:
    """Returns the update after an epoch: of digits, learning rate and, with `restart`, weights.

    As in the authors' code, the first error at the greatest number of digits is compared with the
    last error at fewer digits, so the learning rate falls there if the error is higher.
    """

    def end_epoch(state, metrics, key):
        error, model_state = metrics["error"], state.model_state
        digits, age = model_state["digits"], model_state["age"]
        at_the_top = digits >= config.data.digits
        rises = at_the_top & (error > model_state["last_error"])
        rates = state.opt_state.hyperparams
        rate = rates["learning_rate"] * jnp.where(rises, config.optimizer.lr_decay, 1.0)
        next_digits = digits + (~at_the_top & (error < config.data.good_error))
        state = state._replace(
            opt_state=state.opt_state._replace(hyperparams=rates | {"learning_rate": rate}),
            model_state=model_state | {"digits": next_digits, "last_error": error, "age": age + 1},
        )
        if not config.optimizer.restart:
            return state
        params = init(config, adder, key)
        fresh = state._replace(
            params=params,
            opt_state=optimizer(config).init(params),
            model_state=model_state | {"age": jnp.zeros_like(age)},
        )
        stuck = (age == RESTART_AGE) & (error > STUCK)
        return jax.tree.map(lambda new, old: jnp.where(stuck, new, old), fresh, state)

    return end_epoch


def optimizer(config: Any) -> optax.GradientTransformation:
    """Makes the optimizer, with the learning rate in its state."""
    make = optax.inject_hyperparams(config.optimizer.build)
    return make(learning_rate=config.optimizer.learning_rate)
