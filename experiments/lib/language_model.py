"""Language models: layers, regularizers, loss."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.lib.settings import (
    MaskConfig,
    ModelConfig,
    NoiseConfig,
    OptimizerConfig,
    check_sweep,
    compute_dtype,
)
from zoneout_jax import (
    GRU,
    LSTM,
    RNN,
    Cell,
    Initializer,
    norm_stabilizer,
    tiled_orthogonal,
    unroll,
    weight_noise,
)
from zoneout_jax import dropout as dropout_of
from zoneout_jax.training import RunConfig, Settings

Readout = dict[str, jax.Array]

TILES = tiled_orthogonal()


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Settings):
    """Settings of an experiment with a language model."""

    preset: str = "paper"
    """Settings to start from; other flags override them."""
    model: ModelConfig = ModelConfig()
    zoneout: MaskConfig = MaskConfig()
    regularizers: NoiseConfig = NoiseConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: Settings = Settings()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        super().__post_init__()
        check_sweep(self)
        kind, zoneout, regularizers = self.model.rnn_type, self.zoneout, self.regularizers
        if not (any(getattr(zoneout, name) for name in zoneout.RATES) or self.run.sweep):
            for name in ("share_mask", "static_mask", "stoch_depth", "gaussian_mask"):
                if getattr(zoneout, name):
                    raise ValueError(
                        f"{name} needs masks: give z_prob_cells, z_prob_states or "
                        f"drop_prob_igates, or leave {name} out"
                    )
        if kind == "LSTM":
            if not self.run.sweep:
                zoneout.spec()  # raises if a shared mask has two rates
            return
        lacking = {
            "z_prob_cells": (zoneout.z_prob_cells, "memory cells"),
            "share_mask": (zoneout.share_mask, "memory cells"),
            "drop_prob_igates": (zoneout.drop_prob_igates, "gates" if kind == "SRNN" else None),
            "penalty": (regularizers.penalty, "memory cells" * (regularizers.penalty == "cells")),
        }
        for name, (value, what) in lacking.items():
            if what and value:
                raise ValueError(f"rnn_type {kind} has no {what}, got {name}={value}; leave it out")


def check_steps(config: Any, steps: int) -> None:
    """Raises ValueError if a sequence has too few steps for the norm stabilizer."""
    if config.regularizers.norm_cost_coeff and steps < 2:
        raise ValueError(
            "norm_cost_coeff compares the states of successive predictions: seq_length must be at "
            f"least {config.data.seq_length + 2 - steps}, got {config.data.seq_length}"
        )


class LanguageModel(NamedTuple):
    """Recurrent layers that predict the distribution of the next symbol.

    Attributes:
      init: `init(key) -> params` with `layers`, `readout` and, if there is one, `embedding`
        `[V, H]`.
      initial_carry: `initial_carry(params, batch) -> carry`, a list with one carry per layer.
      sums: `sums(params, inputs, targets, weights, carry=None, **mode) -> ((total, count), carry)`.
        Inputs, targets and weights w are `[T, B]`; total is Σ w·nats of the targets, count is Σ w,
        and the new carry is that after the inputs. `mode` is `deterministic=True`, or `key` and the
        `axis_name` of the axis over which a batch is spread; also the `rates` of a sweep by name.
        In training the gradient of total includes the norm stabilizer, but its value does not.
      read: `read(params, inputs, carry=None, **mode) -> carry` after the inputs; needs no
        `readout`.
      logits: `logits(params, inputs, carry, rates=None) -> (logits [T, B, V], carry)`, with masks
        at their expectation.
    """

    init: Callable[[jax.Array], Any]
    initial_carry: Callable[[Any, int], Any]
    sums: Callable[..., tuple[tuple[jax.Array, jax.Array], Any]]
    read: Callable[..., Any]
    logits: Callable[..., tuple[jax.Array, Any]]


def language_model(
    config: LanguageModelConfig,
    vocab_size: int,
    *,
    encoding: Literal["one_hot", "rows", "embedding"] = "one_hot",
    tied: bool = False,
    init_width: float | None = None,
    learned_carry: bool = True,
    input_drop: float = 0.0,
    dropout: float = 0.0,
    output: Literal["state", "candidate"] = "state",
) -> LanguageModel:
    """Makes a language model.

    Args:
      config: settings.
      vocab_size: V, number of symbols.
      encoding: what the first layer reads: one-hot vectors; the rows of its input matrix
        `[V, kH]`, which equal products with one-hot vectors and suit many symbols; or an embedding
        `[V, H]`.
      tied: the kernel of the output layer is the transposed embedding (Press and Wolf 2017).
      init_width: all weights are uniform within ± this; None makes them orthogonal, in square tiles
        (see `tiled_orthogonal`), as the authors' code does.
      learned_carry: the initial state is learned; otherwise it is zero.
      input_drop: dropout rate of the first layer's inputs.
      dropout: dropout rate between layers and before the output layer (Zaremba et al. 2014).
      output: what a layer outputs: its zoned-out state, or the new state before zoneout.

    Raises:
      ValueError: tied weights without an embedding.
    """
    if tied and encoding != "embedding":
        raise ValueError(f"tied weights need encoding 'embedding', got {encoding!r}")
    features, dtype = config.model.hidden_features, compute_dtype(config.run)
    first = features if encoding == "embedding" else vocab_size
    kernel_init = uniform(init_width) if init_width else TILES
    kind = CELLS[config.model.rnn_type]
    kinds = [kind] * config.model.num_layers
    if encoding == "rows":
        kinds[0] = looking_up(kind)
    cells = [
        kind(
            features if number else first,
            features,
            output=output,
            kernel_init=kernel_init,
            recurrent_kernel_init=kernel_init,
            learned_carry=learned_carry,
            dtype=dtype,
            # As in the authors' code.
            **({"reset_after": False} if config.model.rnn_type == "GRU" else {}),
        )
        for number, kind in enumerate(kinds)
    ]
    regularizers = config.regularizers

    def init(key):
        cell_key, readout_key, embedding_key = jax.random.split(key, 3)
        params = {
            "layers": [
                cell.init(jax.random.fold_in(cell_key, number)) for number, cell in enumerate(cells)
            ],
            "readout": readout_init(readout_key, (features, vocab_size), kernel_init),
        }
        if tied:
            del params["readout"]["kernel"]
        if encoding == "embedding":
            draw = uniform(init_width or features**-0.5)
            params["embedding"] = draw(embedding_key, (vocab_size, features))
        return params

    def initial_carry(params, batch):
        layers = zip(cells, params["layers"], strict=True)
        return [cell.initial_carry(layer, batch) for cell, layer in layers]

    def run(params, inputs, carry=None, key=None, deterministic=False, axis_name=None, rates=None):
        """Returns outputs `[T, B, H]`, the carry, and what is penalized of each layer."""
        zoneout = config.zoneout.spec(rates)

        def dropped(xs, rate, number, whole=False):
            if deterministic or not rate:
                return xs
            drop = functools.partial(
                dropout_of, key=jax.random.fold_in(key, number), rate=rate, axis_name=axis_name
            )
            return xs * drop(jnp.ones_like(xs[..., :1])) if whole else drop(xs)

        if encoding == "embedding":
            xs = params["embedding"][inputs]
            xs = dropped(xs, input_drop, 0)
        else:
            kernel = params["layers"][0]["input"]
            xs = kernel[inputs] if encoding == "rows" else jax.nn.one_hot(inputs, vocab_size)
            xs = dropped(xs, input_drop, 0, whole=True)  # drops whole symbols
        of_cells = regularizers.norm_cost_coeff and regularizers.penalty == "cells"
        emit = with_cells if of_cells else None
        new_carry, penalized = [], []
        for number, (cell, layer) in enumerate(zip(cells, params["layers"], strict=True)):
            if number:
                xs = dropped(xs, dropout, 2 * number)
            mode = {"deterministic": True}
            if not deterministic:
                mode = {"key": jax.random.fold_in(key, 2 * number + 1), "axis_name": axis_name}
            before = None if carry is None else carry[number]
            after, ys = unroll(cell, layer, xs, before, zoneout=zoneout, emit=emit, **mode)
            xs, looked_at = ys if emit else (ys, ys)
            new_carry.append(after)
            penalized.append(looked_at)
        xs = dropped(xs, dropout, 2 * len(cells))
        return xs, new_carry, penalized

    def read(params, inputs, carry=None, *, key=None, **mode):
        return run(params, inputs, carry, key, **mode)[1]

    def readout(params):
        kernel = params["embedding"].T if tied else params["readout"]["kernel"]
        return {"kernel": kernel, "bias": params["readout"]["bias"]}

    def sums(params, inputs, targets, weights, carry=None, *, key=None, **mode):
        if regularizers.weight_noise and not mode.get("deterministic"):
            params = weight_noise(params, jax.random.fold_in(key, 2**31), regularizers.weight_noise)
        ys, carry, penalized = run(params, inputs, carry, key, **mode)
        total, count = cross_entropy_sum(readout(params), ys, targets, weights, dtype)
        if regularizers.norm_cost_coeff and not mode.get("deterministic"):
            cost = regularizers.norm_cost_coeff * sum(map(norm_stabilizer, penalized))
            # Adds the gradient only, so that the training metric remains a cross entropy.
            total += count * (cost - jax.lax.stop_gradient(cost))
        return (total, count), carry

    def logits(params, inputs, carry, rates=None):
        ys, carry, _ = run(params, inputs, carry, deterministic=True, rates=rates)
        return output_layer(readout(params), ys, dtype), carry

    return LanguageModel(init, initial_carry, sums, read, logits)


def with_cells(carry: Any, output: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the output and the memory cells of a step."""
    return output, carry[0]


