"""Permuted sequential MNIST (Krueger et al. 2017, section 4.3).

    python -m experiments.permuted_mnist                                                 # baseline
    python -m experiments.permuted_mnist --z_prob_cells=0.15 --z_prob_states=0.15 \
        --share_mask                                                                     # zoneout
    python -m experiments.permuted_mnist --z_prob_cells=0.15 --z_prob_states=0.15 \
        --share_mask --batch_normalization --initialization=id                           # the best

An LSTM of 100 units reads the 784 pixels of a digit one by one, in a random order that is the same
for all images. A softmax layer on the last hidden state classifies the digit. The paper reports
error rates, as validation / test: LSTM 0.092 / 0.102, zoneout 0.063 / 0.069, zoneout with recurrent
batch normalization 0.045 / 0.041.

Settings, from the paper or, where it is silent, from the authors' code: pixels in [0, 1]; one
orthogonal matrix over all gates; forget bias 1; learned initial state; the gradient clipped to
norm 1, then RMSProp with learning rate 0.001 (the authors' code: 0.0001) and decay 0.5; batches of
100; 150 epochs.

`--cell=min_gru` and the other linear cells replace the LSTM by blocks of a linear cell, which
computes all steps at once (`experiments.lib.pixels`). The paper does not have these models.

Metrics: `nats` (cross entropy) and `error` (share of wrong answers). The best epoch is the one with
the lowest validation error.

With batch normalization, evaluation needs separate population statistics for each time step.
`--popstats=reestimate` averages them over batches of the training set before each evaluation, with
the model that is evaluated and masks at their expectation (Cooijmans et al. 2016).
`--popstats=ema` keeps moving averages over the training steps with their sampled masks (the
authors' code); these averages lag behind the weights.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.lib.experiment import Experiment, Row
from experiments.lib.language_model import readout_init
from experiments.lib.optimizers import rmsprop
from experiments.lib.pixels import (
    ImageConfig,
    PixelMaskConfig,
    PixelModelConfig,
    PixelOptimizerConfig,
    linear_blocks,
    lstm,
    orthogonal,
)
from experiments.lib.settings import check_sweep
from zoneout_jax import update_stats
from zoneout_jax.data import cut_split, pad_rows, shuffled_examples
from zoneout_jax.training import AXIS, Evaluation, RunConfig, Settings, Task

EMA_RATE = 0.01
"""Weight of a new batch in the moving averages of the population statistics."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings of the experiment; the defaults are the paper's baseline."""

    preset: Literal["paper", "laptop", "smoke"] = "paper"
    """Settings to start from; other flags override them."""
    model: PixelModelConfig = PixelModelConfig()
    zoneout: PixelMaskConfig = PixelMaskConfig()
    optimizer: PixelOptimizerConfig = PixelOptimizerConfig()
    data: ImageConfig = ImageConfig()
    run: RunConfig = RunConfig(epochs=150, patience=150, batch_size=100)

    def __post_init__(self):
        super().__post_init__()
        if self.model.is_linear and (self.zoneout.z_prob_cells or self.zoneout.share_mask):
            raise ValueError(
                f"cell {self.model.cell} has no memory cells: leave out z_prob_cells and share_mask"
            )
        check_sweep(self)
        if not self.run.sweep:
            self.zoneout.spec()  # raises if a shared mask has two rates


