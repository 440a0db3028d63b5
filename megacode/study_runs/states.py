"""Where the runs and arms of a study are. Derived from files at every call, and never stored.

A run is `planned` (its data are not there yet), `waiting` for the run that makes its start, `ready`, `queued` as a job,
`running`, `interrupted`, `failed` or `diverged`; once trained it is no longer needed. An arm that is trained is
`trained`, `scoring` or `done`; before that it is what the run is that its next stretch belongs to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megacode.base import lock
from megacode.base.errors import CheckpointError
from megacode.base.files import Json, RunDir
from megacode.checkpoint.state import TrainState
from megacode.metrics.reader import read_events
from megacode.study.grid import Cell
from megacode.study.places import StudyDir
from megacode.study.tree import Tree
from megacode.study_runs.disk import Disk
from megacode.study_runs.outcomes import RunEnd, outcome, progress, read_attempts
from megacode.study_runs.runs import StudyRun
from megacode.study_runs.scores import Score, ScoreBoard

RunWord = Literal["planned", "waiting", "ready", "queued", "running", "interrupted", "failed", "diverged"]
ArmWord = Literal[
    "planned",
    "waiting",
    "ready",
    "queued",
    "running",
    "interrupted",
    "failed",
    "diverged",
    "trained",
    "scoring",
    "done",
]
_STUCK = ("failed", "diverged")


@dataclass(frozen=True)
class RunState:
    """Where a run that is still needed is.

    Attributes:
        run: the run.
        state: see above.
        cause: for `waiting` the run that it waits for, for `queued` the job; else why it ended.
        samples: of its nodes that are trained and saved, or trained and not saved while it runs.
        outcome: how its last start ended; None: it was never started, or it runs.
        line: the last iteration in its metrics.
    """

    run: StudyRun
    state: RunWord
    cause: str = ""
    samples: int = 0
    outcome: RunEnd | None = None
    line: Json = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of its nodes that are trained."""
        return self.samples * self.run.last.cell.plan.schedule.seq_length

    @property
    def held(self) -> bool:
        """Whether it is not started without a person's word: it failed for good, or starts from what failed."""
        waits_for_failed = self.state == "waiting" and self.cause.startswith("failed ")
        return waits_for_failed or (self.outcome is not None and self.outcome.final)

    @property
    def startable(self) -> bool:
        """Whether it can be started now, and may be without a person's word."""
        if self.state in ("ready", "interrupted"):
            return True
        return self.state == "failed" and self.outcome is not None and not self.outcome.final


@dataclass(frozen=True)
class ArmState:
    """Where an arm at its levels, with one seed, is.

    Attributes:
        name: with levels.
        seed: its seed.
        state: see above.
        cause: as of a run; for `scoring` how many scores are there; for `trained` and `done` empty.
        flags: `dented` with the reasons, `deleted` if its scores are there and its checkpoint is not.
        tokens, tokens_done: of its path; trained ones.
        run: the run directory that its end lies in, or will lie in.
        checkpoint: at its end; None while it is not trained, and after it was deleted.
        scores: of it.
    """

    name: str
    seed: int
    state: ArmWord
    cause: str
    flags: tuple[str, ...]
    tokens: int
    tokens_done: int
    run: Path | None
    checkpoint: Path | None
    scores: tuple[Score, ...]


def run_states(
    runs: Sequence[StudyRun], place: StudyDir, jobs: Mapping[str, str] | None = None, provisional: bool = False
) -> dict[str, RunState]:
    """Return the states of the runs that a study needs, by the run's name.

    Args:
        runs: in an order in which those that others start from come first.
        place: of the study.
        jobs: by the name of a run, the job that is queued for it.
        provisional: data sets of the study do not exist yet.
    """
    attempts, makers = read_attempts(place), {node.id: run.name for run in runs for node in run.nodes}
    states: dict[str, RunState] = {}
    for run in runs:
        waits = states.get(makers.get(run.parent or "", ""))
        states[run.name] = _run_state(
            run, place, attempts.get(run.name), waits, (jobs or {}).get(run.name), provisional
        )
    return states


def _run_state(
    run: StudyRun, place: StudyDir, attempt: Json | None, waits: RunState | None, job: str | None, provisional: bool
) -> RunState:
    line, samples = progress(run.run), _samples(run)
    if run.run.lock.exists() and lock.owner(run.run) is not None:
        return RunState(run, "running", "", max(samples, _in_chain(run, line)), None, line)
    if job is not None:
        return RunState(run, "queued", job, samples, None, line)
    if waits is not None:
        # Whoever waits for a run that waits for a failed one waits for the failed one.
        stuck = f"failed {waits.run.name}" if waits.state in _STUCK else waits.cause if waits.state == "waiting" else ""
        return RunState(run, "waiting", stuck if stuck.startswith("failed ") else waits.run.name, samples)
    ended = outcome(run.run, attempt, run.config)
    if ended is None or ended.state == "finished":
        # Finished under an earlier config; the present one asks for more.
        return RunState(run, "planned" if provisional else "ready", "", samples, None, line)
    return RunState(run, ended.state, ended.cause, samples, ended, line)