CELLS: dict[str, type[Cell]] = {"LSTM": LSTM, "GRU": GRU, "SRNN": RNN}
"""Classes of cells, by `rnn_type`."""


@functools.cache
def looking_up(kind: type[Cell]) -> type[Cell]:
    """Makes a class of cells whose inputs are rows of the input matrix, `[T, B, kH]`."""

    class LookingUp(kind):
        @property
        def input_width(self):
            return len(self.gates) * self.hidden_features

        def project(self, params, rows):
            return rows + params["bias"][None, None]

    return LookingUp


def uniform(width: float) -> Callable[..., jax.Array]:
    """Makes an initializer that is uniform within ± width."""

    def init(key, shape, dtype=jnp.float32, blocks: int = 1) -> jax.Array:
        del blocks
        return jax.random.uniform(key, shape, dtype, -width, width)

    return init


def readout_init(key: jax.Array, shape: tuple[int, int], kernel_init: Initializer) -> Readout:
    """Makes the parameters of the output layer: a kernel of shape `[H, V]`, and a bias of 0."""
    return {"kernel": kernel_init(key, shape, jnp.float32), "bias": jnp.zeros(shape[1])}


def output_layer(readout: Readout, ys: jax.Array, dtype: Any = jnp.float32) -> jax.Array:
    """Computes the logits y W + b, with the operands of the product in `dtype`."""
    kernel = readout["kernel"].astype(dtype)
    logits = jnp.matmul(ys.astype(dtype), kernel, preferred_element_type=jnp.float32)
    return logits + readout["bias"]


def cross_entropy_sum(
    readout: Readout,
    ys: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array]:
    """Computes the summed cross entropy of predicted symbols.

        (Σ −w · log softmax(y W + b)[target],  Σ w)     in nats

    Args:
      readout: as made by `readout_init`.
      ys: outputs of the recurrent layer, `[T, B, H]`.
      targets: integers `[T, B]`.
      weights: w, `[T, B]`; 0 for targets that must not count.
      dtype: type of the operands of the matrix product.
    """
    logits = output_layer(readout, ys, dtype)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return jnp.sum(weights * nats), jnp.sum(weights)
