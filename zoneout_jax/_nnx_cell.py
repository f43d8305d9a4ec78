"""The base classes of cells for Flax NNX: the spec, the mode, and the source of random keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoneout_jax import _flax
from zoneout_jax._cell import Carry, Cell
from zoneout_jax._initializers import Initializer
from zoneout_jax._normalization import AxisName, Stats
from zoneout_jax._sharding import key_of_device
from zoneout_jax._zoneout import Zoneout

Streams = nnx.Rngs | nnx.RngStream | jax.Array
"""Random streams, the stream of the masks alone, or a key."""


class NoisyCell(nnx.RNNCellBase):
    """A cell with a spec, a mode and a stream of keys for masks."""

    zoneout: Zoneout
    deterministic: bool
    rngs: nnx.RngStream | None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, _plain_spec(value) if name == "zoneout" else value)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Sets the mode of a view, for `nnx.view`.

        Args:
          deterministic: if True, masks are their expectations.
        """
        if deterministic is not None:
            self.deterministic = deterministic

    def _key(self) -> jax.Array:
        if self.rngs is None:
            raise ValueError(
                'zoneout in training needs the random stream "zoneout": make the cell with'
                " rngs=nnx.Rngs(params=0, zoneout=1), or nnx.Rngs(0), which serves all streams; or"
                " pass rngs= to the call"
            )
        return self.rngs()


class ZoneoutCell(NoisyCell):
    """One step of any pure cell, for instance of a cell that you wrote.

    Parameters are `nnx.Param`, with the names and shapes of the pure cell's; population statistics
    are `nnx.BatchStat`. `model.train()`, `model.eval()` and `nnx.view` set `deterministic`.

    In training the masks come from the stream "zoneout" of `rngs`, or from its default stream. The
    cell keeps a fork of that stream, as `nnx.Dropout` does. The masks of an example do not depend
    on the rest of the batch.

    Args:
      cell: the pure cell, which becomes the attribute `pure`.
      zoneout: rates and kinds of the masks. Rates must be plain numbers or schedules, because Flax
        treats them as static; an array of one known number becomes that number. Pass rates that
        change during training to the call instead.
      deterministic: False in training, True in evaluation.
      momentum: momentum of the moving averages of population statistics, if the cell has them.
      carry_init: initializer of the initial carry, `init(key, shape, dtype)`; zeros if None.
      carry_noise: standard deviation of noise on the initial carry in training; `ZoneoutRNN` only.
      axis_name: name of the mapped axis that the batch is spread over, if any. Masks are then the
        same as for the whole batch on a single device.
      rngs: random streams: "params" for the parameters, "zoneout" for the masks.

    Raises:
      ValueError: training without a random stream; static masks, `hidden_drop` or noise on the
        carry in a single step of training; a carry that does not fit the inputs; options that the
        pure cell rejects.
      TypeError: a `cell` that is not a pure cell; a `zoneout` that is not a `Zoneout`, or that
        holds a traced rate.
    """

    def __init__(
        self,
        cell: Cell,
        *,
        zoneout: Zoneout = Zoneout(),
        deterministic: bool = False,
        momentum: float = 0.99,
        carry_init: Initializer | None = None,
        carry_noise: float = 0.0,
        axis_name: AxisName | None = None,
        rngs: nnx.Rngs,
    ):
        _flax.check_pure(cell)
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs must be nnx.Rngs, such as nnx.Rngs(0); got {rngs!r}")
        self.pure = cell
        self.in_features = cell.in_features
        self.hidden_features = cell.hidden_features
        self.zoneout = zoneout
        self.deterministic = deterministic
        self.momentum = momentum
        self.carry_init = carry_init
        self.carry_noise = carry_noise
        self.axis_name = axis_name
        _flax.check_carry_init(self, cell.learned_carry)
        for name, (init, shape) in cell.parameters().items():
            if hasattr(self, name):
                raise ValueError(
                    f"a parameter of {type(cell).__name__} is named {name}, as is an attribute of"
                    " modules; give it another name"
                )
            setattr(self, name, nnx.Param(init(rngs.params(), shape, cell.param_dtype)))
        for name, value in cell.init_stats().items():
            setattr(self, name, nnx.BatchStat(value))
        self.rngs = fork_stream(rngs)

    def pure_params(self) -> dict[str, jax.Array]:
        """Returns the parameters in the form that the pure cell takes."""
        return {name: getattr(self, name)[...] for name in self.pure.parameters()}

    def __call__(
        self,
        carry: Carry,
        inputs: jax.Array,
        *,
        deterministic: bool | None = None,
        zoneout: Zoneout | None = None,
        rngs: Streams | None = None,
    ) -> tuple[Carry, jax.Array]:
        """Runs one step.

        Args:
          carry: carry of the previous step, arrays `[*batch, H]`.
          inputs: `[*batch, F]`.
          deterministic, zoneout: override the attributes.
          rngs: streams to draw from instead of the cell's own; without a stream "zoneout" or
            "default", the cell's own.

        Returns:
          The new carry and the output `[*batch, H]`.
        """
        return self._apply(
            _flax.run_step, carry, inputs, deterministic=deterministic, zoneout=zoneout, rngs=rngs
        )

    def initialize_carry(
        self,
        input_shape: tuple[int, ...],
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        carry_init: Initializer | None = None,
    ) -> Carry:
        """Returns the initial carry for inputs `[*batch, F]`.

        Args:
          input_shape: shape of the inputs.
          rngs: random streams, of which the initializer uses "carry", or that stream alone;
            `nnx.Rngs(0)` by default.
          carry_init: initializer; by default the attribute.
        """
        init = self.carry_init if carry_init is None else carry_init
        if init is not None and self.pure.learned_carry:
            raise ValueError("the initial carry is learned: leave carry_init out")
        return _flax.start_carry(
            self.pure, self.pure_params(), input_shape[:-1], init, carry_stream(rngs)
        )

    @property
    def num_feature_axes(self) -> int:
        """Number of axes of an input that are not batch axes: 1."""
        return 1

    def _run(
        self, xs: jax.Array, carry: Carry | None, *, starts: Callable[[], jax.Array], **options: Any
    ) -> tuple[Carry, Any]:
        """Runs `zoneout_jax.unroll` over inputs `[T, *batch, F]` with the cell's parameters."""
        if carry is None and self.carry_init is not None:
            carry = _flax.start_carry(
                self.pure, {}, xs.shape[1:-1], self.carry_init, lambda: key_of_device(xs, starts())
            )
        return self._apply(_flax.run_sequence, xs, carry, **options)

    def _apply(
        self,
        run: Callable[..., tuple[Carry, Any, Stats | None]],
        *arguments: Any,
        deterministic: bool | None,
        zoneout: Zoneout | None,
        rngs: Streams | None,
        **options: Any,
    ) -> tuple[Carry, Any]:
        """Runs the cell with its parameters and stores the new statistics."""
        stats = {name: getattr(self, name)[...] for name in self.pure.init_stats()} or None
        mode = _flax.Mode.of(self, self.pure, zoneout, deterministic)
        options |= {"draw_key": mask_stream(rngs) or self._key}
        carry, ys, moved = run(
            self, self.pure, mode, self.pure_params(), stats, *arguments, **options
        )
        for name, value in (moved or {}).items():
            getattr(self, name)[...] = value
        return carry, ys


