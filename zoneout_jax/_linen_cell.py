"""The base classes of cells for Flax Linen, and the cell around any pure cell."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoneout_jax import _flax
from zoneout_jax._cell import Carry, Cell, Output
from zoneout_jax._gates import Activation
from zoneout_jax._initializers import Initializer
from zoneout_jax._normalization import AxisName, Stats
from zoneout_jax._sharding import key_of_device
from zoneout_jax._zoneout import Zoneout


class BaseCell(nn.RNNCellBase):
    """Base class of all cells."""

    momentum = 0.99  # a field only of cells that may have batch normalization

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell for inputs of F features."""
        raise NotImplementedError

    def __call__(
        self,
        carry: Carry,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          carry: carry of the previous step, arrays `[*batch, H]`.
          inputs: `[*batch, F]`.
          deterministic, zoneout: override the attributes.

        Returns:
          The new carry and the output `[*batch, H]`.
        """
        return self._apply(
            inputs, _flax.run_step, carry, inputs, deterministic=deterministic, zoneout=zoneout
        )

    def _run(
        self,
        xs: jax.Array,
        carry: Carry | None,
        *,
        init_key: jax.Array,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs `zoneout_jax.unroll` over inputs `[T, *batch, F]` with the cell's parameters."""
        if carry is None and self.carry_init is not None and not self.learned_carry:
            carry = self.initialize_carry(key_of_device(xs, init_key), xs.shape[1:])
        return self._apply(
            xs,
            _flax.run_sequence,
            xs,
            carry,
            deterministic=deterministic,
            zoneout=zoneout,
            **options,
        )

    @nn.compact
    def _apply(
        self,
        inputs: jax.Array,
        run: Callable[..., tuple[Carry, Any, Stats | None]],
        *arguments: Any,
        deterministic: bool | None,
        zoneout: Zoneout | None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs the cell with its parameters and stores the new statistics."""
        _flax.check_carry_init(self, self.learned_carry)
        cell = self.pure(inputs.shape[-1])
        params = {
            name: self.param(name, init, shape, cell.param_dtype)
            for name, (init, shape) in cell.parameters().items()
        }
        variables = {
            name: self.variable("batch_stats", name, lambda value: value, value)
            for name, value in cell.init_stats().items()
        }
        stats = {name: variable.value for name, variable in variables.items()} or None
        mode = _flax.Mode.of(self, cell, zoneout, deterministic, self.is_initializing())
        carry, ys, moved = run(
            self, cell, mode, params, stats, *arguments, draw_key=self._key, **options
        )
        for name, value in (moved or {}).items():
            variables[name].value = value
        return carry, ys

    @nn.nowrap
    def initialize_carry(self, rng: jax.Array, input_shape: tuple[int, ...]) -> Carry:
        """Returns the initial carry, zeros or drawn, for inputs `[*batch, F]`."""
        if self.learned_carry:
            raise ValueError("the initial carry is learned: use ZoneoutRNN without initial_carry")
        *batch_dims, in_features = input_shape
        cell = self.pure(in_features)
        return _flax.start_carry(cell, {}, batch_dims, self.carry_init, lambda: rng)

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    def _key(self) -> jax.Array:
        return _flax.linen_key(self)


class ZoneoutCell(BaseCell):
    """One step of any pure cell, for instance of a cell that you wrote.

    The carry is the pure cell's. Parameters are initialized one by one; their names and shapes are
    the pure cell's.

    In training the masks come from the random stream "zoneout". The masks of an example do not
    depend on the rest of the batch. In evaluation the masks are their expectations; while
    parameters are initialized there are no masks. Neither needs the stream. `ZoneoutRNN` passes the
    stream on. `nn.RNN`, which is slower, passes on only the streams in `split_rngs`: its default
    raises InvalidRngError, and with False for "zoneout" every step would draw the same masks. So
    write:

        nn.RNN(cell, split_rngs={"params": False, "zoneout": True})

    Attributes:
      cell: the pure cell.
      zoneout: rates and kinds of the masks. Rates may be traced values (but not under `nn.jit`,
        which hashes attributes).
      deterministic: False in training, True in evaluation. Not needed if nothing depends on it.
      momentum: momentum of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis (`pmap`, `shard_map`) that the batch is spread over, if
        any. Masks are then the same as for the whole batch on a single device.

    Raises:
      ValueError: `deterministic` not given though something depends on it; static masks,
        `hidden_drop` or noise on the carry in a single step of training; a carry that does not fit
        the inputs; options that the pure cell rejects.
      flax.errors.InvalidRngError: training without the random stream "zoneout".
    """

    cell: Cell
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    momentum: float = 0.99
    carry_init: Initializer | None = None
    carry_noise: float = 0.0
    axis_name: AxisName | None = None

    def __post_init__(self) -> None:
        _flax.check_pure(self.cell)
        super().__post_init__()

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell."""
        return self.cell

    @property
    def learned_carry(self) -> bool:
        """True if the initial carry is made of parameters."""
        return self.cell.learned_carry


class AnyCell(BaseCell):
    """Options of all cells that read their input size from the first input."""

    features: int
    zoneout: Zoneout = Zoneout()
    deterministic: bool | None = None
    kernel_init: Initializer | None = None
    carry_init: Initializer | None = None
    learned_carry: bool = False
    carry_noise: float = 0.0
    param_dtype: Any = jnp.float32
    dtype: Any = None
    axis_name: AxisName | None = None

    kind = Cell

    def pure(self, in_features: int) -> Cell:
        """Returns the pure cell for inputs of F features."""
        return _flax.make_cell(self.kind, self, in_features, self.features)


class SizedCell(AnyCell):
    """More options, of cells with recurrent weights."""

    activation_fn: Activation = "tanh"
    output: Output = "state"
    recurrent_kernel_init: Initializer | None = None
    bias_init: Initializer | None = None
