"""torch: `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    check_shape,
    ended,
    select,
    to_array,
)

TORCH = Library("torch", GATES, transposed=True)
NAMES = r"(weight|bias)_(ih|hh)(_l\d+(_reverse)?)?|weight_hr_l\d+(_reverse)?"
KNOWN = (
    "weight_ih, weight_hh, bias_ih and bias_hh of a cell, or the same, and weight_hr, with _l0,"
    " _l0_reverse, …"
)


def from_torch(state: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """Our parameters from the state dict of torch's `nn.LSTM`, `nn.GRU`, `nn.RNN` or their cells.

    Gates are in the order i, f, g, o and r, z, n, as ours. The two biases of torch are added, but
    for the GRU's b_hn, which is `recurrent_bias`. Those of an `nn.LSTM` with projections are for an
    `LSTM` with the same `proj_size`.

    Args:
      state: arrays by name; values may be torch tensors, bfloat16 ones too. They are copied.
      prefix: of the module's names in the state of a model that holds it, "encoder.rnn." say.

    Returns:
      The parameters of each layer; if bidirectional, pairs (forward, backward). Of an `LSTMCell`,
      `GRUCell` or `RNNCell` a list of one.

    Raises:
      ValueError: other names, or shapes that do not fit together.
    """
    found = select(state, prefix, "torch's nn.LSTM, nn.GRU, nn.RNN or their cells", NAMES, KNOWN)
    arrays = {name: to_array(array) for name, array in found.items()}

    def direction(suffix: str, features: int | None) -> Arrays:
        kernel, recurrent, *biases = (
            (f"{part}_{side}{suffix}", arrays.pop(f"{part}_{side}{suffix}", None))
            for part in ("weight", "bias")
            for side in ("ih", "hh")
        )
        for name, array in (kernel, recurrent):
            if array is None:
                raise ValueError(f"the state lacks {name}: got {[*found]}")
        bias, recurrent_bias = (None if named[1] is None else named for named in biases)
        further, hidden = {}, None
        if f"weight_hr{suffix}" in arrays:
            projection = arrays.pop(f"weight_hr{suffix}")
            hidden = projection.shape[-1]
            check_shape(f"weight_hr{suffix}", projection, recurrent[1].shape[-1], hidden)
            further["projection"] = projection.T
        made = TORCH.ours(kernel, recurrent, bias, recurrent_bias, features=features, hidden=hidden)
        return made | further

    layers: list[Any] = []
    features = None
    while any("_l" in name for name in arrays):
        suffix = f"_l{len(layers)}"
        reverse = f"{suffix}_reverse"
        layer = direction(suffix, features)
        features = len(layer["recurrent"])
        if f"weight_ih{reverse}" in arrays:
            layers.append((layer, direction(reverse, len(layer["input"]))))
            features *= 2
        else:
            layers.append(layer)
    if not layers:
        layers.append(direction("", None))
    if arrays:
        raise ValueError(f"a cell beside layers: got {[*found]}; set `prefix`")
    return layers


def to_torch(layers: Sequence[Any], prefix: str = "", *, cell: bool = False) -> Arrays:
    """The state dict of torch's `nn.LSTM`, `nn.GRU` or `nn.RNN`, or of a cell, as NumPy arrays.

    A module with biases takes it by

        module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})

    and a model that holds it elsewhere, with `prefix`, by the same with `strict=False`. bfloat16
    becomes float32, which `torch.tensor` knows; `load_state_dict` rounds to the module's own type.

    Args:
      layers: parameters of each layer, or pairs (forward, backward), as `from_torch` returns them.
      prefix: of all names, "encoder.rnn." say.
      cell: whether names are those of `LSTMCell`, `GRUCell` or `RNNCell`, which have one layer.

    Raises:
      ValueError: parameters that those layers do not have; several layers or a projection for a
        cell.
      TypeError: a dict in place of a sequence.
    """
    if isinstance(layers, Mapping):
        raise TypeError(
            "layers must be a sequence, one entry a layer; got a dict: to_torch([params])"
        )
    if cell and (len(layers) != 1 or not isinstance(layers[0], Mapping)):
        raise ValueError(f"a cell has one layer and one direction; got {len(layers)} layers")
    state = {}
    for number, layer in enumerate(layers):
        pair = (layer,) if isinstance(layer, Mapping) else layer
        for params, direction in zip(pair, ("", "_reverse"), strict=False):
            if cell and "projection" in params:
                raise ValueError("torch's LSTMCell has no place for projection; nn.LSTM has")
            for name, array in _named(params).items():
                suffix = "" if cell else f"_l{number}{direction}"
                if array.dtype == jnp.bfloat16:
                    array = array.astype(np.float32)
                traced = isinstance(array, jax.core.Tracer)
                state[f"{ended(prefix)}{name}{suffix}"] = (
                    array if traced else np.array(array, order="C")
                )
    return state


def _named(params: Mapping[str, Any]) -> Arrays:
    """The weights of a layer and direction by their names in torch."""
    rest = dict(params)
    projection = to_array(rest.pop("projection")) if "projection" in rest else None
    hidden = None if projection is None else len(projection)
    kernel, recurrent, bias, recurrent_bias, _ = TORCH.theirs(rest, hidden=hidden)
    if recurrent_bias is None:
        recurrent_bias = np.zeros(bias.shape, bias.dtype)
    named = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    named |= {"bias_ih": bias, "bias_hh": recurrent_bias}
    if projection is not None:
        check_shape("projection", projection, hidden, len(recurrent))
        named["weight_hr"] = projection.T
    return named
