"""Requests to stop a run: by a signal, or because its time is up."""

import signal
import threading
import time
from typing import Any

from zoneout_jax.training.errors import Stopped

TIME_IS_UP = 1_000_000
"""Used in place of the number of a signal."""


class StopRequest:
    """Turns SIGINT, SIGTERM and the end of the time into a request that the loop reads.

    A second SIGINT raises KeyboardInterrupt at once.

    Args:
      max_minutes: time limit of the run, counted from now.
    """

    def __init__(self, max_minutes: float | None = None):
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: signal.Signals | None = None

    @property
    def requested(self) -> int:
        """Reason to stop: the number of a signal, `TIME_IS_UP`, or 0 for none."""
        if self._signal is not None:
            return int(self._signal)
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return TIME_IS_UP if late else 0

    def stopped(self, why: int, step: int | None = None) -> Stopped:
        """Returns the error to raise once the checkpoint of a step is written, or between runs.

        Its exit code is 128 + the number of the signal, as for a process that the signal ended, and
        0 after `max_minutes`.

        Args:
          why: the value of `requested`, in this process or another.
          step: number of steps done; None between runs.
        """
        place = "" if step is None else f" at step {step:,}"
        if why == TIME_IS_UP:
            return Stopped(f"stopped{place}, as max_minutes have passed", 0)
        return Stopped(f"stopped by {signal.Signals(why).name}{place}", 128 + why)

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: Any) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt("stopped at once; the last checkpoint is intact")
        self._signal = signal.Signals(number)
