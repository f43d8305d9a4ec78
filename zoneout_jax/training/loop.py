"""Training loop: epochs, evaluation, early stopping, checkpoints and the result."""

import contextlib
import dataclasses
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
from zoneout_jax.training.config import RunConfig
from zoneout_jax.training.errors import ADVICE, Diverged, RunError
from zoneout_jax.training.evaluation import calibrator, evaluator
from zoneout_jax.training.files import write_json
from zoneout_jax.training.metrics import Drawing, MetricLog, describe, draw_curves
from zoneout_jax.training.progress import Progress, peak_memory_bytes, reset_peak_memory
from zoneout_jax.training.run_directory import RunDirectory, check_task, commit, versions
from zoneout_jax.training.state import RunProgress, Streams, TrainState
from zoneout_jax.training.stop import StopRequest
from zoneout_jax.training.sweep import by_rates, label, rates_of, summarize, write_sweep
from zoneout_jax.training.task import Task, check_indices


def fit(
    task: Task,
    config: RunConfig,
    run: RunDirectory,
    stop: StopRequest | None = None,
    on_history: Callable[[list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Trains a task and returns the result.

    If the run has a checkpoint, training resumes from the last one and ends with the same metrics,
    bit for bit, as a run that was never interrupted. A finished run is not trained again, but it
    continues if `config` asks for more epochs. SIGINT, SIGTERM and the end of `max_minutes` save a
    checkpoint and stop the run.

    `stop` is an active `StopRequest` to use instead of a new one. `on_history` is called with the
    history from time to time, in the background and in process 0 only.

    Each of several seeds is trained, validated, stopped and measured as if it were the only one.

    Returns:
      The content of `result.json`: `validation_<metric>` of the best epoch, `<name>_<metric>` of
      each test evaluation with the parameters of that epoch, and metadata of the run. For several
      seeds the metrics are means, with standard deviations `<metric>_sd`, and `runs` holds the
      metrics of each seed.

    Raises:
      ValueError: the directory holds a run with other settings in `config`.
      Stopped: the run was stopped, and its checkpoint is written.
      RunError: the workdir is in use or holds another model or other data, a file cannot be
        written, no checkpoint can be read, or a loss or gradient is not finite.
      KeyboardInterrupt: a second SIGINT arrived.
    """
    identity = task.identity()
    processes.run_on_host0(lambda: run.add(config.identity()))
    processes.run_on_host0(lambda: check_task(run.path, identity))
    done = processes.run_on_host0(lambda: None if run.extends() else run.result())
    if done is not None:
        return done
    with contextlib.ExitStack() as stack:
        processes.run_on_host0(lambda: stack.enter_context(run.opened(identity)))
        stack.enter_context(config.matmul_precision())
        reset_peak_memory()
        stop = stop or stack.enter_context(StopRequest(config.max_minutes))
        return _Fit(task, config, run, stop, on_history, stack).train()


class _Fit:
    """One run in progress. Arrays that differ between models have a first axis of models."""

    def __init__(
        self,
        task: Task,
        config: RunConfig,
        run: RunDirectory,
        stop: StopRequest,
        on_history: Callable[[list[dict[str, Any]]], None] | None,
        stack: contextlib.ExitStack,
    ):
        self.task, self.config, self.run, self.stop = task, config, run, stop
        self.on_history = on_history
        self.is_host0 = processes.is_host0()
        self.commit = commit()  # now, since the checkout may change during the run
        self.members = config.members
        self.streams = [Streams.from_seed(m["seed"], config.rng_impl) for m in self.members]
        self.total_steps = config.epochs * task.steps_per_epoch
        # Not vmapped, so that each seed starts from the same bits as in a run of this seed alone.
        states = [
            task.initial_state(streams.init, rates_of(member))
            for member, streams in zip(self.members, self.streams, strict=True)
        ]
        state = jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *states)
        self.best = jax.tree.map(np.array, state.for_evaluation())
        self.bar = stack.enter_context(Progress(self.total_steps, task.name, shown=self.is_host0))
        many = len(self.members)
        self.progress = RunProgress.begin(many)
        if self.is_host0:  # other processes have neither checkpoints nor a log
            self.checkpoints = Checkpoints(run.path / "checkpoints")
            stack.callback(self.checkpoints.close)
        if processes.run_on_host0(lambda: self.checkpoints.latest) is not None:
            state = self._restore(state)
            processes.run_on_host0(run.extend)
        elif processes.run_on_host0(run.extends):
            raise RunError(
                f"workdir {run.path} holds a run of fewer epochs, and no checkpoint to resume; "
                "use another folder",
                exit_code=2,
            )
        self.saved_at = time.monotonic()
        if self.is_host0:
            made = self.progress
            self.log = MetricLog(run, made.step, made.history, made.times, (*self.members[0],))
            stack.callback(self.log.close)
        self.drawing = stack.enter_context(Drawing(self._draw))
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
        self.epoch_indices = jax.jit(task.epoch_indices)
        self.calibrate = calibrator(task.calibration, self.placement)
        self.validate = evaluator(task, task.validation, self.placement, task.monitor)
        self.end_epoch = task.end_epoch and parallel.each_state(task.end_epoch, self.placement)

    def _restore(self, state: TrainState) -> TrainState:
        """Restores everything from the last checkpoint, which process 0 reads for all processes."""
        arrays = jax.tree.map(np.array, (state, self.best))
        read: dict[str, Any] = {}

        def restore():
            read["arrays"], progress = self.checkpoints.restore(arrays, self.bar.say)
            return progress

        self.progress = RunProgress(**processes.run_on_host0(restore))
        state, best = processes.broadcast(read.get("arrays", arrays))
        self.best = tuple(best)
        self.progress.resumed += 1
        self.bar.start()
        self.bar.say(f"resuming from step {self.progress.step:,}")
        if self.is_host0 and (changed := self.run.changed_versions()):
            self.bar.say(f"numbers may differ, as the program has changed: {'; '.join(changed)}")
        return TrainState(*state)

    def train(self) -> dict[str, Any]:
        """Trains to the end, or until a stop is requested."""
        progress = self.progress
        while progress.step < self.total_steps and any(self._going()):
            asked = self._epoch()
            self._end_epoch()
            self._save_if_due(asked)
        self._save(wait=True)
        if not any(progress.best_epoch):
            raise Diverged(f"no epoch had a finite validation {self.task.metric}; {ADVICE}")
        epochs = ", ".join(map(str, dict.fromkeys(progress.best_epoch)))
        tests = "; test evaluations next" * bool(self.task.test_evaluations)
        self.bar.say(f"best validation at epoch {epochs}{tests}")
        return self._finish()

    def _going(self) -> list[bool]:
        """Tells for each seed whether it has patience left."""
        epoch = self.progress.step // self.task.steps_per_epoch
        return [epoch - best < self.config.patience for best in self.progress.best_epoch]

    def _epoch(self) -> int:
        """Trains to the end of the epoch; returns the reason to stop as of the last call, or 0."""
        progress, per_epoch = self.progress, self.task.steps_per_epoch
        epoch = progress.step // per_epoch
        indices = [self.epoch_indices(jax.random.fold_in(s.data, epoch)) for s in self.streams]
        check_indices(indices, self.task.data, "epoch_indices")
        rows = self.placement.rows(jax.tree.map(lambda *leaves: jnp.stack(leaves), *indices))
        going = self.placement.put(np.array(self._going()))
        while (done := progress.step - epoch * per_epoch) < per_epoch:
            start = time.monotonic()
            end = self._end_of_call(done)
            vote = np.int32(self.stop.requested)
            self.state, totals, counts, votes = self.train_steps(
                self.state, self.data, rows, done, end, self.keys, going, vote
            )
            totals, counts = (self._by_seed(x)[:, : end - done] for x in (totals, counts))
            bad = np.isnan(totals).any(axis=0)
            steps = int(bad.argmax()) if bad.any() else end - done
            for n in range(len(self.members)):
                # Added one by one, so that the sums do not depend on the number of steps in a call.
                for total, count in zip(totals[n, :steps], counts[n, :steps], strict=True):
                    progress.epoch_totals[n] += float(total)
                    progress.epoch_counts[n] += float(count)
                    progress.skipped[n] += int(count == 0)
            progress.step += steps
            progress.epoch_seconds += time.monotonic() - start
            if bad.any():
                self._end_before(indices, done + steps, totals[:, steps])
            metric = self.task.to_metric(totals.sum() / max(counts.sum(), 1.0))
            self.bar.update(
                progress.step, f"epoch {epoch + 1}, train {self.task.metric} {metric:.3f}"
            )
            if end < per_epoch:
                self._save_if_due(int(votes[0]))
        return int(votes[0])

    def _end_of_call(self, done: int) -> int:
        """Returns the row where a call ends: by its length, at a checkpoint or with the epoch."""
        ends = [done + self.config.steps_per_call, self.task.steps_per_epoch]
        if every := self.config.checkpoint_steps:
            ends.append(done + every - self.progress.step % every)
        return min(ends)

    def _by_seed(self, sums: jax.Array) -> np.ndarray:
        """Turns sums `[devices, steps, seeds of the device]` into `[seeds, steps]` in float64."""
        return self.placement.get(jnp.swapaxes(sums, 1, 2)).astype(np.float64)

    def _end_before(self, indices: list[Any], row: int, totals: np.ndarray) -> None:
        """Ends the run before a step whose loss or gradient is not finite."""
        self._save(wait=True)
        step = self.progress.step
        n = int(np.isnan(totals).argmax())
        key = jax.random.fold_in(self.streams[n].noise, step)
        batch = {
            **self.members[n],
            "step": step,
            "epoch": step // self.task.steps_per_epoch + 1,
            "examples": jax.tree.map(lambda rows: np.asarray(rows[row]).tolist(), indices[n]),
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "rng_impl": self.config.rng_impl,
        }
        path = self.run.path / "not_finite.json"
        processes.run_on_host0(lambda: write_json(path, batch))
        raise Diverged(
            f"the loss or its gradient is not finite at step {step:,} (epoch {batch['epoch']}, "
            f"{label(self.members[n])}); the checkpoint holds the state before this step, {path} "
            "its batch and key: resume with on_nan=skip, or start again with other settings"
        )

    def _end_epoch(self) -> None:
        """Validates, keeps the best parameters and logs the epoch."""
        progress, task = self.progress, self.task
        start = time.monotonic()
        params = self.state.params
        model_state = self.calibrate(params, self.state.model_state)
        metrics = self.validate(params, model_state)
        monitored = metrics[task.monitor or task.metric]
        evaluation_seconds = time.monotonic() - start
        epoch = progress.step // task.steps_per_epoch
        place: dict[str, Any] = {"epoch": epoch, "step": progress.step}
        entries, dead = [], []
        for n, member in enumerate(self.members):
            if epoch - 1 - progress.best_epoch[n] >= self.config.patience:
                continue
            if not progress.epoch_counts[n]:
                dead.append(n)
                continue
            if monitored[n] < progress.best[n]:
                progress.best[n], progress.best_epoch[n] = monitored[n], epoch
                progress.best_metrics[n] = {k: values[n] for k, values in metrics.items()}
                for kept, new in zip(
                    jax.tree.leaves(self.best),
                    jax.tree.leaves(self.placement.get((params, model_state))),
                    strict=True,
                ):
                    kept[n] = new[n]
            train = task.to_metric(progress.epoch_totals[n] / progress.epoch_counts[n])
            entry: dict[str, Any] = dict(member) if len(self.members) > 1 else {}
            entry |= place | {f"train_{task.metric}": train}
            entry |= {f"validation_{name}": values[n] for name, values in metrics.items()}
            if progress.skipped[n]:
                entry["skipped"] = progress.skipped[n]
            entries.append(entry)
        nothing = f"no step of epoch {epoch} had a finite loss and gradient"
        if dead and not any(best for n, best in enumerate(progress.best_epoch) if n not in dead):
            raise Diverged(f"{nothing}; {ADVICE}")
        for n in dead:  # others continue; this one counts as not improving
            self.bar.say(f"{label(self.members[n])}: {nothing}")
        if task.describe and self.bar.is_time():
            self._describe(task.describe, self.placement.get((params, model_state)))
        if self.end_epoch:
            measured = {name: np.asarray(values, np.float32) for name, values in metrics.items()}
            keys = jnp.stack([jax.random.fold_in(s.epoch, epoch) for s in self.streams])
            self.state = self.end_epoch(self.state, *self.placement.put((measured, keys)))
        progress.seconds += progress.epoch_seconds + evaluation_seconds
        times = place | {
            "steps_per_second": task.steps_per_epoch / progress.epoch_seconds,
            "seconds": progress.seconds,
            "evaluation_seconds": evaluation_seconds,
            "checkpoint_seconds": progress.checkpoint_seconds,
        }
        if self.is_host0:
            self.log.append(entries, times)
        progress.history += entries
        progress.times.append(times)
        progress.begin_epoch()
        for entry in entries:
            self.bar.say(describe(entry, (*self.members[0],)))
        if self.is_host0 and self.drawing.is_due():
            self.drawing.draw(progress.history)

    def _describe(self, describe: Callable[[Any, Any], str], best: tuple[Any, Any]) -> None:
        """Prints the description of the first model."""
        first = f"{label(self.members[0])}, " if len(self.members) > 1 else ""
        self.bar.say(first + describe(*jax.tree.map(lambda x: x[0], best)))

    def _save(self, wait: bool = False) -> None:
        """Starts to write a checkpoint and to draw the curves; waits for both if `wait`."""
        start = time.monotonic()

        def save():
            # Copied, because it is written while training continues.
            arrays = (self.placement.get(self.state), jax.tree.map(np.copy, self.best))
            self.checkpoints.save(self.progress.step, arrays, dataclasses.asdict(self.progress))
            self.drawing.draw(self.progress.history, wait)
            if wait:
                self.checkpoints.wait()

        if wait:  # in all processes: one that exits would end process 0 while it writes
            processes.run_on_host0(save)
        elif self.is_host0:
            save()
        self.saved_at = time.monotonic()
        self.progress.checkpoint_seconds += self.saved_at - start

    def _save_if_due(self, asked: int) -> None:
        """Saves at the chosen intervals and at a request to stop, which is then obeyed."""
        stopping = asked if processes.is_multihost() else self.stop.requested
        minutes = (time.monotonic() - self.saved_at) / 60
        every = self.config.checkpoint_steps
        at_step = every is not None and self.progress.step % every == 0
        if stopping or at_step or minutes >= self.config.checkpoint_minutes:
            self._save(wait=bool(stopping))
        if stopping:
            raise self.stop.stopped(stopping, self.progress.step)
        if self.is_host0:
            self.checkpoints.check()

    def _draw(self, entries: list[dict[str, Any]]) -> None:
        """Draws the curves of a history."""
        curves = by_rates(entries, self.members, self.task.name)
        draw_curves(self.run.path / "curves.png", curves, self.task.metric)
        if self.on_history is not None:
            self.on_history(entries)

    def _finish(self) -> dict[str, Any]:
        """Runs the test evaluations with the best parameters, and writes the result."""
        progress, task = self.progress, self.task
        if task.describe and self.is_host0:
            self._describe(task.describe, self.best)
        best = self.placement.put(self.best)
        start = time.monotonic()
        metrics: dict[str, list[Any]] = {
            f"validation_{name}": [best.get(name, math.inf) for best in progress.best_metrics]
            for name in max(progress.best_metrics, key=len)
        }
        for name, evaluation in task.test_evaluations.items():
            for total, means in evaluator(task, evaluation, self.placement)(*best).items():
                # A model whose every epoch diverged has no best parameters.
                known = zip(means, progress.best_epoch, strict=True)
                metrics[f"{name}_{total}"] = [m if epoch else math.nan for m, epoch in known]
        whole = progress.step // task.steps_per_epoch
        metrics["best_epoch"] = progress.best_epoch
        metrics["epochs"] = [min(whole, b + self.config.patience) for b in progress.best_epoch]
        monitor = f"validation_{task.monitor or task.metric}"
        result = {
            "name": task.name,
            **summarize(metrics, self.members, monitor),
            "steps": progress.step,
            "steps_per_second": statistics.median(
                entry["steps_per_second"] for entry in progress.times
            ),
            "seconds": progress.seconds + time.monotonic() - start,
            "peak_memory_bytes": peak_memory_bytes(),
            "resumed": progress.resumed,
            "devices": f"{jax.device_count()} × {jax.local_devices()[0].device_kind}",
            **task.metadata,
            "commit": self.commit,
            "versions": versions(),
        }
        if self.is_host0:
            if self.config.sweep:
                tabulated = [n for n in metrics if n not in ("best_epoch", "epochs")]
                write_sweep(self.run.path, self.config.sweep, result, tabulated, monitor)
                self.bar.say(f"table and figure: sweep.md and sweep.png in {self.run.path}")
            write_json(self.run.result_file, result)
        return result
