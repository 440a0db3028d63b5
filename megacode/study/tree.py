"""The tree of training: a stretch that several arms share is one node, trained once.

An arm is a path of states, one at the end of each phase, and one wherever another arm leaves the same phase earlier. A
node is the stretch of training that leads to a state; its id is that of the state. Arms share a node if they share its
whole past. How many nodes a phase is cut into depends on the other arms of the study, the ids of states do not: an arm
that is added may cut a node in two, and keeps both ends.

A merged end is a node in which nothing is trained. Its parent is the end of the trunk, the last state it is made of.

A node with one child that resumes from it needs no run of its own: `run` names the last node of the run that both are
trained in. A child that takes weights alone starts a run, at clock 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from megacode.base.errors import ConfigError, Problem
from megacode.study.grid import Cell, Grid
from megacode.study.merging import Merging
from megacode.study.settings import slug

MERGED = "merged"


@dataclass
class TreeNode:
    """A stretch of training.

    Attributes:
        id: of the state that it leads to.
        parent: id of the state that it starts from; None: random weights, or a checkpoint from elsewhere.
        resumes: whether it resumes all of its parent's state; else it takes weights alone, or starts from random ones.
        cell: one of the cells that it is part of, the first one; all agree on it.
        phase: number of the phase in that cell.
        first, last: samples of the phase at its start and at its end.
        merging: how its state is merged of others; nothing is trained in it, and its parent is the last of them.
        arms: names of all cells that it is part of.
        children: in the order in which they should be trained, the longest remaining path first.
    """

    id: str
    parent: str | None
    resumes: bool
    cell: Cell
    phase: int
    first: int
    last: int
    merging: Merging | None = None
    arms: list[str] = field(default_factory=list)
    children: list[TreeNode] = field(default_factory=list)

    @property
    def name(self) -> str:
        """A name for people, unique by the id's first eight digits."""
        return slug("-".join((self.phase_name, *self.cell.place, f"s{self.cell.seed}", self.id[:8])))

    @property
    def phase_name(self) -> str:
        """The name of its phase; `merged` where nothing is trained."""
        return MERGED if self.merging is not None else self.cell.plan.schedule.phases[self.phase].name

    @property
    def samples(self) -> int:
        """Samples that are trained on in it."""
        return self.last - self.first

    @property
    def tokens(self) -> int:
        """Tokens that are trained on in it."""
        return self.samples * self.cell.plan.schedule.seq_length

    @property
    def clock(self) -> int:
        """Consumed samples at its end."""
        return self.cell.plan.schedule.phases[self.phase].first_sample + self.last

    @property
    def iteration(self) -> int:
        """Iterations done at its end."""
        return self.cell.plan.batches.iteration_at(self.clock)

    def remaining(self) -> int:
        """Tokens on the longest path from its start to an arm's end."""
        return self.tokens + max((child.remaining() for child in self.children), default=0)


class Tree:
    """All nodes of a study.

    Args:
        grid: its cells.

    Attributes:
        nodes: by id, parents before their children, depth first.
        paths: by arm's name (`Cell.name`) and seed, the ids from the root to the arm's end.

    Raises:
        ConfigError: two arms are the same.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.paths: dict[tuple[str, int], list[str]] = {}
        _refuse_equal_arms(grid)
        # 1. Where paths are cut depends on all arms, so all are looked at first.
        cuts = _Cuts(grid.cells)
        nodes: dict[str, TreeNode] = {}
        # 2. Paths meet where ids are equal.
        for cell in grid.cells:
            path: list[str] = []
            # The first cell to reach a state makes its node; later ones only add their names.
            for node in _path(cell, cuts):
                known = nodes.setdefault(node.id, node)
                if cell.name not in known.arms:
                    known.arms.append(cell.name)
                path.append(node.id)
            self.paths[cell.name, cell.seed] = path
        # 3. Parents and children, in an order of their own.
        self.roots = _linked(nodes)
        self.nodes = {node.id: node for root in self.roots for node in _below(root)}
        # A run continues while there is no choice; at a branch the children start from the checkpoint.
        self._runs = {node.id: last.id for node in self.nodes.values() if (last := _last_of_run(node))}

    def run_of(self, node: str) -> str:
        """Return the id of the last node of the run that a node is trained in."""
        return self._runs[node]

    def starts_run(self, node: TreeNode) -> bool:
        """Return whether a run begins with a node."""
        return node.parent is None or not _only_child(self.nodes[node.parent], node)


def _last_of_run(node: TreeNode) -> TreeNode:
    while len(node.children) == 1 and node.children[0].resumes:
        node = node.children[0]
    return node


def _only_child(parent: TreeNode, child: TreeNode) -> bool:
    return parent.children == [child] and child.resumes


class _Cuts:
    """Where arms end inside a phase: numbers of samples read, by family of phases, and the states there."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.reads: dict[str, set[int]] = {}
        # A state counts as a cut only where some arm ends a phase, or phases would be cut at every length.
        self.ends = {end for cell in cells for end in cell.past.ends}
        for cell in cells:
            for phase in cell.plan.schedule.phases:
                self.reads.setdefault(cell.past.family(phase.index), set()).add(phase.samples)

    def of(self, cell: Cell, phase: int) -> Iterator[tuple[str, int]]:
        """Yield the states inside a phase of a cell that another arm ends a stretch with, and the phase's own end."""
        past, whole = cell.past, cell.plan.schedule.phases[phase].samples
        for read in sorted(self.reads[past.family(phase)]):
            # Of one past and one order, and yet another state: with another rate up to there, or another batch.
            if read < whole and past.passes(phase, read) and (state := past.at(phase, read)) in self.ends:
                yield state, read
        yield past.ends[phase], whole


