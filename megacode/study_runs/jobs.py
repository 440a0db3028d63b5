"""The jobs of a study: processes to start, what each needs, and what it makes.

A job is a command of megacode. It can be started once everything that it needs exists, and is done once everything that
it makes does. Nothing else ties jobs together, so that a kind of job more needs no other scheduler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megacode.base.errors import CheckpointError
from megacode.base.files import RunDir, write_text
from megacode.checkpoint.state import FILE_NAME, TrainState
from megacode.config.config_file import dump_config
from megacode.config.run import RunConfig
from megacode.study.places import StudyDir
from megacode.study.tree import TreeNode
from megacode.study_runs.runs import StudyRun
from megacode.study_runs.scores import ScoreBoard, score_arguments


@dataclass(frozen=True)
class StudyJob:
    """A process to start.

    Attributes:
        kind: what it does.
        name: unique in the study; its log is called so.
        arguments: what follows `megacode` on the command line.
        needs, makes: checkpoints that must exist before, and that exist afterwards.
        run: the directory that it trains in; no other process may train there meanwhile.
        config: of the run.
        weight: tokens on the longest path that waits for it; larger ones go first.
        skip: tells, once it could be started, whether there is nothing left to do.
    """

    kind: Literal["train", "merge", "score"]
    name: str
    arguments: tuple[str, ...]
    needs: tuple[Path, ...] = ()
    makes: tuple[Path, ...] = ()
    run: RunDir | None = None
    config: RunConfig | None = None
    weight: int = 0
    skip: Callable[[], bool] = lambda: False

    @property
    def is_ready(self) -> bool:
        """Whether everything that it needs exists."""
        return all(map(is_published, self.needs))

    @property
    def is_done(self) -> bool:
        """Whether everything that it makes exists; False for a job that makes no checkpoint."""
        return bool(self.makes) and all(map(is_published, self.makes))


def is_published(checkpoint: Path) -> bool:
    """Return whether a checkpoint exists and its state can be read."""
    # A damaged one is not found on disk, so its job is still needed: it must not count as done.
    if not (checkpoint / FILE_NAME).exists():
        return False
    try:
        TrainState.read(checkpoint)
    except CheckpointError:
        return False
    return True


def write_configs(runs: Sequence[StudyRun], place: StudyDir) -> None:
    """Write the config file of each run that trains, unless it is there already."""
    for run in (run for run in runs if not run.parts):
        path = place.config(run.name)
        text = (
            f"# A run of the study below {place.path}; `megacode study run` writes this file.\n"
            f"# By hand: megacode train THIS_FILE --nproc {run.ranks}\n{dump_config(run.config)}"
        )
        # Rewritten only if it differs, so that its time tells when the run last changed.
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            write_text(path, text)


def train_job(run: StudyRun, place: StudyDir, nproc: int | None) -> StudyJob:
    """Return the job that trains a run.

    Args:
        run: the run; its config file must be written before the job starts.
        place: of the study.
        nproc: ranks; None: as few as the layout allows.
    """
    arguments = ("train", str(place.config(run.name)), "--nproc", str(nproc or run.ranks))
    needs = (run.start,) if run.start is not None and run.parent is not None else ()
    # Of nodes inside the run, too: others may start there, or be scored, while it continues.
    makes = tuple(run.checkpoint(node) for node in run.nodes)
    return StudyJob("train", run.name, arguments, needs, makes, run.run, run.config, run.nodes[0].remaining())


def merge_job(run: StudyRun) -> StudyJob:
    """Return the job that merges checkpoints of a trunk."""
    merging, out = run.last.merging, run.checkpoint(run.last)
    assert merging is not None, "a run with parts ends with a merge"
    arguments = ("checkpoint", "average", *map(str, run.parts), "--out", str(out))
    arguments += ("--weights", f"decay:{merging.decay}", "--over", f"{merging.over} samples")
    return StudyJob("merge", run.name, arguments, run.parts, (out,), None, run.config, run.last.remaining())


def score_job(
    board: ScoreBoard,
    suite: str,
    node: TreeNode,
    checkpoint: Path,
    place: StudyDir,
    nproc: int | None,
    allow_code: bool,
) -> StudyJob:
    """Return the job that scores a node's model by a suite.

    Args:
        board: the scores of the study.
        suite: as the study names it.
        node: the end of an arm.
        checkpoint: at its end; it may still have to be made.
        place: of the study.
        nproc: ranks; None: one.
        allow_code: let tasks run code that the model writes.
    """
    score = board.score(suite, node, checkpoint)
    arguments = tuple(score_arguments(score, place, nproc, allow_code))

    # Asked when the checkpoint is there: the run's own `evaluate` section may have scored it.
    def scored() -> bool:
        return board.score(suite, node, checkpoint).presence == "there"

    return StudyJob("score", score.name, arguments, needs=(checkpoint,), skip=scored)


def jobs_of(
    runs: Sequence[StudyRun], ends: dict[str, Path], board: ScoreBoard, place: StudyDir, nproc: int | None, code: bool
) -> list[StudyJob]:
    """Return all jobs of a study that are left, those that much waits for first.

    Args:
        runs: that it needs.
        ends: by node at the end of an arm that is to be scored, its checkpoint.
        board: the scores; its suites are those to use.
        place: of the study.
        nproc: ranks of a run.
        code: let tasks run code that the model writes.
    """
    train_jobs = [merge_job(run) if run.parts else train_job(run, place, nproc) for run in runs]
    nodes = board.tree.nodes
    scored = [
        score_job(board, suite, nodes[end], path, place, nproc, code)
        for end, path in ends.items()
        for suite in board.suites
        if board.score(suite, nodes[end], path).presence != "there"
    ]
    # Scores come last: nothing waits for them.
    return sorted(train_jobs, key=lambda job: -job.weight) + scored
