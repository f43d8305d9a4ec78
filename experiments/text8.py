"""text8 (Krueger et al. 2017, section 4.2).

    python -m experiments.text8                                           # baseline
    python -m experiments.text8 --z_prob_cells=0.5 --z_prob_states=0.05   # zoneout, paper's text
    python -m experiments.text8 --preset=repository --z_prob_cells=0.2 --z_prob_states=0.2

An LSTM predicts the next character of Wikipedia text, out of 27 characters. The metric is bits per
character (BPC). The paper reports, as validation / test: LSTM 1.396 / 1.408, weight noise 1.356 /
1.367, norm stabilizer 1.382 / 1.398, stochastic depth 1.337 / 1.343, recurrent dropout 1.409 /
1.358 (a later version: 1.386 / 1.401), zoneout 1.331 / 1.336.

Settings of the paper: 2000 units, weights of square orthogonal tiles, sequences of 180 characters,
batches of 128, Adam with learning rate 0.001, gradients clipped to norm 1, early stopping; the
first 90 million characters for training, 5 million for validation and 5 million for test. Settings
of the authors' code (preset `repository`): 1000 units, batches of 32, Adam with learning rate
0.002, its update clipped to norm 1.

The metrics are those of `experiments.char_ptb`.
"""

import dataclasses
import functools
from typing import ClassVar, Literal

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
class Text8Config(CharacterTextConfig):
    """Settings of the text."""

    dataset: str = "text8"
    """Corpus: text8; text8_like, other Wikipedia text in the same form; stdlib, which needs no
    files; or the path of your own UTF-8 text file (90 % training, 5 % validation, 5 % test)."""

    corpora: ClassVar[tuple[str, ...]] = ("text8", "text8_like", "stdlib")

    def load(self) -> Corpus:
        """Loads the corpus."""
        unit = "text8" if self.dataset == "stdlib" else "char"
        return load_corpus(self.dataset, unit=unit, **self.folders())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CharacterConfig):
    """Settings of the experiment; the defaults are the paper's baseline."""

    preset: Literal["paper", "repository", "laptop", "smoke"] = "paper"
    model: ModelConfig = ModelConfig(hidden_features=2000)
    optimizer: CharacterOptimizerConfig = CharacterOptimizerConfig(learning_rate=1e-3)
    data: Text8Config = Text8Config(seq_length=180)
    run: RunConfig = RunConfig(batch_size=128)


PAPER = Config()
REPOSITORY = PAPER.replace(
    preset="repository", hidden_features=1000, batch_size=32, learning_rate=2e-3, clip_by="update"
)
PRESETS = {
    "paper": PAPER,
    "repository": REPOSITORY,
    "laptop": PAPER.replace(**characters.LAPTOP),
    "smoke": PAPER.replace(**characters.SMOKE),
}

ROWS = {
    "LSTM": Row((), 1.396, 1.408),
    "weight noise": Row(("--weight_noise=0.075",), 1.356, 1.367),
    "norm stabilizer": Row(("--norm_cost_coeff=50",), 1.382, 1.398),
    "stochastic depth": Row(
        ("--z_prob_cells=0.05", "--z_prob_states=0.05", "--stoch_depth", "--share_mask"),
        1.337,
        1.343,
    ),
    "recurrent dropout": Row(("--drop_prob_igates=0.5",), 1.409, 1.358),
    "zoneout": Row(("--z_prob_cells=0.5", "--z_prob_states=0.05"), 1.331, 1.336),
    "zoneout as in the README": Row(("--z_prob_cells=0.2", "--z_prob_states=0.2")),
}
EXPERIMENT = Experiment(
    name="text8",
    about="text8.",
    presets=PRESETS,
    build=functools.partial(characters.build, name="text8"),
    rows=ROWS,
    preset_rows={
        "paper": tuple(ROWS)[:6],
        "repository": tuple(name for name in ROWS if name not in ("stochastic depth", "zoneout")),
        "laptop": ("LSTM", "zoneout"),
        "smoke": ("LSTM", "zoneout"),
    },
    metrics=characters.METRICS,
    published_on="text8",
    model=characters.model,
)

if __name__ == "__main__":
    EXPERIMENT.main()
