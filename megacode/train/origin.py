"""Decide what a start begins with: its own newest checkpoint, another run's, another run's weights, or nothing.

`init: {from, load: all}` makes a branch: weights, optimizer, random state and clock are those of the checkpoint. The
branch continues in a run directory of its own, after the same proof of the past that a resume makes. With
`load: weights` the clock starts at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal

from megacode.base.errors import CheckpointError, ConfigError, Problem
from megacode.base.files import RunDir, read_jsonl
from megacode.checkpoint.ledger import Ledger
from megacode.checkpoint.state import TrainState
from megacode.checkpoint.store import find_checkpoint
from megacode.plan.difference import Change, Difference, render_changes
from megacode.plan.past import render_lost
from megacode.planning.run_plan import Plan, prove_compatible, prove_same_model

Kind = Literal["fresh", "weights", "branch", "resume"]


@dataclass(frozen=True)
class Origin:
    """What a start begins with.

    Attributes:
        kind: `fresh`: random weights; `weights`: another run's, at clock 0; `branch`: another run's whole state;
            `resume`: this run's own.
        checkpoint: what to load; None if `fresh`.
        state: the clock to start at: 0 if `fresh` or `weights`.
        saved: the checkpoint's own state; None if `fresh`.
        difference: from the config that the checkpoint was saved with; None if the clock is at 0.
        adapted: settings of the model that differ from those the weights were trained with, if `weights`.
    """

    kind: Kind
    checkpoint: Path | None = None
    state: TrainState = field(default_factory=TrainState)
    saved: TrainState | None = None
    difference: Difference | None = None
    adapted: Sequence[Change] = ()

    @property
    def weights_only(self) -> bool:
        """Whether optimizer and random state are not loaded."""
        return self.kind == "weights"

    def log_lines(self) -> list[str]:
        """Return log lines: what is loaded, what changed in the config, and what a changed past costs."""
        if self.checkpoint is None:
            return []
        heads = {
            "weights": f"starting from the weights of {self.checkpoint}",
            "branch": f"branching off {self.checkpoint} at sample {self.state.consumed_samples:,}",
            "resume": f"resuming from {self.checkpoint}, sample {self.state.consumed_samples:,}",
        }
        lines = [heads[self.kind], *(f"trained with another setting: {line}" for line in render_changes(self.adapted))]
        if self.difference is not None:
            lines += [f"changed: {line}" for line in render_changes(self.difference.changes)]
            lines += render_lost(self.difference.lost) if self.difference.lost else []
        return lines


def find_origin(plan: Plan, own: Path | None, accept_changed_past: bool = False) -> Origin:
    """Decide what a start begins with, and prove that the config allows it.

    Args:
        plan: of the run.
        own: the newest intact checkpoint in the run's own directory; None before the first.
        accept_changed_past: resume although the config changes what was already read.

    Raises:
        CheckpointError: if `init.from` names no checkpoint, or the past has changed and that is not accepted.
        ConfigError: if the run would be written into the directory that it branches from.
    """
    init = plan.config.init
    if init.from_ == "random":
        return _continued(plan, "resume", own, accept_changed_past) if own else Origin("fresh")
    _check_directories(plan)
    # A branch that has saved resumes from its own checkpoint; its trunk may be deleted by then.
    if own is not None:
        return _continued(plan, "resume", own, accept_changed_past)
    checkpoint = find_checkpoint(Path(init.from_))
    if init.load == "weights":  # the clock starts at 0, so there is no past to prove
        saved = TrainState.read(checkpoint)
        adapted = prove_same_model(plan, saved, checkpoint, weights_only=True)
        return Origin("weights", checkpoint, saved=saved, adapted=adapted)
    _check_trunk(checkpoint)  # what a trunk withholds, its branches must not have learned
    return _continued(plan, "branch", checkpoint, accept_changed_past)


# Refusals. Each protects work that a start would otherwise overwrite or falsify.


def check_restart(run: RunDir, from_scratch: bool, own: Path | None, problems: Sequence[Problem] = ()) -> None:
    """Refuse to start from random weights if a run has saved before, unless the user insists.

    Args:
        run: the run directory.
        from_scratch: the user insists.
        own: the checkpoint that the run can resume from; None if there is none.
        problems: of the damaged ones.

    Raises:
        CheckpointError: the run has saved, and none of its checkpoints can be used.
        ConfigError: the user insists, but a checkpoint can be used.
    """
    if own is not None:
        if from_scratch:
            fix = "omit the flag to resume from it, or give the new run a run_dir of its own"
            raise ConfigError(f"the run has a checkpoint to resume from, {own}", "--from-scratch", fix)
        return
    # An unmounted directory looks like a new run. Weeks of training must not be overwritten without a question.
    proof = _proof_of_saves(run)
    if proof and not from_scratch:
        why = "is intact" if problems else "can be used"
        message = f"this run has trained and saved ({proof}), and no checkpoint of this run {why}"
        fix = (
            f"mount {run.checkpoints}, or restore a checkpoint from a copy; "
            "to start with random weights anyway, add --from-scratch"
        )
        raise CheckpointError(problems=[*problems, Problem(message, str(run.path), fix)])


def _proof_of_saves(run: RunDir) -> str:
    """Return the evidence that a run directory has held checkpoints; empty if there is none.

    A run that was killed before its first save has lost nothing that could be kept, and simply starts again.
    """
    # From strong evidence to weak: each file may be lost while others are still there.
    if run.latest.exists():
        return f"{run.latest.name} names {run.latest.read_text(encoding='utf-8', errors='replace').strip()}"
    if run.iterations():
        return f"{run.checkpoints} has {len(run.iterations())}"
    saved = None
    for event in read_jsonl(run.events):
        if event.get("event") in ("start", "resume") and event.get("kind") == "fresh":
            saved = None  # by an earlier start, whose checkpoints the user has given up
        elif event.get("event") == "save":
            saved = event.get("checkpoint")
    if saved:
        return f"{run.events.name} records {saved}"
    events_lost = not run.events.exists() and run.metrics.exists() and run.metrics.stat().st_size > 0
    return f"{run.metrics.name} has measurements" if events_lost else ""


def _check_trunk(checkpoint: Path) -> None:
    """Refuse to branch off a checkpoint that has learned from samples its run now withholds, as that run would.

    Raises:
        CheckpointError: it has learned from them.
    """
    trunk, state = run_of(checkpoint), TrainState.read(checkpoint)
    if trunk is None or not trunk.ledger.exists():
        return
    withheld = Ledger.read(trunk).samples(state.consumed_samples)
    if withheld != state.withheld:
        message = (
            f"it has learned from samples that its run now withholds: {trunk.ledger} lists {withheld:,} samples before "
            f"its clock, of which it withheld {state.withheld:,}"
        )
        raise CheckpointError(message, str(checkpoint), "branch off an earlier checkpoint of that run")


def check_inherited(ledger: Ledger, trunk: TrainState, run: RunDir) -> None:
    """Refuse a branch whose run directory has the ledger of another start: the trunk has learned those samples.

    Args:
        ledger: of the branch, with the entries that it inherits.
        trunk: the checkpoint's state.
        run: the branch's directory.

    Raises:
        CheckpointError: the ledger withholds more before the trunk's clock than the trunk did.
    """
    withheld = ledger.samples(trunk.consumed_samples)
    if withheld > trunk.withheld:
        message = (
            f"it withholds {withheld:,} samples before the branch begins, but the checkpoint that the run starts from "
            f"withheld {trunk.withheld:,}: it is a leftover of another start"
        )
        raise CheckpointError(message, str(run.ledger), "move it away, or give the run a run_dir of its own")


def run_of(checkpoint: Path) -> RunDir | None:
    """Return the run directory that contains a checkpoint, moved aside or not; None if none does."""
    folder = checkpoint.absolute().parent
    folder = folder.parent if folder.name == "abandoned" else folder
    return RunDir(folder.parent) if folder.name == "checkpoints" else None


def _continued(plan: Plan, kind: Kind, checkpoint: Path, accept_changed_past: bool) -> Origin:
    """Return an origin at a checkpoint's clock, once the config is proven to have the same past."""
    state = TrainState.read(checkpoint)
    try:
        difference = prove_compatible(plan, checkpoint, state, accept_changed_past)
    except CheckpointError as error:
        raise CheckpointError(
            problems=[_with_earlier(plan, checkpoint, problem) for problem in error.problems]
        ) from None
    return Origin(kind, checkpoint, state, state, difference)


