"""The flags of the language models: what they change, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import char_ptb, reproduce, word_ptb
from tests.experiments.test_language_models import EXPERIMENTS, each_experiment, smoke
from zoneout_jax.training import AXIS, Batch, parse_preset

CHAR, WORDS = char_ptb.EXPERIMENT, word_ptb.EXPERIMENT
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.mark.parametrize(
    ("flag", "attribute"),
    [
        ("share_mask", "shared"),
        ("static_mask", "static"),
        ("stoch_depth", "per_layer"),
        ("gaussian_mask", "gaussian"),
    ],
)
def test_flags_of_masks(flag, attribute):
    rates = {"z_prob_cells": 0.1, "z_prob_states": 0.1}
    plain = smoke(CHAR, **rates).zoneout.spec()
    wanted = dataclasses.replace(plain, **{attribute: True})
    assert smoke(CHAR, **rates, **{flag: True}).zoneout.spec() == wanted != plain


@pytest.mark.slow
@each_experiment
def test_flags_of_each_row_fit_the_experiment(experiment):
    """Traced only: they are accepted, and the loss has gradients."""
    for row in experiment.rows.values():
        config = parse_preset(experiment.presets, ["--preset=smoke", *row.flags])
        task = experiment.build(config)
        state = jax.eval_shape(task.initial_state, jax.random.key(0))
        examples = jax.eval_shape(task.epoch_indices, jax.random.key(0))

        def loss(params, model_state, data, rows, task=task):
            batch = Batch(data, rows[0])
            return task.loss(params, model_state, batch, jax.random.key(0))[0][0]

        axes = (None, None, None, None)
        mapped = jax.vmap(jax.grad(loss), axes, axis_name=AXIS, axis_size=1)
        data = jax.ShapeDtypeStruct(task.data.shape, task.data.dtype)
        grads = jax.eval_shape(mapped, state.params, state.model_state, data, examples)
        assert jax.tree.structure(grads) == jax.tree.structure(state.params)
        assert set(experiment.published(row)) <= set(experiment.metrics)


@pytest.mark.parametrize(
    ("experiment", "flags"),
    [
        ("char_ptb", "--weight_noise=0.075"),
        ("char_ptb", "--norm_cost_coeff=50"),
        ("char_ptb", "--drop_prob_igates=0.7"),
        ("char_ptb", "--z_prob_cells=0.5 --z_prob_states=0.05"),
        ("word_ptb", "--z_prob_cells=0.5 --z_prob_states=0.05"),
        ("text8", "--weight_noise=0.075"),
        ("text8", "--norm_cost_coeff=50"),
        ("text8", "--drop_prob_igates=0.5"),
        ("text8", "--z_prob_cells=0.2 --z_prob_states=0.2"),
    ],
)
def test_commands_of_the_authors_readme(experiment, flags):
    config = parse_preset(EXPERIMENTS[experiment].presets, flags.split())
    for flag in flags.split():
        name, value = flag.strip("-").split("=")
        assert config.flat()[name] == float(value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--rnn_type=GRU", "--z_prob_cells=0.5"], "z_prob_cells=0.5; leave it out"),
        (["--rnn_type=GRU", "--share_mask", "--z_prob_states=0.1"], "share_mask=True; leave it"),
        (["--num_layers=101"], "num_layers must be in [1, 100], got 101"),
        (["--rnn_type=SRNN", "--drop_prob_igates=0.5"], "drop_prob_igates=0.5; leave it out"),
        (["--rnn_type=GRU", "--norm_cost_coeff=1", "--penalty=cells"], "penalty=cells"),
        (["--penalty=cells"], "penalty=cells needs a norm_cost_coeff"),
        (["--share_mask"], "share_mask needs masks"),
        (["--stoch_depth"], "stoch_depth needs masks"),
        (["--static_mask"], "static_mask needs masks"),
        (["--gaussian_mask"], "gaussian_mask needs masks"),
        (["--eval_size=1"], "eval_size must be at least 2, got 1"),
        (["--share_mask", "--z_prob_cells=0.5", "--z_prob_states=0.1"], "one rate"),
        (["--share_mask", "--drop_prob_igates=0.5"], "shared masks need a rate"),
        (["--momentum=0.5"], "momentum has no effect with algorithm adam"),
        (["--decrease_lr_after_epoch=3"], "no effect with lr_decay 1"),
        (["--clip_norm=None"], "clip_by=update has no effect without a clip_norm"),
        (["--dropout=1"], "dropout must be in [0, 1), got 1.0"),
        (["--train_size=80"], "shorter than one batch"),
    ],
)
def test_settings_that_do_not_fit(flags, words, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        WORDS.main(["--preset=smoke", f"--workdir={tmp_path / 'run'}", *flags])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("experiment", "length"), [(CHAR, 2), (WORDS, 1)])
def test_a_norm_stabilizer_without_a_change_to_look_at(experiment, length, capsys):
    with pytest.raises(SystemExit) as end:
        experiment.main(["--preset=smoke", "--norm_cost_coeff=1", f"--seq_length={length}"])
    words = f"seq_length must be at least {length + 1}, got {length}"
    assert end.value.code == 2 and words in capsys.readouterr().err


CHANGES = {
    name: parse_preset(CHAR.presets, row.flags)
    for name, row in CHAR.rows.items()
    if not name.startswith(("GRU", "plain RNN", "LSTM"))
} | {"input dropout": char_ptb.Config().replace(input_drop=0.5)}


@pytest.mark.parametrize("name", CHANGES)
def test_flags_of_a_row_change_the_gradient(name):
    """From that of the baseline, with the same key; `LSTM` again does not."""

    def gradient(settings):
        task = CHAR.build(smoke(CHAR, **settings))
        params = task.init(jax.random.key(0))

        def loss(params):
            def on_a_device(examples):
                batch = Batch(jnp.asarray(task.data), examples)
                return task.loss(params, {}, batch, jax.random.key(1))[0][0]

            return jax.vmap(on_a_device, axis_name=AXIS)(jnp.arange(4)[None])[0]

        return jax.jit(jax.grad(loss))(params)["layers"][0]["recurrent"]

    default, given = char_ptb.Config().flat(), CHANGES[name].flat()
    changed = {name: value for name, value in given.items() if value != default[name]}
    assert changed
    assert not np.allclose(gradient(changed), gradient({}), rtol=1e-3, atol=1e-6)


def test_sequences_begin_at_other_places_unless_told_not_to():
    starts = {}
    for augment in (True, False):
        task = CHAR.build(smoke(CHAR, augment=augment))
        starts[augment] = [np.asarray(task.epoch_indices(jax.random.key(n))) for n in range(3)]
    assert all((plan % 20 == 0).all() for plan in starts[False])
    assert len({int(plan.min() % 20) for plan in starts[True]}) > 1
    assert not np.array_equal(*starts[False][:2])


def test_presets_that_an_experiment_lacks(capsys):
    with pytest.raises(SystemExit) as end:
        reproduce.main(["char_ptb", "--preset=repository"])
    assert end.value.code == 2
    assert "has no preset repository; choose one of paper, small" in capsys.readouterr().err
