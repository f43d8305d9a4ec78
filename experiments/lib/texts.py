"""What language models of a text share: how much of it, and the state carried over it."""

import dataclasses
import functools
import pathlib
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.language_model import LanguageModel
from experiments.lib.settings import DataConfig
from zoneout_jax.data import Corpus, cut_split, load_corpus
from zoneout_jax.training import Count, Evaluation, Range

BLOCK = 100
"""Symbols read at once while a state is carried."""
WARM_UP = 1000
"""Symbols that a part of a text is preceded by; a multiple of BLOCK. With the paper's model the
metrics differ from those of the text in one piece by less than 1e-5 bits per character."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig(DataConfig):
    """The text."""

    dataset: str = "ptb"
    """Corpus: ptb, stdlib, which needs no files, or the path of a text file of your own (UTF-8; its
    first 90 % train, 5 % validate, 5 % test)."""
    train_size: Count | None = None
    """Symbols of the training text to use; all by default."""
    eval_size: Annotated[int, Range(2)] | None = None
    """Symbols of the validation and of the test text to use; all by default."""
    seq_length: Annotated[int, Range(2)] = 100
    """Symbols in a training sequence."""
    eval_streams: Count = 32
    """Parts that a text is cut into to carry the state over them side by side, each after a
    warm-up on the symbols before it; 1 carries it over the text in one piece."""

    corpora: ClassVar[tuple[str, ...]] = ("ptb", "stdlib")
    unit: ClassVar[Literal["char", "word"]] = "char"

    def __post_init__(self):
        super().__post_init__()
        if not (self.dataset in self.corpora or pathlib.Path(self.dataset).expanduser().is_file()):
            raise ValueError(
                f"dataset must be {', '.join(self.corpora)} or a text file, got {self.dataset!r},"
                " which is no file here"
            )

    def load(self) -> Corpus:
        """The corpus."""
        return load_corpus(self.dataset, unit=self.unit, **self.folders())

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The corpus, read once."""
        return self.load()

    def split(self, corpus: Corpus) -> dict[str, np.ndarray]:
        """The texts by split, cut to the sizes that the settings ask for.

        A text of one's own may be shorter than a preset asks for.

        Raises:
          ValueError: another one is.
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


def carried_evaluation(model: LanguageModel, text: np.ndarray, streams: int) -> Evaluation:
    """Loss over a whole text with the state carried along.

    Every symbol but the first is predicted once. The text is cut into `streams` parts that are
    read side by side; each part's state comes from the `WARM_UP` symbols before it, the first
    part's from the initial state. One stream is the text in one piece.

    Args:
      model: its masks are at their expectation.
      text: integers `[N]`.
      streams: parts.
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
            # A block past the end or before the start reads what lies there instead, unweighted.
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
