"""Character-level Penn Treebank (Krueger et al. 2017, section 4.1).

    python -m experiments.char_ptb                                          # baseline
    python -m experiments.char_ptb --z_prob_cells=0.5 --z_prob_states=0.05  # zoneout

An LSTM of 1000 units predicts the next character, in bits per character (BPC). The paper reports,
validation / test: baseline 1.466 / 1.356, zoneout 1.362 / 1.27 (a later version: test 1.252).

Settings (paper; where it is silent, the authors' code): one-hot input, orthogonal weights, forget
bias 1, learned initial state; non-overlapping sequences of 100 characters, hence 99 predictions
each, from an offset that each epoch draws anew, shuffled, in batches of 32; Adam at 0.002 with the
gradient clipped to norm 1; up to 25 epochs without a better validation figure.

Figures: `validation_bpc` over chunks of 100, each from the initial state, as the paper validates;
`validation_carried_bpc` and `test_bpc` with the state carried over the whole text, as it tests.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.language_model import carried_evaluation, cross_entropy_sum, readout_init
from zoneout_jax import Zoneout, lstm, unroll
from zoneout_jax.data import epoch_plan, gather, load_corpus, pad_rows, steps_per_epoch
from zoneout_jax.data.batching import chunk_starts
from zoneout_jax.training import (
    AXIS,
    Count,
    Evaluation,
    Positive,
    Probability,
    Range,
    RunConfig,
    Task,
    launch,
    shown,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """Settings of the experiment; the defaults are the paper's baseline."""

    dataset: Literal["ptb", "stdlib"] = "ptb"
    """Corpus: ptb, or stdlib, which needs no files."""
    char_convention: Literal["mikolov", "rbn"] = "mikolov"
    """How a line of ptb ends: with a newline, or with a blank and a newline."""
    train_size: Count | None = None
    """Characters of the training text to use; all by default."""
    eval_size: Count | None = None
    """Characters of the validation and of the test text to use; all by default."""
    hidden_features: Count = 1000
    """Units of the LSTM."""
    seq_length: Annotated[int, Range(2)] = 100
    """Characters in a sequence; one less is predicted."""
    learning_rate: Positive = 2e-3
    """Step size of Adam."""
    clip_norm: Positive = 1.0
    """Largest global norm."""
    clip_by: Literal["gradient", "update"] = "gradient"
    """What is clipped: the gradient before Adam (paper) or Adam's update (authors' code)."""
    z_prob_cells: Probability = 0.0
    """Zoneout: probability that a cell keeps its previous value."""
    z_prob_states: Probability = 0.0
    """Zoneout: probability that a hidden state keeps its previous value."""
    drop_prob_igates: Probability = 0.0
    """Recurrent dropout: probability that the update of a cell is dropped."""
    share_mask: bool = False
    """One mask for cells and states."""
    static_mask: bool = False
    """One mask a sequence instead of one a step."""
    stoch_depth: bool = False
    """One draw for all units of an example (stochastic depth)."""
    gaussian_mask: bool = False
    """Gaussian masks of the Bernoulli's mean and variance."""
    eval_batch_size: Count = 64
    """Chunks evaluated at once."""
    eval_streams: Count = 32
    """Parts that a text is cut into to carry the state over them side by side, each after a
    warm-up on the characters before it; 1 carries it over the text in one piece."""

    def zoneout(self) -> Zoneout:
        """The masks. A rate of 0 costs nothing: none is drawn."""
        return Zoneout(
            cells=self.z_prob_cells or None,
            states=self.z_prob_states or None,
            update_drop=self.drop_prob_igates or None,
            shared=self.share_mask,
            static=self.static_mask,
            per_layer=self.stoch_depth,
            gaussian=self.gaussian_mask,
        )


PRESETS = {
    "paper": Config(),
    "laptop": Config(
        preset="laptop",
        dataset="stdlib",
        train_size=40_000,
        eval_size=20_000,
        hidden_features=256,
        seq_length=50,
        batch_size=16,
        learning_rate=4e-3,
        epochs=40,
        patience=6,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="stdlib",
        train_size=2_000,
        eval_size=500,
        hidden_features=16,
        seq_length=20,
        batch_size=8,
        eval_batch_size=8,
        eval_streams=8,
        epochs=2,
    ),
}

