"""Where a study is, as one document: what `megacode study status --json` prints. Needs no torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from megacode.base import lock
from megacode.base.files import Json
from megacode.base.ownership import Owner
from megacode.study.grid import build_grid
from megacode.study.places import StudyDir
from megacode.study.study_file import load_study
from megacode.study.tree import Tree
from megacode.study_runs.disk import Disk
from megacode.study_runs.history import Former, changes_since_scores, former_arms, versions
from megacode.study_runs.runs import needed_runs
from megacode.study_runs.scores import ScoreBoard
from megacode.study_runs.states import ArmState, RunState, arm_states, run_states

_DECLARED = ("baseline", "compare", "match", "suites")  # in advance, for the reader of the results


def study_status(path: Path, jobs_of: Callable[[StudyDir], Mapping[str, str]] = lambda _: {}) -> Json:
    """Return where the runs and arms of a study are.

    Args:
        path: of the study file.
        jobs_of: returns, by the name of a run or score, the job that is queued for it.

    Raises:
        ConfigError: the study or an arm is wrong.
        DataError: a data set cannot be read.
        PlanError: an arm cannot be trained as it is written.
    """
    study = load_study(path)
    tree = Tree(build_grid(study, path))
    place = StudyDir(study.directory)
    # Before the disk is read: what ends in between is trained, not lost.
    jobs = jobs_of(place)
    disk = Disk(place.path)
    board = ScoreBoard(tree, disk)
    runs = run_states(needed_runs(tree, disk, scored_ends=board.done()), place, jobs, bool(tree.grid.provisional))
    arms = arm_states(tree, disk, board, runs, jobs)
    owner = lock.owner(place.as_run)
    former = former_arms(tree, disk, place)
    changes = changes_since_scores(study, place)
    # Of the rest the arms' own rows tell: what is stale, what is retired.
    declared = [change for change in changes if change["key"].partition(".")[0] in _DECLARED]
    return {
        "name": study.name,
        "runs": str(place.path),
        "owner": str(owner) if owner is not None else None,
        "tokens": _tokens(tree, runs),
        "arms": [_arm(state) for state in arms],
        "needed": [_run(state, place) for state in runs.values()],
        "former": [_former(one) for one in former],
        "versions": len(versions(place)),
        "changed_after_scores": declared,
        "next": _next(path, owner, arms, list(runs.values()), jobs, place.jobs.exists()),
    }


def _tokens(tree: Tree, runs: Mapping[str, RunState]) -> Json:
    total = sum(node.tokens for node in tree.nodes.values())
    # A run that is inside a node has trained part of it; it never counts for more than the whole.
    left = sum(state.run.tokens - min(state.tokens, state.run.tokens) for state in runs.values())
    return {"done": total - left, "total": total}


def _arm(state: ArmState) -> Json:
    return {
        "name": state.name,
        "seed": state.seed,
        "state": state.state,
        "cause": state.cause,
        "flags": list(state.flags),
        "tokens": state.tokens,
        "tokens_done": state.tokens_done,
        "run": str(state.run) if state.run is not None else None,
        "checkpoint": str(state.checkpoint) if state.checkpoint is not None else None,
        "scores": [
            {
                "suite": score.suite,
                "presence": score.presence,
                "why": score.why,
                "file": str(score.path) if score.path is not None else None,
            }
            for score in state.scores
        ],
    }


def _run(state: RunState, place: StudyDir) -> Json:
    run, line = state.run, state.line
    # Of the start that failed, which may be an earlier one than the newest log.
    log = state.outcome.log if state.outcome is not None and state.outcome.log else str(place.log(run.name))
    return {
        "name": run.name,
        "directory": str(run.run.path),
        "state": state.state,
        "cause": state.cause,
        "final": state.outcome is not None and state.outcome.final,
        "tokens": run.tokens,
        "tokens_done": min(state.tokens, run.tokens),
        "iteration": line.get("iteration"),
        "iterations": run.last.iteration,
        "loss": line.get("loss"),
        "tokens_per_second": line.get("tokens_per_second"),
        "start": str(run.start) if run.start is not None else None,
        "nodes": [node.id for node in run.nodes],
        "config": str(place.config(run.name)),
        "log": log if Path(log).exists() else None,
    }


def _former(one: Former) -> Json:
    return {
        "arm": one.arm,
        "seed": one.seed,
        "kind": one.kind,
        "id": one.end,
        "tokens": one.tokens,
        "checkpoints": [str(state.path) for state in one.found],
    }


def _next(
    path: Path,
    owner: Owner | None,
    arms: Sequence[ArmState],
    runs: Sequence[RunState],
    jobs: Mapping[str, str],
    submitted: bool,
) -> str:
    """Return what to do next."""
    # Jobs and `study run` must not work on one study at a time.
    command = f"megacode study {'submit' if submitted else 'run'} {shlex.quote(str(path))}"
    if owner is not None:
        return f"{owner} runs this study"
    if any(state.state == "planned" for state in runs):
        return "make the data sets and the tokenizer: `megacode study plan` names what is not there yet"
    stuck = [state for state in runs if state.outcome is not None and state.outcome.final]
    unscored = [score for arm in arms if arm.state in ("trained", "scoring") for score in arm.scores]
    if any(state.startable for state in runs) or any(
        score.presence != "there" and score.name not in jobs for score in unscored
    ):
        return command
    if stuck:
        return f"fix what failed, then: {command} --retry"
    if jobs or any(state.state in ("running", "queued") for state in runs):
        return "wait; runs continue"
    if any(arm.state == "failed" for arm in arms):
        return command
    return f"megacode study report {shlex.quote(str(path))}"
