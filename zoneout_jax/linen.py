"""Flax Linen modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(256))` replaces `nn.RNN(nn.OptimizedLSTMCell(256))`. The modules only
hold parameters, statistics and random streams. The equations are in the pure cells, such as
`zoneout_jax.LSTM`.
"""

from typing import Literal

from zoneout_jax._gates import Activation
from zoneout_jax._gru import GRU
from zoneout_jax._initializers import Initializer
from zoneout_jax._linear import LRU, RGLRU, MinGRU, MinLSTM
from zoneout_jax._lstm import LSTM
from zoneout_jax._needs import needs
from zoneout_jax._rnn import RNN, IndRNN

with needs("zoneout_jax.linen", "flax"):
    from zoneout_jax._linen_cell import AnyCell, SizedCell, ZoneoutCell
    from zoneout_jax._linen_conv import ZoneoutConvLSTMCell
    from zoneout_jax._linen_rnn import ZoneoutRNN

__all__ = [
    "ZoneoutCell",
    "ZoneoutConvLSTMCell",
    "ZoneoutGRUCell",
    "ZoneoutIndRNNCell",
    "ZoneoutLRUCell",
    "ZoneoutLSTMCell",
    "ZoneoutMinGRUCell",
    "ZoneoutMinLSTMCell",
    "ZoneoutRGLRUCell",
    "ZoneoutRNN",
    "ZoneoutSimpleCell",
]


class ZoneoutLSTMCell(SizedCell):
    """One step of an LSTM with zoneout; `zoneout_jax.LSTM` has the equations.

    The carry is (c, h), as in Flax. With `normalization="batch"` the number of the step follows,
    and the population statistics are variables of the collection "batch_stats", which must be
    mutable in training. `nn.RNN` then needs `variable_carry="batch_stats"`, and its statistics
    include padding. It cannot create the variables that it carries: initialize with `ZoneoutRNN`,
    whose variables have the same names.

    Attributes:
      features: H, number of units.
      zoneout, deterministic, carry_init, carry_noise, axis_name, momentum: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LSTM`.

    Example:
      >>> cell = ZoneoutLSTMCell(4, zoneout=Zoneout(cells=0.5, states=0.05), deterministic=False)
      >>> x = jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> variables = cell.init(jax.random.key(1), carry, x)
      >>> carry, y = cell.apply(variables, carry, x, rngs={"zoneout": jax.random.key(2)})
      >>> y.shape
      (2, 4)
    """

    gate_fn: Activation = "sigmoid"
    forget_bias: float = 1.0
    normalization: Literal["layer", "batch"] | None = None
    initial_gamma: float | None = None
    max_steps: int | None = None
    momentum: float = 0.99
    ogates_zoneout: Literal["paper", "repository"] | None = None
    proj_size: int | None = None

    kind = LSTM


class ZoneoutGRUCell(SizedCell):
    """One step of a GRU with zoneout; `zoneout_jax.GRU` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.GRU`.
    """

    gate_fn: Activation = "sigmoid"
    reset_after: bool = True
    normalization: Literal["layer"] | None = None

    kind = GRU


class ZoneoutSimpleCell(SizedCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.RNN` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.RNN`.
    """

    kind = RNN


class ZoneoutIndRNNCell(SizedCell):
    """One step of an IndRNN with zoneout; `zoneout_jax.IndRNN` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.IndRNN`.
    """

    activation_fn: Activation = "relu"

    kind = IndRNN


class ZoneoutMinGRUCell(AnyCell):
    """One step of a minGRU with zoneout; `zoneout_jax.MinGRU` has the equations.

    `ZoneoutRNN` runs all steps of this and the other linear cells at once.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.MinGRU`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinGRU


class ZoneoutMinLSTMCell(AnyCell):
    """One step of a minLSTM with zoneout; `zoneout_jax.MinLSTM` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.MinLSTM`.
    """

    activation_fn: Activation | None = None
    bias_init: Initializer | None = None

    kind = MinLSTM


class ZoneoutRGLRUCell(AnyCell):
    """One step of an RG-LRU with zoneout; `zoneout_jax.RGLRU` has the equations.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.RGLRU`.
    """

    bias_init: Initializer | None = None

    kind = RGLRU


class ZoneoutLRUCell(AnyCell):
    """One step of an LRU with zoneout; `zoneout_jax.LRU` has the equations.

    The carry is complex.

    Attributes:
      features, zoneout, deterministic, carry_init, carry_noise, axis_name: as in `ZoneoutLSTMCell`.
      other arguments: as for `zoneout_jax.LRU`.
    """

    r_min: float = 0.0
    r_max: float = 1.0
    max_phase: float = 6.28

    kind = LRU
