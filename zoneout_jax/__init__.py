"""Zoneout and other regularizers of recurrent networks in JAX: pure functions.

They need jax and numpy only. `zoneout_jax.linen` and `zoneout_jax.nnx` have the modules for Flax,
`zoneout_jax.interop` converts weights. `zoneout_jax.data` and `zoneout_jax.training` serve the
experiments.
"""

__version__ = "0.1.0"

from zoneout_jax._cell import Cell
from zoneout_jax._gru import GRU
from zoneout_jax._initializers import Initializer, block_orthogonal, tiled_orthogonal
from zoneout_jax._linear import LRU, RGLRU, LinearCell, MinGRU, MinLSTM
from zoneout_jax._lstm import LSTM
from zoneout_jax._normalization import update_stats
from zoneout_jax._regularizers import (
    activation_regularization,
    dropout,
    norm_stabilizer,
    temporal_activation_regularization,
    weight_drop,
    weight_noise,
)
from zoneout_jax._rnn import RNN, IndRNN
from zoneout_jax._unroll import unroll
from zoneout_jax._zoneout import Masks, Zoneout, zoneout

__all__ = [
    "GRU",
    "LRU",
    "LSTM",
    "RGLRU",
    "RNN",
    "Cell",
    "IndRNN",
    "Initializer",
    "LinearCell",
    "Masks",
    "MinGRU",
    "MinLSTM",
    "Zoneout",
    "activation_regularization",
    "block_orthogonal",
    "dropout",
    "norm_stabilizer",
    "temporal_activation_regularization",
    "tiled_orthogonal",
    "unroll",
    "update_stats",
    "weight_drop",
    "weight_noise",
    "zoneout",
]


def __dir__() -> list[str]:
    """Lists the public names, for completion, without the private modules that imports add."""
    modules = {"data", "interop", "linen", "nnx", "training"} & globals().keys()
    return ["__version__", *__all__, *modules]