def _path(cell: Cell, cuts: _Cuts) -> Iterator[TreeNode]:
    """Yield the nodes of a cell in order, from its first weights on, not yet linked to children."""
    # The first node of an arm never resumes an optimizer: it starts from random weights, or from weights alone.
    before, resumes = None, False
    if cell.init is not None:
        for node in _path(cell.init, cuts):
            before = node.id
            yield node
    for phase in range(len(cell.plan.schedule.phases)):
        first = 0
        for state, read in cuts.of(cell, phase):
            yield TreeNode(state, before, resumes, cell, phase, first, read)
            before, resumes, first = state, True, read
    if cell.merging is not None:
        last = len(cell.plan.schedule.phases) - 1
        yield TreeNode(cell.merging.id, before, False, cell, last, first, first, cell.merging)


def _linked(nodes: dict[str, TreeNode]) -> list[TreeNode]:
    """Link nodes to their children and return the roots, in an order that does not depend on the order of arms."""
    roots = []
    for node in nodes.values():
        if node.parent is None:
            roots.append(node)
        else:
            nodes[node.parent].children.append(node)
    for node in nodes.values():
        # The longest path is the one that everything waits for at the end.
        node.children.sort(key=_order)
    return sorted(roots, key=lambda node: (node.cell.place, node.cell.seed, *_order(node)))


def _order(node: TreeNode) -> tuple[int, str]:
    return -node.remaining(), node.id


def _below(node: TreeNode) -> Iterator[TreeNode]:
    yield node
    for child in node.children:
        yield from _below(child)


def _refuse_equal_arms(grid: Grid) -> None:
    """Refuse arms, or levels of one arm, that are the same training under two names."""
    # By the end of the arm; an arm that ends inside another one is no second name for it.
    seen: dict[str, Cell] = {}
    problems: list[Problem] = []
    for cell in grid.cells:
        # Seeds never make two arms equal, nor different: the first one tells.
        if cell.arm != cell.original or cell.seed != grid.study.seeds[0]:
            continue
        other = seen.setdefault(cell.end, cell)
        if other is cell:
            continue
        message = f"{other.name!r} and {cell.name!r} are the same training"
        if other.arm == cell.arm:
            factor = next(name for name, level in cell.levels.items() if other.levels[name] != level)
            fix = "remove a level, limit it with `only`, or let it change something that is learned from"
            problems.append(Problem(message, f"factors.{factor}.{cell.levels[factor]}", fix))
        elif other.place != cell.place:
            # A second name is one at every level.
            fix = "remove one of them, limit one with `only`, or let it change something that is learned from"
            problems.append(Problem(message, f"arms.{cell.arm}", fix))
        else:
            fix = f"write same_as: {other.arm} if it should have both names, or remove it"
            problems.append(Problem(message, f"arms.{cell.arm}", fix))
    if problems:
        raise ConfigError(problems=problems)


@dataclass(frozen=True)
class Totals:
    """Tokens trained in three ways of running the same study.

    Attributes:
        tree: each node once.
        rows: one run a row of each table; an arm that another arm of its table passes through is scored on the way.
        alone: every arm from scratch, second names too.
    """

    tree: int
    rows: int
    alone: int


def totals(tree: Tree, cells: Iterable[Cell] | None = None) -> Totals:
    """Return the tokens of a study, or of some of its cells.

    Args:
        tree: of the study.
        cells: to count; absent: all.
    """
    chosen = tree.grid.cells if cells is None else list(cells)
    # A merged end takes no training: its row is that of its trunk.
    paths = [
        [state for state in tree.paths[cell.name, cell.seed] if tree.nodes[state].merging is None] for cell in chosen
    ]
    shared = sum(tree.nodes[state].tokens for state in {state for path in paths for state in path})
    tables: dict[object, dict[str, Cell]] = {}
    for cell, path in zip(chosen, paths, strict=True):
        table = tree.grid.study.arms[cell.arm].table
        tables.setdefault((table, cell.place, cell.seed), {})[path[-1]] = cell
    rows = 0
    inside = {path[-1]: path[:-1] for path in paths}
    for ends in tables.values():
        # An arm that ends on the way of another one is scored there.
        inner = {state for end in ends for state in inside[end]}
        rows += sum(cell.tokens for end, cell in ends.items() if end not in inner)
    return Totals(shared, rows, sum(cell.tokens for cell in chosen))