def _check_directories(plan: Plan) -> None:
    """Refuse a branch with its trunk's run directory: it would resume the trunk instead of branching."""
    run, source = Path(plan.config.directory), Path(plan.config.init.from_)
    # Resolved: a link, or another spelling, is the same directory.
    if run.resolve() in (source.resolve(), *source.resolve().parents):
        message = f"the run would be written into {run}, the run that it starts from"
        raise ConfigError(message, "init.from", "give the run a name or a run_dir of its own")


def _with_earlier(plan: Plan, checkpoint: Path, problem: Problem) -> Problem:
    """Suggest an earlier checkpoint to branch from if the given one lies after the cut."""
    # The problem comes from `plan`, which knows no run directories: recognised by its place and fix.
    number = problem.where.removeprefix("phases[").removesuffix("].until")
    if not problem.fix.startswith("start from") or not number.isdigit():
        return problem
    run, end = run_of(checkpoint) or RunDir(checkpoint.parents[1]), plan.schedule.phases[int(number)].last_sample
    earlier = [path for path in map(run.checkpoint, reversed(run.iterations())) if _clock(path) <= end]
    if not earlier:
        return problem
    fix = f"start from {earlier[0]}, or raise until {problem.fix.rpartition(' until ')[2]}"
    return Problem(problem.what, problem.where, fix)


def _clock(checkpoint: Path) -> float:
    """Return a checkpoint's clock; infinity if it cannot be read, so that it is never suggested."""
    try:
        return TrainState.read(checkpoint).consumed_samples
    except CheckpointError:
        return inf
