"""Measures whether units keep their meaning: a toy task of the authors' repository.

    python -m experiments.semantic_consistency

A linear recurrence without inputs,

    h ← d ∘ h + (1 − d) ∘ (h W),

is trained to return to its first state: the loss is Σ‖h_10 − h_0‖² over a batch. Each step draws
one mask d for the whole batch, with d ~ Bernoulli(rate) for each unit. W starts near −I. Without
zoneout W = −I is a solution, as ten changes of sign cancel. With zoneout a unit changes its sign a
random number of times, so W = −I is not a solution; W = +I always is. The authors' README claims
that zoneout makes units keep their meaning over time. This is taken to say that W moves to +I.
Measured: with zoneout W moves to +I for all 64 seeds, after 25,000 to 80,000 updates; without
zoneout W stays at −I for all 64.

Settings of the authors' code: 2 units, 10 steps, W = −I + 0.01 · Normal(0, 1), h_0 standard normal,
batches of 32, 100,000 updates of SGD with learning rate 1e-4, rates 0.1 and 0. Here: 64 seeds.

Output in `--out`: `semantic_consistency.npz`, with the learning curves, the path of W and its
eigenvalues; `semantic_consistency.json`, with the share of seeds for which every element of W is
within 0.1 of +I, and of −I, at the end; and `semantic_consistency.png`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.experiment import Study
from zoneout_jax import zoneout
from zoneout_jax.training import (
    Count,
    DropRate,
    Measurement,
    NotNegative,
    Positive,
    Progress,
    RunError,
    Seed,
    commit,
    new_folder,
    save_figure,
    versions,
    write_json,
)

NEAR = 0.1
"""A solution counts as reached if every element of W differs from it by less than this."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Measurement):
    """Settings; except for the number of seeds, the defaults are those of the authors' code."""

    preset: Literal["repository", "laptop", "smoke"] = "repository"
    """Settings to start from; other flags override them."""
    rates: tuple[DropRate, ...] = (0.1, 0.0)
    """Zoneout rates to compare."""
    seeds: tuple[Seed, ...] = tuple(range(64))
    """Seeds of initial weights, first states and masks; all rates use the same seeds."""
    units: Count = 2
    """Number of units."""
    length: Count = 10
    """Number of steps of the recurrence."""
    steps: Count = 100_000
    """Number of updates of W."""
    batch_size: Count = 32
    """First states in a batch."""
    learning_rate: Positive = 1e-4
    """Learning rate."""
    noise: NotNegative = 0.01
    """Standard deviation of the initial W around −I."""
    points: Count = 200
    """Number of points of the curves."""

    def __post_init__(self):
        super().__post_init__()
        for name in ("rates", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more distinct values, got {values}")
        if self.steps % self.points:
            raise ValueError(f"steps must be a multiple of points, {self.points}, got {self.steps}")


PRESETS = {
    "repository": Config(),
    "laptop": Config(preset="laptop", seeds=tuple(range(8))),
    "smoke": Config(preset="smoke", seeds=(0, 1), steps=1_000, points=10),
}


def recurrence(w: jax.Array, h: jax.Array, masks: jax.Array) -> jax.Array:
    """Computes the last states from first states `[B, H]`, weights `[H, H]` and masks `[T, H]`."""
    for mask in masks:  # few enough to unroll
        h = zoneout(h, h @ w, mask)
    return h


def loss(w: jax.Array, h: jax.Array, masks: jax.Array) -> jax.Array:
    """Computes Σ‖h_T − h_0‖² over a batch; arguments as in `recurrence`.

    The recurrence is linear, so it runs on the unit vectors, and the batch is multiplied by the
    result.
    """
    units = jnp.eye(len(w), dtype=w.dtype)
    return jnp.sum(jnp.square(h @ (recurrence(w, units, masks) - units)))


def first_weights(config: Config, key: jax.Array) -> jax.Array:
    """Draws W before the first update, `[H, H]`."""
    noise = jax.random.normal(key, (config.units, config.units))
    return -jnp.eye(config.units) + config.noise * noise


def draw(config: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draws the first states `[B, H]` of an update, and masks `[R, T, H]` for R rates."""
    state_key, mask_key = jax.random.split(key)
    h = jax.random.normal(state_key, (config.batch_size, config.units))
    uniform = jax.random.uniform(mask_key, (config.length, config.units))
    return h, uniform < jnp.array(config.rates)[:, None, None]


def train(config: Config, keys: jax.Array, tell: Callable[[int], None]) -> tuple[Any, Any]:
    """Trains a model for each of S seeds and R rates.

    The models of one seed share initial weights, states, and the uniform numbers of the masks.

    Args:
      config: settings.
      keys: random keys of the seeds, `[S]`.
      tell: called at each point with the number of updates so far.

    Returns:
      The mean loss per example between points, `[points, S, R]`, and W before the first update and
      at each point, `[points + 1, S, R, H, H]`.
    """
    gradients = jax.vmap(jax.value_and_grad(loss), (0, None, 0))

    def update(w, step, key):
        values, slope = gradients(w, *draw(config, jax.random.fold_in(key, step)))
        return w - config.learning_rate * slope, values / config.batch_size

    def to_next_point(w, steps):
        w, values = jax.lax.scan(
            lambda w, step: jax.vmap(update, (0, None, 0))(w, step, data_keys), w, steps
        )
        jax.debug.callback(tell, steps[-1] + 1)
        return w, (jnp.mean(values, 0), w)

    init_keys, data_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    first = jax.vmap(lambda key: first_weights(config, key))(init_keys)
    first = jnp.stack([first] * len(config.rates), 1)
    steps = jnp.arange(config.steps).reshape(config.points, -1)
    _, (losses, path) = jax.lax.scan(to_next_point, first, steps)
    return losses, jnp.concatenate([first[None], path])


def measure(config: Config) -> dict[str, Any]:
    """Trains all models; writes the data and the figure.

    Returns:
      The content of `semantic_consistency.json`.

    Raises:
      ValueError: `out` is a file or a URL.
      RunError: W is not finite at the end.
    """
    out = new_folder(config.out, f"semantic_consistency/{config.preset}")
    keys = jax.vmap(jax.random.key)(jnp.array(config.seeds, jnp.uint32))
    start = time.monotonic()
    with Progress(config.steps, "semantic consistency") as progress:

        def tell(steps):
            progress.update(int(steps), f"{len(config.seeds)} seeds")

        run = jax.jit(lambda keys: train(config, keys, tell))
        losses, path = map(np.asarray, run(keys))
        jax.effects_barrier()
    seconds = time.monotonic() - start
    if not np.isfinite(path).all():
        raise RunError(
            f"W is not finite after {config.steps:,} updates; give a smaller --learning_rate than "
            f"{config.learning_rate:g}"
        )
    eigenvalues = np.sort(np.linalg.eigvals(path))  # by real part
    steps = np.linspace(0, config.steps, config.points + 1)
    arrays = {"steps": steps, "losses": losses, "w": path, "eigenvalues": eigenvalues}
    np.savez_compressed(out / "semantic_consistency.npz", **arrays)
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "out"}
    result = {
        "settings": settings,
        "commit": commit(),
        "versions": versions(),
        "seconds": round(seconds, 2),
        "rates": [
            {
                "rate": rate,
                "share at +I": float(np.mean(reached(path[-1, :, number], 1))),
                "share at −I": float(np.mean(reached(path[-1, :, number], -1))),
                "first loss": float(losses[0, :, number].mean()),
                "last loss": float(losses[-1, :, number].mean()),
            }
            for number, rate in enumerate(config.rates)
        ],
    }
    write_json(out / "semantic_consistency.json", result)
    draw_figure(out / "semantic_consistency.png", config, arrays)
    for rate in result["rates"]:
        print(
            f"rate {rate['rate']:g}: {rate['share at +I']:.0%} of {len(config.seeds)} seeds at +I, "
            f"{rate['share at −I']:.0%} at −I; loss {rate['first loss']:.3g} → "
            f"{rate['last loss']:.3g}"
        )
    print(f"{seconds:.1f} s; data and figure: {out}")
    return result


def reached(w: np.ndarray, sign: int) -> np.ndarray:
    """Tells which of the weights `[S, H, H]` are near `sign` · I."""
    return np.all(np.abs(w - sign * np.eye(w.shape[-1])) < NEAR, axis=(-2, -1))


def draw_figure(path: pathlib.Path, config: Config, arrays: dict[str, np.ndarray]) -> None:
    """Draws losses, elements of W and its eigenvalues over the updates, a line for each seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    steps, w = arrays["steps"], arrays["w"]
    diagonal = np.eye(w.shape[-1], dtype=bool)
    alpha = max(0.15, 1 / len(config.seeds))
    for number, rate in enumerate(config.rates):
        thin = {"color": f"C{number}", "linewidth": 0.8, "alpha": alpha}
        # An empty line for the legend, without the transparency of the others.
        panels[0].plot([], color=f"C{number}", label=f"zoneout {rate:g}")
        panels[0].plot(steps[1:], arrays["losses"][:, :, number], **thin)
        elements = w[:, :, number]
        panels[1].plot(steps, elements[..., diagonal].reshape(len(steps), -1), **thin)
        others = elements[..., ~diagonal].reshape(len(steps), -1)
        panels[1].plot(steps, others, "--", **thin)
        real = arrays["eigenvalues"][:, :, number].real.reshape(len(steps), -1)
        panels[2].plot(steps, real, **thin)
    panels[0].set(title="loss of an example", ylabel=f"‖h − h₀‖² after {config.length} steps")
    panels[1].set(title="elements of W (dashed: off the diagonal)", ylabel="element")
    panels[2].set(title="eigenvalues of W, real parts", ylabel="real part")
    for axes in panels:
        axes.set(xlabel="update")
        axes.grid(alpha=0.3)
    panels[0].legend(loc="upper right")
    save_figure(figure, path)


EXPERIMENT = Study(
    name="semantic_consistency",
    about="Do units keep their meaning?",
    presets=PRESETS,
    measure=measure,
)

if __name__ == "__main__":
    EXPERIMENT.main()
