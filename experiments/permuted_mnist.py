"""Permuted sequential MNIST (Krueger et al. 2017, section 4.3).

    python -m experiments.permuted_mnist                                            # baseline
    python -m experiments.permuted_mnist --z_prob_cells=0.15 --z_prob_states=0.15   # zoneout
    python -m experiments.permuted_mnist --z_prob_cells=0.15 --z_prob_states=0.15 \
        --share_mask --batch_normalization --initialization=id                      # the best

An LSTM of 100 units reads the 784 pixels of a digit one by one, in one order drawn for all images;
a softmax on its last state tells which digit it was. The paper reports error rates, validation /
test: LSTM 0.092 / 0.102, zoneout 0.063 / 0.069, with recurrent batch normalization 0.045 / 0.041.

Settings (paper; where it is silent, the authors' code): pixels in [0, 1]; weights orthogonal over
all gates together, forget bias 1, learned initial state; RMSProp at 0.001 (their code: 0.0001) with
decay 0.5, after the gradient is clipped to norm 1; batches of 100; 150 epochs.

Figures: `nats` (cross entropy) and `error` (share of wrong answers), which chooses the epoch.

With batch normalization, evaluation needs population statistics, of each step its own. They are
those of the model that is evaluated, masks at their expectation: before each evaluation, averages
over batches of the training set (`--popstats=reestimate`; Cooijmans et al. 2016 do so), or moving
averages over the training steps with their sampled masks (`ema`, the authors' code), which lag
behind the weights.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.language_model import readout_init
from experiments.optimizers import clipped, rmsprop
from experiments.zoneout_config import ZoneoutConfig
from zoneout_jax import LSTM, Zoneout, unroll
from zoneout_jax.data import Images, image_epoch_plan, load_images, pad_rows, permutation
from zoneout_jax.training import (
    AXIS,
    Calibration,
    Count,
    Evaluation,
    NotNegative,
    Positive,
    Probability,
    Range,
    Task,
    launch,
    shown,
)

EMA_RATE = 0.01
"""Weight of a batch in the moving averages of population statistics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ZoneoutConfig):
    """Settings of the experiment; the defaults are the paper's baseline."""

    epochs: Count = 150
    """Epochs at most."""
    patience: Count = 150
    """Stop after so many epochs without a lower validation error."""
    batch_size: Count = 100
    """Examples in a batch, over all devices."""
    dataset: Literal["mnist", "digits"] = "mnist"
    """Images: mnist (28×28), or scikit-learn's digits (8×8), which need no files."""
    train_size: Count | None = None
    """Training images to use; all by default."""
    unpermuted: bool = False
    """Read the pixels row by row."""
    permutation_seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of the order of the pixels, and of nothing else."""
    hidden_features: Count = 100
    """Units of the LSTM."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Squashes the cell's input and, on its way out, the cell."""
    initialization: Literal["ortho", "id"] = "ortho"
    """Recurrent weights: orthogonal; or the identity for the cell's input, orthogonal for gates."""
    learning_rate: Positive = 1e-3
    """Step size of RMSProp."""
    clip_norm: Positive = 1.0
    """Largest global norm of the gradient."""
    igate_drop: Probability = 0.0
    """Recurrent dropout: probability that the update of a cell is dropped."""
    batch_normalization: bool = False
    """Recurrent batch normalization."""
    initial_gamma: Positive = 0.1
    """Initial gain of batch normalization."""
    initial_beta: float = 0.0
    """Initial bias of gates, save the forget gate's, and of the normalized cell."""
    popstats: Literal["reestimate", "ema"] = "reestimate"
    """Population statistics: estimated anew before each evaluation, or moving averages."""
    popstats_size: Count | None = None
    """Training images over which they are estimated anew; all by default."""
    noise: NotNegative = 0.0
    """Standard deviation of noise on the initial state, in training."""
    summarize: bool = False
    """Add the mean of an image's pixels to its initial hidden state."""
    eval_batch_size: Count = 200
    """Images evaluated at once."""

    def __post_init__(self):
        super().__post_init__()
        if self.noise and self.summarize:
            raise ValueError("noise and summarize exclude each other: choose one initial state")
        if self.initial_gamma != Config.initial_gamma and not self.batch_normalization:
            raise ValueError("initial_gamma has no effect without batch_normalization")
        if self.permutation_seed and self.unpermuted:
            raise ValueError("unpermuted pixels have no permutation_seed: leave out one of them")
        if not np.isfinite(self.initial_beta):
            raise ValueError(f"initial_beta must be finite, got {self.initial_beta}")

    def zoneout(self) -> Zoneout:
        """The masks."""
        return self.masks(self.igate_drop)


