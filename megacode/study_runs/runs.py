"""From the tree of a study to the runs that it still needs.

A run is a chain of nodes that are trained in one directory. It ends where arms part, and where a checkpoint must be
kept that its policy would delete. What exists is never trained again: a chain starts from the furthest checkpoint on
its way. A run directory that stopped inside the chain is continued, whichever arms the study had when it began; only
its config is written again. Otherwise the chain is a new run: from random weights, or a branch off that checkpoint.

A merged end is a run that trains nothing. Its directory gets one checkpoint, made of those of its trunk.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from megacode.base.files import RunDir
from megacode.config.quantity import Quantity
from megacode.config.run import RunConfig
from megacode.config.training import Init
from megacode.study.merging import MergedPart, Merging
from megacode.study.places import StudyDir
from megacode.study.settings import slug
from megacode.study.tree import Tree, TreeNode
from megacode.study_runs.disk import Disk, DiskRun


@dataclass(frozen=True)
class StudyRun:
    """A run that a study needs.

    Attributes:
        nodes: what it trains, in order.
        config: its config, with name, directory and start.
        start: the checkpoint that it starts from, which another run may still have to make; None: random weights.
        parent: the node at whose end `start` lies; None: nothing to wait for.
        continues: whether its directory exists, and its run resumes there.
        parts: checkpoints that its only node is merged of; empty: it trains.
    """

    nodes: tuple[TreeNode, ...]
    config: RunConfig
    start: Path | None
    parent: str | None
    continues: bool
    parts: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Its name, which is that of its directory and its config file."""
        return self.run.path.name

    @property
    def run(self) -> RunDir:
        """Its directory."""
        return RunDir(self.config.directory)

    @property
    def last(self) -> TreeNode:
        """The node that it ends with."""
        return self.nodes[-1]

    @property
    def tokens(self) -> int:
        """Tokens of its nodes."""
        return sum(node.tokens for node in self.nodes)

    @property
    def ranks(self) -> int:
        """The smallest number of ranks that it can be trained on."""
        return self.config.parallel.model_size

    def checkpoint(self, node: TreeNode) -> Path:
        """Return the checkpoint at the end of one of its nodes."""
        return self.run.checkpoint(node.iteration)


def chosen_nodes(tree: Tree, arms: Collection[str] = ()) -> set[str]:
    """Return the ids of the nodes that some arms pass through, those of arms that they start from included.

    Args:
        tree: of the study.
        arms: names of arms, with levels (`text-only@470m`) or without; empty: all.
    """
    # A name without levels stands for the arm at all of them.
    paths = [path for (name, _), path in tree.paths.items() if not arms or {name, name.split("@")[0]} & {*arms}]
    return {state for path in paths for state in path}


def needed_nodes(tree: Tree, disk: Disk, chosen: Collection[str], scored_ends: Collection[str] = ()) -> set[str]:
    """Return the ids of the nodes that must be trained.

    A node that is missing is needed if an arm ends there, or if a needed node starts from it. So a trunk whose
    checkpoint was deleted is not trained again once all its branches exist.

    Args:
        tree: of the study.
        disk: what exists.
        chosen: the nodes that count.
        scored_ends: ends of arms that have all scores; their checkpoints may have been deleted.
    """
    ends = {path[-1] for path in tree.paths.values()}
    needed: set[str] = set()
    # Children before parents.
    for node in reversed(tree.nodes.values()):
        if node.id not in chosen or node.id in disk.states:
            continue
        # Scores stay valid without their checkpoint, so a scored end is not trained for itself.
        wanted = node.id in ends and node.id not in scored_ends
        if wanted or any(child.id in needed and disk.inside(child) is None for child in node.children):
            needed.add(node.id)
    return needed


def needed_runs(
    tree: Tree, disk: Disk, arms: Collection[str] = (), scored_ends: Collection[str] = ()
) -> list[StudyRun]:
    """Return the runs that a study still needs, those that others start from first.

    Args:
        tree: of the study.
        disk: what exists.
        arms: the arms that count; empty: all.
        scored_ends: see `needed_nodes`.
    """
    return list(_Planner(tree, disk, needed_nodes(tree, disk, chosen_nodes(tree, arms), scored_ends)).runs())


