"""What an experiment says of itself."""

import pytest

from experiments import char_ptb, seq2seq
from experiments.lib.experiment import NAMES, find
from zoneout_jax.training import parse_preset

PAPER = char_ptb.EXPERIMENT.presets["paper"]
PIXEL_ZONEOUT = {"z_prob_cells": 0.15, "z_prob_states": 0.15, "share_mask": True}
PIXEL_NORM = {"batch_normalization": True, "initialization": "id"}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_by_its_name(name):
    assert find(name).name == name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "; paper, LSTM: 1.466 / 1.356"),
        ({"seed": 7, "num_seeds": 3, "workdir": "x"}, "; paper, LSTM: 1.466 / 1.356"),
        ({"z_prob_cells": 0.5, "z_prob_states": 0.05}, "; paper, zoneout: 1.362 / 1.27"),
        ({"rnn_type": "GRU"}, "; paper, GRU: 1.53"),
        ({"z_prob_cells": 0.3, "z_prob_states": 0.05}, ""),
        ({"epochs": 2}, ""),
        ({"dataset": "stdlib"}, ""),
        ({"train_size": 1000}, ""),
    ],
)
def test_published_values_are_shown_beside_runs_of_their_rows_alone(changes, words):
    assert char_ptb.EXPERIMENT.paper(PAPER.replace(**changes)) == words


@pytest.mark.parametrize(
    ("name", "row", "settings"),
    [
        ("char_ptb", "recurrent dropout 0.3", {"drop_prob_igates": 0.3}),
        ("char_ptb", "recurrent dropout 0.7", {"drop_prob_igates": 0.7}),
        ("char_ptb", "zoneout", {"z_prob_cells": 0.5, "z_prob_states": 0.05, "share_mask": False}),
        ("char_ptb", "weight noise", {"weight_noise": 0.075}),
        ("char_ptb", "norm stabilizer", {"norm_cost_coeff": 50, "penalty": "hids"}),
        ("permuted_mnist", "LSTM", {"initialization": "ortho", "share_mask": False}),
        ("permuted_mnist", "recurrent dropout", {"igate_drop": 0.5}),
        ("permuted_mnist", "zoneout", PIXEL_ZONEOUT | {"batch_normalization": False}),
        ("permuted_mnist", "recurrent batch norm", PIXEL_NORM),
        ("permuted_mnist", "zoneout + recurrent batch norm", PIXEL_ZONEOUT | PIXEL_NORM),
        ("seq2seq", "zoneout", {"z_prob_cells": 0.5, "z_prob_states": 0.05, "two_networks": True}),
    ],
)
def test_rows_have_the_settings_of_the_paper_and_its_code(name, row, settings):
    experiment = find(name)
    config = parse_preset(experiment.presets, experiment.rows[row].flags)
    found = config.identity()
    assert {key: found[key] for key in settings} == settings


def test_nothing_is_published_of_a_toy_task():
    assert seq2seq.EXPERIMENT.paper(seq2seq.LONG) == ""
