"""The run directory and what is shown to people: logs, curves and progress."""

import importlib.metadata
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

PACKAGES = ("zoneout_jax", "jax", "optax", "orbax-checkpoint", "numpy")


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


class RunDirectory:
    """A directory that holds one run.

    config.json     the settings that decide its numbers, and the versions it began with
    metrics.jsonl   one JSON object an epoch
    checkpoints/    what it takes to go on
    events.out.*    the same metrics for TensorBoard
    curves.png      learning curves
    result.json     final figures, when the run is done
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], resume: bool = True):
        """Opens a run directory; nothing is written yet.

        Raises:
          ValueError: `path` is no directory, is of a run with other settings, is not empty and no
            run's, or is not new though `resume` is False.
        """
        self.path, self._settings = path, json.loads(json.dumps(settings))
        if path.exists() and not path.is_dir():
            raise ValueError(f"workdir {path} is a file; give another --workdir")
        if not path.exists() or not any(path.iterdir()):
            return
        if not resume:
            raise ValueError(f"workdir {path} is not empty; remove it, or leave out --no-resume")
        if not self.config_file.exists():
            raise ValueError(f"workdir {path} is not empty and no run's; give another --workdir")
        there = json.loads(self.config_file.read_text())["settings"]
        names = sorted(there.keys() | self._settings.keys())
        differing = [
            f"{name} is {there.get(name)!r} there, {self._settings.get(name)!r} here"
            for name in names
            if there.get(name) != self._settings.get(name)
        ]
        if differing:
            raise ValueError(
                f"workdir {path} holds a run of another configuration ({'; '.join(differing)}); "
                "give another --workdir"
            )

    @property
    def config_file(self) -> pathlib.Path:
        """Settings and versions."""
        return self.path / "config.json"

    @property
    def metrics_file(self) -> pathlib.Path:
        """One JSON object an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> pathlib.Path:
        """Final figures."""
        return self.path / "result.json"

    def begin(self) -> None:
        """Makes the directory, and writes its configuration unless it is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.config_file.exists():
            write_json(self.config_file, {"settings": self._settings, "versions": versions()})

    def history(self) -> list[dict[str, Any]]:
        """The metrics written so far."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def result(self) -> dict[str, Any] | None:
        """The final figures, None while the run is not done."""
        return json.loads(self.result_file.read_text()) if self.result_file.exists() else None


class MetricLog:
    """Appends metrics to `metrics.jsonl` and to TensorBoard events."""

    def __init__(self, run: RunDirectory, last_step: int):
        """Forgets what was logged after `last_step`, which will be computed again."""
        from tensorboardX import SummaryWriter

        self._file = run.metrics_file
        self.history: list[dict[str, Any]] = []
        if self._file.exists():
            # A kill may leave half a line, and lines after the last checkpoint.
            lines = self._file.read_text().splitlines(keepends=True)
            entries = [json.loads(line) for line in lines if line.endswith("\n")]
            self.history = [entry for entry in entries if entry["step"] <= last_step]
        kept = "".join(json.dumps(entry) + "\n" for entry in self.history)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(kept)
        os.replace(temporary, self._file)
        self._events = SummaryWriter(str(run.path), purge_step=last_step + 1)

    def append(self, entry: dict[str, Any]) -> None:
        """Logs one entry, whose `step` places it."""
        self.history.append(entry)
        with self._file.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, entry["step"])
        self._events.flush()

    def close(self) -> None:
        """Closes the events file."""
        self._events.close()


def draw_curves(
    path: pathlib.Path,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    metric: str,
    splits: Sequence[str] = ("train", "validation"),
) -> None:
    """Draws learning curves over epochs to a PNG.

    Args:
      path: file to write.
      curves: for each label the histories (see `RunDirectory.history`) of its runs, all in one
        colour.
      metric: name of the figure, such as `bpc`.
      splits: what to draw: the first dashed, the last solid.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    styles = dict(zip(splits, ("--", "-")[-len(splits) :], strict=True))
    for number, (label, histories) in enumerate(curves.items()):
        for run, history in enumerate(histories):
            for split, style in styles.items():
                axes.plot(
                    [entry["epoch"] for entry in history],
                    [entry[f"{split}_{metric}"] for entry in history],
                    style,
                    color=f"C{number}",
                    marker="." if len(history) == 1 else None,
                    linewidth=1,
                    label=f"{label}, {split}" if run == 0 else None,
                )
    axes.set(xlabel="epoch", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    os.replace(temporary, path)


class Progress:
    """Shows how far a run is: a bar in a terminal, otherwise a line now and then."""

    LINE_SECONDS = 15.0

    def __init__(self, total_steps: int, done: int, label: str):
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._total, self._first, self._label = total_steps, done, label
        self._start = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._bar = None
        if console.is_terminal:
            columns = (
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task(label, total=total_steps, completed=done, text="")
            self._bar.start()

    def update(self, step: int, text: str) -> None:
        """Tells of the steps done so far and of what is worth showing."""
        now = time.monotonic()
        rate = (step - self._first) / max(now - self._start, 1e-9)
        text = f"{text}, {rate:.3g} steps/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif now - self._last_line >= self.LINE_SECONDS:
            self._last_line = now
            left = (self._total - step) / max(rate, 1e-9)
            self.say(f"step {step:,} of at most {self._total:,}: {text}, {_clock(left)} left")

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self._label}: {line}", highlight=False, markup=False)
        else:
            print(f"{self._label}: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def peak_memory_bytes() -> int:
    """Most memory that this process, or its accelerator, has used so far, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
