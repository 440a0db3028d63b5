"""Requests to stop from outside: a signal sets a flag, and the loop stops after the iteration it is in."""

from __future__ import annotations

import logging
import signal
from types import FrameType

log = logging.getLogger(__name__)

_CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Remembers the first signal that asked this process to stop.

    A second SIGINT kills at once, for a user who does not want to wait for the checkpoint.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        for number in _CAUGHT:
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.name is None:
            self.name = signal.Signals(number).name
            log.info("%s: saving after this iteration, then stopping", self.name)
