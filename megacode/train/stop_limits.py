"""Stop requests besides signals: the time limit, and files that a user touches."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

import psutil

from megacode.base.files import RunDir

log = logging.getLogger(__name__)

Request = Literal["save", "stop"]
Clock = Callable[[], float]

_REMEMBERED = 32  # durations of each kind
# 1.5 x the slowest of the last 32: if the file system is slow at a job's end, all work since the last save is lost.
_SAFETY = 1.5
_UNKNOWN_SAVE_SHARE = 0.02  # of the limit, until a save has been measured
_LOOK_SECONDS = 0.5


def process_start() -> float:
    """Return when this process started, in seconds since 1970."""
    # Asked from the system, since the imports before this module count towards the time limit too.
    return float(psutil.Process().create_time())


class TimeLimit:
    """Decides when to stop, so that the last save still fits into the time limit of a start.

    It is due when the time left is less than 1.5 times this sum: the longest of the last 32 iterations, the longest of
    the last saves, and, of each measurement of held-out data that comes next, the longest time that took. Until a save
    has been measured, 2 % of the limit is assumed. Clocks of ranks differ, so one rank must decide for all.

    Args:
        wall_clock: seconds that a start may take; None: no limit.
        started: when it began, by `clock`.
        clock: seconds since 1970.
    """

    def __init__(self, wall_clock: float | None, started: float | None = None, clock: Clock = time.time) -> None:
        self._clock = clock
        begun = process_start() if started is None else started
        self._end = None if wall_clock is None else begun + wall_clock
        self._guess = _UNKNOWN_SAVE_SHARE * (wall_clock or 0.0)
        self._steps: deque[float] = deque(maxlen=_REMEMBERED)
        self._saves: deque[float] = deque(maxlen=_REMEMBERED)
        self._measurements: dict[str, deque[float]] = {}

    def stepped(self, seconds: float) -> None:
        """Record the duration of an iteration, including its data and its records."""
        self._steps.append(seconds)

    def saved(self, seconds: float) -> None:
        """Record the duration of a save until it was durable, whether or not the loop waited for it."""
        self._saves.append(seconds)

    def measured(self, event: str, seconds: float) -> None:
        """Record the duration of a measurement of held-out data, by its name in `Calendar.measurements`."""
        self._measurements.setdefault(event, deque(maxlen=_REMEMBERED)).append(seconds)

    @property
    def left(self) -> float:
        """Seconds until the limit; infinite without one."""
        return float("inf") if self._end is None else self._end - self._clock()

    def due(self, measured_next: Iterable[str] = ()) -> bool:
        """Return whether another iteration and a save might no longer fit.

        Args:
            measured_next: the measurements that follow the next iteration.
        """
        # Maxima, not means: a stop that comes too late loses everything since the last save.
        step, save = max(self._steps, default=0.0), max(self._saves, default=self._guess)
        # A sum: both may follow one iteration.
        measurements = sum(max(self._measurements.get(event, ()), default=0.0) for event in measured_next)
        return self.left < _SAFETY * (step + save + measurements)


class TouchFiles:
    """The files `save` and `stop` in the run directory, for users who cannot send a signal. For rank 0.

    Args:
        run: the run directory.
        clock: monotonic seconds.
    """

    def __init__(self, run: RunDir, clock: Clock = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._looked = float("-inf")

    def clear(self) -> None:
        """Delete requests to an earlier start that ended before it saw them, so that they do not stop this one."""
        for path in (self._run.stop_request, self._run.save_request):
            if path.exists():
                path.unlink(missing_ok=True)  # its owner may delete it at this moment
                log.info("removed %s: it was meant for an earlier start", path)

    def touched(self) -> Request | None:
        """Return the request, and delete its file; to be called after every iteration.

        Looks at most twice a second, since each look is an access to the file system. A stop saves as well, so it
        answers both requests if both files exist.
        """
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        save, stop = self._run.save_request.exists(), self._run.stop_request.exists()
        # Deleted at once: a file that stays would stop the next start as well.
        if save:
            self._run.save_request.unlink(missing_ok=True)
        if stop:
            self._run.stop_request.unlink(missing_ok=True)
        return "stop" if stop else "save" if save else None
