"""Settings that experiments share; flags have the names of the authors' code."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.lib.optimizers import rmsprop
from zoneout_jax import Zoneout
from zoneout_jax.training import (
    Count,
    NotNegative,
    Positive,
    Probability,
    Range,
    RunConfig,
    Settings,
    parse_sweep,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZoneoutConfig(Settings):
    """Rates of zoneout."""

    z_prob_cells: Probability = 0.0
    """Zoneout: probability that a cell keeps its previous value."""
    z_prob_states: Probability = 0.0
    """Zoneout: probability that a hidden state keeps its previous value."""
    share_mask: bool = False
    """Use one mask for cells and states."""

    RATES: ClassVar[tuple[str, ...]]
    """The rates of cells, states and recurrent dropout by name; they can be swept."""

    def spec(self, rates: Mapping[str, jax.Array] | None = None, **kinds: bool) -> Zoneout:
        """Returns the masks. For a rate of 0 no mask is drawn, so it costs nothing.

        Args:
          rates: rates of a sweep, by the name of the setting that they replace.
          **kinds: how masks are drawn: `static`, `per_layer`, `gaussian`.
        """
        given = {name: getattr(self, name) or None for name in self.RATES} | (rates or {})
        fields = zip(("cells", "states", "update_drop"), given.values(), strict=True)
        return Zoneout(**dict(fields), shared=self.share_mask, **kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskConfig(ZoneoutConfig):
    """Rates and kinds of masks."""

    drop_prob_igates: Probability = 0.0
    """Recurrent dropout: probability that the update of a cell is dropped."""
    static_mask: bool = False
    """Draw one mask per sequence instead of one per step."""
    stoch_depth: bool = False
    """Draw once for all units of an example (stochastic depth)."""
    gaussian_mask: bool = False
    """Draw Gaussian masks with the mean and variance of the Bernoulli masks."""

    RATES: ClassVar[tuple[str, ...]] = ("z_prob_cells", "z_prob_states", "drop_prob_igates")

    def spec(self, rates: Mapping[str, jax.Array] | None = None) -> Zoneout:
        """Returns the masks of a layer; `rates` of a sweep replace the settings."""
        kinds = {"static": self.static_mask, "per_layer": self.stoch_depth}
        return super().spec(rates, gaussian=self.gaussian_mask, **kinds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """The recurrent layers."""

    rnn_type: Literal["LSTM", "GRU", "SRNN"] = "LSTM"
    """Type of the layers; SRNN is the plain RNN with tanh units."""
    hidden_features: Count = 1000
    """Units per layer."""
    num_layers: Annotated[int, Range(1, 100)] = 1
    """Number of layers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseConfig(Settings):
    """Noise on the weights."""

    weight_noise: NotNegative = 0.0
    """Standard deviation of noise on the weights, in training."""
    norm_cost_coeff: ClassVar[float] = 0.0  # a setting in `RegularizerConfig` only
    penalty: ClassVar[str] = "hids"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizerConfig(NoiseConfig):
    """Regularizers other than masks."""

    norm_cost_coeff: NotNegative = 0.0
    """Weight of the norm stabilizer."""
    penalty: Literal["hids", "cells"] = "hids"
    """What the norm stabilizer penalizes: hidden states or memory cells."""

    def __post_init__(self):
        super().__post_init__()
        if self.penalty == "cells" and not self.norm_cost_coeff:
            raise ValueError("penalty=cells needs a norm_cost_coeff above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Settings):
    """The optimizer."""

    algorithm: Literal["adam", "rms_prop", "momentum", "sgd"] = "adam"
    """Optimizer."""
    learning_rate: Positive = 2e-3
    """Learning rate."""
    momentum: Annotated[float, Range(0, 1)] = 0.99
    """Momentum, for algorithm momentum only."""
    clip_norm: Positive | None = 1.0
    """Largest global norm; None for no clipping."""
    clip_by: Literal["gradient", "update"] = "gradient"
    """What is clipped: the gradient (paper), or the update of the optimizer (authors' code)."""
    weight_decay: NotNegative = 0.0
    """The weights times this are added to the gradient."""

    def __post_init__(self):
        super().__post_init__()
        if self.momentum != OptimizerConfig.momentum and self.algorithm != "momentum":
            raise ValueError(
                f"momentum has no effect with algorithm {self.algorithm}: leave it out, or give "
                "--algorithm=momentum"
            )
        if self.clip_by == "update" and self.clip_norm is None:
            raise ValueError(
                "clip_by=update has no effect without a clip_norm: give one, or --clip_by=gradient"
            )

    def build(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Makes the optimizer, with clipping and weight decay."""
        rule = {
            "adam": optax.adam,
            "rms_prop": rmsprop,
            "momentum": functools.partial(optax.sgd, momentum=self.momentum),
            "sgd": optax.sgd,
        }[self.algorithm]
        optimizer = rule(learning_rate)
        if self.clip_norm:
            clip = optax.clip_by_global_norm(self.clip_norm)
            before = self.clip_by == "gradient"
            optimizer = optax.chain(clip, optimizer) if before else optax.chain(optimizer, clip)
        if self.weight_decay:
            optimizer = optax.chain(optax.add_decayed_weights(self.weight_decay), optimizer)
        return optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Folders of the data."""

    raw_data_dir: str | None = None
    """Folder of raw data files; by default $ZONEOUT_RAW_DATA."""
    data_dir: str | None = None
    """Folder of prepared datasets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""

    INCIDENTAL: ClassVar[frozenset[str]] = frozenset({"raw_data_dir", "data_dir"})

    def folders(self) -> dict[str, str | None]:
        """Returns both folders as arguments of the loaders of `zoneout_jax.data`."""
        return {"raw_data_dir": self.raw_data_dir, "data_dir": self.data_dir}


def check_sweep(config: Any) -> None:
    """Raises ValueError for a sweep over rates that the settings cannot have.

    Args:
      config: `Settings` with parts `zoneout` and `run`.
    """
    sweep, zoneout = parse_sweep(config.run.sweep), config.zoneout
    if sweep and zoneout.share_mask:
        raise ValueError("a shared mask has one rate for both: leave out share_mask, or the sweep")
    for name in sweep:
        if name not in zoneout.RATES:
            raise ValueError(f"sweep must be over {', '.join(zoneout.RATES)}, got {name}")
        if getattr(zoneout, name):
            raise ValueError(f"{name} is given twice: leave out the flag, or leave out the sweep")
    if sweep:  # raises if the layers cannot use these rates
        config.replace(sweep=(), **{name: max(rates) for name, rates in sweep.items()})


def compute_dtype(run: RunConfig) -> Any:
    """Returns the type of the operands of matrix products."""
    return jnp.bfloat16 if run.precision == "bfloat16" else jnp.float32
