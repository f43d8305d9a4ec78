"""The training loop: epochs, evaluation, early stopping, checkpoints and the final figures."""

import concurrent.futures
import contextlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoneout_jax.training import parallel, processes
from zoneout_jax.training.checkpoint import Checkpoints
from zoneout_jax.training.config import RunConfig, RunError
from zoneout_jax.training.evaluation import calibrator, evaluator
from zoneout_jax.training.metrics import MetricLog, describe, draw_curves, over_seeds
from zoneout_jax.training.progress import Progress, peak_memory_bytes, reset_peak_memory
from zoneout_jax.training.run_directory import (
    RunDirectory,
    commit,
    versions,
    write_json,
    writing,
)
from zoneout_jax.training.state import Streams, TrainState
from zoneout_jax.training.stop import StopRequest
from zoneout_jax.training.task import Task


def fit(
    task: Task, config: RunConfig, run: RunDirectory, stop: StopRequest | None = None
) -> dict[str, Any]:
    """Trains, and returns the final figures.

    The run goes on from its last checkpoint, if there is one, and ends with the same figures, to
    the last bit, as one that was never cut off. A run that is done is not run again. SIGINT,
    SIGTERM and the end of `max_minutes` stop it with a checkpoint.

    `stop` says when to stop, if somebody listens to signals already.

    With several seeds each is trained, validated, stopped and measured as if it were alone.

    Returns:
      The content of `result.json`: `validation_<metric>` of the best epoch, `<name>_<metric>` of
      each final evaluation with that epoch's parameters, and facts about the run. With several
      seeds the figures are means, with `<figure>_sd` beside them, and `runs` has those of each.

    Raises:
      Stopped: the run was stopped, and its checkpoint is written.
      RunError: the workdir is in use, a file cannot be written, no checkpoint can be read, or a
        loss or gradient is not finite.
      KeyboardInterrupt: at a second SIGINT.
    """
    done = processes.on_first(run.result)
    if done is not None:
        return done
    with contextlib.ExitStack() as stack:
        processes.on_first(lambda: stack.enter_context(run.opened()) and None)
        stack.enter_context(config.matmul_precision())
        reset_peak_memory()
        stop = stop or stack.enter_context(StopRequest(config.max_minutes))
        return _Fit(task, config, run, stop, stack).train()