PRESETS = {
    "paper": Config(),
    "laptop": Config(
        preset="laptop",
        dataset="digits",
        hidden_features=64,
        batch_size=64,
        learning_rate=6e-3,
        epochs=50,
        patience=50,
        popstats_size=320,
        eval_batch_size=300,
    ),
    "smoke": Config(
        preset="smoke",
        dataset="digits",
        train_size=96,
        hidden_features=8,
        batch_size=32,
        epochs=2,
        eval_batch_size=300,
    ),
}

# The authors' script shares the mask, whatever its flags.
_ZONEOUT = ("--z_prob_cells=0.15", "--z_prob_states=0.15", "--share_mask")
# The published figure is that of Cooijmans et al. 2016, who start at the identity.
_BATCH_NORM = ("--batch_normalization", "--initialization=id")
ROWS = {
    "LSTM": ((), {"validation_error": 0.092, "test_error": 0.102}),
    "recurrent dropout": (
        ("--igate_drop=0.5",),
        {"validation_error": 0.083, "test_error": 0.075},
    ),
    "zoneout": (_ZONEOUT, {"validation_error": 0.063, "test_error": 0.069}),
    "recurrent batch norm": (_BATCH_NORM, {"test_error": 0.046}),
    "zoneout + recurrent batch norm": (
        (*_ZONEOUT, *_BATCH_NORM),
        {"validation_error": 0.045, "test_error": 0.041},
    ),
}
"""Rows of the paper's table: flags and published figures."""

PUBLISHED_ON = "MNIST"

FIGURES = ("validation_error", "test_error")
"""Figures to tabulate."""


def orthogonal(key, shape, dtype=jnp.float32, blocks: int = 1) -> jax.Array:
    """One orthogonal matrix over all gates, as in the authors' code for this task."""
    del blocks
    return jax.nn.initializers.orthogonal()(key, shape, dtype)


def identity(key, shape, dtype=jnp.float32, blocks: int = 4) -> jax.Array:
    """The identity for the cell's input, an orthogonal matrix over the gates i, f and o."""
    features = shape[0]
    gates = orthogonal(key, (features, (blocks - 1) * features), dtype)
    i, f, o = jnp.split(gates, 3, 1)
    return jnp.concatenate([i, f, jnp.eye(features, dtype=dtype), o], 1)


def build_cell(config: Config, steps: int):
    """The LSTM of the experiment."""
    return LSTM(
        1,
        config.hidden_features,
        activation_fn=config.activation,
        kernel_init=orthogonal,
        recurrent_kernel_init=identity if config.initialization == "id" else orthogonal,
        learned_carry=True,
        dtype=jnp.bfloat16 if config.precision == "bfloat16" else None,
        **(
            dict(normalization="batch", max_steps=steps, initial_gamma=config.initial_gamma)
            if config.batch_normalization
            else {}
        ),
    )


