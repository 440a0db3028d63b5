"""Check that checkpoints which other arms start from are not deleted before these arms begin."""

from __future__ import annotations

from megacode.base.errors import ConfigError, Problem
from megacode.study.tree import Tree, TreeNode


def check_kept(tree: Tree) -> None:
    """Refuse a study in which a run would delete the checkpoint that another one starts from.

    Raises:
        ConfigError: with every such place.
    """
    problems = []
    for node in tree.nodes.values():
        # Only a child that starts its own run reads the checkpoint from disk; others continue in memory.
        starting = [child for child in node.children if tree.starts_run(child)]
        if starting and not _kept(node):
            policy = node.cell.plan.config.checkpoint
            what = f"{node.children[-1].arms[0]!r} starts from iteration {node.iteration:,} of {node.arms[0]!r}, "
            what += f"which keep_last: {policy.keep_last} deletes before that"
            problems.append(Problem(what, "checkpoint.keep_phase_ends", "set checkpoint.keep_phase_ends: true"))
    if problems:
        raise ConfigError(problems=list(dict.fromkeys(problems)))


def _kept(node: TreeNode) -> bool:
    policy = node.cell.plan.config.checkpoint
    if policy.keep_phase_ends or policy.keep_last is None:
        return True
    # `keep_every` protects its multiples from `keep_last`, which is enough if the node ends at one.
    return node.iteration in node.cell.plan.multiples(policy.keep_every)
