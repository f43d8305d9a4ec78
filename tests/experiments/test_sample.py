"""Text from trained language models."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments import char_ptb, permuted_mnist, sample, word_ptb
from experiments.lib.language_model import language_model
from zoneout_jax.training import RunDirectory, read_trained

CHAR, WORDS = char_ptb.EXPERIMENT, word_ptb.EXPERIMENT
pytestmark = pytest.mark.usefixtures("standard_promotion")
PROMPT = jnp.array([2, 0, 5])


def model():
    config = WORDS.presets["smoke"].replace(z_prob_cells=0.4, num_layers=2)
    words = language_model(config, 6, encoding="embedding")
    params = words.init(jax.random.key(0))
    # Sure enough of itself that temperatures matter.
    params["readout"]["kernel"] *= 20
    return words, params


def next_logits(words, params, symbols):
    """Of the symbol after a text that is read from its start."""
    inputs = jnp.asarray(symbols)[:, None]
    return np.asarray(words.logits(params, inputs, words.initial_carry(params, 1))[0][-1, 0])


def test_at_temperature_zero_the_likeliest_symbol_follows():
    words, params = model()
    found = sample.continuation(words, params, PROMPT, 8, 0.0, jax.random.key(0))
    symbols = PROMPT.tolist()
    for symbol in found.tolist():
        assert symbol == int(np.argmax(next_logits(words, params, symbols)))
        symbols.append(symbol)


def test_the_coldest_draws_are_the_likeliest_symbols():
    """Though logits divided by such a temperature are not finite in float32."""
    words, params = model()
    found, wanted = (
        sample.continuation(words, params, PROMPT, 8, temperature, jax.random.key(0))
        for temperature in (1e-39, 0.0)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_symbols_are_drawn_from_the_tempered_softmax(temperature):
    words, params = model()
    keys = jax.random.split(jax.random.key(4), 4000)

    def draw(key):
        return sample.continuation(words, params, PROMPT, 2, temperature, key)

    first, second = np.asarray(jax.vmap(draw)(keys)).T

    def check(symbols, before):
        logits = next_logits(words, params, [*PROMPT.tolist(), *before]).astype(np.float64)
        weights = np.exp(logits / temperature)
        wanted = len(symbols) * weights / weights.sum()
        counts = np.bincount(symbols, minlength=6)
        # The test is for counts that are not too small.
        by_size = np.argsort(-wanted)
        kept = max(1, np.sum(wanted > 5) - 1)
        counts, wanted = (
            np.append(x[by_size[:kept]], x[by_size[kept:]].sum()) for x in (counts, wanted)
        )
        assert scipy.stats.chisquare(counts, wanted).pvalue > 1e-4

    check(first, [])
    likeliest = np.bincount(first).argmax()
    check(second[first == likeliest], [int(likeliest)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "prompt", "blanks"), [(CHAR, "def ", 0), (WORDS, "def <eos>", 8)]
)
def test_a_run_of_several_seeds(experiment, prompt, blanks, tmp_path, capsys):
    run = tmp_path / "run"
    experiment.main(["--preset=smoke", "--epochs=1", "--num_seeds=2", f"--workdir={run}"])
    texts = []
    for number in (0, 1):
        capsys.readouterr()
        sample.main([str(run), "--prompt", prompt, "--length=8", f"--number={number}"])
        texts.append(capsys.readouterr().out.removesuffix("\n"))
    assert all(text.startswith(prompt) for text in texts)
    assert all(text[len(prompt) :].count(" ") == blanks for text in texts) or not blanks
    assert blanks or all(len(text) == len(prompt) + 8 for text in texts)
    config = experiment.presets["smoke"].replace(num_seeds=2)
    task = experiment.build(config)
    trained, other = (read_trained(task, config.run, run, n) for n in (1, 0))
    kernel, another = (each.best[0]["readout"]["kernel"] for each in (trained, other))
    assert np.any(kernel != another)
    # After one epoch the best parameters are the last ones.
    jax.tree.map(np.testing.assert_array_equal, trained.best[0], trained.last[0])
    for extra, words in (
        (["--number=2"], "the run has 2 models, numbered from 0, got 2"),
        (["--prompt="], "the prompt must consist of symbols of stdlib"),
        (["--prompt=ä"], "got unknown 'ä'"),
        (["--temperature=-1"], "temperature must be"),
        (["--length=0"], "length must be in"),
    ):
        with pytest.raises(SystemExit) as end:
            sample.main([str(run), *extra])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and words in error


def test_what_is_no_language_model(tmp_path, capsys):
    other, bad = tmp_path / "other", tmp_path / "bad"
    settings = permuted_mnist.EXPERIMENT.presets["smoke"].identity()
    with RunDirectory(other, settings, experiment="permuted_mnist").opened({}):
        pass
    old = tmp_path / "old"
    settings = CHAR.presets["smoke"].identity()
    with RunDirectory(old, settings, experiment="char_ptb").opened({}):
        (old / "metrics.jsonl").write_text("{}")
    config = json.loads((old / "config.json").read_text())
    del config["task"]
    (old / "config.json").write_text(json.dumps(config))
    bad.mkdir()
    (bad / "config.json").write_text("{")
    for path, words in (
        (tmp_path / "none", "is not a run directory"),
        (bad, "is not a run directory"),
        (other, "holds a run of permuted_mnist, not of a language model"),
        (old, "holds a run of an older zoneout_jax"),
    ):
        with pytest.raises(SystemExit) as end:
            sample.main([str(path)])
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and words in error
