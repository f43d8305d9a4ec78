"""Zoneout and other recurrent regularization in JAX: pure functions, on jax and numpy alone.

`zoneout_jax.linen` and `zoneout_jax.nnx` have the modules for Flax, `zoneout_jax.interop` converts
weights; `zoneout_jax.data` and `zoneout_jax.training` serve the experiments.
"""

__version__ = "0.1.0"

from zoneout_jax.cells import Cell, gru, rnn
from zoneout_jax.initializers import block_orthogonal, tiled_orthogonal
from zoneout_jax.lstm_cell import lstm
from zoneout_jax.normalization import update_stats
from zoneout_jax.regularizers import norm_stabilizer, weight_noise
from zoneout_jax.unroll import unroll
from zoneout_jax.zoneout import Masks, Zoneout

__all__ = [
    "Cell",
    "Masks",
    "Zoneout",
    "block_orthogonal",
    "gru",
    "lstm",
    "norm_stabilizer",
    "rnn",
    "tiled_orthogonal",
    "unroll",
    "update_stats",
    "weight_noise",
]


def __dir__() -> list[str]:
    """Names for completion: without the modules inside, which imports leave here as well."""
    modules = {"data", "interop", "linen", "nnx", "training"} & globals().keys()
    return ["__version__", *__all__, *modules]