class _Planner:
    def __init__(self, tree: Tree, disk: Disk, needed: set[str]) -> None:
        self.tree, self.disk, self.needed = tree, disk, needed
        self.directory = StudyDir(tree.grid.study.directory)
        # By node: the checkpoint at its end, trained or planned.
        self.ends = {state: on_disk.path for state, on_disk in disk.states.items() if state in tree.nodes}
        # Directories given away in this plan: two runs in one would resume each other.
        self.taken: set[Path] = set()

    def runs(self) -> Iterator[StudyRun]:
        planned: set[str] = set()
        # Parents come before their children, so the end that a run starts from is known.
        for node in self.tree.nodes.values():
            if node.id in self.needed and node.id not in planned:
                run = self._run(self._chain(node)) if node.merging is None else self._merge(node, node.merging)
                for one in run.nodes:
                    planned.add(one.id)
                    self.ends[one.id] = run.checkpoint(one)
                yield run

    def _chain(self, node: TreeNode) -> tuple[TreeNode, ...]:
        chain = [node]
        # Where arms part, others start from the checkpoint, so the run must end there.
        while len(node.children) == 1:
            (child,) = node.children
            if not child.resumes or child.id not in self.needed or not _is_kept(node, child):
                break
            # A part of it exists: it has a start of its own.
            if self.disk.inside(child) is not None:
                break
            chain.append(child)
            node = child
        return tuple(chain)

    def _run(self, chain: tuple[TreeNode, ...]) -> StudyRun:
        first, last = chain[0], chain[-1]
        cell = last.cell.plan.config
        changes: dict[str, object] = {"phases": _phases(last)}
        old = self._unfinished(first)
        if old is not None:
            # Its own start stays: until it has saved, it begins there again.
            own = old.past.plan.config
            changes |= {"name": own.name, "run_dir": str(old.run.path), "init": own.init}
            start = old.checkpoint or (None if own.init.from_ == "random" else Path(own.init.from_))
            # No parent: its start was made when it first began.
            return StudyRun(chain, cell.model_copy(update=changes), start, None, continues=True)
        name = self._free_name(run_name(self.tree, last))
        start, load, parent = self._start(first)
        init = Init() if start is None else Init(from_=str(start), load=load)
        changes |= {"name": name, "run_dir": str(self.directory.run(name).path), "init": init}
        return StudyRun(chain, cell.model_copy(update=changes), start, parent, continues=False)

    def _merge(self, node: TreeNode, merging: Merging) -> StudyRun:
        """Return the run of a merged end: a directory with one checkpoint."""
        assert node.parent is not None, "a trunk comes before its merge"
        name = self._free_name(run_name(self.tree, node))
        changes = {"name": name, "run_dir": str(self.directory.run(name).path), "init": Init()}
        parts = tuple(self._part(node, part) for part in merging.parts)
        waits = node.parent if node.parent in self.needed else None
        config = node.cell.plan.config.model_copy(update=changes)
        return StudyRun((node,), config, self.ends[node.parent], waits, continues=False, parts=parts)

    def _part(self, node: TreeNode, part: MergedPart) -> Path:
        """Return the checkpoint of a part: where it lies, or where the run of its stretch saves it."""
        part_state = self.disk.states.get(part.id)
        if part_state is not None:
            return part_state.path
        path = [self.tree.nodes[state] for state in self.tree.paths[node.cell.name, node.cell.seed]]
        clock = node.cell.plan.batches.clock_after(part.iteration)
        # From the end, since an arm that this one starts from has clocks of its own. A missing checkpoint of a stretch
        # that is trained is looked for there, too: the merge waits for it, and says so.
        stretch = next(one for one in reversed(path[:-1]) if one.clock - one.samples < clock)
        return RunDir(self.ends.get(stretch.id, self.ends[path[-2].id]).parents[1]).checkpoint(part.iteration)

    def _free_name(self, name: str) -> str:
        """Return a name whose directory holds no other run, such as one that an arm added later has cut short."""
        runs = (self.directory.run(_numbered(name, number)) for number in count(1))
        # A merged end has no config; one that is damaged would be in the way of the next.
        used = (run for run in runs if run.path not in self.taken and not run.config.exists())
        free = next(run.path for run in used if not run.iterations())
        self.taken.add(free)
        return free.name

    def _unfinished(self, node: TreeNode) -> DiskRun | None:
        """Return the run directory that continues a node: a live one, or else the one that is furthest."""
        candidates = [
            run
            for run in self.disk.runs
            if run.run.path not in self.taken and run.is_at(node) and run.leads_through(node)
        ]
        best = max(candidates, key=lambda run: (run.alive, run.place), default=None)
        if best is not None:
            self.taken.add(best.run.path)
        return best

    def _start(self, node: TreeNode) -> tuple[Path | None, str, str | None]:
        """Return the checkpoint that a node starts from, what is loaded of it, and the node that must make it first."""
        inside = self.disk.inside(node)
        if inside is not None:
            # Of the same training, so optimizer and clock continue too.
            return inside.path, "all", None
        if node.parent is not None:
            waits = node.parent if node.parent in self.needed else None
            return self.ends[node.parent], "all" if node.resumes else "weights", waits
        init = self.tree.grid.study.arms[node.cell.original].init
        if init is None or init.from_ is None:
            return None, "weights", None
        return Path(init.from_).absolute(), "weights", None


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-{number}"


def run_name(tree: Tree, last: TreeNode) -> str:
    """Return the name of a run by the node that it ends with: the arm that ends there or the phase, and the id."""
    arms = (name for (name, seed), path in tree.paths.items() if path[-1] == last.id)
    # The id keeps two versions of one arm apart; the name is for people alone.
    return slug(f"{next(arms)}-s{last.cell.seed}-{last.id[:8]}") if last.id in _ends(tree) else last.name


def _ends(tree: Tree) -> set[str]:
    return {path[-1] for path in tree.paths.values()}


def _is_kept(node: TreeNode, child: TreeNode) -> bool:
    """Return whether a run that continues with a child keeps the checkpoint at the end of the node before it."""
    plan = child.cell.plan
    policy = plan.config.checkpoint
    if policy.keep_phase_ends and child.phase > node.phase:
        return True
    # With `keep_last` a checkpoint in the middle may be gone before its branch starts.
    saved = plan.multiples(policy.every) if policy.keep_last is None else []
    return node.iteration in (*plan.multiples(policy.keep_every), *saved)


def _phases(last: TreeNode) -> tuple[object, ...]:
    """Return the phases of a run that ends with a node: the last one is left at the node's end."""
    *before, phase = last.cell.plan.config.phases[: last.phase + 1]
    if last.last < last.cell.plan.schedule.phases[last.phase].samples:
        phase = phase.model_copy(update={"until": Quantity(count=last.last, unit="samples")})
    return (*before, phase)
