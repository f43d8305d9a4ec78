"""Settings and networks of `experiments.permuted_mnist`: LSTM, or blocks of linear cells."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.settings import DataConfig, ZoneoutConfig, compute_dtype
from zoneout_jax import LRU, LSTM, RGLRU, LinearCell, MinGRU, MinLSTM, unroll
from zoneout_jax.data import Images, cut_split, load_images, permutation
from zoneout_jax.training import Count, NotNegative, Positive, Probability, Seed, Settings

LINEAR_CELLS: dict[str, Callable[..., LinearCell]] = {
    "min_gru": MinGRU,
    "min_lstm": MinLSTM,
    "rg_lru": RGLRU,
    "lru": functools.partial(LRU, r_min=0.9, r_max=0.999),
}
"""Linear cells, by `cell`."""
OF_LSTM = (
    "activation",
    "initialization",
    "batch_normalization",
    "initial_beta",
    "noise",
    "summarize",
)
"""Settings that only the LSTM has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelModelConfig(Settings):
    """Settings of the network."""

    cell: Literal["lstm", "min_gru", "min_lstm", "rg_lru", "lru"] = "lstm"
    """The LSTM, or blocks of a linear cell, which computes all steps at once."""
    num_layers: Count = 1
    """Number of blocks of a linear cell."""
    hidden_features: Count = 100
    """Units per layer."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation function of the cell's input and of its output."""
    initialization: Literal["ortho", "id"] = "ortho"
    """Recurrent weights: orthogonal; or the identity for the cell's input, orthogonal for gates."""
    batch_normalization: bool = False
    """Use recurrent batch normalization."""
    initial_gamma: Positive = 0.1
    """Initial gain of batch normalization."""
    initial_beta: float = 0.0
    """Initial bias of all gates but the forget gate, and of the normalized cell."""
    popstats: Literal["reestimate", "ema"] = "reestimate"
    """Population statistics: estimated again before each evaluation, or moving averages."""
    popstats_size: Count | None = None
    """Number of training images for popstats reestimate; by default all."""
    noise: NotNegative = 0.0
    """Standard deviation of noise on the initial state, in training."""
    summarize: bool = False
    """Add the mean of an image's pixels to its initial hidden state."""

    def __post_init__(self):
        super().__post_init__()
        if self.noise and self.summarize:
            raise ValueError("noise and summarize exclude each other: choose one initial state")
        for name in ("initial_gamma", "popstats"):
            changed = getattr(self, name) != getattr(PixelModelConfig, name)
            if changed and not self.batch_normalization:
                raise ValueError(f"{name} has no effect without batch_normalization")
        of_others = OF_LSTM if self.is_linear else ("num_layers",)
        for name in of_others:
            if getattr(self, name) != getattr(PixelModelConfig, name):
                raise ValueError(f"cell {self.cell} has no {name}: leave it out")
        if not np.isfinite(self.initial_beta):
            raise ValueError(f"initial_beta must be finite, got {self.initial_beta}")

    @property
    def is_linear(self) -> bool:
        """True if the cell is linear in its state."""
        return self.cell in LINEAR_CELLS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelMaskConfig(ZoneoutConfig):
    """Rates of the masks."""

    igate_drop: Probability = 0.0
    """Recurrent dropout: probability that the update of a cell is dropped."""

    RATES: ClassVar[tuple[str, ...]] = ("z_prob_cells", "z_prob_states", "igate_drop")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelOptimizerConfig(Settings):
    """The optimizer."""

    learning_rate: Positive = 1e-3
    """Learning rate of RMSProp."""
    clip_norm: Positive = 1.0
    """Global norm to which the gradient is clipped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageConfig(DataConfig):
    """Settings of the images."""

    dataset: Literal["mnist", "digits"] = "mnist"
    """Images: mnist (28×28), or digits from scikit-learn (8×8), which need no files."""
    train_size: Count | None = None
    """Number of training images; by default all."""
    unpermuted: bool = False
    """Read the pixels row by row, without permutation."""
    permutation_seed: Seed = 0
    """Seed of the order of the pixels only."""
    eval_batch_size: Count = 200
    """Images per evaluation batch."""

    def __post_init__(self):
        super().__post_init__()
        if self.permutation_seed and self.unpermuted:
            raise ValueError("unpermuted pixels have no permutation_seed: leave out one of them")

    def load(self) -> tuple[Images, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """Loads the images, and for each split pixels `[N, T]` in step order and labels."""
        images = load_images(self.dataset, **self.folders())
        steps = math.prod(images.image_shape)
        order = np.arange(steps) if self.unpermuted else permutation(self.permutation_seed, steps)

        def split(name, size=None):
            pixels, labels = cut_split(getattr(images, name), size, f"{name}_size")
            return pixels.reshape(-1, steps)[:, order], labels

        return images, {
            "train": split("train", self.train_size),
            "validation": split("validation"),
            "test": split("test"),
        }


class Network(NamedTuple):
    """A network without its output layer.

    Attributes:
      init: `init(key) -> params`.
      init_stats: `init_stats() -> stats`, initial population statistics if batch-normalized.
      read: `read(params, xs, counted, **mode) -> (features [B, H], *stats)` of inputs
        `[T, B, 1]`; `counted` `[B]` is False for padding of the batch, and `mode` holds arguments
        of `unroll`.
    """

    init: Callable[[jax.Array], Any]
    init_stats: Callable[[], dict[str, jax.Array]]
    read: Callable[..., Any]


def orthogonal(key, shape, dtype=jnp.float32, blocks: int = 1) -> jax.Array:
    """Draws one orthogonal matrix over all gates, as in the authors' code for this task."""
    del blocks
    return jax.nn.initializers.orthogonal()(key, shape, dtype)


