"""Why a node is not shared: the facts in which it differs from the most similar state."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from megacode.plan.difference import shown
from megacode.plan.effects import flat
from megacode.study.found import Found
from megacode.study.identity import LearnedPast
from megacode.study.tree import Tree, TreeNode

_SHOWN = 4
_PAST = "past"
_NO_PHASE = -1  # merged ends are compared with each other


@dataclass(frozen=True)
class Reason:
    """What makes a node new.

    Attributes:
        nearest: name of the node, or path of the checkpoint, that is most like it; empty where there is none.
        facts: `(fact, there, here)`, the first ones.
        more: how many further facts differ.
    """

    nearest: str
    facts: list[tuple[str, str, str]]
    more: int = 0

    def sentence(self) -> str:
        """Return it as a line."""
        if not self.nearest:
            return "the first of its kind"
        differences = "; ".join(f"{key}: {old} -> {new}" for key, old, new in self.facts)
        return f"like {self.nearest}, but {differences}" + (f"; and {self.more} more" if self.more else "")


@dataclass(frozen=True)
class _State:
    name: str
    phase: int
    facts: dict[str, Any]


def reasons(tree: Tree, states: Iterable[Found] = ()) -> dict[str, Reason]:
    """Return for each node of a tree what makes it new.

    A node is compared with those of arms before it in the study's file, and with what was found on disk.

    Args:
        tree: of the study.
        states: states on disk; nodes of the tree, and earlier checkpoints of theirs, are left out.
    """
    names = {node.id: node.name for node in tree.nodes.values()}
    known = [
        _State(str(state.path), state.phase, _facts(state.past, state.phase, state.read, names))
        for state in states
        if state.id not in tree.nodes and not state.merged and not _on_the_way(state, tree)
    ]
    result = {}
    # In the order of the file: the first arm is what a reader has in mind.
    for state in dict.fromkeys(state for path in tree.paths.values() for state in path):
        node = tree.nodes[state]
        here = _of_node(node, names)
        result[node.id] = _reason(here, known)
        known.append(here)
    return result


def _on_the_way(state: Found, tree: Tree) -> bool:
    """Return whether a state is an earlier one of a node's own training, which would be its nearest in any case."""
    return any(
        node.cell.past.at(state.phase, state.read) == state.id
        for node in tree.nodes.values()
        if node.merging is None and node.phase == state.phase and state.read <= node.last
    )


def _of_node(node: TreeNode, names: dict[str, str]) -> _State:
    if node.merging is not None:
        merging, past = node.merging, names[str(node.parent)]
        facts = {"decay": merging.decay, "over": merging.over, "checkpoints": len(merging.parts), _PAST: past}
        return _State(node.name, _NO_PHASE, facts)
    return _State(node.name, node.phase, _facts(node.cell.past, node.phase, node.last, names))


def _facts(past: LearnedPast, phase: int, read: int, names: dict[str, str]) -> dict[str, Any]:
    """Return all that decides a state, flat, in the order in which differences are told."""
    facts = past.facts(phase, read)
    # Hashes explain nothing; what they are made of stands beside them.
    for hashed in ("law", "order"):
        del facts[hashed]
    before = str(facts.pop(_PAST))
    settings = facts.pop("settings")
    document = {**past.order_facts(phase), **facts, **settings}
    return {**dict(flat(document)), _PAST: names.get(before, before)}


def _reason(here: _State, known: list[_State]) -> Reason:
    # Phases at other positions differ in almost everything, and comparing them explains nothing.
    others = [state for state in known if state.phase == here.phase]
    if not others:
        return Reason("", [])
    nearest = min(others, key=lambda state: sum(1 for _ in _differences(state.facts, here.facts)))
    differences = list(_differences(nearest.facts, here.facts))
    # Another past is mostly the same change, further up.
    own = [difference for difference in differences if difference[0] != _PAST] or differences
    return Reason(nearest.name, own[:_SHOWN], max(0, len(own) - _SHOWN))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for key in [*new, *(key for key in old if key not in new)]:
        # Another point of the same phase has other batches before it, which says nothing new.
        if key == "batches" and old.get("read") != new.get("read"):
            continue
        if old.get(key) != new.get(key):
            yield key, shown(old.get(key)), shown(new.get(key))
