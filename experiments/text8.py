"""text8 (Krueger et al. 2017, section 4.2).

    python -m experiments.text8                                           # baseline
    python -m experiments.text8 --z_prob_cells=0.5 --z_prob_states=0.05   # zoneout, paper's text
    python -m experiments.text8 --preset=repository --z_prob_cells=0.2 --z_prob_states=0.2

An LSTM predicts the next of 27 characters of Wikipedia text, in bits per character (BPC). The paper
reports, validation / test: LSTM 1.396 / 1.408, weight noise 1.356 / 1.367, norm stabilizer 1.382 /
1.398, stochastic depth 1.337 / 1.343, recurrent dropout 1.409 / 1.358 (a later version: 1.386 /
1.401), zoneout 1.331 / 1.336.

Settings of the paper: 2000 units, weights of square orthogonal tiles, sequences of 180 characters,
batches of 128, Adam at 0.001, gradients clipped to norm 1, early stopping; the first 90 million
characters are for training, 5 and 5 million for validation and test. Of the authors' code (preset
`repository`): 1000 units, batches of 32, Adam at 0.002, its update clipped to norm 1.

Figures: as of `experiments.char_ptb`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from experiments.character_model import FIGURES as FIGURES
from experiments.character_model import (
    SMALLER,
    CharacterConfig,
    character_model,
    character_task,
)
from experiments.language_model import LanguageModel
from experiments.texts import beside
from zoneout_jax.data import Corpus, load_corpus
from zoneout_jax.training import Count, Positive, Range, Task, launch, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CharacterConfig):
    """Settings of the experiment; the defaults are the paper's baseline."""

    preset: Literal["paper", "repository", "laptop", "smoke"] = "paper"
    """Settings to start from; a flag given by hand beats them."""
    dataset: str = "text8"
    """Corpus: text8; text8_like, other Wikipedia text in its form; stdlib, which needs no files; or
    the path of a text file of your own (UTF-8; its first 90 % train, 5 % validate, 5 % test)."""
    hidden_features: Count = 2000
    """Units of a layer."""
    seq_length: Annotated[int, Range(2)] = 180
    """Characters in a sequence; one less is predicted."""
    batch_size: Count = 128
    """Examples in a batch, over all devices."""
    learning_rate: Positive = 1e-3
    """Step size."""

    corpora: ClassVar[tuple[str, ...]] = ("text8", "text8_like", "stdlib")


PRESETS = {
    "paper": Config(),
    "repository": Config(
        preset="repository",
        hidden_features=1000,
        batch_size=32,
        learning_rate=2e-3,
        clip_by="update",
    ),
    **{name: Config(preset=name, **settings) for name, settings in SMALLER.items()},
}

ROWS = {
    "LSTM": ((), {"validation_bpc": 1.396, "test_bpc": 1.408}),
    "weight noise": (("--weight_noise=0.075",), {"validation_bpc": 1.356, "test_bpc": 1.367}),
    "norm stabilizer": (("--norm_cost_coeff=50",), {"validation_bpc": 1.382, "test_bpc": 1.398}),
    "stochastic depth": (
        ("--z_prob_cells=0.05", "--z_prob_states=0.05", "--stoch_depth", "--share_mask"),
        {"validation_bpc": 1.337, "test_bpc": 1.343},
    ),
    "recurrent dropout": (
        ("--drop_prob_igates=0.5",),
        {"validation_bpc": 1.409, "test_bpc": 1.358},
    ),
    "zoneout": (
        ("--z_prob_cells=0.5", "--z_prob_states=0.05"),
        {"validation_bpc": 1.331, "test_bpc": 1.336},
    ),
    "zoneout as in the README": (("--z_prob_cells=0.2", "--z_prob_states=0.2"), {}),
}
"""Rows of the paper's table: flags and published figures."""

PRESET_ROWS = {
    "paper": tuple(ROWS)[:6],
    "repository": tuple(name for name in ROWS if name not in ("stochastic depth", "zoneout")),
    "laptop": ("LSTM", "zoneout"),
    "smoke": ("LSTM", "zoneout"),
}
"""Rows that a preset is for: the paper's, those of the authors' README, or two."""

PUBLISHED_ON = "text8"


def load(config: Config) -> Corpus:
    """The corpus."""
    return load_corpus(
        config.dataset,
        unit="text8" if config.dataset == "stdlib" else "char",
        raw_data_dir=config.raw_data_dir,
        data_dir=config.data_dir,
    )


def model(config: Config, corpus: Corpus) -> LanguageModel:
    """The model."""
    return character_model(config, corpus.vocab_size)


def build(config: Config) -> Task:
    """The experiment as a task for `zoneout_jax.training.fit`."""
    return character_task(config, load(config), "text8", config.learning_rate)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment and prints our figures beside the paper's."""
    result = launch("text8", PRESETS, build, "text8.", argv)
    print(
        f"{result['name']}: validation {shown(result, 'validation_bpc')} BPC (carried "
        f"{shown(result, 'validation_carried_bpc')}), test {shown(result, 'test_bpc')} after "
        f"{result['epochs']:g} epochs{beside(result, 'LSTM 1.396 / 1.408, zoneout 1.331 / 1.336')}"
    )


if __name__ == "__main__":
    main()
