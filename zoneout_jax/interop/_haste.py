"""Haste (lmnt-com/haste): the layers of its PyTorch package."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    check_shape,
    ended,
    for_torch,
    modules,
    reorder,
    select,
    to_array,
)

HASTE = Library("Haste", {4: "igfo", 3: "zrn"})
NAMES = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
INDEPENDENT = {"kernel": "input", "recurrent_scale": "recurrent", "bias": "bias"}
"""Haste's names in an IndRNN, and ours."""

GAMMAS = ("input_gamma", "recurrent_gamma")
"""Our names for the two rows of `gamma`."""

CELLS = {"gamma_h": "cell_gamma", "beta_h": "cell_beta"}
"""Names that only a LayerNormLSTM has, and ours."""

KNOWN = (
    "kernel, recurrent_kernel and bias, for a GRU also recurrent_bias, for a LayerNormGRU also"
    " gamma, for a LayerNormLSTM gamma, gamma_h and beta_h; kernel, recurrent_scale and bias of an"
    " IndRNN"
)


def from_haste(state: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Returns our parameters from the state dict of one of Haste's layers.

    These are `LSTM`, `GRU` (ours has `reset_after`), `LayerNormLSTM`, `LayerNormGRU` (ours have
    `normalization="layer"`) and `IndRNN` (ours has `activation_fn="tanh"`). Haste's gates are in
    the order i, g, f, o and z, r, n. Its `zoneout` is our rate of states; it has no rate of cells.

    Args:
      state: `kernel` [F, kH], `recurrent_kernel` [H, kH] and `bias` [kH]; for a GRU also
        `recurrent_bias` [3H]; with normalization `gamma` [2, kH], and for an LSTM `gamma_h` [H] and
        `beta_h` [H]; for an IndRNN `recurrent_scale` [H] instead of `recurrent_kernel`. Values may
        be torch tensors.
      prefix: prefix of the layer's names in the state of a larger model, such as "encoder.rnn.".

    Raises:
      ValueError: unknown names, or shapes that do not fit together.
    """
    pattern = "kernel|bias|recurrent_(kernel|bias|scale)|gamma(_h)?|beta_h"
    found = select(state, prefix, "a layer of Haste", pattern, KNOWN, ("kernel", "bias"))
    arrays = {name: to_array(array) for name, array in found.items()}
    count = 3 if "recurrent_bias" in arrays else 4
    plain = NAMES[:3] if count == 4 else NAMES
    further = {"gamma", *(CELLS if count == 4 else ())} if "gamma" in arrays else set()
    if set(arrays) == set(INDEPENDENT):
        return _independent({ours: arrays[name] for name, ours in INDEPENDENT.items()})
    if set(arrays) != {*plain, *further}:
        raise ValueError(f"not the weights of a layer of Haste: got {[*found]}; known are {KNOWN}")
    # The names show the kind of cell, so other shapes are errors.
    library = dataclasses.replace(HASTE, gates={count: HASTE.gates[count]})
    params = library.ours(*((name, arrays[name]) for name in plain))
    hidden = len(params["recurrent"])
    if further:
        check_shape("gamma", arrays["gamma"], 2, count * hidden)
        for ours, row in zip(GAMMAS, arrays["gamma"], strict=True):
            params[ours] = reorder(row, HASTE.gates[count], GATES[count])
    for name in CELLS.keys() & further:
        check_shape(name, arrays[name], hidden)
        params[CELLS[name]] = arrays[name]
    return params


def to_haste(params: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Returns the state dict of one of Haste's layers, as NumPy arrays.

    Args:
      params: parameters of `LSTM` or of `GRU` with `reset_after`, with or without layer
        normalization, or of `IndRNN`, which computes the same only with `activation_fn="tanh"`.
      prefix: prefix of all names, such as "encoder.rnn.".

    Raises:
      ValueError: parameters that those layers do not have, such as the parameters of a plain RNN.
    """
    norms = {n: to_array(params[n]) for n in (*GAMMAS, *CELLS.values()) if n in params}
    rest = {name: array for name, array in params.items() if name not in norms}
    if np.ndim(params.get("recurrent", 0)) == 1:
        HASTE.check_known(params, INDEPENDENT.values())
        ours = _independent({name: to_array(array) for name, array in rest.items()})
        state = {name: ours[other] for name, other in INDEPENDENT.items()}
    else:
        *arrays, count = HASTE.theirs(rest)
        named = zip(NAMES, arrays, strict=True)
        state = {name: array for name, array in named if array is not None}
        hidden = len(state["recurrent_kernel"])
        sizes = dict.fromkeys(GAMMAS, count * hidden)
        sizes |= dict.fromkeys(CELLS.values(), hidden) if count == 4 else {}
        if norms and set(norms) != set(sizes):
            raise ValueError(f"a normalized layer of Haste has {[*sizes]}, got {[*norms]}")
        for name, array in norms.items():
            check_shape(name, array, sizes[name])
        if norms:
            rows = [reorder(norms[name], GATES[count], HASTE.gates[count]) for name in GAMMAS]
            state["gamma"] = modules(*rows).stack(rows)
            state |= {name: norms[ours] for name, ours in CELLS.items() if ours in norms}
    return {ended(prefix) + name: for_torch(array) for name, array in state.items()}


def _independent(params: Arrays) -> Arrays:
    """Returns the parameters of an IndRNN; ValueError unless names and shapes fit together."""
    missing = set(INDEPENDENT.values()) - set(params)
    if missing:
        raise ValueError(f"parameters lack {', '.join(sorted(missing))}: got {[*params]}")
    hidden = params["recurrent"].shape[0]
    check_shape("recurrent", params["recurrent"], hidden)
    check_shape("input", params["input"], None, hidden)
    check_shape("bias", params["bias"], hidden)
    return params
