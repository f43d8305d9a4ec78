"""What an experiment says of itself."""

import pytest

from experiments import char_ptb, seq2seq
from experiments.lib.experiment import NAMES, find

PAPER = char_ptb.EXPERIMENT.presets["paper"]


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


def test_nothing_is_published_of_a_toy_task():
    assert seq2seq.EXPERIMENT.paper(seq2seq.LONG) == ""
