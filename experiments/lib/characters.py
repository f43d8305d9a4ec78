"""The experiment on character-level language models, for any corpus."""

import dataclasses
import functools
import math
from typing import Any

import jax.numpy as jnp

from experiments.lib.language_model import (
    LanguageModel,
    LanguageModelConfig,
    check_steps,
    language_model,
)
from experiments.lib.settings import OptimizerConfig, RegularizerConfig
from experiments.lib.texts import TextConfig, carried_evaluation
from zoneout_jax.data import Corpus, chunk_starts, gather, pad_rows, shuffled_chunks
from zoneout_jax.training import AXIS, Count, DropRate, Evaluation, Positive, Task

LEARNING_RATES = {"LSTM": 2e-3, "GRU": 1e-3, "SRNN": 3e-4}
"""The paper's learning rates, by `rnn_type`."""
METRICS = ("validation_bpc", "validation_carried_bpc", "test_bpc")
"""Metrics of the tables."""

LAPTOP: dict[str, Any] = {
    "preset": "laptop",
    "dataset": "stdlib",
    "train_size": 40_000,
    "eval_size": 20_000,
    "hidden_features": 128,
    "seq_length": 50,
    "batch_size": 16,
    "learning_rate": 8e-3,
    "clip_by": "gradient",
    "epochs": 40,
    "patience": 6,
}
"""Settings of a preset that takes minutes and needs no files."""
SMOKE: dict[str, Any] = {
    "preset": "smoke",
    "dataset": "stdlib",
    "train_size": 2_000,
    "eval_size": 500,
    "hidden_features": 16,
    "seq_length": 20,
    "batch_size": 8,
    "eval_batch_size": 8,
    "eval_streams": 8,
    "epochs": 2,
}
"""Settings of a preset that takes seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterTextConfig(TextConfig):
    """Settings of the text."""

    augment: bool = True
    """On: cut the training text into sequences at a new offset each epoch. Off: at its start."""
    eval_batch_size: Count = 64
    """Chunks per evaluation batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterRegularizerConfig(RegularizerConfig):
    """Regularizers other than masks."""

    input_drop: DropRate = 0.0
    """Probability that an input symbol is dropped, in training."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterOptimizerConfig(OptimizerConfig):
    """The optimizer."""

    learning_rate: Positive | None = None  # type: ignore[assignment]
    """Learning rate; by default 0.002 for the LSTM, 0.001 for the GRU, 0.0003 for the plain RNN.
    The rates of presets small and laptop suit the LSTM only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterConfig(LanguageModelConfig):
    """Settings of a character-level experiment; the defaults are the paper's baseline."""

    regularizers: CharacterRegularizerConfig = CharacterRegularizerConfig()
    optimizer: CharacterOptimizerConfig = CharacterOptimizerConfig()
    data: CharacterTextConfig = CharacterTextConfig()

    def __post_init__(self):
        super().__post_init__()
        check_steps(self, self.data.seq_length - 1)


def model(config: CharacterConfig, corpus: Corpus) -> LanguageModel:
    """Makes the model: one-hot characters, learned initial states."""
    return language_model(config, corpus.vocab_size, input_drop=config.regularizers.input_drop)


def build(config: CharacterConfig, name: str) -> Task:
    """Makes the task: training on shuffled chunks, each from the initial state.

    Metrics are in bits per character. Validation is also over chunks; `validation_carried` and
    `test` carry the state over the whole text.

    Args:
      config: settings.
      name: name of the experiment.
    """
    corpus = config.data.corpus
    texts = config.data.split(corpus)
    length, batch_size = config.data.seq_length, config.run.batch_size
    characters = model(config, corpus)

    def sums(params, batch, **mode):
        tokens = gather(batch.data, batch.indices, length)
        inputs, targets = tokens[:-1], tokens[1:]
        weights = jnp.broadcast_to((batch.indices >= 0).astype(jnp.float32), targets.shape)
        return characters.sums(params, inputs, targets, weights, **mode)[0]

    def loss(params, model_state, batch, key):
        rates = model_state.get("rates")
        return sums(params, batch, key=key, axis_name=AXIS, rates=rates), model_state

    def evaluation_loss(params, model_state, batch):
        return sums(params, batch, deterministic=True, rates=model_state.get("rates"))

    validation = len(texts["validation"])
    if validation < length:
        raise ValueError(
            f"the validation text of {corpus.name} has only {validation} symbols, fewer than "
            f"seq_length {length}; choose a smaller seq_length"
            f"{', a larger eval_size' * (validation < len(corpus.validation))} or a longer text"
        )
    starts = chunk_starts(validation, length)
    carried = functools.partial(carried_evaluation, characters, streams=config.data.eval_streams)
    rate = config.optimizer.learning_rate or LEARNING_RATES[config.model.rnn_type]
    return Task(
        name=f"{name} on {config.data.title(corpus)}",
        init=characters.init,
        optimizer=config.optimizer.build(rate),
        loss=loss,
        data=texts["train"],
        epoch_indices=lambda key: shuffled_chunks(
            key, len(texts["train"]), length, batch_size, augment=config.data.augment
        ),
        metric="bpc",
        to_metric=lambda nats: nats / math.log(2),
        validation=Evaluation(
            evaluation_loss, texts["validation"], pad_rows(starts, config.data.eval_batch_size)
        ),
        test_evaluations={
            "validation_carried": carried(texts["validation"]),
            "test": carried(texts["test"]),
        },
        data_sha256=corpus.sha256,
        metadata={
            "corpus": corpus.name,
            "vocabulary": corpus.vocab_size,
            "characters": {split: len(text) for split, text in texts.items()},
        },
    )