ROWS = {
    "LSTM": ((), {"validation_bpc": 1.466, "test_bpc": 1.356}),
    "stochastic depth": (
        ("--z_prob_cells=0.05", "--z_prob_states=0.05", "--stoch_depth", "--share_mask"),
        {"validation_bpc": 1.432, "test_bpc": 1.343},
    ),
    "recurrent dropout": (
        ("--drop_prob_igates=0.7",),
        {"validation_bpc": 1.358, "test_bpc": 1.321},
    ),
    "zoneout": (
        ("--z_prob_cells=0.5", "--z_prob_states=0.05"),
        {"validation_bpc": 1.362, "test_bpc": 1.27},
    ),
}
"""Rows of the paper's table: flags and published figures."""

QUICK_ROWS = ("LSTM", "zoneout")
"""Rows that the smaller presets are for."""

PUBLISHED_ON = "the full Penn Treebank"

FIGURES = ("validation_bpc", "validation_carried_bpc", "test_bpc")
"""Figures to tabulate."""


def build(config: Config) -> Task:
    """The experiment as a task for `zoneout_jax.training.fit`."""
    corpus = load_corpus(
        config.dataset,
        convention=config.char_convention,
        raw_data_dir=config.raw_data_dir,
        data_dir=config.data_dir,
    )
    texts = {
        "train": corpus.train[: config.train_size],
        "validation": corpus.validation[: config.eval_size],
        "test": corpus.test[: config.eval_size],
    }
    size = (config.seq_length, config.batch_size)
    per_epoch = steps_per_epoch(len(texts["train"]), *size)

    zoneout = config.zoneout()
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    cell = lstm(corpus.vocab_size, config.hidden_features, learned_carry=True, dtype=dtype)

    def init(key):
        cell_key, readout_key = jax.random.split(key)
        readout = readout_init(readout_key, config.hidden_features, corpus.vocab_size)
        return {"lstm": cell.init(cell_key), "readout": readout}

    def sums(params, inputs, targets, weights, carry=None, **mode):
        """(Σ nats, predictions) of symbols [T, B], and the carry after them."""
        xs = jax.nn.one_hot(inputs, corpus.vocab_size)
        carry, ys = unroll(cell, params["lstm"], xs, carry, zoneout=zoneout, **mode)
        return cross_entropy_sum(params["readout"], ys, targets, weights, dtype), carry

    def sequence_loss(params, text, starts, **mode):
        tokens = gather(text, starts, config.seq_length)
        inputs, targets = tokens[:-1], tokens[1:]
        weights = jnp.broadcast_to((starts >= 0).astype(jnp.float32), targets.shape)
        return sums(params, inputs, targets, weights, **mode)[0]

    def loss(params, text, starts, key):
        return sequence_loss(params, text, starts, key=key, axis_name=AXIS)

    def chunks(text):
        starts = pad_rows(chunk_starts(len(text), config.seq_length), config.eval_batch_size)
        return Evaluation(functools.partial(sequence_loss, deterministic=True), text, starts)

    def carried(text):
        return carried_evaluation(
            text,
            config.eval_streams,
            functools.partial(sums, deterministic=True),
            lambda params, batch: cell.initial_carry(params["lstm"], batch),
        )

    clip, adam = optax.clip_by_global_norm(config.clip_norm), optax.adam(config.learning_rate)
    order = (clip, adam) if config.clip_by == "gradient" else (adam, clip)
    return Task(
        name=f"char_ptb on {corpus.name}",
        init=init,
        optimizer=optax.chain(*order),
        loss=loss,
        data=texts["train"],
        plan=lambda key: epoch_plan(key, len(texts["train"]), *size),
        steps_per_epoch=per_epoch,
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


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment and prints our figures beside the paper's."""
    result = launch("char_ptb", PRESETS, build, "Character-level Penn Treebank.", argv)
    print(
        f"{result['name']}: validation {shown(result, 'validation_bpc')} BPC (carried "
        f"{shown(result, 'validation_carried_bpc')}), test {shown(result, 'test_bpc')} after "
        f"{result['epochs']:g} epochs; paper: LSTM 1.466 / 1.356, zoneout 1.362 / 1.27"
    )


if __name__ == "__main__":
    main()
