"""What watches over a run: spikes of the loss, hangs, slow ranks, and how long it may take."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.quantity import Frozen, Length, Seconds


class Spikes(Frozen):
    """What to do where the loss or the gradient norm leaps.

    A value is a spike if it lies more than `threshold` robust standard deviations (1.4826 times the median absolute
    deviation) above the median of the last `window` iterations of the same phase.

    Attributes:
        policy: `off`; `warn` in log and events; `skip` the update of that iteration; `rollback` to the newest
            checkpoint before it and withhold the iterations that led there.
        window: iterations that median and deviation are taken over; nothing is checked before a quarter of
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


class Fp8Probe(Frozen):
    """A micro-batch computed a second time without FP8, and the alarm where the two lie too far apart.

    Attributes:
        every: between two probes, in phases with FP8; absent: none.
        loss: largest difference of the losses, relative to the one without FP8.
        gradient: largest distance of the gradients of a kind of layer, relative to the norm of the one without FP8.
        patience: so many alarms in a row call for the policy.
        policy: `warn` in log and events; `fall_back`: the rest of the run, resumed or not, goes without FP8.
    """

    every: Length | None = None
    loss: float = Field(default=0.02, gt=0)
    gradient: float = Field(default=0.5, gt=0)
    patience: int = Field(default=2, ge=1)
    policy: Literal["warn", "fall_back"] = "warn"


class Health(Frozen):
    """What is watched, and how closely.

    Attributes:
        spikes: leaps of the loss or of the gradient norm.
        fp8_probe: what FP8 costs in accuracy.
        hang_timeout: a rank that finishes no iteration, validation or save for so long is taken to hang: the Python
            stacks of all ranks are written, and the job ends.
        report_every: iterations between two reports of the slowest rank and of memory.
    """

    spikes: Spikes = Spikes()
    fp8_probe: Fp8Probe = Fp8Probe()
    hang_timeout: Seconds = 1800.0
    report_every: int = Field(default=100, ge=1)


class Limits(Frozen):
    """How long one start of a run may take.

    Attributes:
        wall_clock: from the start of the process: the run saves and ends, resumable, when another iteration and a
            save would no longer fit; absent: no limit.
    """

    wall_clock: Seconds | None = None
