"""Weights from and to the recurrent cells of other libraries, as dicts and lists of arrays.

None of the libraries is imported. Traced arrays stay traced, so conversions can be compiled; other
arrays become NumPy arrays. Our parameters are those of `LSTM`, `GRU` and `RNN`: `input` [F, kH],
`recurrent` [H, kH] and `bias` [kH], with k = 4, 3 and 1, and `recurrent_bias` [H] for a GRU with
`reset_after`. The shape of `recurrent` shows the kind of cell. torch also has LSTMs with a
`projection` [H, P]; Haste also has layers with normalization and `IndRNN`.
"""

from zoneout_jax.interop._equinox import from_equinox as from_equinox
from zoneout_jax.interop._equinox import to_equinox as to_equinox
from zoneout_jax.interop._flax import from_flax as from_flax
from zoneout_jax.interop._flax import to_linen as to_linen
from zoneout_jax.interop._flax import to_nnx as to_nnx
from zoneout_jax.interop._haiku import from_haiku as from_haiku
from zoneout_jax.interop._haiku import to_haiku as to_haiku
from zoneout_jax.interop._haste import from_haste as from_haste
from zoneout_jax.interop._haste import to_haste as to_haste
from zoneout_jax.interop._keras import from_keras as from_keras
from zoneout_jax.interop._keras import to_keras as to_keras
from zoneout_jax.interop._torch import from_torch as from_torch
from zoneout_jax.interop._torch import to_torch as to_torch
