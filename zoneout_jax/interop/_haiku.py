"""Haiku: `LSTM`, `GRU` and `VanillaRNN`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    concatenate,
    modules,
    select,
    split,
    to_array,
)

HAIKU = Library("Haiku", {4: "igfo", 3: "zrn", 1: "h"}, reset_after=False)
MODULES = {4: "lstm", 3: "gru", 1: "vanilla_rnn"}
KNOWN = (
    "linear/w and linear/b of an LSTM; w_i, w_h and b of a GRU; linear/w, linear/b, linear_1/w"
    " and linear_1/b of a VanillaRNN"
)


def from_haiku(params: Mapping[str, Mapping[str, Any]], prefix: str) -> Arrays:
    """Returns our parameters from the parameters of Haiku's `LSTM`, `GRU` or `VanillaRNN`.

    Haiku's gates are in the order i, g, f, o and z, r, a. Its LSTM adds 1 to the forget gate; our
    bias includes this 1. Its GRU is h' = (1 − z)∘h + z∘a: our z is 1 − z, with weights of the
    opposite sign, and `reset_after` is False. Its `VanillaRNN` is `RNN(activation_fn="relu")`.

    Args:
      params: arrays by module and name, as `init` of `haiku.transform` returns them.
      prefix: name of the module, for instance "lstm" or "net/~/gru".

    Raises:
      ValueError: unknown names, or shapes that do not fit together.
      TypeError: arrays that are not in a dict of their module.
    """
    if not all(isinstance(layer, Mapping) for layer in params.values()):
        raise TypeError("params must hold a dict of arrays for each module, as haiku's init does")
    flat = {f"{module}/{name}": a for module, layer in params.items() for name, a in layer.items()}
    pattern = "linear(_1)?/[wb]|w_[ih]|b"
    found = select(flat, prefix, "Haiku's LSTM, GRU or VanillaRNN", pattern, KNOWN, separator="/")
    arrays = {name: to_array(array) for name, array in found.items()}
    names: tuple[str, ...]
    if {"w_i", "w_h", "b"} == set(arrays):
        count, names = 3, ("w_i", "w_h", "b")
    elif {"linear/w", "linear/b"} == set(arrays):
        count, names = 4, ("linear/w: inputs", "linear/w: states", "linear/b")
        joint = arrays["linear/w"]
        if len(joint.shape) != 2 or joint.shape[1] % 4 or joint.shape[0] <= joint.shape[1] // 4:
            raise ValueError(f"linear/w must be [F + H, 4H], got {list(joint.shape)}")
        hidden = joint.shape[1] // 4
        arrays[names[0]], arrays[names[1]] = joint[:-hidden], joint[-hidden:]
    elif {"linear/w", "linear/b", "linear_1/w"} <= set(arrays):
        count, names = 1, ("linear/w", "linear_1/w", "linear/b", "linear_1/b")
    else:
        raise ValueError(f"not the weights of a Haiku layer: got {[*found]}; known are {KNOWN}")
    named = [(name, arrays[name]) for name in names if name in arrays]
    # The names show the kind of cell, so other shapes are errors.
    library = dataclasses.replace(HAIKU, gates={count: HAIKU.gates[count]})
    return _adapted(library.ours(*named, reset_after=False), GATES, 1)


def to_haiku(params: Mapping[str, Any], prefix: str | None = None) -> dict[str, Arrays]:
    """Returns parameters of Haiku's `LSTM`, `GRU` or `VanillaRNN`, for `haiku.transform`'s `apply`.

    Args:
      params: parameters of `LSTM`, of `GRU` with `reset_after=False`, or of `RNN`, which computes
        the same only with `activation_fn="relu"`.
      prefix: name of the module, by default Haiku's default: "lstm", "gru" or "vanilla_rnn".

    Raises:
      ValueError: parameters that those cells do not have.
    """
    kernel, recurrent, bias, _, count = HAIKU.theirs(params)
    weights = _adapted({"input": kernel, "recurrent": recurrent, "bias": bias}, HAIKU.gates, -1)
    kernel, recurrent, bias = weights.values()
    prefix = MODULES[count] if prefix is None else prefix.removesuffix("/")
    if count == 4:
        return {f"{prefix}/linear": {"w": concatenate([kernel, recurrent]), "b": bias}}
    if count == 3:
        return {prefix: {"w_i": kernel, "w_h": recurrent, "b": bias}}
    return {
        f"{prefix}/linear": {"w": kernel, "b": bias},
        f"{prefix}/linear_1": {"w": recurrent, "b": modules(bias).zeros_like(bias)},
    }


def _adapted(params: Arrays, gates: Mapping[int, str], sign: int) -> Arrays:
    """Converts weights between the two meanings of gates: to ours with sign 1, to Haiku's with −1.

    Our bias of f includes the 1 that Haiku adds. Our z is 1 minus Haiku's z: σ(−x) = 1 − σ(x).
    """
    count = HAIKU.count("recurrent", params["recurrent"])
    names = {4: ("bias",), 3: ("input", "recurrent", "bias"), 1: ()}[count]
    for name in names:
        blocks = dict(zip(gates[count], split(params[name], count), strict=True))
        if count == 4:
            blocks["f"] = blocks["f"] + sign
        else:
            blocks["z"] = -blocks["z"]
        params[name] = concatenate([*blocks.values()], -1)
    return params
