"""Scores of a study's arms: which are there, which are of other questions, and the command that makes one.

A score has an identity of its own: the seal of the checkpoint, the hash of the suite's files and items, no limit, the
version of lm-eval. So a changed suite makes all arms be scored again, and none be trained again. It does not matter who
made a score: a run's own `evaluate` section, a job, or a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from megacode.base.errors import MegacodeError
from megacode.base.files import RunDir, read_json
from megacode.base.units import counted
from megacode.checkpoint.state import seal_of
from megacode.eval.suites import Suite, load_suite
from megacode.planning.suite import score_name
from megacode.study.places import StudyDir
from megacode.study.tree import Tree, TreeNode
from megacode.study_runs.disk import Disk

Presence = Literal["there", "missing", "outdated"]
# What a task without permission is left out for; see `eval.task_loading`.
_NEEDS_PERMISSION = "--run-generated-code"


@dataclass(frozen=True)
class Score:
    """The score of a node's model by one suite.

    Attributes:
        suite: as the study names it.
        node: whose model it is.
        path: the score file; None while the node is not trained.
        checkpoint: the node's checkpoint; None where it is not trained, or was deleted.
        presence: whether the file is there, and of the present questions.
        why: what is outdated.
    """

    suite: str
    node: str
    path: Path | None
    checkpoint: Path | None
    presence: Presence
    why: str = ""

    @property
    def name(self) -> str:
        """Its name among the study's attempts and logs."""
        # With the iteration: arms may end at several checkpoints of one run.
        place = self.checkpoint
        model = self.node if place is None else f"{place.parents[1].name}@{RunDir.iteration_of(place)}"
        return f"{model}.{score_name(self.suite)}"


class ScoreBoard:
    """The scores of a study.

    Args:
        tree: of the study.
        disk: what exists.
        allow_code: whether tasks may run code that the model writes; without it scores that lack them are complete.

    Attributes:
        tree: as given.
        suites: by the name in the study; None where the items of one are not made yet.
        of: by the end of an arm, its scores.
    """

    def __init__(self, tree: Tree, disk: Disk, allow_code: bool = False) -> None:
        self.tree, self._disk, self._allow_code = tree, disk, allow_code
        place = StudyDir(tree.grid.study.directory)
        self.suites = {name: _suite(place, name) for name in tree.grid.study.suites}
        digests = {name: _digest(suite) for name, suite in self.suites.items() if suite is not None}
        self._digests = {name: marks for name, marks in digests.items() if marks is not None}
        ends = dict.fromkeys(path[-1] for path in tree.paths.values())
        self.of = {end: [self._of_node(name, tree.nodes[end]) for name in self.suites] for end in ends}

    def done(self, again: bool = False) -> set[str]:
        """Return the ends of arms that need no training to have their scores.

        Args:
            again: train arms again whose checkpoint was deleted and whose scores are outdated; else they stay as is.
        """
        # Outdated and without a checkpoint: only training again would help, which costs far more than a score.
        lost = {} if again else self.lost()
        return {
            end for end, scores in self.of.items()
            if scores and (end in lost or all(score.presence == "there" for score in scores))
        }  # fmt: skip

    def lost(self) -> dict[str, str]:
        """Return the ends of arms that cannot be scored again, as their checkpoint was deleted, and what is wrong."""
        outdated = ((end, score) for end, scores in self.of.items() for score in scores if score.presence == "outdated")
        return {end: f"{one.suite} is {one.why}" for end, one in outdated if end not in self._disk.states}

    def score(self, suite: str, node: TreeNode, checkpoint: Path) -> Score:
        """Return the score of a node's checkpoint, as its files are now."""
        # Score files lie in the run that made the checkpoint, whoever scores it.
        run = RunDir(checkpoint.parents[1])
        return self._score(suite, node, run, checkpoint)

    def _of_node(self, suite: str, node: TreeNode) -> Score:
        state = self._disk.states.get(node.id)
        if state is not None:
            return self.score(suite, node, state.path)
        # The checkpoint may have been deleted; then its run's config says what was scored.
        run = next((one.run for one in self._disk.runs if one.leads_through(node)), None)
        return self._score(suite, node, run, None) if run is not None else Score(suite, node.id, None, None, "missing")

    def _score(self, name: str, node: TreeNode, run: RunDir, checkpoint: Path | None) -> Score:
        suite = self.suites[name]
        path = run.score(suite.name if suite is not None else score_name(name), node.iteration)
        why = self._lacks(name, path, seal_of(run, node.iteration))
        presence: Presence = "there" if why == "" else "missing" if why is None else "outdated"
        return Score(name, node.id, path, checkpoint, presence, why or "")

    def _lacks(self, name: str, path: Path, seal: str) -> str | None:
        """Return what is wrong with a score file: None if there is none, empty if nothing is."""
        if not path.exists():
            return None
        # Without its items: a status of hundreds of scores must not read gigabytes.
        document = read_json(path)
        try:
            facts, limit = document["model"]["megacode"], document["settings"]["limit"]
            version, left_out = document["versions"]["lm_eval"], dict(document.get("left_out", {}))
        except (KeyError, TypeError, ValueError):
            return "a damaged file"
        if seal and facts.get("checkpoint_seal") != seal:
            return "of another checkpoint"
        if name in self._digests and document.get("suite_sha256") != self._digests[name]:
            return "of other questions"
        if limit is not None:
            return f"of {counted(limit, 'item')} a task"
        # A login node may have no lm-eval.
        if _lm_eval() not in (None, version):
            return f"made with lm-eval {version}"
        suite = self.suites[name]
        allowed = self._allow_code or (suite is not None and suite.unsafe_code)
        lacking = [task for task, reason in left_out.items() if allowed or _NEEDS_PERMISSION not in str(reason)]
        return f"without {', '.join(lacking)}" if lacking else ""


def score_arguments(score: Score, place: StudyDir, nproc: int | None, allow_code: bool) -> list[str]:
    """Return what follows `megacode` in the command that makes a score."""
    assert score.checkpoint is not None, "only a trained node can be scored"
    arguments = ["evaluate", str(score.checkpoint), "--suite", score.suite, "--quiet"]
    items = place.items / score.suite
    if items.is_dir():
        arguments += ["--tasks", str(items)]
    if nproc is not None and nproc > 1:
        arguments += ["--nproc", str(nproc)]
    if score.presence == "outdated":
        arguments.append("--overwrite")
    return arguments + (["--run-generated-code"] if allow_code else [])


def _suite(place: StudyDir, name: str) -> Suite | None:
    """Return a suite; None where its items are not made yet."""
    try:
        return load_suite(name, None, place.items / name)
    except MegacodeError:
        return None


def _digest(suite: Suite) -> str | None:
    """Return the digest of a suite's files; None where they are lm-eval's own, and it is not installed here."""
    try:
        return suite.files_digest()
    except MegacodeError:
        return None


def _lm_eval() -> str | None:
    try:
        return metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        return None
