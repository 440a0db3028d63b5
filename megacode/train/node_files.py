"""What one rank of a node does at the file system for all of them: heartbeats, and requests for stacks.

The first of the node's ranks that gives signs of life does it. Where it falls silent the next one takes over. Should
two do it for a moment, they write the same. So a run of N nodes writes N heartbeats, and looks N times for a request.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from megacode.base.files import RunDir
from megacode.train.node_ranks import Node

REQUEST = "request.json"
GATHERED = "gathered.json"
_SILENT_LOOKS = 10


def stack_path(run: RunDir, rank: int) -> Path:
    """Return the file of a rank's stacks."""
    return run.stacks / f"rank_{rank:05d}.txt"


def heartbeat_path(run: RunDir, members: tuple[int, ...]) -> Path:
    """Return the file of a node's heartbeats; nodes are named by their first rank."""
    return run.heartbeats / f"node_{members[0]:05d}.json"


def answer_path(run: RunDir, members: tuple[int, ...]) -> Path:
    """Return the file that says that all ranks of a node have written their stacks."""
    return run.stacks / f"node_{members[0]:05d}.json"


class NodeDuty:
    """The duty of a node, as one of its ranks sees it.

    Args:
        run: the run directory.
        node: of the rank.
        rank: this one.
        look: seconds between two signs of life on the board.
        poll: seconds between two looks for a request.
        heartbeat: seconds between two heartbeats.
    """

    def __init__(self, run: RunDir, node: Node, rank: int, look: float, poll: float, heartbeat: float) -> None:
        self._run, self._node, self._place = run, node, node.members.index(rank)
        self._silence, self._poll, self._heartbeat = _SILENT_LOOKS * look, poll, heartbeat
        self._began = time.monotonic()
        self._poll_at = self._heartbeat_at = float("-inf")
        self._reported = False

    @property
    def acting(self) -> bool:
        """Whether this rank speaks for its node: no rank before it gives signs of life."""
        return not any(self._is_live(place) for place in range(self._place))

    def _is_live(self, place: int) -> bool:
        sign = self._node.board.read(place)
        return time.monotonic() - (self._began if sign is None else sign.begun) < self._silence

    def pass_on_requests(self) -> None:
        """Look whether some rank asks for stacks, or has them all, and tell the node's ranks."""
        now = time.monotonic()
        if now < self._poll_at + self._poll or not self.acting:
            return
        self._poll_at = now
        board = self._node.board
        if not board.asked and (self._run.stacks / REQUEST).exists():
            board.ask()
        if board.asked and not board.gathered and (self._run.stacks / GATHERED).exists():
            board.end()

    def report(self) -> None:
        """Once asked: say so when all ranks of the node have written their stacks."""
        if self._reported or not self._node.board.asked or not self.acting:
            return
        if all(self._wrote(place) for place in range(len(self._node.members))):
            self._reported = True
            answer_path(self._run, self._node.members).write_text("{}\n")

    def _wrote(self, place: int) -> bool:
        sign = self._node.board.read(place)
        if sign is not None and sign.answered:
            return True
        return wrote(self._run, self._node.members[place])  # one that is stuck in C code writes and says nothing

    def beat_out(self, *, now: bool = False) -> None:
        """Write the node's heartbeats, if it is time to."""
        moment = time.monotonic()
        if (moment < self._heartbeat_at + self._heartbeat and not now) or not self.acting:
            return
        signs = [self._node.board.read(place) for place in range(len(self._node.members))]
        beats = [
            {
                "rank": sign.rank, "host": self._node.hosts.get(sign.rank, ""), "pid": sign.pid,
                "iteration": sign.iteration, "doing": sign.doing, "time": round(sign.time, 3),
                "since": round(sign.since, 3), "memory_bytes": sign.memory_bytes,
            }
            for sign in signs if sign is not None and sign.beaten
        ]  # fmt: skip
        if not beats:
            return
        self._heartbeat_at = moment
        path = heartbeat_path(self._run, self._node.members)
        # Not flushed to disk, since only the newest one is of use. By rank: two may act for a moment.
        temporary = path.with_name(f".{path.name}.{self._node.members[self._place]}")
        temporary.write_text(json.dumps({"ranks": beats}))
        os.replace(temporary, path)


def wrote(run: RunDir, rank: int) -> bool:
    """Return whether a rank has written its stacks."""
    try:
        return stack_path(run, rank).stat().st_size > 0
    except FileNotFoundError:
        return False


def last_beat(run: RunDir, members: tuple[int, ...], rank: int) -> dict[str, Any]:
    """Return the last heartbeat of a rank; empty where there is none."""
    try:
        beats = json.loads(heartbeat_path(run, members).read_text())["ranks"]
    except (OSError, ValueError, KeyError):
        return {}
    return next((beat for beat in beats if beat.get("rank") == rank), {})
