"""Samples text from a trained language model.

    python -m experiments.sample WORKDIR --prompt "the " --length 500 --temperature 0.8

WORKDIR is a run directory of char_ptb, word_ptb or text8. The model has its best parameters so far,
and masks at their expectation. Each symbol is drawn from softmax(logits / temperature); at
temperature 0 it is the most likely symbol.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.lib.experiment import NAMES, Experiment, find
from experiments.lib.language_model import LanguageModel
from experiments.lib.settings import DataConfig
from zoneout_jax.data import Corpus
from zoneout_jax.training import NotNegative, Range, Seed, Settings, parse, program, read_trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Settings):
    """What to sample."""

    workdir: tyro.conf.Positional[pathlib.Path]
    """Run directory of a language model."""
    dataset: str | None = None
    """The text of the run, if it was your own and is in another place now."""
    prompt: str = "the "
    """Start of the text."""
    length: Annotated[int, Range(1, 1_000_000)] = 500
    """Number of symbols to sample: characters or words."""
    temperature: NotNegative = 0.8
    """Softmax temperature: lower values give more likely symbols, higher ones more variety."""
    seed: Seed = 0
    """Seed of the samples."""
    number: Annotated[int, Range(0)] = 0
    """Index of the model, in a run with several seeds or rates."""
    data: DataConfig = DataConfig()


def sample(options: Options) -> str:
    """Samples a text.

    Raises:
      ValueError: the directory holds no trained language model, or the prompt has symbols that the
        model does not know.
    """
    experiment, config = read_config(options)
    corpus = config.data.corpus
    model = experiment.model(config, corpus)
    task = experiment.build(config)
    params, state = read_trained(task, config.run, options.workdir, options.number).best
    apart = "" if config.data.unit == "char" else " "
    # After `read_trained`, which checks that the corpus is the one of the run.
    prompt = encode(options.prompt, corpus, apart)
    key = jax.random.key(options.seed)
    with config.run.matmul_precision():
        symbols = continuation(
            model,
            params,
            jnp.asarray(prompt),
            options.length,
            options.temperature,
            key,
            state.get("rates"),
        )
    return apart.join(corpus.vocabulary[n] for n in [*prompt, *np.asarray(symbols)])


def read_config(options: Options) -> tuple[Experiment, Any]:
    """Reads the experiment and the settings of the run."""
    file = options.workdir / "config.json"
    try:
        content = json.loads(file.read_text())
        name, settings = content["experiment"], content["settings"]
        if name not in NAMES:
            raise LookupError(f"there is no experiment {name}")
        experiment = find(name)
        if not isinstance(experiment, Experiment) or experiment.model is None:
            raise ValueError(f"{options.workdir} holds a run of {name}, not of a language model")
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
        if options.dataset is not None:
            settings["dataset"] = options.dataset
        preset = experiment.presets[settings["preset"]]
    except (OSError, LookupError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{options.workdir} is not a run directory: {file}: {error}") from error
    try:
        return experiment, preset.replace(**settings, **options.data.folders())
    except TypeError as error:
        raise ValueError(f"{options.workdir} is not a run of this version: {error}") from error
    except ValueError as error:
        raise ValueError(
            f"{error}; if the text has moved, give its new path with --dataset"
        ) from error


def continuation(
    model: LanguageModel,
    params: Any,
    prompt: jax.Array,
    length: int,
    temperature: float,
    key: jax.Array,
    rates: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """Samples symbols `[length]` that follow a prompt `[T]`, with T at least 1."""
    logits_of = functools.partial(model.logits, rates=rates)

    def draw(logits, key):
        if not temperature:
            return jnp.argmax(logits)
        logits -= jnp.max(logits)  # otherwise a small temperature makes several infinite
        return jax.random.categorical(key, logits / temperature)

    @jax.jit
    def run(params, prompt, key):
        logits, carry = logits_of(params, prompt[:, None], model.initial_carry(params, 1))

        def step(state, number):
            logits, carry = state
            symbol = draw(logits, jax.random.fold_in(key, number))
            logits, carry = logits_of(params, symbol[None, None], carry)
            return (logits[0, 0], carry), symbol

        return jax.lax.scan(step, (logits[-1, 0], carry), jnp.arange(length))[1]

    return run(params, prompt, key)


def encode(text: str, corpus: Corpus, apart: str) -> np.ndarray:
    """Converts a text to symbol numbers: of its words if `apart`, else of its characters."""
    number = {symbol: n for n, symbol in enumerate(corpus.vocabulary)}
    symbols = text.split() if apart else list(text)
    unknown = [symbol for symbol in symbols if symbol not in number]
    if not symbols or unknown:
        what = f"unknown {unknown[0]!r}" if unknown else "nothing"
        raise ValueError(f"the prompt must consist of symbols of {corpus.name}, got {what}")
    return np.array([number[symbol] for symbol in symbols], np.int32)


def main(argv: Sequence[str] | None = None) -> None:
    """Samples and prints a text from the command line."""
    options = parse(Options, argv, "Samples text from a language model.")
    with program(argv):
        print(sample(options))


if __name__ == "__main__":
    main()
