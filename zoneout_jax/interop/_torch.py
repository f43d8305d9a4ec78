"""torch: `nn.LSTM`, `nn.GRU`, `nn.RNN` and their cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoneout_jax.interop._weights import (
    GATES,
    Arrays,
    Library,
    check_shape,
    ended,
    for_torch,
    select,
    to_array,
)

TORCH = Library("torch", GATES, transposed=True)
NAMES = r"(weight|bias)_(ih|hh)(_l\d+(_reverse)?)?|weight_hr_l\d+(_reverse)?"
KNOWN = (
    "weight_ih, weight_hh, bias_ih and bias_hh of a cell; for layers also weight_hr, all ending in"
    " _l0, _l0_reverse, …"
)


def from_torch(state: Mapping[str, Any], prefix: str = "") -> list[Any]:
    """Returns our parameters from the state dict of `nn.LSTM`, `nn.GRU`, `nn.RNN` or their cells.

    torch's gates are in the order i, f, g, o and r, z, n, like ours. Its two biases are added,
    except the GRU's b_hn, which becomes `recurrent_bias`. Parameters of an `nn.LSTM` with
    projections are for an `LSTM` with the same `proj_size`.

    Args:
      state: arrays by name. Values may be torch tensors, also of bfloat16; they are copied.
      prefix: prefix of the module's names in the state of a larger model, such as "encoder.rnn.".

    Returns:
      The parameters of each layer; if bidirectional, pairs (forward, backward). For an `LSTMCell`,
      `GRUCell` or `RNNCell`, a list of one entry.

    Raises:
      ValueError: unknown names, or shapes that do not fit together.
      TypeError: a `state` that is not a dict, such as the module itself.
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
        raise ValueError(f"the state has both a cell and layers: got {[*found]}; set `prefix`")
    return layers


def to_torch(layers: Sequence[Any], prefix: str = "", *, cell: bool = False) -> Arrays:
    """Returns the state dict of torch's `nn.LSTM`, `nn.GRU`, `nn.RNN` or cells, as NumPy arrays.

    Load it into a module with biases by

        module.load_state_dict({name: torch.tensor(array) for name, array in state.items()})

    For a larger model that contains the module, set `prefix` and add `strict=False`. bfloat16
    becomes float32, which `torch.tensor` accepts; `load_state_dict` rounds to the module's own
    type.

    Args:
      layers: parameters of each layer, or pairs (forward, backward), as `from_torch` returns them.
      prefix: prefix of all names, such as "encoder.rnn.".
      cell: True for the names of `LSTMCell`, `GRUCell` or `RNNCell`, which have one layer.

    Raises:
      ValueError: parameters that those layers do not have; several layers or a projection for a
        cell; layers that do not fit together.
      TypeError: a dict instead of a sequence.
    """
    if isinstance(layers, Mapping):
        raise TypeError(
            "layers must be a sequence, one entry for each layer; got a dict: to_torch([params])"
        )
    if cell and (len(layers) != 1 or not isinstance(layers[0], Mapping)):
        raise ValueError(f"a cell has one layer and one direction; got {len(layers)} layers")
    state: dict[str, Any] = {}
    ways, width, recurrent = 1, None, None
    for number, layer in enumerate(layers):
        pair = (layer,) if isinstance(layer, Mapping) else layer
        if len(pair) not in (1, 2) or number and len(pair) != ways:
            raise ValueError(
                "each layer must be a dict, or each a pair (forward, backward); layer"
                f" {number} has {len(pair)} dicts"
            )
        ways = len(pair)
        for params, direction in zip(pair, ("", "_reverse"), strict=False):
            if cell and "projection" in params:
                raise ValueError("torch's LSTMCell has no place for projection; nn.LSTM has")
            named = _named(params)
            inputs, shape = named["weight_ih"].shape[1], named["weight_hh"].shape
            if width not in (None, inputs):
                raise ValueError(
                    f"layer {number}{direction} must have {width} inputs, got {inputs}"
                )
            if recurrent not in (None, shape):
                raise ValueError(
                    "all layers and directions must be of one kind and size: weight_hh is"
                    f" {[*shape]} in layer {number}{direction}, {[*recurrent]} before"
                )
            width, recurrent = inputs, shape
            suffix = "" if cell else f"_l{number}{direction}"
            for name, array in named.items():
                state[f"{ended(prefix)}{name}{suffix}"] = for_torch(array)
        width = ways * named["weight_hh"].shape[1]  # of the next layer's inputs
    return state


def _named(params: Mapping[str, Any]) -> Arrays:
    """Returns the weights of one layer and direction by their names in torch."""
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
