"""What training carries from step to step, and the streams of randomness."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class TrainState(NamedTuple):
    """Everything that a training step changes.

    Attributes:
      step: steps done so far, an int32 scalar.
      params: parameters of the model.
      opt_state: state of the optimizer.
      memory: what a step hands to the next beside these, such as the state of a recurrent network;
        the same on every device.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    memory: Any = None

    @classmethod
    def create(
        cls, params: Any, optimizer: optax.GradientTransformation, memory: Any = None
    ) -> "TrainState":
        """The state before the first step."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params), memory)


class Streams(NamedTuple):
    """Keys of the independent streams of randomness that a seed gives rise to.

    No stream is ever advanced: what step (or epoch) t draws comes from `fold_in(stream, t)`, so a
    run goes on from its seed and step alone.
    """

    init: jax.Array
    data: jax.Array
    noise: jax.Array
    epoch: jax.Array

    @classmethod
    def from_seed(cls, seed: int, impl: str = "threefry2x32") -> "Streams":
        """The streams of a seed, with a generator that `jax.random.key` knows."""
        root = jax.random.key(seed, impl=impl)
        return cls(*(jax.random.fold_in(root, number) for number in range(4)))
