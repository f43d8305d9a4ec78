"""Word-level Penn Treebank (Krueger et al. 2017, section 4.1).

    python -m experiments.word_ptb --preset=repository --z_prob_cells=0.5 --z_prob_states=0.05
    python -m experiments.word_ptb --dropout=0.65 --z_prob_cells=0.25 --z_prob_states=0.025

An LSTM predicts the next word, out of 10,000 words. The metric is perplexity. The paper reports, as
validation / test: LSTM 120.7 / 114.5, recurrent dropout 91.6 / 87.0, dropout on the non-recurrent
connections (Zaremba et al. 2014) 82.2 / 78.4, this dropout with zoneout 81.4 / 77.4.

Settings of the paper or, where it is silent, of Zaremba et al. (preset `paper`): two layers of 1500
units; all weights uniform within ±0.04; sequences of 35 words in batches of 20; SGD with learning
rate 1, divided by 1.15 in each epoch from the 16th on; gradients clipped to norm 10; 55 epochs. The
gradient is of the loss summed over the words of a sequence and averaged over the batch. Settings of
the authors' code (preset `repository`): one layer of 256 units, whose input matrix has a row for
every word; the loss averaged over all words; Adam with learning rate 0.002, its update clipped to
norm 10.

The text is cut into as many streams as a batch has sequences. Each batch starts from the states at
the end of the previous batch. At the end of an epoch each stream takes over the state of the
previous stream, whose text ends where its own text begins.

Metrics: `validation_perplexity` and `test_perplexity`, with the state carried over the whole text.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from experiments.lib.experiment import Experiment, Row
from experiments.lib.language_model import LanguageModelConfig, check_steps
from experiments.lib.texts import carried_evaluation
from experiments.lib.words import (
    WordModelConfig,
    WordOptimizerConfig,
    WordRegularizerConfig,
    WordTextConfig,
    model,
)
from zoneout_jax.data import gather, stream_chunks
from zoneout_jax.training import AXIS, RunConfig, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageModelConfig):
    """Settings of the experiment; the defaults are the paper's without regularization."""

    preset: Literal["paper", "repository", "laptop", "smoke"] = "paper"
    model: WordModelConfig = WordModelConfig(hidden_features=1500, num_layers=2)
    regularizers: WordRegularizerConfig = WordRegularizerConfig()
    optimizer: WordOptimizerConfig = WordOptimizerConfig(
        algorithm="sgd", learning_rate=1.0, clip_norm=10.0
    )
    data: WordTextConfig = WordTextConfig()
    run: RunConfig = RunConfig(epochs=55, patience=55, batch_size=20)

    def __post_init__(self):
        super().__post_init__()
        check_steps(self, self.data.seq_length)


PAPER = Config()
REPOSITORY = PAPER.replace(
    preset="repository",
    num_layers=1,
    hidden_features=256,
    embedding=False,
    init_width=0.1,
    algorithm="adam",
    learning_rate=2e-3,
    lr_decay=1.0,
    sum_over_steps=False,
    clip_by="update",
)
LAPTOP = REPOSITORY.replace(
    preset="laptop",
    dataset="stdlib",
    train_size=40_000,
    eval_size=10_000,
    hidden_features=128,
    epochs=12,
)
SMOKE = REPOSITORY.replace(
    preset="smoke",
    dataset="stdlib",
    train_size=1_000,
    eval_size=300,
    hidden_features=8,
    seq_length=10,
    batch_size=8,
    eval_streams=8,
    epochs=2,
)


def perplexity(nats: float) -> float:
    """Converts a mean cross entropy to exp(nats); infinity if that overflows after a divergence."""
    return math.exp(nats) if nats < 700 else math.inf


def build(config: Config) -> Task:
    """Makes the task for `zoneout_jax.training.fit`."""
    corpus = config.data.corpus
    texts = config.data.split(corpus)
    length, batch_size = config.data.seq_length, config.run.batch_size
    # The last symbol is a target only.
    starts = stream_chunks(len(texts["train"]) - 1, length, batch_size)
    words = model(config, corpus)

    def loss(params, state, batch, key):
        """Continues from the carry `[batch_size, H]` of all streams; a device has some of them."""
        streams = len(batch.indices)
        first = jax.lax.axis_index(AXIS) * streams
        mine = jax.tree.map(
            lambda c: jax.lax.dynamic_slice_in_dim(c, first, streams), state["carry"]
        )
        tokens = gather(batch.data, batch.indices, length + 1)
        weights = jnp.ones((length, streams))
        mode = {"key": key, "axis_name": AXIS, "rates": state.get("rates")}
        sums, mine = words.sums(params, tokens[:-1], tokens[1:], weights, mine, **mode)
        return sums, state | {"carry": jax.lax.all_gather(mine, AXIS, tiled=True)}

    def end_epoch(state, metrics, key):
        del metrics, key
        carry = jax.tree.map(lambda c: jnp.roll(c, 1, 0), state.model_state["carry"])
        return state._replace(model_state=state.model_state | {"carry": carry})

    optimizer = config.optimizer.build(config.optimizer.schedule(len(starts)))
    if config.optimizer.sum_over_steps:
        optimizer = optax.chain(optax.scale(length), optimizer)
    carried = functools.partial(carried_evaluation, words, streams=config.data.eval_streams)
    return Task(
        name=f"word_ptb on {config.data.title(corpus)}",
        init=words.init,
        optimizer=optimizer,
        loss=loss,
        data=texts["train"],
        epoch_indices=lambda key: jnp.asarray(starts),
        metric="perplexity",
        to_metric=perplexity,
        validation=carried(texts["validation"]),
        test_evaluations={"test": carried(texts["test"])},
        model_state=lambda params: {"carry": words.initial_carry(params, batch_size)},
        end_epoch=end_epoch,
        data_sha256=corpus.sha256,
        metadata={
            "corpus": corpus.name,
            "vocabulary": corpus.vocab_size,
            "words": {split: len(text) for split, text in texts.items()},
        },
    )


_DROPOUT = "--dropout=0.65"
_README = ("--z_prob_cells=0.5", "--z_prob_states=0.05")
ROWS = {
    "LSTM": Row((), 120.7, 114.5),
    "recurrent dropout": Row(("--drop_prob_igates=0.25",), 91.6, 87.0),
    "dropout": Row((_DROPOUT,), 82.2, 78.4),
    "dropout + zoneout": Row(
        (_DROPOUT, "--z_prob_cells=0.25", "--z_prob_states=0.025"), 81.4, 77.4
    ),
    "dropout + zoneout as in the README": Row((_DROPOUT, *_README)),
    "zoneout as in the README": Row(_README),
}
EXPERIMENT = Experiment(
    name="word_ptb",
    about="Word-level Penn Treebank.",
    presets={"paper": PAPER, "repository": REPOSITORY, "laptop": LAPTOP, "smoke": SMOKE},
    build=build,
    rows=ROWS,
    preset_rows={"paper": tuple(ROWS)[:5]}
    | {name: ("LSTM", "zoneout as in the README") for name in ("repository", "laptop", "smoke")},
    metrics=("validation_perplexity", "test_perplexity"),
    published_on="the Penn Treebank, with the paper's settings",
    model=model,
)

if __name__ == "__main__":
    EXPERIMENT.main()
