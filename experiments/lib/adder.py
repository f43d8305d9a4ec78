"""The model of `experiments.seq2seq`: a language model that reads questions and writes answers."""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp

from experiments.lib.addition import GO, SYMBOLS
from experiments.lib.language_model import LanguageModel, language_model
from experiments.lib.settings import ModelConfig
from zoneout_jax import weight_noise
from zoneout_jax.training import Count, Positive, Range


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdderConfig(ModelConfig):
    """Encoder and decoder."""

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


def language_model_of(config: Any) -> LanguageModel:
    """The language model that encoder and decoder are; `training_sums` adds the weight noise."""
    return language_model(
        config.replace(weight_noise=0.0),
        len(SYMBOLS),
        init_width=config.model.init_width,
        learned_carry=False,
        output=config.model.output,
    )


def init(config: Any, adder: LanguageModel, key: jax.Array) -> Any:
    """Parameters of the decoder, and in `encoder` those of the encoder if they are others."""
    params = adder.init(key)
    if config.model.two_networks:
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
    **mode: Any,
) -> tuple[jax.Array, jax.Array]:
    """Σ nats and number of the symbols of answers, each predicted from the right ones before it.

    Args:
      adder, params: the model.
      questions, answers: `[N, Q]` and `[N, A]`.
      key: of masks and noise.
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
    """What the symbols of answers `[N, A]` are predicted from, `[A, N]`: go, then the others."""
    return jnp.concatenate([go(len(answers)), answers.T[:-1]])


def go(batch: int) -> jax.Array:
    """What is before the first symbol of answers, `[1, N]`."""
    return jnp.full((1, batch), GO, jnp.int32)


def write(
    adder: LanguageModel, params: Any, carry: Any, batch: int, length: int, rates: Any = None
) -> jax.Array:
    """Answers `[N, length]` of the likeliest symbols, each predicted from those before it."""

    def next_symbol(state, _):
        last, carry = state
        logits, carry = adder.logits(params, last, carry, rates)
        symbols = jnp.argmax(logits[-1], -1)
        return (symbols[None], carry), symbols

    return jax.lax.scan(next_symbol, (go(batch), carry), length=length)[1].T