def load(config: Config) -> tuple[Images, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The images, and of each split the pixels `[N, T]` in the order of their steps, and labels."""
    images = load_images(config.dataset, raw_data_dir=config.raw_data_dir, data_dir=config.data_dir)
    steps = math.prod(images.image_shape)
    order = np.arange(steps) if config.unpermuted else permutation(config.permutation_seed, steps)

    def split(name, size=None):
        pixels, labels = getattr(images, name)
        return pixels.reshape(-1, steps)[:size, order], labels[:size]

    return images, {
        "train": split("train", config.train_size),
        "validation": split("validation"),
        "test": split("test"),
    }


def inputs(pixels: jax.Array, max_value: int) -> jax.Array:
    """Pixels `[B, T]` as inputs `[T, B, 1]` in [0, 1]."""
    return pixels.T[..., None].astype(jnp.float32) / max_value


def build(config: Config, sampled: bool = True) -> Task:
    """The experiment as a task for `zoneout_jax.training.fit`.

    Args:
      config: settings.
      sampled: train with sampled masks; otherwise with their expectation, as in evaluation.
    """
    images, splits = load(config)
    steps = splits["train"][0].shape[1]
    sizes = {name: len(labels) for name, (_, labels) in splits.items()}

    zoneout = config.zoneout()
    expected = zoneout.without_zeros().expected()
    cell = build_cell(config, steps)
    batch_norm = config.batch_normalization

    def init(key):
        cell_key, readout_key = jax.random.split(key)
        weights = cell.init(cell_key)
        forget = jnp.arange(4 * config.hidden_features) // config.hidden_features == 1
        weights["bias"] = jnp.where(forget, weights["bias"], config.initial_beta)
        params = {
            "lstm": weights,
            "readout": readout_init(
                readout_key, (config.hidden_features, images.classes), orthogonal
            ),
        }
        if batch_norm:
            weights["cell_beta"] = jnp.full_like(weights["cell_beta"], config.initial_beta)
            params["stats"] = cell.init_stats()
        return params

    def sums(params, data, examples, **mode):
        """Σ nats, Σ error and number of images `[B]`, and the batch's statistics, if measured."""
        pixels, labels = (array[jnp.maximum(examples, 0)] for array in data)
        xs = inputs(pixels, images.max_value)
        carry = None
        if config.summarize:
            c, h = cell.initial_carry(params["lstm"], len(examples))
            carry = c, h + jnp.mean(xs, 0)
        # Of no length, so that batch statistics leave them out.
        lengths = jnp.where(examples >= 0, steps, 0) if batch_norm else None
        carry, _, *found = unroll(cell, params["lstm"], xs, carry, seq_lengths=lengths, **mode)
        readout = params["readout"]
        logits = cell.hidden(carry) @ readout["kernel"] + readout["bias"]
        labels = labels.astype(jnp.int32)
        weights = (examples >= 0).astype(jnp.float32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        wrong = (jnp.argmax(logits, -1) != labels).astype(jnp.float32)
        totals = {"nats": jnp.sum(weights * nats), "error": jnp.sum(weights * wrong)}
        found = {name: found[0][name] for name in params["stats"]} if found else None
        return totals, jnp.sum(weights), found

    def loss(params, data, examples, key):
        mode = {"zoneout": zoneout} if sampled else {"masks": expected}
        mode |= {"key": key, "carry_noise": config.noise, "axis_name": AXIS}
        totals, count, found = sums(params, data, examples, **mode)
        total = totals["nats"]
        if found and config.popstats == "ema":
            # Nothing in value, but of gradient stats − batch's, which the optimizer moves along.
            away = jax.tree.map(lambda s, b: s - jax.lax.stop_gradient(b), params["stats"], found)
            distance = sum(jnp.sum(jnp.square(a)) for a in jax.tree.leaves(away)) / 2
            total += count * (distance - jax.lax.stop_gradient(distance))
        return total, count

    def final_loss(params, data, examples):
        mode = {"masks": expected, "deterministic": True, "stats": params.get("stats")}
        return sums(params, data, examples, **mode)[:2]

    def evaluation(name):
        rows = pad_rows(np.arange(sizes[name]), config.eval_batch_size)
        return Evaluation(final_loss, splits[name], rows)

    def population(params, data, examples):
        _, count, found = sums(params, data, examples, masks=expected, axis_name=AXIS)
        return jax.tree.map(lambda s: count * s, found), count

    def plan(key):
        return image_epoch_plan(key, sizes["train"], config.batch_size)

    calibration = None
    if batch_norm and config.popstats == "reestimate":
        size = min(config.popstats_size or sizes["train"], sizes["train"])
        calibration = Calibration(
            population,
            splits["train"],
            pad_rows(np.arange(size), config.batch_size),
            lambda params, means: params | {"stats": means},
        )
    return Task(
        name=f"{'sequential' if config.unpermuted else 'permuted'} {images.name}",
        init=init,
        optimizer=optax.partition(
            {
                "weights": clipped(rmsprop(config.learning_rate, decay=0.5), config.clip_norm),
                "stats": optax.set_to_zero() if calibration else optax.sgd(EMA_RATE),
            },
            lambda params: {n: "stats" if n == "stats" else "weights" for n in params},
        ),
        loss=loss,
        data=splits["train"],
        plan=plan,
        steps_per_epoch=len(jax.eval_shape(plan, jax.random.key(0))),
        metric="nats",
        figure=lambda nats: nats,
        validation=evaluation("validation"),
        chosen_by="error",
        calibration=calibration,
        final={"test": evaluation("test")},
        facts={"dataset": images.name, "images": sizes},
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the experiment and prints our figures beside the paper's."""
    result = launch("permuted_mnist", PRESETS, build, "Permuted sequential MNIST.", argv)
    print(
        f"{result['name']}: error {shown(result, 'validation_error')} validation, "
        f"{shown(result, 'test_error')} test; paper, permuted MNIST: LSTM 0.092 / 0.102, zoneout "
        "0.063 / 0.069, zoneout + recurrent batch norm 0.045 / 0.041"
    )


if __name__ == "__main__":
    main()
