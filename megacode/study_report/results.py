"""What a study has brought so far: its plan, the states that were trained, and the score files of their models.

Everything is found by content: a state by what its checkpoint was trained on, a score file by the seal of the
checkpoint it names. A score file stays valid when its checkpoint is deleted to save disk. What is missing is listed,
never filled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from megacode.base.errors import MegacodeError
from megacode.base.files import Json, RunDir
from megacode.checkpoint.state import TrainState
from megacode.metrics.reader import read_metrics
from megacode.planning.suite import score_name
from megacode.statistics.items import ItemsReader
from megacode.statistics.reading import Scores, read_document, read_scores
from megacode.study.costs import Costs, Gpus
from megacode.study.document import study_document
from megacode.study.found import Found, all_states
from megacode.study.grid import Cell, build_grid
from megacode.study.matching import Proof, prove
from megacode.study.schema import Study
from megacode.study.study_file import load_study
from megacode.study.tree import Tree, TreeNode
from megacode.study_report.pruned import pruned_states


@dataclass(frozen=True)
class Trained:
    """A state that was trained, and the scores of its model.

    Attributes:
        node: of the tree.
        run: the run directory that holds it.
        found: its checkpoint; None where it was deleted and scores are left.
        state: what the checkpoint says of itself.
        seal: of the checkpoint.
        files: score file by suite.
        documents: their contents without items, by suite.
        strange: sentences on score files that do not belong to the checkpoint.
        seals: of all checkpoints of this state; more than one where it was trained again.
    """

    node: TreeNode
    run: RunDir
    found: Found | None
    state: TrainState
    seal: str
    files: Mapping[str, Path]
    documents: Mapping[str, Json]
    strange: list[str]
    seals: list[str]


@dataclass
class StudyResults:
    """A study with its results.

    Attributes:
        file: of the study.
        tree: its tree.
        proofs: of its claims.
        trained: by id of the node.
    """

    file: Path
    tree: Tree
    proofs: list[Proof]
    trained: dict[str, Trained] = field(default_factory=dict)
    _read: dict[Path, Scores] = field(default_factory=dict)
    _reader: ItemsReader = field(default_factory=ItemsReader)

    @property
    def study(self) -> Study:
        """The study."""
        return self.tree.grid.study

    @cached_property
    def plan(self) -> Json:
        """What `study plan --json` says; a state whose checkpoint was deleted counts as trained."""
        states = {node: one.found for node, one in self.trained.items() if one.found is not None}
        plan = study_document(self.tree, self.proofs, states, Costs(Gpus()))
        for row in plan["nodes"]:
            if row["state"] == "planned" and row["id"] in self.trained:
                row |= {"state": "trained", "seal": self.trained[row["id"]].seal}
                plan["tokens_to_train"] -= row["tokens"]
        return plan

    @cached_property
    def suites(self) -> list[str]:
        """The suites that score the study, as their files are named; those that were found if it names none."""
        named = [score_name(name) for name in self.study.suites]
        return named or sorted({suite for one in self.trained.values() for suite in one.files})

    @cached_property
    def validations(self) -> dict[Path, list[Json]]:
        """The validations of each run directory that holds a state of the study."""
        return self._lines("validation")

    @cached_property
    def alignments(self) -> dict[Path, list[Json]]:
        """What the alignment probe of each of these run directories measured."""
        return self._lines("alignment")

    def _lines(self, kind: str) -> dict[Path, list[Json]]:
        runs = dict.fromkeys(one.run.path for one in self.trained.values())
        return {run: list(read_metrics(RunDir(run).metrics, kind)) for run in runs}

    def path(self, cell: Cell) -> list[str]:
        """Return the nodes of a cell from first to last."""
        return self.tree.paths[cell.name, cell.seed]

    def end(self, cell: Cell) -> Trained | None:
        """Return the trained state at a cell's end."""
        return self.trained.get(self.path(cell)[-1])

    def scores(self, state: str, suite: str) -> Scores | None:
        """Return the scores of a state by a suite, items included; None where it is not scored.

        Raises:
            DataError: a file is damaged, or its items are missing.
        """
        one = self.trained.get(state)
        if one is None or suite not in one.files:
            return None
        file = one.files[suite]
        # Kept, since comparisons, laws and forecasts all ask: 8 bytes an item, and a second to read 300,000 of them.
        if file not in self._read:
            self._read[file] = read_scores(file, self._reader)
        return self._read[file]

    def state(self, cell: Cell) -> str:
        """Return how far a cell is: `not trained`, `not scored`, `partly scored` or `scored`."""
        end = self.end(cell)
        if end is None:
            return "not trained"
        scored = sum(suite in end.files for suite in self.suites)
        return "not scored" if not scored else "scored" if scored == len(self.suites) else "partly scored"

    def cells(self, arm: str) -> list[Cell]:
        """Return the cells of an arm with its levels, one for each seed."""
        return [cell for cell in self.tree.grid.cells if cell.name == arm]

    def arms(self) -> Iterator[Cell]:
        """Yield the first cell of each arm at its levels, second names included, in the order of the study."""
        yield from (cell for cell in self.tree.grid.cells if cell.seed == self.study.seeds[0])


