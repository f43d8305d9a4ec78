"""Weights from and to the recurrent cells of Flax and torch, as dicts of arrays.

Neither library is imported. What is traced stays so, and can be compiled; the rest becomes NumPy
arrays. Ours are the parameters of `LSTM`, `GRU` with `reset_after`, and `RNN`:
`input` [F, kH], `recurrent` [H, kH] and `bias` [kH], k being 4, 3 and 1, and for a GRU also
`recurrent_bias` [H]. The kind of cell shows in the shape of `recurrent`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Arrays = dict[str, Any]

GATES = {4: "ifgo", 3: "rzn", 1: ""}
"""Gates by their number, in our order, which is torch's too."""


def from_flax(params: Mapping[str, Any]) -> Arrays:
    """Our parameters from those of a Flax cell, Linen or NNX.

    Args:
      params: of `OptimizedLSTMCell`, `LSTMCell`, `GRUCell` or `SimpleCell`: the dict `params` of a
        Linen cell, or `nnx.to_pure_dict(nnx.state(cell, nnx.Param))`.

    Raises:
      ValueError: other parameters, or shapes that do not fit together.
    """
    if "dense_i" in params:  # NNX, all gates in one
        layers = {side: params[f"dense_{side}"] for side in "ih"}
        kernels = {side: _array(layer["kernel"]) for side, layer in layers.items()}
        count = _gate_count(kernels["h"])
        biases = {
            side: _array(layer.get("bias", np.zeros(kernels["h"].shape[1], np.float32)))
            for side, layer in layers.items()
        }
    else:
        # A Python name cannot be "if": NNX has "if_".
        layers = {name.rstrip("_"): layer for name, layer in params.items()}
        kinds = {
            frozenset(side + gate for side in "ih" for gate in gates or ("",)): gates
            for gates in GATES.values()
        }
        if frozenset(layers) not in kinds:
            raise ValueError(f"not the parameters of a Flax LSTM, GRU or SimpleCell: {[*params]}")
        gates = kinds[frozenset(layers)] or ("",)
        count, kernels, biases = len(gates), {}, {}
        for side in "ih":
            kernel = [_array(layers[side + gate]["kernel"]) for gate in gates]
            bias = [
                _array(layers[side + gate].get("bias", np.zeros(k.shape[1], k.dtype)))
                for gate, k in zip(gates, kernel, strict=True)
            ]
            kernels[side], biases[side] = _concatenate(kernel, 1), _concatenate(bias)
    return _ours(kernels["i"], kernels["h"], biases["i"], biases["h"], count)


def to_linen(params: Mapping[str, Any]) -> dict[str, Arrays]:
    """Parameters of Flax Linen's `OptimizedLSTMCell` and `LSTMCell`, `GRUCell` or `SimpleCell`.

    Raises:
      ValueError: parameters that those cells do not have.
    """
    kernels, recurrent, bias, recurrent_bias, count = _theirs(params)
    gates = GATES[count] or ("",)
    split = [
        jnp.split(array, count, -1) if isinstance(array, jax.Array) else np.split(array, count, -1)
        for array in (kernels, recurrent, bias)
    ]
    # An LSTM has its biases on the recurrent side, the others on that of the input.
    biased = "h" if count == 4 else "i"
    cell = {}
    for gate, kernel, recurrent_kernel, gate_bias in zip(gates, *split, strict=True):
        cell[f"i{gate}"], cell[f"h{gate}"] = {"kernel": kernel}, {"kernel": recurrent_kernel}
        cell[f"{biased}{gate}"]["bias"] = gate_bias
    if count == 3:
        cell["hn"]["bias"] = recurrent_bias
    return cell


def to_nnx(params: Mapping[str, Any], *, optimized: bool = True) -> dict[str, Arrays]:
    """Parameters of Flax NNX's `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`, for `nnx.update`.

    Args:
      params: ours.
      optimized: False for `LSTMCell`, which has a layer for each gate.

    Raises:
      ValueError: parameters that those cells do not have; a `recurrent_bias` other than 0, for
        which NNX's `GRUCell` has no place.
    """
    kernels, recurrent, bias, recurrent_bias, count = _theirs(params)
    if count == 4 and not optimized:
        return {name.replace("if", "if_"): layer for name, layer in to_linen(params).items()}
    if isinstance(recurrent_bias, jax.core.Tracer):
        raise TypeError(
            "recurrent_bias must be known: whether it is 0 decides; call to_nnx outside jit"
        )
    if np.any(recurrent_bias):
        raise ValueError("the GRUCell of NNX has no recurrent_bias; it must be 0 to be left out")
    cell = {"dense_i": {"kernel": kernels}, "dense_h": {"kernel": recurrent}}
    cell["dense_h" if count == 4 else "dense_i"]["bias"] = bias
    return cell


