"""The base class of cells for Flax NNX: the spec, the mode, and the source of random keys."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoneout_jax._flax import check_spec
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
    check_spec(zoneout)
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