def read_results(path: Path) -> StudyResults:
    """Return a study with what its runs have brought so far.

    Args:
        path: of the study file.

    Raises:
        ConfigError: the study or an arm is wrong.
        DataError: a data set cannot be read, or a score file is damaged.
        PlanError: an arm cannot be trained as it is written.
    """
    study = load_study(path)
    grid = build_grid(study, path)
    results = StudyResults(path, Tree(grid), prove(grid))
    states: dict[str, list[Found]] = {}
    for state in all_states(Path(study.directory)):
        states.setdefault(state.id, []).append(state)
    for node in results.tree.nodes.values():
        copies = states.get(node.id, [])
        known = [one for state in copies if (one := _found(results, node, state, copies)) is not None]
        # Of several checkpoints of one state, the one with most scores counts.
        if known:
            results.trained[node.id] = max(known, key=lambda one: len(one.files))
    _add_pruned(results, states)
    return results


def _found(results: StudyResults, node: TreeNode, found_state: Found, copies: list[Found]) -> Trained | None:
    try:
        state = TrainState.read(found_state.path)
    except MegacodeError:
        return None
    run = RunDir(found_state.path.parents[1])
    seals = sorted({one.seal for one in copies})
    return _scored(
        results,
        Trained(node, run, found_state, state, state.seal, {}, {}, [], seals),
        RunDir.iteration_of(found_state.path),
    )


def _add_pruned(results: StudyResults, states: Mapping[str, Sequence[Found]]) -> None:
    """Add states that only scores are left of; the states on disk tell what a deleted mean was made of."""
    ids: dict[str, list[str]] = {}
    for one in (one for copies in states.values() for one in copies):
        ids.setdefault(one.seal, []).append(one.id)
    lost = [node for node in results.tree.nodes if node not in results.trained]
    starts = dict.fromkeys(cell.past.start for cell in results.tree.grid.cells)
    for name, run, state, seal in pruned_states(Path(results.study.directory), lost, starts, ids):
        node = results.tree.nodes[name]
        results.trained.setdefault(
            name, _scored(results, Trained(node, run, None, state, seal, {}, {}, [], [seal]), state.iteration)
        )


def _scored(results: StudyResults, trained: Trained, iteration: int) -> Trained:
    """Return a state with the score files of its model."""
    wanted = {score_name(name) for name in results.study.suites}
    files: dict[str, Path] = {}
    documents: dict[str, Json] = {}
    strange: list[str] = []
    for file in sorted(trained.run.eval.glob(f"*@{RunDir.iteration_name(iteration)}.json")):
        suite = file.name.partition("@")[0]
        if wanted and suite not in wanted:
            continue
        document = read_document(file)
        seal = (document["model"].get("megacode") or {}).get("checkpoint_seal")
        # Another training that had its checkpoint in this place: its scores are not this model's.
        if seal != trained.seal:
            strange.append(f"{file} is of another checkpoint (seal {str(seal)[:8]}, not {trained.seal[:8]})")
            continue
        files[suite], documents[suite] = file, document
    return replace(trained, files=files, documents=documents, strange=strange)
