"""Word-level Penn Treebank (Krueger et al. 2017, section 4.1).

    python -m experiments.word_ptb --preset=repository --z_prob_cells=0.5 --z_prob_states=0.05
    python -m experiments.word_ptb --dropout=0.65 --z_prob_cells=0.25 --z_prob_states=0.025

An LSTM predicts the next of 10,000 words; the figure is perplexity. The paper reports, validation /
test: LSTM 120.7 / 114.5, recurrent dropout 91.6 / 87.0, dropout on the non-recurrent connections
(Zaremba et al. 2014) 82.2 / 78.4, zoneout on top of that 81.4 / 77.4.

Settings of the paper (preset `paper`; where it is silent, Zaremba's): two layers of 1500 units, all
weights uniform within ±0.04, sequences of 35 words in batches of 20, SGD at rate 1, divided by 1.15
in each epoch from the 16th on, gradients clipped to norm 10, 55 epochs; the gradient is that of the
loss summed over the words of a sequence and averaged over the batch. Of the authors' code (preset
`repository`): one layer of 256 units whose input matrix has a row for every word, the mean over all
words, Adam at 0.002, its update clipped to norm 10.

The text is cut into as many streams as a batch has sequences. The state at the end of a batch is
where the next one begins, and at the end of an epoch each stream takes over that of the stream
before it, whose text ends where its own begins.

Figures: `validation_perplexity` and `test_perplexity`, with the state carried over the whole text.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.language_model import LanguageModel, language_model, make_optimizer
from experiments.texts import TextConfig, beside, carried_evaluation, split_texts
from zoneout_jax.data import Corpus, gather, load_corpus, stream_plan
from zoneout_jax.training import AXIS, Count, DropRate, Positive, Range, Task, launch, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TextConfig):
    """Settings of the experiment; the defaults are the paper's without regularization."""

    preset: Literal["paper", "repository", "laptop", "smoke"] = "paper"
    """Settings to start from; a flag given by hand beats them."""
    epochs: Count = 55
    """Epochs at most."""
    patience: Count = 55
    """Stop after so many epochs without a better validation figure."""
    batch_size: Count = 20
    """Streams of text, over all devices."""
    hidden_features: Count = 1500
    """Units of a layer, and features of an embedding."""
    num_layers: Annotated[int, Range(1, 100)] = 2
    """Layers."""
    seq_length: Count = 35
    """Words of a stream in a batch."""
    init_width: Positive | None = 0.04
    """Weights start uniform within ± this."""
    algorithm: Literal["adam", "rms_prop", "momentum", "sgd"] = "sgd"
    """Optimizer."""
    learning_rate: Positive = 1.0
    """Step size."""
    decrease_lr_after_epoch: Count = 14
    """The step size falls at the end of each epoch after this one, as in the authors' code: with
    14, epoch 16 is the first slower one."""
    lr_decay: Positive = 1.15
    """What it is divided by each time."""
    sum_over_steps: bool = True
    """The gradient is of the loss summed over the words of a sequence, otherwise of their mean."""
    clip_norm: Positive | None = 10.0
    """Largest global norm; None for any."""
    dropout: DropRate = 0.0
    """Dropout on the non-recurrent connections."""
    embedding: bool = True
    """Words are embedded; otherwise each has a row of the first layer's input matrix."""
    tied: bool = False
    """The embedding is also the kernel of the output layer."""
    eval_streams: Count = 20
    """Parts that a text is cut into to carry the state over them side by side, each after a
    warm-up on the words before it; 1 carries it over the text in one piece."""

    def __post_init__(self):
        super().__post_init__()
        if self.tied and not self.embedding:
            raise ValueError("tied weights need an embedding: leave out tied, or give --embedding")