def from_torch(state: Mapping[str, Any]) -> list[Any]:
    """Our parameters from the state dict of torch's `nn.LSTM`, `nn.GRU` or `nn.RNN`.

    The two biases of torch are added, but for the GRU's b_hn, which is `recurrent_bias`.

    Args:
      state: arrays by name; values may be torch tensors on the CPU.

    Returns:
      The parameters of each layer; if bidirectional, pairs (forward, backward).

    Raises:
      ValueError: other names, as those of projections, or shapes that do not fit together.
    """
    known = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    unknown = [name for name in state if not name.startswith(tuple(f"{k}_l" for k in known))]
    if any(name.startswith("weight_hr") for name in unknown):
        raise ValueError("an LSTM with projections (proj_size) has no counterpart here")
    if unknown or "weight_ih_l0" not in state:
        raise ValueError(f"not the state of torch's nn.LSTM, nn.GRU or nn.RNN: {[*state]}")

    def direction(suffix: str) -> Arrays:
        kernel, recurrent = (_array(state[f"weight_{s}_{suffix}"]).T for s in ("ih", "hh"))
        none = np.zeros(recurrent.shape[1], recurrent.dtype)
        bias, recurrent_bias = (
            _array(state.get(f"bias_{side}_{suffix}", none)) for side in ("ih", "hh")
        )
        return _ours(kernel, recurrent, bias, recurrent_bias, _gate_count(recurrent))

    layers: list[Any] = []
    while f"weight_ih_l{len(layers)}" in state:
        suffix = f"l{len(layers)}"
        layer = direction(suffix)
        reverse = f"{suffix}_reverse"
        two = f"weight_ih_{reverse}" in state
        layers.append((layer, direction(reverse)) if two else layer)
    return layers


def to_torch(layers: Sequence[Any]) -> Arrays:
    """The state dict of torch's `nn.LSTM`, `nn.GRU` or `nn.RNN`, as NumPy arrays.

    Args:
      layers: parameters of each layer, or pairs (forward, backward), as `from_torch` returns them.

    Raises:
      ValueError: parameters that those layers do not have.
      TypeError: a dict in place of a sequence.
    """
    if isinstance(layers, Mapping):
        raise TypeError(
            "layers must be a sequence, one entry a layer; got a dict: to_torch([params])"
        )
    state = {}
    for number, layer in enumerate(layers):
        pair = (layer,) if isinstance(layer, Mapping) else layer
        for params, suffix in zip(pair, ("", "_reverse"), strict=False):
            kernels, recurrent, bias, recurrent_bias, count = _theirs(params)
            other = np.zeros(bias.shape, bias.dtype)
            if count == 3:
                other = _concatenate([other[: -len(recurrent_bias)], recurrent_bias])
            for name, array in (
                ("weight_ih", kernels.T),
                ("weight_hh", recurrent.T),
                ("bias_ih", bias),
                ("bias_hh", other),
            ):
                state[f"{name}_l{number}{suffix}"] = array
    return state


def _gate_count(recurrent: np.ndarray) -> int:
    rows, columns = recurrent.shape
    if columns % rows or columns // rows not in GATES:
        raise ValueError(
            f"recurrent weights must be [H, 4H] (LSTM), [H, 3H] (GRU) or [H, H] (plain RNN),"
            f" got {list(recurrent.shape)}"
        )
    return columns // rows


def _ours(
    kernel: np.ndarray,
    recurrent: np.ndarray,
    bias: np.ndarray,
    recurrent_bias: np.ndarray,
    count: int,
) -> Arrays:
    """Our parameters from kernels and biases of both sides; checks their shapes."""
    hidden, width = recurrent.shape[0], count * recurrent.shape[0]
    shapes = [array.shape for array in (recurrent, bias, recurrent_bias)]
    if shapes != [(hidden, width), (width,), (width,)] or kernel.shape[1:] != (width,):
        raise ValueError(
            f"weights must be [F, {width}] and [{hidden}, {width}], biases [{width}]; got"
            f" {kernel.shape}, {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )
    params = {"input": kernel, "recurrent": recurrent, "bias": bias + recurrent_bias}
    if count == 3:
        params["bias"] = _concatenate([params["bias"][:-hidden], bias[-hidden:]])
        params["recurrent_bias"] = recurrent_bias[-hidden:]
    return params


def _theirs(
    params: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Kernels, biases and number of gates of our parameters, if others have the like."""
    missing = {"input", "recurrent", "bias"} - set(params)
    if missing:
        raise ValueError(f"parameters lack {', '.join(sorted(missing))}: got {[*params]}")
    arrays = {name: _array(array) for name, array in params.items()}
    count = _gate_count(arrays["recurrent"])
    if count == 3 and "recurrent_bias" not in params:
        raise ValueError(
            "a GRU whose reset gate comes before the recurrent product has no exact counterpart;"
            " use GRU(reset_after=True)"
        )
    unknown = (
        set(params) - {"input", "recurrent", "bias"} - ({"recurrent_bias"} if count == 3 else set())
    )
    if unknown:
        raise ValueError(f"Flax and torch have no place for {', '.join(sorted(unknown))}")
    none = np.zeros(0, arrays["bias"].dtype)
    recurrent_bias = arrays.get("recurrent_bias", none)
    return arrays["input"], arrays["recurrent"], arrays["bias"], recurrent_bias, count


def _array(array: Any) -> Any:
    """A NumPy array, but for what is traced."""
    return array if isinstance(array, jax.core.Tracer) else np.asarray(array)


def _modules(*arrays: Any) -> Any:
    """The module of functions for arrays."""
    return jnp if any(isinstance(array, jax.core.Tracer) for array in arrays) else np


def _concatenate(arrays: Sequence[Any], axis: int = 0) -> Any:
    return _modules(*arrays).concatenate(arrays, axis)
