"""Settings that experiments share; flags have the names of the authors' code."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax

from experiments.lib.optimizers import clipped, rmsprop
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

    RATES: ClassVar[tuple[str, ...]] = ("z_prob_cells", "z_prob_states")
    """Settings that can be swept."""

    def masks(
        self, update_drop: str, rates: Mapping[str, jax.Array] | None = None, **kinds: Any
    ) -> Zoneout:
        """Returns the masks. For a rate of 0 no mask is drawn, so it costs nothing.

        Args:
          update_drop: name of the setting that is the rate of recurrent dropout.
          rates: rates of a sweep, by the name of the setting that they replace.
          **kinds: how masks are drawn: `static`, `per_layer`, `gaussian`.
        """

        def rate(name):
            return rates[name] if rates and name in rates else getattr(self, name) or None

        return Zoneout(
            cells=rate("z_prob_cells"),
            states=rate("z_prob_states"),
            update_drop=rate(update_drop),
            shared=self.share_mask,
            **kinds,
        )


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

    RATES: ClassVar[tuple[str, ...]] = (*ZoneoutConfig.RATES, "drop_prob_igates")

    def spec(self, rates: Mapping[str, jax.Array] | None = None) -> Zoneout:
        """Returns the masks of a layer; `rates` of a sweep replace the settings."""
        return self.masks(
            "drop_prob_igates",
            rates,
            static=self.static_mask,
            per_layer=self.stoch_depth,
            gaussian=self.gaussian_mask,
        )


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

    def optimizer(self, learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        """Makes the optimizer, with clipping and weight decay."""
        rule = {
            "adam": lambda: optax.adam(learning_rate),
            "rms_prop": lambda: rmsprop(learning_rate),
            "momentum": lambda: optax.sgd(learning_rate, self.momentum),
            "sgd": lambda: optax.sgd(learning_rate),
        }[self.algorithm]()
        optimizer = clipped(rule, self.clip_norm, self.clip_by)
        if self.weight_decay:
            return optax.chain(optax.add_decayed_weights(self.weight_decay), optimizer)
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
