"""Standard deviations of the first parameters at the paper's sizes: they decide the curves."""

import math
import types

import jax
import numpy as np
import pytest

from experiments import (
    char_ptb,
    gradient_propagation,
    permuted_mnist,
    semantic_consistency,
    seq2seq,
    text8,
    word_ptb,
)

pytestmark = pytest.mark.usefixtures("standard_promotion")

# Of biases that are 1 for the forget gate, one of four, and 0 for the others.
FORGET = math.sqrt(3) / 4
CHAR, TEXT8, WORDS = char_ptb.EXPERIMENT, text8.EXPERIMENT, word_ptb.EXPERIMENT
CARRY = {"initial_c": 0, "initial_h": 0}


def uniform(width):
    """Of uniform numbers within ± width."""
    return width / math.sqrt(3)


def characters(experiment, symbols, **settings):
    """Of the paper's sizes; the initial weights do not depend on the text."""
    config = experiment.presets["paper"].replace(**settings)
    return experiment.model(config, types.SimpleNamespace(vocab_size=symbols)).init


def words(preset):
    corpus = types.SimpleNamespace(vocab_size=10_000)
    return WORDS.model(WORDS.presets[preset], corpus).init


def adders(**changes):
    config = seq2seq.LONG.replace(**changes)
    return lambda key: seq2seq.init(config, seq2seq.language_model_of(config), key)


def digits(**settings):
    """Parameters and population statistics, of the paper's sizes.

    They do not depend on the images.
    """
    config = permuted_mnist.PRESETS["paper"].replace(dataset="digits", **settings)
    task = permuted_mnist.build(config)

    def init(key):
        params = task.init(key)
        return params | task.model_state(params)

    return init


def gradients(model):
    return digits(**gradient_propagation.MODELS[model])


def layers(number, **stds):
    return {f"layers.{n}.{name}": std for n in range(number) for name, std in stds.items()}


def lstm(**stds):
    weights = stds | CARRY | {"bias": FORGET}
    return {f"lstm.{name}": std for name, std in weights.items()} | readout(0.1)


CHARACTERS = {"input": 0.141, "recurrent": 0.0316, "bias": FORGET}


def words_of(width, number):
    """A model whose weights are uniform."""
    cells = layers(number, input=uniform(width), recurrent=uniform(width), bias=FORGET)
    return cells | readout(uniform(width))


def readout(std):
    return {"readout.kernel": std, "readout.bias": 0}


ADDER = words_of(0.08, 2)
BATCH_NORM = {
    "lstm.input_gamma": 0,
    "lstm.recurrent_gamma": 0,
    "lstm.cell_gamma": 0,
    "lstm.cell_beta": 0,
    **{f"stats.{n}_{what}": 0 for n in ("input", "recurrent", "cell") for what in ("mean", "var")},
}
CASES = {
    "char_ptb": (characters(CHAR, 50), layers(1, **CHARACTERS, **CARRY) | readout(0.141)),
    "char_ptb, GRU": (
        characters(CHAR, 50, rnn_type="GRU"),
        layers(1, **CHARACTERS | {"bias": 0}, initial_h=0) | readout(0.141),
    ),
    "char_ptb, plain RNN": (
        characters(CHAR, 50, rnn_type="SRNN"),
        layers(1, **CHARACTERS | {"bias": 0}, initial_h=0) | readout(0.141),
    ),
    "char_ptb, small": (
        characters(CHAR, 50, hidden_features=256),
        layers(1, **CHARACTERS | {"recurrent": 1 / 16}, **CARRY) | readout(0.141),
    ),
    "text8": (
        characters(TEXT8, 27),
        layers(1, input=0.1925, recurrent=1 / math.sqrt(2000), bias=FORGET, **CARRY)
        | readout(0.1925),
    ),
    "text8, repository": (
        characters(TEXT8, 27, hidden_features=1000),
        layers(1, input=0.1925, recurrent=0.0316, bias=FORGET, **CARRY) | readout(0.1925),
    ),
    "word_ptb": (words("paper"), words_of(0.04, 2) | {"embedding": uniform(0.04)}),
    "word_ptb, repository": (words("repository"), words_of(0.1, 1)),
    "permuted_mnist": (digits(), lstm(input=0.05, recurrent=0.05)),
    "permuted_mnist, batch norm": (
        digits(batch_normalization=True, initialization="id"),
        # The identity beside an orthogonal matrix [100, 300].
        lstm(input=0.05, recurrent=math.sqrt(0.01 / 2 - 0.0025**2)) | BATCH_NORM,
    ),
    "gradient_propagation": (gradients("zoneout"), lstm(input=0.05, recurrent=0.05)),
    "gradient_propagation, batch norm": (
        gradients("batch norm 0.1"),
        lstm(input=0.05, recurrent=0.05) | BATCH_NORM,
    ),
    "seq2seq": (
        adders(),
        ADDER | {f"encoder.{name}": std for name, std in ADDER.items() if "layers" in name},
    ),
    "seq2seq, one network": (adders(two_networks=False), ADDER),
}


def standard_deviations(params):
    """By the names of the parameters."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): float(
            np.std(np.asarray(leaf, np.float64))
        )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


SLOW = ("char_ptb, GRU", "text8")  # the largest matrices, and the code of others


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in CASES]
)
def test_standard_deviations(case):
    init, wanted = CASES[case]
    found = standard_deviations(init(jax.random.key(0)))
    assert found == pytest.approx(wanted, rel=0.03)


def test_semantic_consistency():
    """W starts at −I and noise of 0.01."""
    config = semantic_consistency.PRESETS["repository"]
    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.vmap(lambda key: semantic_consistency.first_weights(config, key))(keys)
    assert float(np.std(found + np.eye(2))) == pytest.approx(0.01, rel=0.03)
