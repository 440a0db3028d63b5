"""Where a start of a run goes on from: its own newest checkpoint, another run's, another run's weights, or nothing.

`init: {from, load: all}` makes a branch: weights, optimizer, random state and clock are those of the checkpoint, and
the branch goes on in a run directory of its own, after the same proof of the past that a resume makes. With
`load: weights` the clock starts at 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from megacode.base.errors import CheckpointError, ConfigError, Problem
from megacode.base.files import RunDir
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.plan.difference import Difference, render_changes
from megacode.plan.past import render_lost
from megacode.train.planning import Plan, judge, prove_same_model

Kind = Literal["fresh", "weights", "branch", "resume"]


@dataclass(frozen=True)
class Origin:
    """What a start goes on from.

    Attributes:
        kind: `fresh`: random weights; `weights`: another run's, at clock 0; `branch`: another run's whole state;
            `resume`: this run's own.
        checkpoint: what to load; None where `fresh`.
        state: the clock to go on from: at 0 where `fresh` or `weights`.
        difference: from the config that the checkpoint was saved under; None where the clock is at 0.
    """

    kind: Kind
    checkpoint: Path | None = None
    state: TrainState = field(default_factory=TrainState)
    difference: Difference | None = None

    @property
    def weights_only(self) -> bool:
        """Whether optimizer and random state stay new."""
        return self.kind == "weights"

    def log_lines(self) -> list[str]:
        """Return what to tell the user: where from, what changed, and what a changed past costs."""
        if self.checkpoint is None:
            return []
        said = {
            "weights": f"starting from the weights of {self.checkpoint}",
            "branch": f"branching off {self.checkpoint} at sample {self.state.consumed_samples:,}",
            "resume": f"going on from {self.checkpoint}, sample {self.state.consumed_samples:,}",
        }
        lines = [said[self.kind]]
        if self.difference is not None:
            lines += [f"changed: {line}" for line in render_changes(self.difference.changes)]
            lines += render_lost(self.difference.lost) if self.difference.lost else []
        return lines


def find_origin(plan: Plan, own: Path | None, accept_changed_past: bool = False) -> Origin:
    """Decide what a start goes on from, and prove that it may.

    Args:
        plan: of the run.
        own: the newest whole checkpoint in the run's own directory; None before the first.
        accept_changed_past: go on although the config would have read something else so far.

    Raises:
        CheckpointError: if `init.from` names no checkpoint, or the past has changed and that is not accepted.
        ConfigError: if the run would be written into the directory that it branches from.
    """
    init = plan.config.init
    if init.from_ == "random":
        return _going_on(plan, "resume", own, accept_changed_past) if own else Origin("fresh")
    _check_directories(plan)
    if own is not None:
        return _going_on(plan, "resume", own, accept_changed_past)
    checkpoint = find_checkpoint(Path(init.from_))
    if init.load == "weights":
        prove_same_model(plan, TrainState.read(checkpoint), checkpoint)
        return Origin("weights", checkpoint)
    return _going_on(plan, "branch", checkpoint, accept_changed_past)


def _going_on(plan: Plan, kind: Kind, checkpoint: Path, accept_changed_past: bool) -> Origin:
    state = TrainState.read(checkpoint)
    try:
        difference = judge(plan, checkpoint, state, accept_changed_past)
    except CheckpointError as error:
        raise CheckpointError(
            problems=[_with_earlier(plan, checkpoint, problem) for problem in error.problems]
        ) from None
    return Origin(kind, checkpoint, state, difference)


def _check_directories(plan: Plan) -> None:
    """Refuse a branch that would be written over its trunk: it would resume there instead of branching."""
    run, source = Path(plan.config.directory), Path(plan.config.init.from_)
    if run.resolve() in (source.resolve(), *source.resolve().parents):
        what = f"the run would be written into {run}, the run that it starts from"
        raise ConfigError(what, "init.from", "give the run a name or a run_dir of its own")


def _with_earlier(plan: Plan, checkpoint: Path, problem: Problem) -> Problem:
    """Name the checkpoint to branch from, where the one that was given lies behind the cut."""
    number = problem.where.removeprefix("phases[").removesuffix("].until")
    if not problem.fix.startswith("start from") or not number.isdigit():
        return problem
    run, end = RunDir(checkpoint.parents[1]), plan.schedule.phases[int(number)].last_sample
    earlier = [path for path in map(run.checkpoint, reversed(run.iterations())) if _clock(path) <= end]
    if not earlier:
        return problem
    fix = f"start from {earlier[0]}, or raise until {problem.fix.rpartition(' until ')[2]}"
    return Problem(problem.what, problem.where, fix)


def _clock(checkpoint: Path) -> float:
    """Return a checkpoint's clock; one that cannot be read stands behind all others."""
    try:
        return TrainState.read(checkpoint).consumed_samples
    except CheckpointError:
        return inf
