"""Keras 3: `LSTM`, `GRU`, `SimpleRNN` and their cells."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoneout_jax._checks import described
from zoneout_jax.interop._weights import Arrays, Library, check_shape, modules, to_array

KERAS = Library("Keras", {4: "ifgo", 3: "zrn", 1: "h"}, reset_after=None)
KNOWN = "[kernel, recurrent_kernel, bias], or the first two alone"


def from_keras(weights: Sequence[Any], *, reset_after: bool | None = None) -> Arrays:
    """Returns our parameters from the weights of Keras's `LSTM`, `GRU`, `SimpleRNN` or their cells.

    Keras's gates are in the order i, f, c, o, like ours, and z, r, h.

    Args:
      weights: `layer.get_weights()`: `kernel` [F, kH], `recurrent_kernel` [H, kH] and `bias` [kH],
        which is [2, 3H] for a GRU with `reset_after`. A missing bias counts as zeros.
      reset_after: the setting of a GRU; needed if there is no bias, whose shape would show it.

    Raises:
      ValueError: another number of arrays, such as the six of a `Bidirectional`; shapes that do not
        fit together; a GRU without bias and without `reset_after`, or with one that its bias
        contradicts.
      TypeError: `weights` that is not a list, such as the layer itself.
    """
    if not isinstance(weights, Sequence | Mapping):
        raise TypeError(f"weights must be layer.get_weights(), got {described(weights)}")
    if isinstance(weights, Mapping) or len(weights) not in (2, 3):
        given = [*weights] if isinstance(weights, Mapping) else [np.shape(w) for w in weights]
        raise ValueError(f"not the weights of one Keras layer: got {given}; known are {KNOWN}")
    arrays = [to_array(array) for array in weights]
    kernel, recurrent = ("kernel", arrays[0]), ("recurrent_kernel", arrays[1])
    bias = arrays[2] if len(arrays) == 3 else None
    if KERAS.count(*recurrent) != 3:
        return KERAS.ours(kernel, recurrent, None if bias is None else ("bias", bias))
    if bias is None:
        if reset_after is None:
            raise ValueError("a GRU without bias does not show its `reset_after`; set it")
        return KERAS.ours(kernel, recurrent, reset_after=reset_after)
    after = len(bias.shape) == 2
    if reset_after not in (after, None):
        raise ValueError(f"a bias of shape {list(bias.shape)} belongs to reset_after={after}")
    if not after:
        return KERAS.ours(kernel, recurrent, ("bias", bias), reset_after=False)
    check_shape("bias", bias, 2, recurrent[1].shape[1])
    return KERAS.ours(kernel, recurrent, ("bias", bias[0]), ("bias", bias[1]))


def to_keras(params: Mapping[str, Any]) -> list[Any]:
    """Returns the weights of Keras's `LSTM`, `GRU` or `SimpleRNN`, for `layer.set_weights`.

    The layer needs `use_bias=True`; a GRU also needs the same `reset_after` as ours.

    Raises:
      ValueError: parameters that those layers do not have.
    """
    *arrays, bias, recurrent_bias, _ = KERAS.theirs(params)
    if recurrent_bias is not None:
        bias = modules(bias, recurrent_bias).stack([bias, recurrent_bias])
    return [*arrays, bias]
