"""Flax: the cells of Linen and NNX."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    check_shape,
    concatenate,
    split,
    to_array,
)

FLAX = Library("Flax", GATES)

NAMES = {4: "ifgo", 3: "rzn", 1: ("",)}
"""Suffixes in the names of Linen's layers; the layers of `SimpleCell` have none."""


def from_flax(params: Mapping[str, Any]) -> Arrays:
    """Returns our parameters from the parameters of a Flax cell, Linen or NNX.

    Args:
      params: parameters of `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`: the dict
        `params` of a Linen cell, or `nnx.to_pure_dict(nnx.state(cell, nnx.Param))`.

    Raises:
      ValueError: unknown parameters, or shapes that do not fit together.
    """
    if set(params) == {"dense_i", "dense_h"}:  # NNX, with all gates in one layer
        sides = "dense_i", "dense_h"
        kernels = [(f"{side}/kernel", to_array(params[side]["kernel"])) for side in sides]
        biases = [
            (f"{side}/bias", to_array(params[side]["bias"])) if "bias" in params[side] else None
            for side in sides
        ]
        return FLAX.ours(*kernels, *biases)
    # A Python name cannot be "if": NNX has "if_".
    layers = {name.rstrip("_"): layer for name, layer in params.items()}
    kinds = {
        frozenset(side + gate for side in "ih" for gate in gates): gates for gates in NAMES.values()
    }
    if frozenset(layers) not in kinds:
        known = [["dense_h", "dense_i"], *map(sorted, kinds)]
        raise ValueError(
            "not the parameters of a Flax LSTM, GRU or SimpleCell:"
            f" got {[*params]}; known are {' or '.join(map(str, known))}"
        )
    gates = kinds[frozenset(layers)]
    first = {side: to_array(layers[side + gates[0]]["kernel"]) for side in "ih"}
    hidden = first["h"].shape[-1]
    arrays = {}
    for side in "ih":
        for part, shape in (("kernel", (first[side].shape[0], hidden)), ("bias", (hidden,))):
            none = np.zeros(hidden, first[side].dtype)
            blocks = [to_array(layers[side + gate].get(part, none)) for gate in gates]
            for gate, block in zip(gates, blocks, strict=True):
                check_shape(f"{side}{gate}/{part}", block, *shape)
            arrays[side, part] = f"{part} of {side}", concatenate(blocks, -1)
    return FLAX.ours(*(arrays[side, part] for part in ("kernel", "bias") for side in "ih"))


def to_linen(params: Mapping[str, Any]) -> dict[str, Arrays]:
    """Returns parameters of Linen's `OptimizedLSTMCell` and `LSTMCell`, `GRUCell` or `SimpleCell`.

    Raises:
      ValueError: parameters that those cells do not have.
    """
    weights = FLAX.theirs(params)
    arrays = (weights.kernel, weights.recurrent, weights.bias)
    blocks = zip(NAMES[weights.k], *(split(a, weights.k) for a in arrays), strict=True)
    # An LSTM has its biases on the recurrent side, other cells on the input side.
    biased = "h" if weights.k == 4 else "i"
    cell = {}
    for gate, kernel, recurrent, bias in blocks:
        cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": kernel}, {"kernel": recurrent}
        cell[f"{biased}{gate}"]["bias"] = bias
    if weights.k == 3:
        cell["hn"]["bias"] = split(weights.recurrent_bias, 3)[-1]
    return cell


def to_nnx(params: Mapping[str, Any], *, optimized: bool = True) -> dict[str, Arrays]:
    """Returns parameters of NNX's `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`, for `nnx.update`.

    Args:
      params: our parameters.
      optimized: False for `LSTMCell`, which has a layer for each gate.

    Raises:
      ValueError: parameters that those cells do not have; a `recurrent_bias` other than 0, for
        which NNX's `GRUCell` has no place.
      TypeError: a traced `recurrent_bias`.
    """
    weights = FLAX.theirs(params)
    if weights.k == 4 and not optimized:
        return {name.replace("if", "if_"): layer for name, layer in to_linen(params).items()}
    if isinstance(weights.recurrent_bias, jax.core.Tracer):
        raise TypeError(
            "recurrent_bias must be known, because only 0 can be left out; call to_nnx outside jit"
        )
    if weights.recurrent_bias is not None and np.any(weights.recurrent_bias):
        raise ValueError("the GRUCell of NNX has no recurrent_bias, so ours must be 0")
    cell = {"dense_i": {"kernel": weights.kernel}, "dense_h": {"kernel": weights.recurrent}}
    cell["dense_h" if weights.k == 4 else "dense_i"]["bias"] = weights.bias
    return cell
