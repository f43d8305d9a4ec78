"""The training loop: epochs, evaluation, early stopping, checkpoints and the final figures."""

import dataclasses
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zoneout_jax.training import parallel
from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.config import RunConfig
from zoneout_jax.training.metrics import (
    MetricLog,
    Progress,
    RunDirectory,
    draw_curves,
    peak_memory_bytes,
    versions,
    write_json,
)
from zoneout_jax.training.state import Streams, TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A figure to measure.

    Attributes:
      loss: `loss(params, data, examples) -> (total, count)` over one device's examples.
      data: arrays, copied to every device.
      rows: examples `[rows, batch, …]`, each row spread over the devices. Where a batch does not
        divide by them it is filled up with -1, which the loss must not count.
    """

    loss: parallel.Loss
    data: Any
    rows: Any


@dataclasses.dataclass(frozen=True)
class Task:
    """What `fit` must know of an experiment.

    Attributes:
      name: what to call the run in its output.
      init: `init(key) -> params`.
      optimizer: an optax optimizer.
      loss: `loss(params, data, examples, key) -> (total, count)` over one device's examples.
      data: training arrays, copied to every device.
      plan: `plan(key) -> rows`, the examples `[steps_per_epoch, batch, …]` of an epoch.
      steps_per_epoch: rows of a plan.
      metric: name of the figure, such as `bpc`; lower is better.
      figure: turns a mean loss into that figure.
      validation: measured after each epoch; chooses the parameters and the end.
      final: measured once, with the best parameters, by name.
      facts: what else to keep beside the result, such as sizes of the data.
    """

    name: str
    init: Callable[[jax.Array], Any]
    optimizer: optax.GradientTransformation
    loss: parallel.Loss
    data: Any
    plan: Callable[[jax.Array], Any]
    steps_per_epoch: int
    metric: str
    figure: Callable[[float], float]
    validation: Evaluation
    final: Mapping[str, Evaluation]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def fit(task: Task, config: RunConfig, run: RunDirectory) -> dict[str, Any]:
    """Trains, and returns the final figures.

    The run goes on from its last checkpoint, if there is one, and ends with the same figures, to
    the last bit, as one that was never cut off. A run that is done is not run again. SIGINT and
    SIGTERM end it with a checkpoint.

    Returns:
      The content of `result.json`: `validation_<metric>` of the best epoch, `<name>_<metric>` of
      each final evaluation with that epoch's parameters, and facts about the run.

    Raises:
      FloatingPointError: the training loss is not finite.
      KeyboardInterrupt: after SIGINT or SIGTERM, when the checkpoint is written.
    """
    done = run.result()
    if done is not None:
        return done
    run.begin()
    precision = "float32" if config.precision == "float32" else "default"
    with jax.default_matmul_precision(precision), _StopRequest() as stop:
        return _Fit(task, config, run).train(stop)


class _Fit:
    """One run in progress."""

    def __init__(self, task: Task, config: RunConfig, run: RunDirectory):
        self.task, self.config, self.run = task, config, run
        self.streams = Streams.from_seed(config.seed, config.rng_impl)
        self.total_steps = config.epochs * task.steps_per_epoch
        state = TrainState.create(task.init(self.streams.init), task.optimizer)
        self.best_params = jax.tree.map(np.array, state.params)
        # What a checkpoint holds besides arrays: the position, and sums of the epoch in progress.
        self.progress = {
            "step": 0,
            "epoch_total": 0.0,
            "epoch_count": 0.0,
            "epoch_seconds": 0.0,
            "seconds": 0.0,
            "best": math.inf,
            "best_epoch": 0,
            "resumed": 0,
        }
        self.checkpoints = Checkpoints(run.path / "checkpoints")
        if self.checkpoints.latest is not None:
            like = jax.tree.map(np.array, (state, self.best_params))
            (state, self.best_params), self.progress = self.checkpoints.restore(like)
            state = TrainState(*state)
            # Strict JSON has no infinity.
            self.progress["best"] = float(self.progress["best"])
            self.progress["resumed"] += 1
        self.saved_at = time.monotonic()
        self.state = parallel.replicate(state)
        self.data = parallel.replicate(task.data)
        self.log = MetricLog(run, self.progress["step"])
        self.train_steps = parallel.train_steps(task.loss, task.optimizer)
        self.plan = jax.jit(task.plan)
        self.validate = _evaluator(task.validation)

    def train(self, stop: "_StopRequest") -> dict[str, Any]:
        progress = self.progress
        bar = Progress(self.total_steps, progress["step"], self.task.name)
        if progress["step"]:
            bar.say(f"going on from step {progress['step']:,}")
        try:
            while progress["step"] < self.total_steps and not self._out_of_patience():
                self._epoch(bar, stop)
                entry = self._end_epoch()
                bar.say(_describe(entry))
                self._save_if_due(stop.requested)
            self._save()
            bar.say(f"best validation at epoch {progress['best_epoch']}; final figures next")
            return self._finish()
        finally:
            bar.close()
            self.log.close()
            self.checkpoints.close()

    def _epoch(self, bar: Progress, stop: "_StopRequest") -> None:
        """Trains to the end of the epoch."""
        progress, per_epoch = self.progress, self.task.steps_per_epoch
        epoch = progress["step"] // per_epoch
        rows = parallel.shard(self.plan(jax.random.fold_in(self.streams.data, epoch)))
        done = progress["step"] - epoch * per_epoch
        while done < per_epoch:
            start = time.monotonic()
            end = min(done + self.config.steps_per_call, per_epoch)
            self.state, total, count = self.train_steps(
                self.state, self.data, rows, done, end, self.streams.noise
            )
            total, count = float(total[0]), float(count[0])
            if not math.isfinite(total):
                raise FloatingPointError(
                    f"the loss is {total} in steps {progress['step']} to "
                    f"{progress['step'] + end - done} of {self.run.path}"
                )
            progress["step"] += end - done
            progress["epoch_total"] += total
            progress["epoch_count"] += count
            progress["epoch_seconds"] += time.monotonic() - start
            done = end
            figure = self.task.figure(total / count)
            bar.update(
                progress["step"], f"epoch {epoch + 1}, train {self.task.metric} {figure:.3f}"
            )
            if done < per_epoch:
                self._save_if_due(stop.requested)

    def _end_epoch(self) -> dict[str, Any]:
        """Validates, keeps the best parameters and logs."""
        progress, task = self.progress, self.task
        start = time.monotonic()
        validation = task.figure(self.validate(self.state.params))
        progress["seconds"] += progress["epoch_seconds"] + time.monotonic() - start
        epoch = progress["step"] // task.steps_per_epoch
        if validation < progress["best"]:
            progress["best"], progress["best_epoch"] = validation, epoch
            self.best_params = parallel.unreplicate(self.state.params)
        train = task.figure(progress["epoch_total"] / progress["epoch_count"])
        entry = {
            "epoch": epoch,
            "step": progress["step"],
            f"train_{task.metric}": train,
            f"validation_{task.metric}": validation,
            "steps_per_second": task.steps_per_epoch / progress["epoch_seconds"],
            "seconds": progress["seconds"],
        }
        self.log.append(entry)
        progress.update(epoch_total=0.0, epoch_count=0.0, epoch_seconds=0.0)
        return entry

    def _out_of_patience(self) -> bool:
        epoch = self.progress["step"] // self.task.steps_per_epoch
        at_start = self.progress["step"] % self.task.steps_per_epoch == 0
        return at_start and epoch - self.progress["best_epoch"] >= self.config.patience

    def _save(self) -> None:
        arrays = (parallel.unreplicate(self.state), self.best_params)
        progress = self.progress | {"best": str(self.progress["best"])}
        self.checkpoints.save(self.progress["step"], arrays, progress)
        self._draw()
        self.saved_at = time.monotonic()

    def _save_if_due(self, stopping: bool) -> None:
        if stopping or time.monotonic() - self.saved_at >= self.config.checkpoint_seconds:
            self._save()
        if stopping:
            raise KeyboardInterrupt(
                f"stopped at step {self.progress['step']:,}; the same command goes on from there"
            )

    def _draw(self) -> None:
        if self.log.history:
            curves = {self.task.name: [self.log.history]}
            draw_curves(self.run.path / "curves.png", curves, self.task.metric)

    def _finish(self) -> dict[str, Any]:
        """Measures the final figures with the best parameters."""
        progress, task = self.progress, self.task
        params = parallel.replicate(self.best_params)
        start = time.monotonic()
        figures = {
            f"{name}_{task.metric}": task.figure(_evaluator(evaluation)(params))
            for name, evaluation in task.final.items()
        }
        result = {
            "name": task.name,
            f"validation_{task.metric}": progress["best"],
            **figures,
            "best_epoch": progress["best_epoch"],
            "epochs": progress["step"] // task.steps_per_epoch,
            "steps": progress["step"],
            "steps_per_second": float(
                np.median([entry["steps_per_second"] for entry in self.log.history])
            ),
            "seconds": progress["seconds"] + time.monotonic() - start,
            "peak_memory_bytes": peak_memory_bytes(),
            "resumed": progress["resumed"],
            "devices": f"{jax.local_device_count()} × {jax.local_devices()[0].device_kind}",
            **task.facts,
            "versions": versions(),
        }
        write_json(self.run.result_file, result)
        return result


class _StopRequest:
    """Turns SIGINT and SIGTERM into a request that the loop meets between two calls."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "_StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt("stopped at once; the last checkpoint stands")
        self.requested = True


def _evaluator(evaluation: Evaluation) -> Callable[[Any], float]:
    """Compiles an evaluation: `run(replicated params) -> mean loss`."""
    sums = parallel.evaluation_sums(evaluation.loss)
    data = parallel.replicate(evaluation.data)
    rows = parallel.shard(jax.tree.map(jnp.asarray, evaluation.rows), pad=True)
    return lambda params: parallel.mean(*sums(params, data, rows))


def _describe(entry: Mapping[str, Any]) -> str:
    """One line for people."""
    shown = {k: v for k, v in entry.items() if k not in ("epoch", "step")}
    words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
    return f"epoch {entry['epoch']}: {words}"
