"""What watches over a run: spikes of the loss, hangs, slow ranks, and how long it may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.quantity import Frozen, Seconds


class Spikes(Frozen):
    """What to do where the loss or the gradient norm leaps.

    A value is a spike if it lies more than `threshold` robust standard deviations (1.4826 times the median absolute
    deviation) above the median of the last `window` iterations of the same phase.

    Attributes:
        policy: `off`; `warn` in log and events; `skip` the update of that iteration; `rollback` to the newest
            checkpoint before it and withhold the iterations that led there.
        window: iterations that median and deviation are taken over; nothing is judged before a quarter of
            them, and 8.
        threshold: robust standard deviations.
        withhold: `rollback` only: how many iterations, up to and including the spike, are computed but not learned
            from the second time.
        limit: so many skips or rollbacks without an ordinary iteration between them, or rollbacks to the same
            checkpoint, end the run.
    """

    policy: Literal["off", "warn", "skip", "rollback"] = "warn"
    window: int = Field(default=128, ge=8)
    threshold: float = Field(default=8.0, gt=0)
    withhold: int = Field(default=4, ge=1)
    limit: int = Field(default=5, ge=1)


class Health(Frozen):
    """What is watched, and how closely.

    Attributes:
        spikes: leaps of the loss or of the gradient norm.
        hang_timeout: a rank that finishes no iteration, validation or save for so long is taken to hang: the Python
            stacks of all ranks are written, and the job ends.
        report_every: iterations between two reports of the slowest rank and of memory.
    """

    spikes: Spikes = Spikes()
    hang_timeout: Seconds = 1800.0
    report_every: int = Field(default=100, ge=1)


class Limits(Frozen):
    """How long one start of a run may take.

    Attributes:
        wall_clock: from the start of the process: the run saves and ends, resumable, when another iteration and a
            save would no longer fit; absent: no limit.
    """

    wall_clock: Seconds | None = None
