"""Equinox: `nn.LSTMCell` and `nn.GRUCell`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    check_mapping,
    check_shape,
    concatenate,
    select,
    split,
    to_array,
)

EQUINOX = Library("Equinox", {4: GATES[4], 3: GATES[3]}, transposed=True)
KNOWN = "weight_ih, weight_hh and bias, for a GRU also bias_n"
SETTINGS = {"input_size", "hidden_size", "use_bias"}


def from_equinox(fields: Mapping[str, Any]) -> Arrays:
    """Returns our parameters from the fields of Equinox's `LSTMCell` or `GRUCell`.

    Equinox's gates are in the order i, f, g, o and r, z, n, like ours.

    Args:
      fields: `vars(cell)`: `weight_ih` [kH, F], `weight_hh` [kH, H], `bias` [kH] and for a GRU
        `bias_n` [H]; a bias of None counts as zeros. `input_size`, `hidden_size` and `use_bias` are
        ignored.

    Raises:
      ValueError: unknown names, or shapes that do not fit together.
      TypeError: `fields` that is not a dict, such as the cell itself.
    """
    check_mapping(fields, "Equinox's LSTMCell or GRUCell")
    given = {name: a for name, a in fields.items() if name not in SETTINGS and a is not None}
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    found = select(given, "", "Equinox's LSTMCell or GRUCell", "|".join(names), KNOWN, names[:2])
    kernel, recurrent, *biases = ((name, to_array(found.get(name))) for name in names)
    bias, bias_n = (named if named[0] in found else None for named in biases)
    if bias_n:
        if EQUINOX.count(*recurrent) != 3:
            raise ValueError(f"only a GRU has a bias_n; got {[*found]}")
        hidden = recurrent[1].shape[1]
        check_shape(*bias_n, hidden)
        none = np.zeros(2 * hidden, bias_n[1].dtype)
        bias_n = "bias_n", concatenate([none, bias_n[1]])
    return EQUINOX.ours(kernel, recurrent, bias, bias_n)


def to_equinox(params: Mapping[str, Any]) -> Arrays:
    """Returns the array fields of Equinox's `LSTMCell` or `GRUCell`.

    Put them into a cell with

        equinox.tree_at(lambda cell: [getattr(cell, n) for n in fields], cell, [*fields.values()])

    Args:
      params: parameters of `LSTM`, or of `GRU` with `reset_after`.

    Raises:
      ValueError: parameters that those cells do not have, such as the parameters of a plain RNN.
    """
    kernel, recurrent, bias, recurrent_bias, _ = EQUINOX.theirs(params)
    fields = {"weight_ih": kernel.T, "weight_hh": recurrent.T, "bias": bias}
    if recurrent_bias is not None:
        fields["bias_n"] = split(recurrent_bias, 3)[-1]
    return fields
