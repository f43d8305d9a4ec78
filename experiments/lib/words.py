"""Settings and model of `experiments.word_ptb`."""

import dataclasses
from typing import Any, ClassVar, Literal

import optax

from experiments.lib.language_model import LanguageModel, language_model
from experiments.lib.settings import ModelConfig, OptimizerConfig, RegularizerConfig
from experiments.lib.texts import TextConfig
from zoneout_jax.data import Corpus
from zoneout_jax.training import Count, DropRate, Positive


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordModelConfig(ModelConfig):
    """Settings of the layers."""

    init_width: Positive | None = 0.04
    """Initial weights are uniform within ± this."""
    embedding: bool = True
    """On: embed the words. Off: each word has a row in the first layer's input matrix."""
    tied: bool = False
    """Use the embedding as the kernel of the output layer, too."""

    def __post_init__(self):
        super().__post_init__()
        if self.tied and not self.embedding:
            raise ValueError("tied weights need an embedding: leave out tied, or give --embedding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordRegularizerConfig(RegularizerConfig):
    """Regularizers other than masks."""

    dropout: DropRate = 0.0
    """Rate of dropout on the non-recurrent connections."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordOptimizerConfig(OptimizerConfig):
    """The optimizer and the decay of its learning rate."""

    decrease_lr_after_epoch: Count = 14
    """The learning rate falls at the end of each epoch after this one, as in the authors' code;
    with 14, epoch 16 is the first with a lower rate."""
    lr_decay: Positive = 1.15
    """Divisor of the learning rate each time it falls."""
    sum_over_steps: bool = True
    """On: the gradient is of the sum of the loss over the words of a sequence. Off: of the mean."""

    def __post_init__(self):
        super().__post_init__()
        after = self.decrease_lr_after_epoch
        if self.lr_decay == 1 and after != WordOptimizerConfig.decrease_lr_after_epoch:
            raise ValueError(
                "decrease_lr_after_epoch has no effect with lr_decay 1: leave it out, or give "
                "--lr_decay"
            )

    def schedule(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate: constant at first, then divided by `lr_decay` each epoch."""
        return optax.exponential_decay(
            self.learning_rate,
            transition_steps=steps_per_epoch,
            decay_rate=1 / self.lr_decay,
            transition_begin=self.decrease_lr_after_epoch * steps_per_epoch,
            staircase=True,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordTextConfig(TextConfig):
    """Settings of the text."""

    seq_length: Count = 35
    """Words of each stream in a batch."""
    eval_streams: Count = 20
    """Parts of a text that are evaluated in parallel, each after a warm-up on the words before it;
    1 evaluates the text in one piece."""

    unit: ClassVar[Literal["char", "word"]] = "word"


def model(config: Any, corpus: Corpus) -> LanguageModel:
    """Makes the model: words embedded or looked up, initial states of zero."""
    settings, dropout = config.model, config.regularizers.dropout
    return language_model(
        config,
        corpus.vocab_size,
        encoding="embedding" if settings.embedding else "rows",
        tied=settings.tied,
        init_width=settings.init_width,
        learned_carry=False,
        input_drop=dropout,
        dropout=dropout,
    )