_REPOSITORY = Config(
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
PRESETS = {
    "paper": Config(),
    "repository": _REPOSITORY,
    "laptop": dataclasses.replace(
        _REPOSITORY,
        preset="laptop",
        dataset="stdlib",
        train_size=40_000,
        eval_size=10_000,
        hidden_features=128,
        epochs=12,
    ),
    "smoke": dataclasses.replace(
        _REPOSITORY,
        preset="smoke",
        dataset="stdlib",
        train_size=1_000,
        eval_size=300,
        hidden_features=8,
        seq_length=10,
        batch_size=8,
        eval_streams=8,
        epochs=2,
    ),
}

_DROPOUT = "--dropout=0.65"
ROWS = {
    "LSTM": ((), {"validation_perplexity": 120.7, "test_perplexity": 114.5}),
    "recurrent dropout": (
        ("--drop_prob_igates=0.25",),
        {"validation_perplexity": 91.6, "test_perplexity": 87.0},
    ),
    "dropout": ((_DROPOUT,), {"validation_perplexity": 82.2, "test_perplexity": 78.4}),
    "dropout + zoneout": (
        (_DROPOUT, "--z_prob_cells=0.25", "--z_prob_states=0.025"),
        {"validation_perplexity": 81.4, "test_perplexity": 77.4},
    ),
    "dropout + zoneout as in the README": (
        (_DROPOUT, "--z_prob_cells=0.5", "--z_prob_states=0.05"),
        {},
    ),
    "zoneout as in the README": (("--z_prob_cells=0.5", "--z_prob_states=0.05"), {}),
}
"""Rows of the paper's table: flags and published figures."""

PRESET_ROWS = {"paper": tuple(ROWS)[:5]} | {
    preset: ("LSTM", "zoneout as in the README") for preset in ("repository", "laptop", "smoke")
}
"""Rows that a preset is for."""

PUBLISHED_ON = "the Penn Treebank, with the paper's settings"

FIGURES = ("validation_perplexity", "test_perplexity")
"""Figures to tabulate."""


def load(config: Config) -> Corpus:
    """The corpus."""
    folders = {"raw_data_dir": config.raw_data_dir, "data_dir": config.data_dir}
    return load_corpus(config.dataset, unit="word", **folders)


def model(config: Config, corpus: Corpus) -> LanguageModel:
    """The model: words embedded or looked up, initial states of zero."""
    return language_model(
        config,
        corpus.vocab_size,
        embedding_features=config.hidden_features if config.embedding else None,
        looked_up=not config.embedding,
        tied=config.tied,
        init_width=config.init_width,
        learned_carry=False,
        input_drop=config.dropout,
        dropout=config.dropout,
    )


def learning_rate(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """Constant, then divided by `lr_decay` between epochs."""

    def rate(step):
        late = jnp.maximum(step // steps_per_epoch - config.decrease_lr_after_epoch, 0)
        return config.learning_rate / config.lr_decay ** late.astype(jnp.float32)

    return rate


def perplexity(nats: float) -> float:
    """Of a mean cross entropy: its exp, or infinity where that is too large, after a divergence."""
    return math.exp(nats) if nats < 700 else math.inf


def build(config: Config) -> Task:
    """The experiment as a task for `zoneout_jax.training.fit`."""
    corpus = load(config)
    texts = split_texts(config, corpus)
    # The last symbol is a target only.
    plan = stream_plan(len(texts["train"]) - 1, config.seq_length, config.batch_size)
    words = model(config, corpus)

    def loss(params, text, starts, key, carry):
        first = jax.lax.axis_index(AXIS) * len(starts)
        mine = jax.tree.map(lambda c: jax.lax.dynamic_slice_in_dim(c, first, len(starts)), carry)
        tokens = gather(text, starts, config.seq_length + 1)
        weights = jnp.ones((config.seq_length, len(starts)))
        (total, count), mine = words.sums(
            params, tokens[:-1], tokens[1:], weights, mine, key=key, axis_name=AXIS
        )
        return total, count, jax.lax.all_gather(mine, AXIS, tiled=True)

    def end_epoch(state, figures, key):
        del figures, key
        return state._replace(memory=jax.tree.map(lambda c: jnp.roll(c, 1, 0), state.memory))

    optimizer = make_optimizer(config, learning_rate(config, len(plan)))
    if config.sum_over_steps:
        optimizer = optax.chain(optax.scale(config.seq_length), optimizer)

    def carried(text):
        return carried_evaluation(words, text, config.eval_streams)

    return Task(
        name=f"word_ptb on {corpus.name}",
        init=words.init,
        optimizer=optimizer,
        loss=loss,
        data=texts["train"],
        plan=lambda key: jnp.asarray(plan),
        steps_per_epoch=len(plan),
        metric="perplexity",
        figure=perplexity,
        validation=carried(texts["validation"]),
        final={"test": carried(texts["test"])},
        memory=lambda params: words.initial_carry(params, config.batch_size),
        end_epoch=end_epoch,
        facts={
            "corpus": corpus.name,
            "vocabulary": corpus.vocab_size,
            "words": {split: len(text) for split, text in texts.items()},
        },
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment and prints our figures beside the paper's."""
    result = launch("word_ptb", PRESETS, build, "Word-level Penn Treebank.", argv)
    print(
        f"{result['name']}: perplexity {shown(result, 'validation_perplexity')} validation, "
        f"{shown(result, 'test_perplexity')} test, of epoch {result['best_epoch']:g}"
        + beside(result, "LSTM 120.7 / 114.5, dropout 82.2 / 78.4, dropout + zoneout 81.4 / 77.4")
    )


if __name__ == "__main__":
    main()
