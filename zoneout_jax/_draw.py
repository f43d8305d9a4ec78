"""Random draws before a cell runs over a sequence: masks, and noise on the carry."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax._cell import Carry, Cell
from zoneout_jax._zoneout import Masks, Zoneout


def draw_masks(
    cell: Cell,
    zoneout: Zoneout | None,
    key: jax.Array | None,
    deterministic: bool,
    steps: int,
    batch: int,
    offset: Callable[[], jax.Array | int],
) -> Masks:
    """Returns the masks of the sequence: none, expected, or sampled."""
    if zoneout is not None and not isinstance(zoneout, Zoneout):
        raise TypeError(f"zoneout must be a Zoneout, such as Zoneout(cells=0.5); got {zoneout!r}")
    if zoneout is None or not zoneout.active:
        return Masks()
    for name, rate in zoneout.rates.items():
        if callable(rate):
            raise TypeError(f"rate of {name} is a schedule of the step; pass zoneout=spec.at(step)")
        if rate is not None and jnp.ndim(rate):
            raise ValueError(f"rate of {name} must be a single number, got {jnp.shape(rate)}")
    zoneout = zoneout.without_zeros()
    sizes = cell.hidden_features, cell.output_features
    if zoneout.shared and not zoneout.per_layer and sizes[0] != sizes[1]:
        raise ValueError(
            f"a mask cannot be shared by {sizes[0]} cells and {sizes[1]} states; leave shared out"
        )
    if zoneout.hidden_drop is not None:
        cell.known_masks(Masks(hidden=True))  # evaluation has no such mask that could be rejected
    if deterministic:
        return zoneout.expected()
    key = required(key, "zoneout")
    masks = zoneout.sample(key, steps, batch, max(sizes), offset())
    cut = {n: m[..., : cell.size(n)] for n, m in masks._asdict().items() if m is not None}
    return masks._replace(**cut) if sizes[0] != sizes[1] else masks


def split_masks(
    masks: Masks, cell: Cell, steps_and_batch: tuple[int, int]
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Splits masks into masks for every step, without an axis T, and masks with an axis T."""
    constant, varying = {}, {}
    for name, mask in cell.known_masks(masks).items():
        mask, shape = jnp.asarray(mask), (*steps_and_batch, cell.size(name))
        fits = all(m in (1, n) for m, n in zip(mask.shape, shape, strict=False))
        if mask.ndim not in (0, 3) or not fits:
            axes = ", ".join(f"{size} or 1" for size in shape)
            raise ValueError(
                f"mask of {name} must have the axes [{axes}] (time first) or be a scalar,"
                f" got {mask.shape}"
            )
        if mask.ndim == 3 and mask.shape[0] == shape[0]:
            varying[name] = mask
        else:
            constant[name] = mask[0] if mask.ndim else mask
    return constant, varying


def add_noise(
    cell: Cell, carry: Carry, scale: float, key: jax.Array, offset: jax.Array | int
) -> Carry:
    """Adds Gaussian noise to the states of a carry, with a separate key for each example."""
    leaves, structure = jax.tree.flatten(carry)
    for number, name in enumerate(cell.state_names):
        stream = jax.random.fold_in(key, 2**31 + number)  # differs from every example's mask key
        place = cell.carry_names.index(name)
        leaf = leaves[place]
        examples = offset + jnp.arange(leaf.shape[0], dtype=jnp.int32)

        def draw(example, stream=stream, leaf=leaf):
            return jax.random.normal(
                jax.random.fold_in(stream, example), leaf.shape[1:], leaf.dtype
            )

        # Not `vmap`, which draws only from the first key if keys are not threefry's.
        leaves[place] = leaf + scale * jax.lax.map(draw, examples)
    return jax.tree.unflatten(structure, leaves)


def required(key: jax.Array | None, what: str) -> jax.Array:
    """Returns the key; raises if it is missing or not a key. `what` needs it, for the message."""
    if key is None:
        raise ValueError(f"{what} in training needs a random key; pass key=, or deterministic=True")
    return checked_key(key)


def checked_key(key: jax.Array) -> jax.Array:
    """Returns the key; raises an error unless it is one random key."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"key must be a random key, such as jax.random.key(0); got {key!r}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim:
        raise ValueError(f"key must be one random key, got an array of keys {key.shape}")
    return key
