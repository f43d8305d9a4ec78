"""Flax NNX modules for zoneout.

`ZoneoutRNN(ZoneoutLSTMCell(32, 256, rngs=rngs))` replaces
`nnx.RNN(nnx.OptimizedLSTMCell(32, 256, rngs=rngs))`. The modules only hold parameters, statistics
and random streams. The equations are in the pure cells, such as `zoneout_jax.LSTM`.
"""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp

from zoneout_jax._cell import Cell, Output
from zoneout_jax._gates import Activation
from zoneout_jax._gru import GRU
from zoneout_jax._initializers import Initializer
from zoneout_jax._linear import LRU, RGLRU, MinGRU, MinLSTM
from zoneout_jax._lstm import LSTM
from zoneout_jax._needs import needs
from zoneout_jax._normalization import AxisName
from zoneout_jax._rnn import RNN, IndRNN
from zoneout_jax._zoneout import Zoneout

with needs("zoneout_jax.nnx", "flax"):
    from flax import nnx

    from zoneout_jax._nnx_cell import ZoneoutCell
    from zoneout_jax._nnx_conv import ZoneoutConvLSTMCell
    from zoneout_jax._nnx_rnn import ZoneoutRNN

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


class ZoneoutLSTMCell(ZoneoutCell):
    """One step of an LSTM with zoneout; `zoneout_jax.LSTM` has the equations.

    The carry is (c, h), as in Flax. With `normalization="batch"` the number of the step follows.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, momentum, carry_init, carry_noise, axis_name, rngs: as for
        `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LSTM`.

    Example:
      >>> spec = Zoneout(cells=0.5, states=0.05)
      >>> cell = ZoneoutLSTMCell(3, 4, zoneout=spec, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((2, 3))
      >>> carry, y = cell(cell.initialize_carry(x.shape), x)
      >>> y.shape
      (2, 4)
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "tanh",
        gate_fn: Activation = "sigmoid",
        output: Output = "state",
        forget_bias: float = 1.0,
        normalization: Literal["layer", "batch"] | None = None,
        initial_gamma: float | None = None,
        max_steps: int | None = None,
        momentum: float = 0.99,
        ogates_zoneout: Literal["paper", "repository"] | None = None,
        proj_size: int | None = None,
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(LSTM, given), **_shared(given))


class ZoneoutGRUCell(ZoneoutCell):
    """One step of a GRU with zoneout; `zoneout_jax.GRU` has the equations.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.GRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        reset_after: bool = True,
        activation_fn: Activation = "tanh",
        gate_fn: Activation = "sigmoid",
        output: Output = "state",
        normalization: Literal["layer"] | None = None,
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(GRU, given), **_shared(given))


class ZoneoutSimpleCell(ZoneoutCell):
    """One step of a plain RNN with zoneout; `zoneout_jax.RNN` has the equations.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.RNN`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "tanh",
        output: Output = "state",
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(RNN, given), **_shared(given))


class ZoneoutIndRNNCell(ZoneoutCell):
    """One step of an IndRNN with zoneout; `zoneout_jax.IndRNN` has the equations.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.IndRNN`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation = "relu",
        output: Output = "state",
        kernel_init: Initializer | None = None,
        recurrent_kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(IndRNN, given), **_shared(given))


class ZoneoutMinGRUCell(ZoneoutCell):
    """One step of a minGRU with zoneout; `zoneout_jax.MinGRU` has the equations.

    `ZoneoutRNN` runs all steps of this and the other linear cells at once.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.MinGRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation | None = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(MinGRU, given), **_shared(given))


class ZoneoutMinLSTMCell(ZoneoutCell):
    """One step of a minLSTM with zoneout; `zoneout_jax.MinLSTM` has the equations.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.MinLSTM`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        activation_fn: Activation | None = None,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(MinLSTM, given), **_shared(given))


class ZoneoutRGLRUCell(ZoneoutCell):
    """One step of an RG-LRU with zoneout; `zoneout_jax.RGLRU` has the equations.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.RGLRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        kernel_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(RGLRU, given), **_shared(given))


class ZoneoutLRUCell(ZoneoutCell):
    """One step of an LRU with zoneout; `zoneout_jax.LRU` has the equations.

    The carry is complex.

    Args:
      in_features: number of features of an input, F.
      hidden_features: number of units, H.
      zoneout, deterministic, carry_init, carry_noise, axis_name, rngs: as for `ZoneoutCell`.
      other arguments: as for `zoneout_jax.LRU`.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 6.28,
        kernel_init: Initializer | None = None,
        carry_init: Initializer | None = None,
        learned_carry: bool = False,
        carry_noise: float = 0.0,
        param_dtype: Any = jnp.float32,
        dtype: Any = None,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        given = locals()
        super().__init__(_pure(LRU, given), **_shared(given))


SHARED = "zoneout deterministic momentum carry_init carry_noise axis_name rngs".split()
"""Arguments that the subclasses of `ZoneoutCell` pass on to it."""


def _pure(kind: type[Cell], given: dict[str, Any]) -> Cell:
    """Makes the pure cell from the given arguments that are its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: given[name] for name in names if name in given})


def _shared(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in SHARED if name in given}