def _samples(run: StudyRun) -> int:
    """Return the samples of a run's nodes that its newest checkpoint, or its start, has."""
    first = run.nodes[0]
    begins = first.clock - first.samples
    try:
        clock = TrainState.read(run.start).consumed_samples if run.start is not None else begins
    except CheckpointError:
        return 0
    own = run.start is not None and run.start.parents[1] == run.run.path
    # `load: weights` starts at clock 0, whatever the clock of the checkpoint is.
    return max(0, clock - begins) if own or run.config.init.load == "all" else 0


def _in_chain(run: StudyRun, line: Json) -> int:
    first = run.nodes[0]
    return max(0, int(line.get("consumed_samples") or 0) - (first.clock - first.samples))


def arm_states(
    tree: Tree, disk: Disk, board: ScoreBoard, runs: Mapping[str, RunState], jobs: Mapping[str, str] | None = None
) -> list[ArmState]:
    """Return where every arm is, in the order of the study's file.

    Args:
        tree: of the study.
        disk: what exists.
        board: its scores.
        runs: the states of the runs that it needs.
        jobs: by the name of a score, the job that is queued for it.
    """
    makers = {node.id: state for state in runs.values() for node in state.run.nodes}
    attempts = read_attempts(StudyDir(tree.grid.study.directory))
    # A score that a job will make has not failed, whatever the last attempt was.
    attempts = {name: line for name, line in attempts.items() if name not in (jobs or {})}
    return [_arm_state(tree, disk, board, makers, (attempts, jobs or {}), cell) for cell in tree.grid.cells]


def _arm_state(
    tree: Tree,
    disk: Disk,
    board: ScoreBoard,
    makers: Mapping[str, RunState],
    tries: tuple[Mapping[str, Json], Mapping[str, str]],
    cell: Cell,
) -> ArmState:
    path = tree.paths[cell.name, cell.seed]
    end, scores = path[-1], tuple(board.of[path[-1]])
    tokens = sum(tree.nodes[state].tokens for state in path)
    end_state = disk.states.get(end)
    # In the order of the path: the first one is what the arm waits for.
    missing = [makers[state] for state in path if state in makers]
    state: ArmWord
    if end_state is not None or end not in makers:
        state, cause = _scored(scores, *tries)
        flags = dents([disk.states[one].path for one in path if one in disk.states], cell)
        deleted = () if end_state is not None else ("deleted",)
        # Without a checkpoint and without a process that could make one: somebody trains it with `--only`.
        where = (
            end_state.path.parents[1]
            if end_state is not None
            else scores[0].path.parents[1]
            if scores and scores[0].path
            else None
        )
        return ArmState(
            cell.name, cell.seed, state, cause, (*flags, *deleted), tokens, tokens, where,
            end_state.path if end_state is not None else None, scores,
        )  # fmt: skip
    first, last = missing[0], makers[end]
    state, cause = first.state, first.cause
    # Its own first run continues; the end is in a later one.
    if first is not last and state in ("running", "queued", "ready", "interrupted", *_STUCK):
        stuck = state in _STUCK
        state, cause = "waiting", f"failed {first.run.name}" if stuck else first.run.name
    left = sum(tree.nodes[one].tokens for one in path if one in makers)
    tokens_read = sum(one.tokens for one in {one.run.name: one for one in missing}.values())
    return ArmState(
        cell.name, cell.seed, state, cause, (), tokens, max(0, min(tokens, tokens - left + tokens_read)),
        last.run.run.path, None, scores,
    )  # fmt: skip


def _scored(scores: Sequence[Score], attempts: Mapping[str, Json], jobs: Mapping[str, str]) -> tuple[ArmWord, str]:
    present = sum(score.presence == "there" for score in scores)
    if present == len(scores):
        return ("done" if scores else "trained"), ""
    for score in scores:
        failure = attempts.get(score.name)
        if score.presence != "there" and failure is not None and int(failure["code"]) not in (0, 75):
            return "failed", f"{score.suite}: {failure.get('error') or 'exit code ' + str(failure['code'])}"
    if present or any(_being_scored(score) or score.name in jobs for score in scores):
        return "scoring", f"{present} of {len(scores)}"
    outdated = next((score for score in scores if score.presence == "outdated"), None)
    return "trained", f"{outdated.suite} is {outdated.why}" if outdated is not None else ""


def _being_scored(score: Score) -> bool:
    if score.checkpoint is None:
        return False
    run = RunDir(score.checkpoint.parents[1])
    place = run.scoring(RunDir.iteration_of(score.checkpoint))
    return place.lock.exists() and lock.owner(place) is not None


def dents(checkpoints: Sequence[Path], cell: Cell) -> tuple[str, ...]:
    """Return what makes an arm's training another one than its config says: flags `dented: REASON`, each once.

    Args:
        checkpoints: of its nodes.
        cell: the arm.
    """
    # A dict keeps the order, and each reason once.
    reasons: dict[str, None] = {}
    for path in checkpoints:
        try:
            state = TrainState.read(path)
        except CheckpointError:
            continue
        if state.withheld:
            reasons[f"{state.withheld:,} samples withheld"] = None
        if (state.health.get("fp8") or {}).get("fell_back"):
            reasons["FP8 fell back"] = None
        layout = cell.plan.config.parallel.model_dump(include={"tensor", "pipeline", "context"})
        if any(state.layout.get(name, size) != size for name, size in layout.items()):
            reasons["another layout"] = None
        events = read_events(RunDir(path.parents[1]), [])
        if any(event.get("changed_past") for event in events):
            reasons["changed past accepted"] = None
    return tuple(f"dented: {reason}" for reason in reasons)
