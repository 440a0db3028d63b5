"""Stop on a signal: the handler sets a flag, and the loop saves and stops after the current iteration."""

from __future__ import annotations

import logging
import signal
from types import FrameType

from megacode.base.errors import StoppedError

log = logging.getLogger(__name__)

# SLURM sends USR1 before the time limit (--signal) and TERM at cancellation; other schedulers use USR2.
_CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


class StopSignal:
    """Remembers the first signal that this process received.

    A second SIGINT kills at once, for a user who does not want to wait for the checkpoint.

    Attributes:
        name: of that signal; None if none has come.
        training: whether there is something to save; before that, a start ends as soon as all ranks know.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.training = False
        for number in _CAUGHT:
            signal.signal(number, self._catch)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self.name is not None and number == signal.SIGINT:  # a second Ctrl-C
            raise KeyboardInterrupt
        if self.name is None:
            self.name = signal.Signals(number).name
            message = (
                "saving after this iteration, then stopping" if self.training else "stopping before anything is trained"
            )
            log.info("%s: %s", self.name, message)

    def refuse_to_start(self) -> None:
        """End a start that received a signal before its ranks were started.

        Raises:
            StoppedError: a signal has come.
        """
        if self.name is not None:
            raise StoppedError(self.name)
