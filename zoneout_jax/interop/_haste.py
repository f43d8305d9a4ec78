"""Haste (lmnt-com/haste), `LSTM` and `GRU` of its PyTorch package."""

from collections.abc import Mapping
from typing import Any

from zoneout_jax.interop._weights import Arrays, Library, ended, select, to_array

HASTE = Library("Haste", {4: "igfo", 3: "zrn"})
NAMES = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
KNOWN = "kernel, recurrent_kernel and bias, for a GRU also recurrent_bias"


def from_haste(state: Mapping[str, Any], prefix: str = "") -> Arrays:
    """Our parameters from the state dict of Haste's `LSTM` or `GRU`, the latter with `reset_after`.

    Haste's gates are in the order i, g, f, o and z, r, n. Its `zoneout` is our rate of states; it
    has none of cells.

    Args:
      state: `kernel` [F, kH], `recurrent_kernel` [H, kH] and `bias` [kH], for a GRU also
        `recurrent_bias` [3H]; values may be torch tensors.
      prefix: of the module's names in the state of a model that holds it, "encoder.rnn." say.

    Raises:
      ValueError: other names, or shapes that do not fit together.
    """
    found = select(state, prefix, "Haste's LSTM or GRU", "|".join(NAMES), KNOWN, NAMES[:3])
    named = [(name, to_array(found[name])) for name in NAMES if name in found]
    if (HASTE.count(*named[1]) == 3) != (NAMES[3] in found):
        raise ValueError(f"a GRU, and nothing else, has a recurrent_bias: got {[*found]}")
    return HASTE.ours(*named)


def to_haste(params: Mapping[str, Any], prefix: str = "") -> Arrays:
    """The state dict of Haste's `LSTM` or `GRU`, as NumPy arrays.

    Args:
      params: of `LSTM`, or of `GRU` with `reset_after`.
      prefix: of all names, "encoder.rnn." say.

    Raises:
      ValueError: parameters that those layers do not have, as those of a plain RNN.
    """
    *arrays, _ = HASTE.theirs(params)
    named = zip(NAMES, arrays, strict=True)
    return {ended(prefix) + name: array for name, array in named if array is not None}