def identity(key, shape, dtype=jnp.float32, blocks: int = 4) -> jax.Array:
    """Makes the identity for the cell's input, and one orthogonal matrix over gates i, f and o."""
    features = shape[0]
    gates = orthogonal(key, (features, (blocks - 1) * features), dtype)
    i, f, o = jnp.split(gates, 3, 1)
    return jnp.concatenate([i, f, jnp.eye(features, dtype=dtype), o], 1)


def build_cell(config: Any, steps: int) -> LSTM:
    """Makes the LSTM cell of the experiment."""
    settings = config.model
    normalization = {}
    if settings.batch_normalization:
        normalization = {
            "normalization": "batch",
            "max_steps": steps,
            "initial_gamma": settings.initial_gamma,
        }
    return LSTM(
        1,
        settings.hidden_features,
        activation_fn=settings.activation,
        kernel_init=orthogonal,
        recurrent_kernel_init=identity if settings.initialization == "id" else orthogonal,
        learned_carry=True,
        dtype=compute_dtype(config.run),
        **normalization,
    )


def lstm(config: Any, steps: int) -> Network:
    """Makes the network of the LSTM; its features are the last hidden state."""
    cell = build_cell(config, steps)
    settings, features = config.model, config.model.hidden_features

    def init(key):
        weights = cell.init(key)
        forget = jnp.arange(4 * features) // features == 1
        weights["bias"] = jnp.where(forget, weights["bias"], settings.initial_beta)
        if settings.batch_normalization:
            weights["cell_beta"] = jnp.full_like(weights["cell_beta"], settings.initial_beta)
        return weights

    def read(weights, xs, counted, **mode):
        carry, lengths = None, None
        if settings.summarize:
            c, h = cell.initial_carry(weights, xs.shape[1])
            carry = c, h + jnp.mean(xs, 0)
        if settings.batch_normalization:
            lengths = jnp.where(counted, steps, 0)  # keeps padding out of batch statistics
        if mode.get("key") is not None:
            mode["carry_noise"] = settings.noise
        carry, _, *stats = unroll(cell, weights, xs, carry, seq_lengths=lengths, **mode)
        return cell.hidden(carry), *stats

    return Network(init, cell.init_stats, read)


def linear_blocks(config: Any) -> Network:
    """Makes blocks of a linear cell, as in state-space models (Orvieto et al. 2023, section 2).

        x ← x W + b                                     at the start
        y = gelu(cell(layer_norm(x)))                   in each block
        x ← x + y ∘ σ(y W + b)

    The features are the mean of x over the steps.
    """
    settings, dtype = config.model, compute_dtype(config.run)
    features = settings.hidden_features
    cell = LINEAR_CELLS[settings.cell](features, features, learned_carry=True, dtype=dtype)

    def dense(key, inputs):
        kernel = jax.nn.initializers.lecun_normal()(key, (inputs, features))
        return {"kernel": kernel, "bias": jnp.zeros(features)}

    def init(key):
        keys = jax.random.split(key, (settings.num_layers + 1, 2))
        blocks = [
            {"cell": cell.init(one), "gate": dense(two, features), "scale": jnp.ones(features)}
            for one, two in keys[1:]
        ]
        return {"encoder": dense(keys[0, 0], 1), "blocks": blocks}

    def apply(layer, xs):
        return cell.product(xs, layer["kernel"]) + layer["bias"]

    def read(params, xs, counted, key=None, **mode):
        xs = apply(params["encoder"], xs)
        for number, block in enumerate(params["blocks"]):
            if key is not None:
                mode["key"] = jax.random.fold_in(key, number)
            normed = block["scale"] * jax.nn.standardize(xs)
            _, ys = unroll(cell, block["cell"], normed, chunk="auto", **mode)  # faster on CPUs
            ys = jax.nn.gelu(ys)
            xs = xs + ys * jax.nn.sigmoid(apply(block["gate"], ys))
        return (jnp.mean(xs, 0),)

    return Network(init, cell.init_stats, read)