def fork_stream(rngs: nnx.Rngs) -> nnx.RngStream | None:
    """Forks a stream for masks; None without one, which is enough while no mask is drawn."""
    return rngs.zoneout.fork() if "zoneout" in rngs or "default" in rngs else None


def mask_stream(rngs: Any) -> Callable[[], jax.Array] | None:
    """Returns a function that draws mask keys from the `rngs` of a call; None if they have none.

    Flax's `RNN` and `Bidirectional` pass on a stream that is only for initial carries.
    """
    if rngs is None or isinstance(rngs, nnx.RngStream) and rngs.tag != "zoneout":
        return None
    if isinstance(rngs, nnx.RngStream):
        return rngs
    if isinstance(rngs, nnx.Rngs):
        return rngs.zoneout if "zoneout" in rngs or "default" in rngs else None
    if isinstance(rngs, jax.Array):
        return lambda: rngs
    raise TypeError(f"rngs must be nnx.Rngs, a stream or a key, got {type(rngs).__name__}")


def carry_stream(rngs: Any) -> Callable[[], jax.Array]:
    """Returns a function that draws keys for initial carries, from "carry" or `nnx.Rngs(0)`."""
    if isinstance(rngs, nnx.RngStream) and rngs.tag != "zoneout":
        return rngs
    if isinstance(rngs, nnx.Rngs) and ("carry" in rngs or "default" in rngs):
        return rngs.carry
    return nnx.Rngs(0).carry


def _plain_spec(zoneout: Any) -> Zoneout:
    """Returns the spec with arrays of one known number replaced by that number."""
    _flax.check_spec(zoneout)
    rates: dict[str, Any] = {name: _plain(name, rate) for name, rate in zoneout.rates.items()}
    if zoneout.shared:
        rates["states"] = rates["cells"]  # a shared mask has the rate of the cells
    return dataclasses.replace(zoneout, **rates)


def _plain(name: str, rate: Any) -> Any:
    if isinstance(rate, jax.core.Tracer):
        raise TypeError(
            f"rate of {name} is traced, which an NNX cell cannot keep; pass zoneout= to the call"
        )
    known = isinstance(rate, jax.Array | np.ndarray)
    return float(rate) if known and rate.ndim == 0 else rate
