"""The model of `experiments.seq2seq`: a language model that reads questions and writes answers."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from experiments.lib.addition import GO, SYMBOLS
from experiments.lib.language_model import LanguageModel, language_model
from experiments.lib.settings import ModelConfig
from zoneout_jax import weight_noise
from zoneout_jax.training import Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderConfig(ModelConfig):
    """Settings of the encoder and the decoder."""

    two_networks: bool = True
    """Use separate weights for the encoder and the decoder."""
    output: Literal["state", "candidate"] = "state"
    """Output of a layer: its zoned-out state, or the new state before zoneout."""
    init_width: Positive = 0.08
    """Initial weights are uniform within ± this."""


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
