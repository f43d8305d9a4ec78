"""Logs and learning curves of a run."""

import concurrent.futures
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zoneout_jax._files import replacing
from zoneout_jax._needs import needs
from zoneout_jax.training.files import write_text, writing
from zoneout_jax.training.run_directory import RunDirectory


class MetricLog:
    """Appends to `metrics.jsonl`, `times.jsonl` and TensorBoard events."""

    def __init__(
        self,
        run: RunDirectory,
        step: int,
        metrics: list[dict[str, Any]],
        times: list[dict],
        labels: Sequence[str] = ("seed",),
    ):
        """Writes both JSON files again from the entries in the checkpoint of `step`.

        Epochs that were logged after that checkpoint will be computed again. This also repairs
        lines that a kill or a full disk cut off. `labels` are the names that distinguish the models
        of a run.
        """
        with needs("zoneout_jax.training", "training"):
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._run, self._labels = run, labels
        for path, entries in ((run.metrics_file, metrics), (run.times_file, times)):
            write_text(path, "".join(json.dumps(entry) + "\n" for entry in entries))
        # Not a SummaryWriter: its thread would hide the error of a full disk.
        with writing(run.path):
            self._events = EventsWriter(str(run.path / "events"))
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=time.time(), step=step, session_log=start))
            self._events.flush()

    def append(self, metrics: Sequence[dict[str, Any]], times: dict[str, Any]) -> None:
        """Logs the metrics and the times of an epoch at the `step` that they contain.

        Raises:
          RunError: a file cannot be written.
        """
        for path, entries in ((self._run.metrics_file, metrics), (self._run.times_file, [times])):
            # Fails if the file was removed, since a new file would lack the earlier lines.
            with writing(path), path.open("r+") as file:
                file.seek(0, os.SEEK_END)
                file.write("".join(json.dumps(entry) + "\n" for entry in entries))
        with writing(self._run.path):
            for entry in (*metrics, times):
                self._add_scalars(entry)
            self._events.flush()

    def _add_scalars(self, entry: Mapping[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        suffix = "".join(f"/{name}{entry[name]}" for name in self._labels if name in entry)
        for name, value in entry.items():
            if name not in ("step", "epoch", *self._labels) and math.isfinite(value):
                summary = scalar(name + suffix, value)
                event = Event(wall_time=time.time(), step=entry["step"], summary=summary)
                self._events.write_event(event)

    def close(self) -> None:
        """Closes the events file."""
        with writing(self._run.path):
            self._events.close()


def shown(result: Mapping[str, Any], name: str) -> str:
    """Formats a metric of a result, with its standard deviation if there are several seeds."""
    sd = result.get(f"{name}_sd")
    return f"{result[name]:.4f}" + ("" if sd is None else f" ± {sd:.4f}")


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds; NaN if a seed diverged, None for a single seed."""
    with np.errstate(invalid="ignore"):
        return float(np.std(values, ddof=1)) if len(values) > 1 else None


def describe(entry: Mapping[str, Any], labels: Sequence[str]) -> str:
    """Formats an entry as one line; `labels` are the names that distinguish models of a run."""
    model = "".join(f"{name} {entry[name]}, " for name in labels if name in entry)
    shown = {k: v for k, v in entry.items() if k not in ("epoch", "step", *labels)}
    words = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in shown.items())
    return f"{model}epoch {entry['epoch']}: {words}"


class Drawing:
    """Draws a run's history in the background.

    Args:
      draw: `draw(history)`.
    """

    SECONDS = 10.0

    def __init__(self, draw: Callable[[list[dict[str, Any]]], None]):
        self._draw = draw
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._last: concurrent.futures.Future[Any] = self._thread.submit(int)
        self._begun_at = time.monotonic()

    def __enter__(self) -> "Drawing":
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()

    def is_due(self) -> bool:
        """Tells whether `SECONDS` have passed since the last drawing was started."""
        return time.monotonic() >= self._begun_at + self.SECONDS

    def draw(self, history: Sequence[dict[str, Any]], wait: bool = False) -> None:
        """Starts to draw unless a drawing is in progress; waits for the end if `wait`.

        Raises:
          Exception: an error in the background, in this drawing or the previous one.
        """
        if not (wait or self._last.done()):
            return
        self._last.result()
        if history:
            self._last = self._thread.submit(self._draw, list(history))
        self._begun_at = time.monotonic()
        if wait:
            self._last.result()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table, one line for each row."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def draw_curves(
    path: pathlib.Path,
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    metric: str,
    splits: Sequence[str] = ("train", "validation"),
) -> None:
    """Draws learning curves to a PNG file; see `curves_figure` for the arguments."""
    save_figure(curves_figure(curves, metric, splits), path)


def curves_figure(
    curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    metric: str,
    splits: Sequence[str] = ("train", "validation"),
) -> Any:
    """Makes a matplotlib figure of learning curves over epochs.

    Args:
      curves: for each label, the histories (see `RunDirectory.history`) of its runs, which share
        one color.
      metric: name of the metric, such as `bpc`.
      splits: the splits to draw: the first dashed, the last solid.
    """
    with needs("zoneout_jax.training", "training"):
        from matplotlib.figure import Figure

    beside = len(curves) > 3  # so many labels would hide the curves
    figure = Figure(figsize=(10 if beside else 7, 4.5), layout="constrained")
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
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    axes.grid(alpha=0.3)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if beside else {}
    axes.legend(fontsize="small", **place)
    return figure


def save_figure(figure: Any, path: pathlib.Path) -> None:
    """Writes a matplotlib figure to a PNG file as `write_text` does."""
    with writing(path), replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
