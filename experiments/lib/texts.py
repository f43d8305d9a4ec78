"""Code that language models share: settings of the text, and evaluation with a carried state."""

import dataclasses
import functools
import os
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.language_model import LanguageModel
from experiments.lib.settings import DataConfig
from zoneout_jax.data import Corpus, cut_split, load_corpus
from zoneout_jax.training import Count, Evaluation, Range

BLOCK = 100
"""Symbols per call of the model while the state is carried."""
WARM_UP = 1000
"""Symbols read before a part of a text to warm up its state; a multiple of BLOCK. With the paper's
model the metrics differ from those of the text in one piece by less than 1e-5 bits per character.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """Settings of the text."""

    dataset: str = "ptb"
    """Corpus: ptb; stdlib, which needs no files; or the path of your own UTF-8 text file (90 %
    training, 5 % validation, 5 % test)."""
    train_size: Count | None = None
    """Number of symbols of the training text; by default all."""
    eval_size: Annotated[int, Range(2)] | None = None
    """Number of symbols of the validation text and of the test text; by default all."""
    seq_length: Annotated[int, Range(2)] = 100
    """Symbols in a training sequence."""
    eval_streams: Count = 32
    """Parts of a text that are evaluated in parallel, each after a warm-up on the symbols before
    it; 1 evaluates the text in one piece."""

    corpora: ClassVar[tuple[str, ...]] = ("ptb", "stdlib")
    unit: ClassVar[Literal["char", "word"]] = "char"

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset in self.corpora or os.path.isfile(os.path.expanduser(self.dataset))):
            raise ValueError(
                f"dataset must be {', '.join(self.corpora)} or a text file, got {self.dataset!r},"
                " which is not a file"
            )

    def load(self) -> Corpus:
        """Loads the corpus."""
        return load_corpus(self.dataset, unit=self.unit, **self.folders())

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus; loaded once."""
        return self.load()

    def split(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """Returns the text of each split, cut to the sizes in the settings.

        A user's text file may be shorter than these sizes.

        Raises:
          ValueError: another corpus is shorter.
        """

        def cut(name, size, text):
            if size is not None and self.dataset not in self.corpora:
                size = min(size, len(text))
            return cut_split(text, size, name)

        return {
            "train": cut("train_size", self.train_size, corpus.train),
            "validation": cut("eval_size", self.eval_size, corpus.validation),
            "test": cut("eval_size", self.eval_size, corpus.test),
        }

    def title(self, corpus: Corpus) -> str:
        """Returns the name of the corpus, and how much of a user's text is read for training."""
        if self.dataset in self.corpora:
            return corpus.name
        whole = len(corpus.train)
        read = min(self.train_size or whole, whole)
        return f"{corpus.name}, {read:,} of {whole:,} symbols"


def carried_evaluation(model: LanguageModel, text: np.ndarray, streams: int) -> Evaluation:
    """Makes the evaluation of the loss over a whole text, with a carried state.

    Every symbol but the first is predicted once. The text is cut into `streams` parts that are
    read in parallel. The state of a part comes from the `WARM_UP` symbols before it; the first part
    starts from the initial state. With one stream the text is read in one piece.

    Args:
      model: a language model; its masks are at their expectation.
      text: integers `[N]`.
      streams: number of parts.
    """
    predictions = len(text) - 1
    part = -(-predictions // (streams * BLOCK)) * BLOCK
    starts = np.arange(0, predictions, part, dtype=np.int32)
    warm_up = 0 if streams == 1 else WARM_UP

    def loss(params, model_state, batch):
        text, starts = batch
        rates = model_state.get("rates")
        fresh = model.initial_carry(params, len(starts))

        def block(state, number):
            carry, total, count = state
            first = starts - warm_up + number * BLOCK
            positions = first + jnp.arange(BLOCK)[:, None]
            counted = (positions >= starts) & (positions < predictions) & (starts >= 0)
            # Positions outside the text read its first or last symbol, with weight 0.
            inputs = text[jnp.clip(positions, 0, predictions - 1)].astype(jnp.int32)
            targets = text[jnp.clip(positions + 1, 0, predictions)].astype(jnp.int32)
            weights = counted.astype(jnp.float32)
            (block_total, block_count), carry = model.sums(
                params, inputs, targets, weights, carry, deterministic=True, rates=rates
            )
            before = (first < 0)[:, None]
            carry = jax.tree.map(lambda new, old: jnp.where(before, old, new), carry, fresh)
            return (carry, total + block_total, count + block_count), None

        zero = jnp.zeros(())
        blocks = jnp.arange((warm_up + part) // BLOCK)
        (_, total, count), _ = jax.lax.scan(block, (fresh, zero, zero), blocks)
        return total, count

    return Evaluation(loss, text, starts[None, :])
