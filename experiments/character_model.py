"""What the character-level experiments share: sequences that are chunks of a text."""

import dataclasses
import functools
import math

import jax.numpy as jnp

from experiments.language_model import LanguageModel, language_model, make_optimizer
from experiments.texts import TextConfig, carried_evaluation, split_texts
from zoneout_jax.data import Corpus, chunk_starts, epoch_plan, gather, pad_rows, steps_per_epoch
from zoneout_jax.training import AXIS, Count, DropRate, Evaluation, Task

SMALLER = {
    "laptop": {
        "dataset": "stdlib",
        "train_size": 40_000,
        "eval_size": 20_000,
        "hidden_features": 256,
        "seq_length": 50,
        "batch_size": 16,
        "learning_rate": 4e-3,
        "clip_by": "gradient",
        "epochs": 40,
        "patience": 6,
    },
    "smoke": {
        "dataset": "stdlib",
        "train_size": 2_000,
        "eval_size": 500,
        "hidden_features": 16,
        "seq_length": 20,
        "batch_size": 8,
        "eval_batch_size": 8,
        "eval_streams": 8,
        "epochs": 2,
    },
}
"""Settings of the presets that need no files."""

FIGURES = ("validation_bpc", "validation_carried_bpc", "test_bpc")
"""Figures to tabulate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CharacterConfig(TextConfig):
    """Settings of a character-level experiment."""

    augment: bool = True
    """Cut the training text into sequences at another offset in each epoch."""
    input_drop: DropRate = 0.0
    """Probability that the model does not see an input symbol, in training."""
    eval_batch_size: Count = 64
    """Chunks evaluated at once."""

    def __post_init__(self):
        super().__post_init__()
        if self.norm_cost_coeff and self.seq_length < 3:
            raise ValueError(
                "norm_cost_coeff is about changes between predictions: seq_length must be at "
                f"least 3, got {self.seq_length}"
            )


def character_model(config: CharacterConfig, vocab_size: int) -> LanguageModel:
    """The model: one-hot characters, learned initial states."""
    return language_model(config, vocab_size, input_drop=config.input_drop)


def character_task(
    config: CharacterConfig, corpus: Corpus, name: str, learning_rate: float
) -> Task:
    """Training on shuffled chunks, each from the initial state; figures in bits per character.

    Validation is over chunks as well; `validation_carried` and `test` carry the state over the
    whole text.

    Args:
      config: settings.
      corpus: characters.
      name: of the experiment.
      learning_rate: step size.
    """
    texts = split_texts(config, corpus)
    size = (config.seq_length, config.batch_size)
    model = character_model(config, corpus.vocab_size)

    def sequence_loss(params, text, starts, **mode):
        tokens = gather(text, starts, config.seq_length)
        inputs, targets = tokens[:-1], tokens[1:]
        weights = jnp.broadcast_to((starts >= 0).astype(jnp.float32), targets.shape)
        return model.sums(params, inputs, targets, weights, **mode)[0]

    def loss(params, text, starts, key):
        return sequence_loss(params, text, starts, key=key, axis_name=AXIS)

    def chunks(text):
        starts = pad_rows(chunk_starts(len(text), config.seq_length), config.eval_batch_size)
        return Evaluation(functools.partial(sequence_loss, deterministic=True), text, starts)

    def carried(text):
        return carried_evaluation(model, text, config.eval_streams)

    return Task(
        name=f"{name} on {corpus.name}",
        init=model.init,
        optimizer=make_optimizer(config, learning_rate),
        loss=loss,
        data=texts["train"],
        plan=lambda key: epoch_plan(key, len(texts["train"]), *size, augment=config.augment),
        steps_per_epoch=steps_per_epoch(len(texts["train"]), *size),
        metric="bpc",
        figure=lambda nats: nats / math.log(2),
        validation=chunks(texts["validation"]),
        final={
            "validation_carried": carried(texts["validation"]),
            "test": carried(texts["test"]),
        },
        facts={
            "corpus": corpus.name,
            "vocabulary": corpus.vocab_size,
            "characters": {split: len(text) for split, text in texts.items()},
        },
    )