class _Fit:
    """One run in progress. Arrays that differ between seeds have them along their first axis."""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        run: RunDirectory,
        stop: StopRequest,
        stack: contextlib.ExitStack,
    ):
        self.task, self.config, self.run, self.stop = task, config, run, stop
        self.first = processes.is_first()
        self.commit = commit()  # now, as the checkout may change while the run goes on
        self.seeds = range(config.seed, config.seed + config.num_seeds)
        self.streams = [Streams.from_seed(seed, config.rng_impl) for seed in self.seeds]
        self.total_steps = config.epochs * task.steps_per_epoch
        # Not vmapped: a seed's first parameters are those of its run alone, bit for bit.
        states = [task.first_state(streams.init) for streams in self.streams]
        state = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *states)
        self.best_params = jax.tree.map(np.array, state.params)
        self.bar = stack.enter_context(Progress(self.total_steps, task.name, shown=self.first))
        many = len(self.seeds)
        # What a checkpoint holds besides arrays: the position, what was measured so far, and sums
        # of the epoch in progress.
        self.progress: dict[str, Any] = {
            "step": 0,
            "epoch_totals": [0.0] * many,
            "epoch_counts": [0.0] * many,
            "skipped": [0] * many,
            "epoch_seconds": 0.0,
            "best": [math.inf] * many,
            "best_epoch": [0] * many,
            "best_figures": [{}] * many,
            "metrics": [],
            "times": [],
            "seconds": 0.0,
            "checkpoint_seconds": 0.0,
            "resumed": 0,
        }
        if self.first:  # the others have neither checkpoints nor a log
            self.checkpoints = Checkpoints(run.path / "checkpoints")
            stack.callback(self.checkpoints.close)
        if processes.on_first(lambda: self.checkpoints.latest) is not None:
            state = self._restore(state)
        self.saved_at = time.monotonic()
        if self.first:
            self.log = MetricLog(run, **{k: self.progress[k] for k in ("step", "metrics", "times")})
            stack.callback(self.log.close)
        self.drawing = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        self.drawn: concurrent.futures.Future[Any] = self.drawing.submit(int)
        self.placement = parallel.Placement(many)
        self.state = self.placement.put(state)
        self.data = parallel.replicate(task.data)
        self.keys = self.placement.put(jnp.stack([streams.noise for streams in self.streams]))
        self.train_steps = parallel.train_steps(
            task.loss,
            task.optimizer,
            self.placement,
            min(config.steps_per_call, task.steps_per_epoch),
            skip_not_finite=config.on_nan == "skip",
        )
        self.plan = jax.jit(task.plan)
        self.calibrate = calibrator(task.calibration, self.placement)
        self.validate = evaluator(task, task.validation, self.placement)
        self.end_epoch = task.end_epoch and parallel.each_state(task.end_epoch, self.placement)

    def _restore(self, state: TrainState) -> TrainState:
        """Takes everything from the last checkpoint; every process is given the first one's."""
        arrays = jax.tree.map(np.array, (state, self.best_params))
        read: dict[str, Any] = {}

        def restore():
            read["arrays"], progress = self.checkpoints.restore(arrays, self.bar.say)
            return progress

        self.progress = processes.on_first(restore)
        state, self.best_params = processes.share(read.get("arrays", arrays))
        self.progress["resumed"] += 1
        self.bar.start(self.progress["step"])
        self.bar.say(f"going on from step {self.progress['step']:,}")
        if self.first and (changed := self.run.changed_versions()):
            self.bar.say(f"numbers may differ from those of one program: {'; '.join(changed)}")
        return TrainState(*state)

    def train(self) -> dict[str, Any]:
        """Trains to the end, or until told to stop."""
        progress = self.progress
        while progress["step"] < self.total_steps and any(self._going()):
            asked = self._epoch()
            self._end_epoch()
            self._save_if_due(asked)
        self._save(wait=True)
        epochs = ", ".join(map(str, progress["best_epoch"]))
        self.bar.say(f"best validation at epoch {epochs}; final figures next")
        return self._finish()

    def _going(self) -> list[bool]:
        """Which seeds have not run out of patience."""
        epoch = self.progress["step"] // self.task.steps_per_epoch
        return [epoch - best < self.config.patience for best in self.progress["best_epoch"]]

    def _epoch(self) -> int:
        """Trains to the end of the epoch; why to stop, as of its last call, or 0."""
        progress, per_epoch = self.progress, self.task.steps_per_epoch
        epoch = progress["step"] // per_epoch
        plans = [self.plan(jax.random.fold_in(s.data, epoch)) for s in self.streams]
        rows = self.placement.rows(jax.tree.map(lambda *plan: jnp.stack(plan), *plans))
        going = self.placement.put(np.array(self._going()))
        while (done := progress["step"] - epoch * per_epoch) < per_epoch:
            start = time.monotonic()
            end = self._end_of_call(done)
            vote = np.int32(self.stop.requested)
            self.state, totals, counts, votes = self.train_steps(
                self.state, self.data, rows, done, end, self.keys, going, vote
            )
            totals, counts = (self._by_seed(x)[:, : end - done] for x in (totals, counts))
            bad = np.isnan(totals).any(axis=0)
            steps = int(bad.argmax()) if bad.any() else end - done
            for n in range(len(self.seeds)):
                # One by one: their order, and the sums, do not depend on the steps of a call.
                for total, count in zip(totals[n, :steps], counts[n, :steps], strict=True):
                    progress["epoch_totals"][n] += float(total)
                    progress["epoch_counts"][n] += float(count)
                    progress["skipped"][n] += int(count == 0)
            progress["step"] += steps
            progress["epoch_seconds"] += time.monotonic() - start
            if bad.any():
                self._end_before(plans, done + steps, totals[:, steps])
            figure = self.task.figure(totals.sum() / max(counts.sum(), 1.0))
            self.bar.update(
                progress["step"], f"epoch {epoch + 1}, train {self.task.metric} {figure:.3f}"
            )
            if end < per_epoch:
                self._save_if_due(int(votes[0]))
        return int(votes[0])

    def _end_of_call(self, done: int) -> int:
        """The first of: a whole call, the next checkpoint, the end of the epoch."""
        ends = [done + self.config.steps_per_call, self.task.steps_per_epoch]
        if every := self.config.checkpoint_steps:
            ends.append(done + every - self.progress["step"] % every)
        return min(ends)

    def _by_seed(self, sums: jax.Array) -> np.ndarray:
        """Sums `[devices, steps, seeds of the device]` as `[seeds, steps]`, in float64."""
        return self.placement.get(jnp.swapaxes(sums, 1, 2)).astype(np.float64)

    def _end_before(self, plans: list[Any], row: int, totals: np.ndarray) -> None:
        """Ends the run before a step whose loss or gradient is not finite."""
        self._save(wait=True)
        step = self.progress["step"]
        n = int(np.isnan(totals).argmax())
        key = jax.random.fold_in(self.streams[n].noise, step)
        batch = {
            "seed": self.seeds[n],
            "step": step,
            "epoch": step // self.task.steps_per_epoch + 1,
            "examples": jax.tree.map(lambda rows: np.asarray(rows[row]).tolist(), plans[n]),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "rng_impl": self.config.rng_impl,
        }
        path = self.run.path / "not_finite.json"

        def write():
            with writing(path):
                write_json(path, batch)

        processes.on_first(write)
        raise RunError(
            f"the loss or its gradient is not finite at step {step:,} (epoch {batch['epoch']}, "
            f"seed {batch['seed']}); the checkpoint is of the state before it, {path} has the "
            "batch and its key: go on with --on_nan=skip, or begin anew with another setting"
        )

    def _end_epoch(self) -> None:
        """Validates, keeps the best parameters and logs."""
        progress, task = self.progress, self.task
        start = time.monotonic()
        params = self.calibrate(self.state.params)
        figures = self.validate(params)
        chosen = figures[task.chosen_by or task.metric]
        evaluation_seconds = time.monotonic() - start
        epoch = progress["step"] // task.steps_per_epoch
        place: dict[str, Any] = {"epoch": epoch, "step": progress["step"]}
        entries, dead = [], []
        for n, seed in enumerate(self.seeds):
            if epoch - 1 - progress["best_epoch"][n] >= self.config.patience:
                continue
            if not progress["epoch_counts"][n]:
                dead.append(seed)
                continue
            if chosen[n] < progress["best"][n]:
                progress["best"][n], progress["best_epoch"][n] = chosen[n], epoch
                progress["best_figures"][n] = {k: values[n] for k, values in figures.items()}
                for best, new in zip(
                    jax.tree.leaves(self.best_params),
                    jax.tree.leaves(self.placement.get(params)),
                    strict=True,
                ):
                    best[n] = new[n]
            train = task.figure(progress["epoch_totals"][n] / progress["epoch_counts"][n])
            entry: dict[str, Any] = {"seed": seed} if len(self.seeds) > 1 else {}
            entry |= place | {f"train_{task.metric}": train}
            entry |= {f"validation_{name}": values[n] for name, values in figures.items()}
            if progress["skipped"][n]:
                entry["skipped"] = progress["skipped"][n]
            entries.append(entry)
        best_of_others = [
            best
            for seed, best in zip(self.seeds, progress["best_epoch"], strict=True)
            if seed not in dead
        ]
        if dead and not any(best_of_others):
            raise RunError(f"no step of epoch {epoch} had a finite loss and gradient")
        for seed in dead:  # the others go on; it has the patience of a seed that gets no better
            self.bar.say(f"seed {seed}: no step of epoch {epoch} had a finite loss and gradient")
        if task.show and self.first and self.bar.is_time():
            self._show(task.show, self.placement.get(params))
        if self.end_epoch:
            measured = {name: np.asarray(values, np.float32) for name, values in figures.items()}
            keys = jnp.stack([jax.random.fold_in(s.epoch, epoch) for s in self.streams])
            self.state = self.end_epoch(self.state, *self.placement.put((measured, keys)))
        progress["seconds"] += progress["epoch_seconds"] + evaluation_seconds
        times = place | {
            "steps_per_second": task.steps_per_epoch / progress["epoch_seconds"],
            "seconds": progress["seconds"],
            "evaluation_seconds": evaluation_seconds,
            "checkpoint_seconds": progress["checkpoint_seconds"],
        }
        if self.first:
            self.log.append(entries, times)
        progress["metrics"] += entries
        progress["times"].append(times)
        for name in ("epoch_totals", "epoch_counts", "skipped"):
            progress[name] = [0] * len(self.seeds)
        progress.update(epoch_seconds=0.0, checkpoint_seconds=0.0)
        for entry in entries:
            self.bar.say(describe(entry))

    def _show(self, show: Callable[[Any], str], params: Any) -> None:
        """Tells people what the first seed's model does."""
        seed = f"seed {self.seeds[0]}, " if len(self.seeds) > 1 else ""
        self.bar.say(seed + show(jax.tree.map(lambda x: x[0], params)))

    def _save(self, wait: bool = False) -> None:
        """Begins to write a checkpoint and to draw the curves; `wait` until both are done."""
        start = time.monotonic()

        def save():
            # Copied, as it is written while the run goes on.
            arrays = (self.placement.get(self.state), jax.tree.map(np.copy, self.best_params))
            self.checkpoints.save(self.progress["step"], arrays, self.progress)
            self._draw(wait)
            if wait:
                self.checkpoints.wait()

        if wait:  # all of them: a process that leaves ends those that are still writing
            processes.on_first(save)
        elif self.first:
            save()
        self.saved_at = time.monotonic()
        self.progress["checkpoint_seconds"] += self.saved_at - start

    def _save_if_due(self, asked: int) -> None:
        """Saves at the chosen intervals, and at a request to stop, which is then met."""
        stopping = asked if processes.several() else self.stop.requested
        minutes = (time.monotonic() - self.saved_at) / 60
        every = self.config.checkpoint_steps
        at_step = every is not None and self.progress["step"] % every == 0
        if stopping or at_step or minutes >= self.config.checkpoint_minutes:
            self._save(wait=bool(stopping))
        if stopping:
            raise self.stop.stopped(stopping, self.progress["step"])
        if self.first:
            self.checkpoints.check()

    def _draw(self, wait: bool) -> None:
        """Draws the curves in the background, unless that is still being done."""
        if not (wait or self.drawn.done()):
            return
        self.drawn.result()  # raises what went wrong
        if entries := list(self.progress["metrics"]):
            runs = [[e for e in entries if e.get("seed", seed) == seed] for seed in self.seeds]
            path, curves = self.run.path / "curves.png", {self.task.name: runs}
            self.drawn = self.drawing.submit(draw_curves, path, curves, self.task.metric)
        if wait:
            self.drawn.result()

    def _finish(self) -> dict[str, Any]:
        """Measures the final figures with the best parameters."""
        progress, task = self.progress, self.task
        if task.show and self.first:
            self._show(task.show, self.best_params)
        params = self.placement.put(self.best_params)
        start = time.monotonic()
        figures = {
            f"validation_{name}": [best.get(name, math.inf) for best in progress["best_figures"]]
            for name in max(progress["best_figures"], key=len) or {task.metric: None}
        }
        for name, evaluation in task.final.items():
            for total, means in evaluator(task, evaluation, self.placement)(params).items():
                figures[f"{name}_{total}"] = means
        whole = progress["step"] // task.steps_per_epoch
        figures["best_epoch"] = progress["best_epoch"]
        figures["epochs"] = [min(whole, b + self.config.patience) for b in progress["best_epoch"]]
        result = {
            "name": task.name,
            **over_seeds(figures, self.seeds),
            "steps": progress["step"],
            "steps_per_second": statistics.median(
                entry["steps_per_second"] for entry in progress["times"]
            ),
            "seconds": progress["seconds"] + time.monotonic() - start,
            "peak_memory_bytes": peak_memory_bytes(),
            "resumed": progress["resumed"],
            "devices": f"{jax.device_count()} × {jax.local_devices()[0].device_kind}",
            **task.facts,
            "commit": self.commit,
            "versions": versions(),
        }
        if self.first:
            with writing(self.run.result_file):
                write_json(self.run.result_file, result)
        return result
