"""Monitoring of a run: spikes, FP8 accuracy, hangs, slow ranks, and a time limit."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megacode.config.quantity import Frozen, Length, Seconds


class Spikes(Frozen):
    """What to do about spikes of the loss or the gradient norm.

    A spike is a value more than `threshold` robust standard deviations above the median of the last `window` iterations
    of this phase. The robust standard deviation is 1.4826 times the median absolute deviation.

    Attributes:
        policy: `off`; `warn` in log and events; `skip` the update of that iteration; `rollback` to the newest
            checkpoint before it and withhold the iterations that led to it.
        window: iterations for median and deviation; detection starts after max(window / 4, 8) iterations.
        threshold: robust standard deviations.
        withhold: `rollback` only: how many iterations, up to and including the spike, are computed but not learned
            from after the rollback.
        limit: the run ends after this many consecutive skips or rollbacks, or rollbacks to the same checkpoint.
    """

    policy: Literal["off", "warn", "skip", "rollback"] = "warn"
    window: int = Field(default=128, ge=8)
    # A loss is not normally distributed: at 3 or 4, ordinary noise would raise alarms every day.
    threshold: float = Field(default=8.0, gt=0)
    withhold: int = Field(default=4, ge=1)
    limit: int = Field(default=5, ge=1)


class Fp8Probe(Frozen):
    """Compute a micro-batch a second time without FP8, and raise an alarm if the results differ too much.

    Attributes:
        every: interval between probes, in phases with FP8; absent: no probes.
        loss: largest allowed difference of the losses, relative to the loss without FP8.
        gradient: largest allowed distance of the gradients of a kind of layer, relative to the norm without FP8.
        patience: consecutive alarms before the policy applies.
        policy: `warn` in log and events; `fall_back`: the rest of the run, also after a resume, is without FP8.
    """

    every: Length | None = None
    loss: float = Field(default=0.02, gt=0)
    gradient: float = Field(default=0.5, gt=0)
    patience: int = Field(default=2, ge=1)
    policy: Literal["warn", "fall_back"] = "warn"


class AlignmentProbe(Frozen):
    """Compare the gradients of all sources' held-out losses; changes nothing of the run.

    Attributes:
        every: interval between probes; absent: no probes.
        samples: held-out windows of each source, spread evenly, the same in every probe.
    """

    every: Length | None = None
    # Three sources of 64 windows cost as much as 192 training samples: below 1 % of 500 iterations of 39 or more.
    samples: int = Field(default=64, ge=1)


class Health(Frozen):
    """What is monitored.

    Attributes:
        spikes: of the loss or of the gradient norm.
        fp8_probe: measures the accuracy lost to FP8.
        alignment_probe: measures how a step on one source changes the losses of the others.
        hang_timeout: a rank that finishes no iteration, validation or save in this time counts as hung: the Python
            stacks of all ranks are written, and the job ends.
        report_every: iterations between two reports of the slowest rank and of memory.
    """

    spikes: Spikes = Spikes()
    fp8_probe: Fp8Probe = Fp8Probe()
    alignment_probe: AlignmentProbe = AlignmentProbe()
    # Longer than the slowest save or compilation, since a wrong alarm ends the job.
    hang_timeout: Seconds = 1800.0
    report_every: int = Field(default=100, ge=1)


class Limits(Frozen):
    """Time limit of one start of a run.

    Attributes:
        wall_clock: time since the start of the process. The run saves and stops, resumable, when one more iteration and
            a save would not fit; absent: no limit.
    """

    wall_clock: Seconds | None = None