PAPER = Config()
PRESETS = {
    "paper": PAPER,
    "laptop": PAPER.replace(
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
    "smoke": PAPER.replace(
        preset="smoke",
        dataset="digits",
        train_size=96,
        hidden_features=8,
        batch_size=32,
        epochs=2,
        eval_batch_size=300,
    ),
}


def inputs(pixels: jax.Array, max_value: int) -> jax.Array:
    """Converts pixels `[B, T]` to inputs `[T, B, 1]` in [0, 1]."""
    return pixels.T[..., None].astype(jnp.float32) / max_value


def build(config: Config, sampled: bool = True) -> Task:
    """Makes the task for `zoneout_jax.training.fit`.

    Args:
      config: settings.
      sampled: train with sampled masks; if False, with their expectation, as in evaluation.
    """
    images, splits = config.data.load()
    steps = splits["train"][0].shape[1]
    sizes = {name: len(labels) for name, (_, labels) in splits.items()}
    settings, features = config.model, config.model.hidden_features
    network = linear_blocks(config) if settings.is_linear else lstm(config, steps)

    def init(key):
        cell_key, readout_key = jax.random.split(key)
        readout = readout_init(readout_key, (features, images.classes), orthogonal)
        return {settings.cell: network.init(cell_key), "readout": readout}

    def sums(params, batch, **mode):
        """Computes Σ nats, Σ error, the number of images, and batch statistics if there are any."""
        (pixels, labels), weights = batch.take()
        xs = inputs(pixels, images.max_value)
        last, *stats = network.read(params[settings.cell], xs, batch.indices >= 0, **mode)
        readout = params["readout"]
        logits = last @ readout["kernel"] + readout["bias"]
        labels = labels.astype(jnp.int32)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        wrong = (jnp.argmax(logits, -1) != labels).astype(jnp.float32)
        totals = {"nats": jnp.sum(weights * nats), "error": jnp.sum(weights * wrong)}
        return totals, jnp.sum(weights), *stats

    def zoneout(state):
        return config.zoneout.spec(state.get("rates"))

    def expected(state):
        return {"masks": zoneout(state).without_zeros().expected()}

    def loss(params, state, batch, key):
        mode = {"zoneout": zoneout(state)} if sampled else expected(state)
        mode |= {"key": key, "axis_name": AXIS}
        totals, count, *stats = sums(params, batch, **mode)
        if settings.batch_normalization and settings.popstats == "ema":
            state = state | {"stats": update_stats(state["stats"], *stats, rate=EMA_RATE)}
        return (totals["nats"], count), state

    def evaluation_loss(params, state, batch):
        mode = expected(state) | {"deterministic": True, "stats": state.get("stats")}
        return sums(params, batch, **mode)[:2]

    def population(params, state, batch):
        _, count, stats = sums(params, batch, **expected(state), axis_name=AXIS)
        return {"stats": {name: count * stats[name] for name in state["stats"]}}, count

    def evaluation(name):
        rows = pad_rows(np.arange(sizes[name]), config.data.eval_batch_size)
        return Evaluation(evaluation_loss, splits[name], rows)

    calibration = None
    if settings.batch_normalization and settings.popstats == "reestimate":
        counted = cut_split(np.arange(sizes["train"]), settings.popstats_size, "popstats_size")
        rows = pad_rows(counted, config.run.batch_size)
        calibration = Evaluation(population, splits["train"], rows)
    elif settings.popstats_size != PRESETS[config.preset].model.popstats_size:
        raise ValueError(
            "popstats_size has no effect without batch_normalization and popstats=reestimate: "
            "leave it out"
        )
    return Task(
        name=f"{'sequential' if config.data.unpermuted else 'permuted'} {images.name}",
        init=init,
        optimizer=optax.chain(
            optax.clip_by_global_norm(config.optimizer.clip_norm),
            rmsprop(config.optimizer.learning_rate, decay=0.5),
        ),
        loss=loss,
        data=splits["train"],
        epoch_indices=lambda key: shuffled_examples(key, sizes["train"], config.run.batch_size),
        metric="nats",
        validation=evaluation("validation"),
        monitor="error",
        model_state=lambda params: (
            {"stats": network.init_stats()} if settings.batch_normalization else {}
        ),
        calibration=calibration,
        test_evaluations={"test": evaluation("test")},
        data_sha256=images.sha256,
        metadata={"dataset": images.name, "images": sizes},
    )


# The authors' script shares the mask, whatever its flags say.
_ZONEOUT = ("--z_prob_cells=0.15", "--z_prob_states=0.15", "--share_mask")
# The published error is from Cooijmans et al. 2016, who initialize with the identity.
_BATCH_NORM = ("--batch_normalization", "--initialization=id")
ROWS = {
    "LSTM": Row((), 0.092, 0.102),
    "recurrent dropout": Row(("--igate_drop=0.5",), 0.083, 0.075),
    "zoneout": Row(_ZONEOUT, 0.063, 0.069),
    "recurrent batch norm": Row(_BATCH_NORM, None, 0.046),
    "zoneout + recurrent batch norm": Row((*_ZONEOUT, *_BATCH_NORM), 0.045, 0.041),
}
# Not in the paper.
_CELLS = {"minGRU": "min_gru", "minLSTM": "min_lstm", "RG-LRU": "rg_lru", "LRU": "lru"}
LINEAR_ROWS = {
    f"{name}{suffix}": Row((f"--cell={cell}", "--num_layers=2", "--learning_rate=0.002", *flags))
    for name, cell in _CELLS.items()
    for suffix, flags in {"": (), " + zoneout": ("--z_prob_states=0.15",)}.items()
}
EXPERIMENT = Experiment(
    name="permuted_mnist",
    about="Permuted sequential MNIST.",
    presets=PRESETS,
    build=build,
    rows=ROWS | LINEAR_ROWS,
    preset_rows=dict.fromkeys(PRESETS, tuple(ROWS)),
    metrics=("validation_error", "test_error"),
    published_on="MNIST",
)

if __name__ == "__main__":
    EXPERIMENT.main()
