"""The tree of a study: each stretch of training as a bar on the axis of tokens, filled with what it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megacode.base.units import format_count
from megacode.report.figure import Entry, Figure, colour
from megacode.report.svg import Scale, drawing, element, tip
from megacode.study_report.charts.marks import NARROW, WIDE, label, linked, shortened, width_of

ROW, BAR, HEAD = 36, 15, 30


@dataclass(frozen=True)
class TreeBar:
    """A node of the tree, all its seeds together.

    Attributes:
        key: of this node.
        parent: key of the node that it continues; empty for a root.
        phase: its name.
        start: tokens read before it.
        stop: tokens read at its end.
        blend: shares by source; empty if they are not known.
        arms: arms that end with it.
        users: how many arms train through it.
        trained: seeds that are trained.
        seeds: all seeds.
        state: in words.
        tooltip: text under the pointer.
        href: its run.
    """

    key: str
    parent: str
    phase: str
    start: float
    stop: float
    blend: Mapping[str, float]
    arms: Sequence[str]
    users: int
    trained: int
    seeds: int
    state: str = ""
    tooltip: str = ""
    href: str = ""


def tree(nodes: Sequence[TreeBar], sources: Sequence[str], key: str = "tree-chart") -> Figure:
    """Return the tree; nodes that share a parent stand below each other, in the order given."""
    title = "What is trained, and what is shared"
    if not nodes:
        return Figure(key, title, "", missing="The study has no arms.", follows=False)
    ordered = _depth_first(nodes)
    drawn = [_drawing(ordered, sources, width) for width in (WIDE, NARROW)]
    used = [name for name in sources if any(node.blend.get(name) for node in nodes)]
    entries = [Entry(name, colour(sources.index(name)), "area") for name in used]
    if any(node.trained < node.seeds for node in nodes):
        entries.append(Entry("not trained yet", "ink", "planned"))
    return Figure(key, title, "", drawn, entries, follows=False, at="height of a band: share of the source")


def _depth_first(nodes: Sequence[TreeBar]) -> list[TreeBar]:
    known = {node.key for node in nodes}
    children: dict[str, list[TreeBar]] = {}
    for node in nodes:
        # A parent outside of the list makes a root: nothing may vanish.
        children.setdefault(node.parent if node.parent in known else "", []).append(node)
    ordered: list[TreeBar] = []
    # A stack in place of recursion: a chain of a hundred phases is legal.
    stack = list(reversed(children.get("", [])))
    while stack:
        node = stack.pop()
        ordered.append(node)
        stack += reversed(children.get(node.key, []))
    return ordered


def _drawing(nodes: Sequence[TreeBar], sources: Sequence[str], width: int) -> Markup:
    stop = max(node.stop for node in nodes) or 1.0
    wide = width == WIDE
    x = Scale(0, stop, 4, _right(nodes, stop) if wide else width - 8)
    # On a phone, arms get a line of their own below the phase.
    row = ROW if wide else ROW + 14
    bottom = HEAD + row * len(nodes)
    parts: list[object] = [_axis(x, bottom)]
    tops = {node.key: HEAD + row * index for index, node in enumerate(nodes)}
    # Branches first, so that bars cover their ends.
    for node in nodes:
        parts.append(_elbow(node, tops, x))
    for node in nodes:
        parts.append(_bar(node, sources, x, tops[node.key]))
        parts.append(_texts(node, x, tops[node.key], width))
    described = "; ".join(node.tooltip or node.phase for node in nodes)
    return drawing(width, bottom + 24, "Tree of the study", *parts, described=described,
                   class_="wide" if wide else "narrow")  # fmt: skip


def _right(nodes: Sequence[TreeBar], stop: float) -> float:
    """Return where the token axis ends, so that each arm's name has room right of its bar."""
    room = [
        (WIDE - 8 - width_of(", ".join(node.arms), bold=True) - 8 - 4) * stop / node.stop + 4
        for node in nodes
        if node.arms and node.stop
    ]
    # Names longer than a third of the drawing are shortened.
    return max(min([WIDE - 8.0, *room]), WIDE * 0.66)


def _axis(x: Scale, bottom: float) -> Markup:
    parts = []
    for tick in x.ticks(8 if x.stop > 500 else 4):
        at = x(tick)
        parts.append(element("line", class_="grid", x1=at, x2=at, y1=HEAD - 6, y2=bottom))
        anchor = "start" if tick == 0 else "middle"
        parts.append(label(format_count(round(tick)) if tick else "0", at, bottom + 15, anchor=anchor))
        parts.append(label(format_count(round(tick)) if tick else "0 tokens", at, HEAD - 12, anchor=anchor))
    return element("g", *parts)


def _elbow(node: TreeBar, tops: Mapping[str, float], x: Scale) -> Markup | None:
    """Draw the line from the end of the parent's bar down to this one's."""
    if node.parent not in tops:
        return None
    at, top, bottom = x(node.start), tops[node.parent] + BAR, tops[node.key] + BAR
    return element("line", class_="branch", x1=at, x2=at, y1=top, y2=bottom)


def _bar(node: TreeBar, sources: Sequence[str], x: Scale, top: float) -> Markup:
    left, right = x(node.start), x(node.stop)
    shape: dict[str, object] = {"x": left + 1, "width": max(right - left - 2, 2.0)}
    parts: list[object] = [tip(node.tooltip or node.phase)]
    # From the bottom up: the first source, usually text, is the ground.
    at = top + BAR
    total = sum(node.blend.values()) or 1.0
    for index, source in enumerate(sources):
        high = BAR * node.blend.get(source, 0.0) / total
        if high:
            at -= high
            parts.append(element("rect", class_=f"area {colour(index)}", y=at, height=high, **shape))
    done = node.trained >= node.seeds
    parts.append(element("rect", class_="stretch" if done else "stretch ahead", y=top, height=BAR, **shape))
    if not done and node.trained:
        # Seeds, not tokens: a stretch is trained whole or not at all.
        part = {"x": left + 1, "width": (right - left - 2) * node.trained / node.seeds}
        parts.append(element("rect", class_="trained", y=top + BAR - 2, height=2, **part))
    return linked(node.href, *parts)


def _texts(node: TreeBar, x: Scale, top: float, width: int) -> Markup:
    """Write the phase below its bar, and the arms that end there right of it (on a phone, below)."""
    shared = f" · in {node.users} arms" if node.users > 1 else ""
    state = f" · {node.state}" if node.state else ""
    text = f"{node.phase} · {format_count(round(node.stop - node.start))}{shared}{state}"
    parts = [_kept_inside(text, x(node.start) + 4, top + BAR + 12, width, "name")]
    if node.arms:
        arms, left = ", ".join(node.arms), x(node.stop) + 8
        if width == WIDE:
            parts.append(label(shortened(arms, width - left, bold=True), left, top + 12, css="phase", full=arms))
        else:
            parts.append(_kept_inside(arms, x(node.start) + 4, top + BAR + 26, width, "phase"))
    return element("g", *parts)


def _kept_inside(text: str, left: float, y: float, width: int, css: str) -> Markup:
    """Return a text that starts at `left`, or further left where the drawing would cut it."""
    # Names of arms are bold.
    bold = css == "phase"
    short = shortened(text, width - 8, bold=bold)
    return label(short, max(min(left, width - width_of(short, bold=bold)), 4.0), y, css=css, full=text)
