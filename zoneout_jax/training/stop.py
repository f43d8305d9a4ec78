"""When a run is asked to stop: by a signal, or because its time is up."""

import signal
import threading
import time

from zoneout_jax.training.config import Stopped


class StopRequest:
    """Turns SIGINT, SIGTERM and the end of the time into a request that the loop meets.

    A second SIGINT raises KeyboardInterrupt at once.

    Args:
      max_minutes: time that the run may take from now on.
    """

    def __init__(self, max_minutes: float | None = None):
        self._limit = max_minutes
        self._deadline = None if max_minutes is None else time.monotonic() + 60 * max_minutes
        self._signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        late = self._deadline is not None and time.monotonic() >= self._deadline
        return late or self._signal is not None

    def stopped(self, step: int) -> Stopped:
        """What to raise once the checkpoint of a step is written.

        The exit code is 128 + the signal's number, as of a process that the signal ended, and 0
        after `max_minutes`.
        """
        if self._signal is not None:
            return Stopped(f"stopped by {self._signal.name} at step {step:,}", 128 + self._signal)
        if self.requested:
            return Stopped(f"stopped after {self._limit:g} minutes at step {step:,}", 0)
        return Stopped(f"stopped at step {step:,}, as another process was asked to", 0)

    def __enter__(self) -> "StopRequest":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number, frame) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt("stopped at once; the last checkpoint stands")
        self._signal = signal.Signals(number)
