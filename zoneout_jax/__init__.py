"""Zoneout and other recurrent regularization in JAX: pure functions, on jax and numpy alone.

`zoneout_jax.linen` and `zoneout_jax.nnx` have the modules for Flax, `zoneout_jax.interop` converts
weights; `zoneout_jax.data` and `zoneout_jax.training` serve the experiments.
"""

__version__ = "0.1.0"

from zoneout_jax.cells import Cell as Cell
from zoneout_jax.cells import gru as gru
from zoneout_jax.cells import rnn as rnn
from zoneout_jax.initializers import block_orthogonal as block_orthogonal
from zoneout_jax.initializers import tiled_orthogonal as tiled_orthogonal
from zoneout_jax.lstm_cell import lstm as lstm
from zoneout_jax.normalization import update_stats as update_stats
from zoneout_jax.regularizers import norm_stabilizer as norm_stabilizer
from zoneout_jax.regularizers import weight_noise as weight_noise
from zoneout_jax.unroll import unroll as unroll
from zoneout_jax.zoneout import Masks as Masks
from zoneout_jax.zoneout import Zoneout as Zoneout
