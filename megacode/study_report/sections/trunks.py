"""The tree of a study and its totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megacode.base.units import counted, format_count
from megacode.report.figure import Figure, scientific
from megacode.study_report.charts.tree import TreeBar, tree
from megacode.study_report.sections.lookup import ReportIndex

Node = Mapping[str, Any]


def tree_figure(index: ReportIndex) -> Figure:
    """Return the tree, all seeds of a stretch as one bar."""
    nodes = index.document["tree"].get("nodes") or []
    known = {node["id"]: node for node in nodes}
    users = _users(nodes, known)
    groups: dict[str, list[Node]] = {}
    keys: dict[str, str] = {}
    parents: dict[str, str] = {"": ""}
    # Parents first, so that the key of a parent is known before its children ask for it.
    for node in sorted(nodes, key=lambda node: len(_above(node, known))):
        above = keys.get(str(node["parent"]), "")
        # Two phases may have one name and other data: the arms tell them apart.
        key = f"{above} / {node['phase']} {node.get('levels')} {sorted(users[node['id']])}"
        keys[str(node["id"])], parents[key] = key, above
        groups.setdefault(key, []).append(node)
    stops: dict[str, float] = {"": 0.0}
    stretches = []
    for key, group in groups.items():
        start = stops[parents[key]]
        # An `init` starts its own clock at 0; here its bar continues, since what it has read counts.
        stops[key] = start + float(group[0]["tokens"])
        # An arm ends where no child continues it.
        further = (users[node["id"]] for node in nodes if node["parent"] == group[0]["id"])
        ends = users[group[0]["id"]].difference(*further)
        stretches.append(_stretch(index, key, parents[key], group, start, users[group[0]["id"]], ends))
    return tree(stretches, index.sources)


def _above(node: Node, known: Mapping[str, Node]) -> list[Node]:
    """Return a node and what it continues, back to the root."""
    path = [node]
    while (parent := known.get(path[-1]["parent"])) is not None:
        path.append(parent)
    return path


def _users(nodes: Sequence[Node], known: Mapping[str, Node]) -> dict[str, set[str]]:
    """Return the arms that train through each node, by its id."""
    users: dict[str, set[str]] = {str(node["id"]): set() for node in nodes}
    for node in nodes:
        for one in _above(node, known):
            users[one["id"]] |= set(node["arms"])
    return users


def _stretch(index: ReportIndex, key: str, parent: str, group: Sequence[Node], start: float,
             users: set[str], ends: set[str]) -> TreeBar:  # fmt: skip
    node = group[0]
    # Seeds of one stretch may be at different points: the bar is filled by their share.
    done = sum(node["state"] == "trained" for node in group)
    # All users read the stretch alike, so the first one tells.
    blend = next((phase["blend"] for arm in sorted(users) if arm in index.arms
                  for phase in index.arms[arm]["phases"] if phase["name"] == node["phase"]), {})  # fmt: skip
    shares = ", ".join(f"{100 * share:.0f} % {source}" for source, share in blend.items())
    state = "" if done == len(group) else f"{done} of {counted(len(group), 'seed')} trained"
    seals = "; ".join(f"seed {n['seed']}: {n['run']}, seal {str(n['seal'])[:12]}" for n in group if n.get("seal"))
    hover = (
        f"{node['phase']}: {format_count(node['tokens'])} tokens{': ' if shares else ''}{shares}; "
        f"in {counted(len(users), 'arm')}{'; ' + state if state else ''}{chr(10) + seals if seals else ''}"
    )
    names = [index.short(arm) for arm in index.arms if arm in ends]
    href = index.where(next((arm for arm in index.arms if arm in users), ""))
    return TreeBar(key, parent, node["phase"], start, start + float(node["tokens"]), blend, names, len(users), done,
                   len(group), state, hover, href)  # fmt: skip


def tree_totals(index: ReportIndex) -> list[dict[str, str]]:
    """Return the tokens that were trained, and what they would be without sharing."""
    tokens = index.document["tree"].get("tokens") or {}
    shared = tokens.get("tree") or 0
    labels = {"tree": "shared, as trained", "rows": "a run for each row of the tables",
              "alone": "every arm from scratch"}  # fmt: skip
    rows = []
    for key, text in labels.items():
        if count := tokens.get(key):
            more = "" if key == "tree" else f"{100 * (count / shared - 1):+.0f} %" if shared else ""
            rows.append({"label": text, "tokens": format_count(count), "more": more})
    return rows


def flops_text(index: ReportIndex) -> str:
    """Return the operations of the whole tree; empty if they are not known."""
    flops = index.document["tree"].get("flops")
    return scientific(float(flops)) if flops else ""
