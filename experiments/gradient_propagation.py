"""Measures how far gradients reach back from the last step (Krueger et al. 2017, section 4.4).

    python -m experiments.gradient_propagation                   # the paper: MNIST, one epoch
    python -m experiments.gradient_propagation --preset=laptop   # minutes, no download

The loss L of permuted MNIST is a function of the state (c_t, h_t) after each step t. Its exact
gradients ∂L/∂c_t and ∂L/∂h_t are gradients with respect to "probes": zeros that are added to the
state after each step. Their norms are averaged over examples, with masks as in training, at
initialization and after some epochs. As c_t affects later steps only, ∂L/∂c_t is 0 at the last
step.

The paper shows ∂L/∂c_t after the first epoch, each curve divided by its sum over t, for an LSTM,
zoneout of the cells at 0.5, and recurrent dropout at 0.5. Two kinds of models are added here. The
static identity connection is zoneout with masks at their expectation, in training too; it separates
the effect of the shortcut from the effect of the noise. Batch normalization has several initial
gains γ (Cooijmans et al. 2016, section 4). There the examples of a batch affect each other, so L is
the sum over the batch, for all models.

Output in `--out`: `gradient_norms.json`, with the number of steps before the end at which the norm
has fallen to a thousandth of its maximum; `normalized.png` (without batch normalization);
`norms.png`; and the run directories. The same command resumes; a command with other models and the
same settings adds these models.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import permuted_mnist
from experiments.lib.experiment import Study
from experiments.lib.pixels import build_cell
from experiments.lib.results import read
from experiments.lib.settings import DataConfig
from zoneout_jax import Masks
from zoneout_jax.training import (
    Count,
    Range,
    RunError,
    Seed,
    StopRequest,
    Streams,
    commit,
    differences,
    exclusive,
    fit,
    output_folder,
    prepare,
    read_trained,
    save_figure,
    versions,
    write_json,
)

GAMMAS = (0.1, 0.3, 0.5, 1.0)
MODELS: dict[str, dict[str, Any]] = {
    "LSTM": {},
    "zoneout": {"z_prob_cells": 0.5},
    "static identity": {"z_prob_cells": 0.5},
    "recurrent dropout": {"igate_drop": 0.5},
} | {
    # Moving averages, as they cost nothing; the norms use batch statistics, as in training.
    f"batch norm {gamma}": {"batch_normalization": True, "initial_gamma": gamma, "popstats": "ema"}
    for gamma in GAMMAS
}
"""Settings of each model."""
EXPECTED = ("static identity",)
"""Models that use masks at their expectation."""
STAGES = ("initialization", "trained")
STATES = ("c", "h")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DataConfig):
    """Settings of the measurement."""

    preset: Literal["paper", "laptop", "smoke"] = "paper"
    """Settings of permuted MNIST to start from."""
    models: tuple[str, ...] = tuple(MODELS)
    """Names of the models to measure."""
    seeds: tuple[Seed, ...] = (0,)
    """Seeds; the norms are averaged over them."""
    epochs: Count = 1
    """Training epochs before the second measurement."""
    train_size: Count | None = None
    """Number of training images; by default the preset's."""
    on_nan: Literal["stop", "skip"] = "stop"
    """If a training loss or gradient is not finite: stop before that step, or skip it."""
    examples: Annotated[int, Range(2)] = 100
    """Number of validation images, one batch, over which the norms are averaged."""
    out: pathlib.Path | None = None
    """Folder for runs and figures; by default runs/gradient_propagation/<preset>."""

    INCIDENTAL: ClassVar[frozenset[str]] = DataConfig.INCIDENTAL | {"models", "on_nan", "out"}

    def __post_init__(self):
        super().__post_init__()
        unknown = [name for name in self.models if name not in MODELS]
        if unknown:
            raise ValueError(f"unknown model {unknown[0]!r}; choose from {', '.join(MODELS)}")
        for name in ("models", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more distinct values, got {values}")


PRESETS = {
    # With γ = 1 the first gradient over the 784 steps of MNIST is not finite in float32.
    "paper": Config(models=tuple(name for name in MODELS if name != "batch norm 1.0")),
    "laptop": Config(preset="laptop", epochs=20),
    "smoke": Config(preset="smoke", models=("LSTM", "zoneout", "batch norm 0.1"), examples=16),
}


def gradients(
    cell: Any, params: Any, xs: jax.Array, labels: jax.Array, masks: Masks
) -> tuple[jax.Array, jax.Array]:
    """Computes (∂L/∂c_t, ∂L/∂h_t), each `[T, B, H]`, of the summed loss after the last step."""
    return jax.grad(probed_loss, 0)(probes(cell, xs), cell, params, xs, labels, masks)


def probes(cell: Any, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Makes zeros to add to c and h after each step, for inputs `[T, B, F]`."""
    zeros = jnp.zeros((*xs.shape[:2], cell.hidden_features), xs.dtype)
    return zeros, zeros


def probed_loss(probes, cell, params, xs, labels, masks) -> jax.Array:
    """Computes the summed cross entropy with `probes` added to the state after each step."""

    def step(carry, inputs):
        x, masks, (at_c, at_h) = inputs
        (c, h), _ = cell.step(params["lstm"], carry, x, masks)
        return (c + at_c, h + at_h), None

    start = cell.initial_carry(params["lstm"], xs.shape[1])
    carry, _ = jax.lax.scan(step, start, (xs, masks, probes))
    logits = cell.hidden(carry) @ params["readout"]["kernel"] + params["readout"]["bias"]
    return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def reach(norms: np.ndarray, factor: float = 1e3) -> int | None:
    """Counts the steps from the last one back to the first norm below 1/`factor` of the maximum.

    Looks only at steps before the maximum; returns None if no norm there is so small.
    """
    below = np.flatnonzero(norms[: np.argmax(norms)] < np.max(norms) / factor)
    return int(len(norms) - 1 - below[-1]) if len(below) else None


def measure_model(
    options: Config, name: str, seed: int, out: pathlib.Path, stop: StopRequest
) -> dict[str, Any]:
    """Trains a model; returns its gradient norms `[T]` by stage and state."""
    preset = permuted_mnist.PRESETS[options.preset]
    config = preset.replace(
        seed=seed,
        epochs=options.epochs,
        patience=options.epochs,
        train_size=options.train_size or preset.data.train_size,
        on_nan=options.on_nan,
        workdir=str(out / f"{name.replace(' ', '_')}-seed{seed}"),
        **options.folders(),
        **MODELS[name],
    )
    images, splits = config.data.load()
    there = len(splits["validation"][1])
    if options.examples > there:
        raise ValueError(f"examples must be at most {there}, got {options.examples}")
    pixels, labels = (jnp.asarray(x[: options.examples]) for x in splits["validation"])
    sampled = name not in EXPECTED
    build = functools.partial(permuted_mnist.build, sampled=sampled)
    task, run = prepare("permuted_mnist", config, preset, build)
    fit(dataclasses.replace(task, name=f"{name}, seed {seed}"), config.run, run, stop)
    if stop.requested:  # after the last step, so that the training was not stopped by it
        raise stop.stopped(stop.requested)
    streams = Streams.from_seed(seed)
    params = {"initialization": task.init(streams.init)}
    params["trained"], _ = read_trained(task, config.run, run.path).last

    xs = permuted_mnist.inputs(pixels, images.max_value)
    cell = build_cell(config, len(xs))
    zoneout = config.zoneout.spec()
    if sampled and zoneout.active:
        key = jax.random.fold_in(streams.noise, 2**31)  # no training step uses this key
        masks = zoneout.sample(key, *xs.shape[:2], cell.hidden_features)
    else:
        masks = jax.tree.map(
            lambda rate: jnp.full((len(xs), 1, 1), rate, xs.dtype), zoneout.expected()
        )
    run_gradients = jax.jit(gradients, static_argnums=0)
    norms = {}
    for stage in STAGES:
        with config.run.matmul_precision():
            found = run_gradients(cell, params[stage], xs, labels.astype(jnp.int32), masks)
        # Squares of small gradients would underflow in float32.
        arrays = (np.linalg.norm(np.asarray(g, np.float64), axis=-1) for g in found)
        norms[stage] = {state: a.mean(1) for state, a in zip(STATES, arrays, strict=True)}
        if not np.isfinite(list(norms[stage].values())).all():
            raise RunError(f"{name}: a gradient is not finite (stage {stage})")
    return norms


def read_result(file: pathlib.Path, options: Config, settings: dict[str, Any]) -> dict[str, Any]:
    """Reads the results so far; raises ValueError if they have other settings."""
    if not file.exists():
        dataset = permuted_mnist.PRESETS[options.preset].data.dataset
        return {"dataset": dataset, "settings": settings, "models": {}}
    result = read(file)
    there = result["settings"]
    if differing := differences(there, settings, there | settings):
        raise ValueError(f"{file} has other settings ({differing}); use another folder")
    return result


def measure(options: Config) -> dict[str, Any]:
    """Measures every model; writes the data and the figures again after each one.

    Returns:
      The content of `gradient_norms.json`.

    Raises:
      ValueError: the data, a run directory or earlier results do not fit the settings.
    """
    out = output_folder(options.out, f"gradient_propagation/{options.preset}")
    settings = json.loads(json.dumps(options.identity()))
    data = out / "gradient_norms.json"
    result = read_result(data, options, settings)
    for name in options.models:
        with StopRequest() as stop:
            runs = [measure_model(options, name, seed, out, stop) for seed in options.seeds]
        measured: dict[str, Any] = {"commit": commit(), "versions": versions()}
        for stage, state in itertools.product(STAGES, STATES):
            norms = np.mean([run[stage][state] for run in runs], 0)
            found = {"norms": norms.tolist(), "steps_to_a_thousandth": reach(norms)}
            measured.setdefault(stage, {})[state] = found
        with exclusive(out):  # another process may have added other models meanwhile
            result = read_result(data, options, settings)
            result["models"][name] = measured
            write_json(data, result)
            draw(out / "normalized.png", result, normalized=True)
            draw(out / "norms.png", result, normalized=False)
        print(f"{name}: steps before the end where the norm has fallen to a thousandth:")
        for state, stage in itertools.product(STATES, STAGES):
            steps = measured[stage][state]["steps_to_a_thousandth"]
            print(f"    ∂L/∂{state}, {stage}: {'nowhere' if steps is None else steps}")
    print(f"data: {data}; figures: normalized.png and norms.png next to it")
    return result


def draw(path: pathlib.Path, result: dict[str, Any], normalized: bool) -> None:
    """Draws the norms over time: a row of panels for each stage, a column for each state.

    The normalized figure leaves out batch normalization. At the first steps, where pixels hardly
    differ between images, its gradients are so large that they would hide all other curves.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(len(STAGES), len(STATES), sharex=True)
    epochs = result["settings"]["epochs"]
    titles = {"initialization": "at initialization", "trained": f"after epoch {epochs}"}
    for row, stage in zip(panels, STAGES, strict=True):
        for axes, state in zip(row, STATES, strict=True):
            for number, (name, model) in enumerate(result["models"].items()):
                normalizes = name.startswith("batch norm")
                if normalized and normalizes:
                    continue
                norms = np.array(model[stage][state]["norms"])
                values = norms / norms.sum() if normalized else norms
                values = np.where(norms > 0, values, np.nan)  # a norm of 0 is not drawn
                style = "--" if normalizes else ":" if name in EXPECTED else "-"
                time = np.arange(1, len(norms) + 1)
                axes.plot(time, values, style, color=f"C{number}", linewidth=1.5, label=name)
            quantity = f"‖∂L/∂{state}ₜ‖"
            share = f"{quantity}, divided by its sum over t"
            axes.set(title=f"{state}ₜ {titles[stage]}", ylabel=share if normalized else quantity)
            if not normalized:
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set(xlabel="step t")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    save_figure(figure, path)


EXPERIMENT = Study(
    name="gradient_propagation",
    about="How far gradients reach back in time.",
    presets=PRESETS,
    measure=measure,
)

if __name__ == "__main__":
    EXPERIMENT.main()
