"""Progress of a run, shown in the terminal."""

import contextlib
import datetime
import pathlib
import sys
import time

import jax

from zoneout_jax._needs import needs


class Progress:
    """Shows the progress of a run: a bar in a terminal, otherwise a line from time to time."""

    LINE_SECONDS = 15.0

    def __init__(self, total_steps: int, label: str, shown: bool = True):
        with needs("zoneout_jax.training", "training"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

        self._total, self._label, self._shown = total_steps, label, shown
        self.start()
        console = Console(stderr=True)
        self._bar = None
        if shown and console.is_terminal:
            columns = (
                TextColumn(label),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
            )
            self._bar = Bar(*columns, console=console, transient=True)
            self._task = self._bar.add_task(label, total=total_steps, text="")
            self._bar.start()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()

    def start(self) -> None:
        """Starts to count at the next update, to leave out the time of compilation."""
        self._first: int | None = None
        self._last_line = self._last_shown = time.monotonic()

    def update(self, step: int, text: str) -> None:
        """Shows the number of steps done so far and a text."""
        now = time.monotonic()
        if self._first is None:
            self._first, self._start = step, now
        rate = (step - self._first) / max(now - self._start, 1e-9)
        text += f", {rate:.3g} steps/s" if rate else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self._shown and now - self._last_line >= self.LINE_SECONDS:
            self._last_line = now
            seconds = round((self._total - step) / rate) if rate else 0
            left = f", {datetime.timedelta(seconds=seconds)} left" if rate else ""
            self.say(f"step {step:,} of at most {self._total:,}: {text}{left}")

    def is_time(self) -> bool:
        """Tells whether a longer text may be shown; if so, not again for `LINE_SECONDS`."""
        now = time.monotonic()
        due = self._shown and now - self._last_shown >= self.LINE_SECONDS
        if due:
            self._last_shown = now
        return due

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(f"{self._label}: {line}", highlight=False, markup=False)
        elif self._shown:
            print(f"{self._label}: {line}", file=sys.stderr, flush=True)


_peak_before_reset = 0


def reset_peak_memory() -> None:
    """Resets the measured peak memory of the host, if the system allows it (Linux only)."""
    global _peak_before_reset
    with contextlib.suppress(OSError):
        before = host_peak_bytes()
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        _peak_before_reset = before


def peak_memory_bytes() -> int:
    """Peak memory of this process, or of its accelerator, so far, in bytes.

    On the host it is the peak since `reset_peak_memory`, with the memory in use at that time.
    """
    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    return _host_peak_since_reset()


def host_peak_bytes() -> int:
    """Peak host memory of this program so far, in bytes."""
    return max(_peak_before_reset, _host_peak_since_reset())


def _host_peak_since_reset() -> int:
    status = pathlib.Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # On Linux this may include memory of the parent process.
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
