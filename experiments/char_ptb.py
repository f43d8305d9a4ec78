"""Character-level Penn Treebank (Krueger et al. 2017, section 4.1).

    python -m experiments.char_ptb                                          # baseline
    python -m experiments.char_ptb --z_prob_cells=0.5 --z_prob_states=0.05  # zoneout

An LSTM of 1000 units predicts the next character. The metric is bits per character (BPC). The paper
reports, as validation / test: baseline 1.466 / 1.356, zoneout 1.362 / 1.27. A later version has
test 1.252 for zoneout, and 1.396 / 1.286 instead of 1.358 / 1.321 for recurrent dropout.

Settings, from the paper or, where it is silent, from the authors' code: one-hot input; weights of
square orthogonal tiles; forget bias 1; learned initial state; non-overlapping sequences of 100
characters (99 predictions each), cut at a new random offset in each epoch and shuffled; batches of
32; Adam with learning rate 0.002, its update clipped to norm 1; early stopping after 25 epochs
without a better validation. The line ends of the text (`rbn`) and the clipping of the update are
those of the authors' code; the paper says that gradients are clipped. With both, the learning
curves follow the authors' log up to the seed (`experiments.authors_log`).

Metrics: `validation_bpc` is over chunks of 100, each from the initial state, as in the paper's
validation. `validation_carried_bpc` and `test_bpc` carry the state over the whole text. The paper
seems to test in this way, as its test values are better than its validation values.
"""

import dataclasses
import functools
from typing import Literal

from experiments.lib import characters
from experiments.lib.characters import (
    CharacterConfig,
    CharacterOptimizerConfig,
    CharacterTextConfig,
)
from experiments.lib.experiment import Experiment, Row
from experiments.lib.settings import ModelConfig
from zoneout_jax.data import Corpus, load_corpus
from zoneout_jax.training import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PtbTextConfig(CharacterTextConfig):
    """Settings of the text."""

    char_convention: Literal["mikolov", "rbn"] = "rbn"
    """Line ends of ptb: a newline (mikolov), or a space and a newline (rbn)."""

    def __post_init__(self):
        super().__post_init__()
        if self.char_convention != PtbTextConfig.char_convention and self.dataset != "ptb":
            raise ValueError(
                f"char_convention is for dataset ptb only, got {self.dataset}; leave it out"
            )

    def load(self) -> Corpus:
        """Loads the corpus."""
        return load_corpus(self.dataset, convention=self.char_convention, **self.folders())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CharacterConfig):
    """Settings of the experiment; the defaults are the paper's baseline."""

    preset: Literal["paper", "small", "laptop", "smoke"] = "paper"
    model: ModelConfig = ModelConfig(rnn_type="LSTM", hidden_features=1000)
    optimizer: CharacterOptimizerConfig = CharacterOptimizerConfig(
        algorithm="adam", clip_norm=1.0, clip_by="update"
    )
    data: PtbTextConfig = PtbTextConfig(seq_length=100)
    run: RunConfig = RunConfig(batch_size=32, epochs=200, patience=25)


PAPER = Config()
SMALL = PAPER.replace(  # two minutes on a CPU; so little text that the LSTM overfits
    preset="small",
    train_size=250_000,
    eval_size=50_000,
    hidden_features=256,
    seq_length=50,
    batch_size=16,
    learning_rate=4e-3,
    clip_by="gradient",
    epochs=20,
)
PRESETS = {
    "paper": PAPER,
    "small": SMALL,
    "laptop": PAPER.replace(**characters.LAPTOP),
    "smoke": PAPER.replace(**characters.SMOKE),
}

ROWS = {
    "LSTM": Row((), 1.466, 1.356),
    "weight noise": Row(("--weight_noise=0.075",), 1.507, 1.344),
    "norm stabilizer": Row(("--norm_cost_coeff=50",), 1.459, 1.352),
    "stochastic depth": Row(
        ("--z_prob_cells=0.05", "--z_prob_states=0.05", "--stoch_depth", "--share_mask"),
        1.432,
        1.343,
    ),
    # The paper has one row, with rate 0.7. In the authors' code this is the probability of keeping,
    # so 0.3 is dropped.
    "recurrent dropout 0.3": Row(("--drop_prob_igates=0.3",), 1.358, 1.321),
    "recurrent dropout 0.7": Row(("--drop_prob_igates=0.7",), 1.358, 1.321),
    "zoneout": Row(("--z_prob_cells=0.5", "--z_prob_states=0.05"), 1.362, 1.27),
    # For the GRU and the plain RNN the paper gives rates from 0.05 to 0.25; 0.15 is the middle.
    "GRU": Row(("--rnn_type=GRU",), 1.53),
    "GRU + zoneout": Row(("--rnn_type=GRU", "--z_prob_states=0.15"), 1.41),
    "plain RNN": Row(("--rnn_type=SRNN",), 1.67),
    "plain RNN + zoneout": Row(("--rnn_type=SRNN", "--z_prob_states=0.15"), 1.52),
}
EXPERIMENT = Experiment(
    name="char_ptb",
    about="Character-level Penn Treebank.",
    presets=PRESETS,
    build=functools.partial(characters.build, name="char_ptb"),
    rows=ROWS,
    preset_rows={
        "small": tuple(ROWS)[:7],
        "laptop": ("LSTM", "zoneout"),
        "smoke": ("LSTM", "zoneout"),
    },
    metrics=characters.METRICS,
    published_on="the full Penn Treebank",
    model=characters.model,
)

if __name__ == "__main__":
    EXPERIMENT.main()
