"""Check that checkpoints which other arms start from, or are merged of, are not deleted before."""

from __future__ import annotations

from collections.abc import Iterator

from megacode.base.errors import ConfigError, Problem
from megacode.study.grid import Cell
from megacode.study.merging import kept_iterations
from megacode.study.tree import Tree, TreeNode


def check_kept(tree: Tree) -> None:
    """Refuse a study in which a run would delete the checkpoint that another one starts from.

    Raises:
        ConfigError: with every such place.
    """
    problems = list(_lost_parts(tree))
    for node in tree.nodes.values():
        # Only a child that starts its own run reads the checkpoint from disk; others continue in memory.
        starting = [child for child in node.children if child.merging is None and tree.starts_run(child)]
        if starting and not _kept(node):
            policy = node.cell.plan.config.checkpoint
            message = f"{node.children[-1].arms[0]!r} starts from iteration {node.iteration:,} of {node.arms[0]!r}, "
            message += f"which keep_last: {policy.keep_last} deletes before that"
            problems.append(Problem(message, "checkpoint.keep_phase_ends", "set checkpoint.keep_phase_ends: true"))
    if problems:
        raise ConfigError(problems=list(dict.fromkeys(problems)))


def _lost_parts(tree: Tree) -> Iterator[Problem]:
    """Yield what arms that share a trunk with a merged one would delete of the checkpoints that are merged."""
    for node in tree.nodes.values():
        if node.merging is None:
            continue
        trunk = set(_own_path(tree, node.cell))
        # A shared stretch is trained with the settings of one of its arms, and any of them may be the one.
        for cell in tree.grid.cells:
            shared = [tree.nodes[state].iteration for state in _own_path(tree, cell) if state in trunk]
            kept = kept_iterations(cell.plan)
            taken = [part.iteration for part in node.merging.parts if part.iteration <= max(shared, default=0)]
            lost = [iteration for iteration in taken if iteration not in kept]
            if lost:
                message = (
                    f"{node.arms[0]!r} merges iteration {lost[0]:,} of a trunk that is also that of {cell.name!r}, "
                )
                message += "whose settings do not keep this checkpoint"
                fix = "set checkpoint.keep_every for all arms, under the study's `set`"
                yield Problem(message, "checkpoint.keep_every", fix)


def _own_path(tree: Tree, cell: Cell) -> list[str]:
    """Return the states of an arm's own training, without those of the arm that it starts from."""
    before = 0 if cell.init is None else len(tree.paths[cell.init.name, cell.init.seed])
    return tree.paths[cell.name, cell.seed][before:]


def _kept(node: TreeNode) -> bool:
    policy = node.cell.plan.config.checkpoint
    if policy.keep_phase_ends or policy.keep_last is None:
        return True
    # `keep_every` protects its multiples from `keep_last`, which is enough if the node ends at one.
    return node.iteration in node.cell.plan.multiples(policy.keep_every)
