"""Optimizers as in Blocks, the library of the authors' code."""

import jax
import jax.numpy as jnp
import optax


def rmsprop(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9, floor: float = 1e-5
) -> optax.GradientTransformation:
    """Makes RMSProp with a floor of the divisor.

        v' = decay · v + (1 − decay) · g²          v starts at 0
        update = −learning_rate · g / max(√v', floor)

    `optax.rmsprop` instead adds its ε to v' or to √v', so its updates differ where gradients are
    about as small as the floor, or smaller.

    Args:
      learning_rate: learning rate, or a schedule of it.
      decay: weight of the previous mean square v.
      floor: smallest divisor.
    """

    def init(params):
        return optax.ScaleByRmsState(nu=jax.tree.map(jnp.zeros_like, params))

    def update(gradient, state, params=None):
        del params
        nu = jax.tree.map(lambda v, g: decay * v + (1 - decay) * g * g, state.nu, gradient)
        scaled = jax.tree.map(lambda v, g: g / jnp.maximum(jnp.sqrt(v), floor), nu, gradient)
        return scaled, optax.ScaleByRmsState(nu=nu)

    rule = optax.GradientTransformation(init, update)
    return optax.chain(rule, optax.scale_by_learning_rate(learning_rate))
