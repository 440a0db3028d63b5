"""File accesses that one rank of a node makes for all of them: heartbeats, and requests for stacks.

The first live rank of the node makes them. If it falls silent, the next one takes over. Should two do it for a moment,
they write the same. So a run of N nodes writes N heartbeat files and makes N lookups, however many ranks it has.
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
_SILENT_LOOKS = 10  # missed heartbeats after which the next rank takes over


def stack_path(run: RunDir, rank: int) -> Path:
    """Return the file of a rank's stacks."""
    return run.stacks / f"rank_{rank:05d}.txt"


def heartbeat_path(run: RunDir, members: tuple[int, ...]) -> Path:
    """Return the file of a node's heartbeats; nodes are named by their first rank."""
    return run.heartbeats / f"node_{members[0]:05d}.json"


def answer_path(run: RunDir, members: tuple[int, ...]) -> Path:
    """Return the file that marks that all ranks of a node have written their stacks."""
    return run.stacks / f"node_{members[0]:05d}.json"


class NodeDuty:
    """A node's file accesses; every rank has one, and the acting rank's does the work.

    Args:
        run: the run directory.
        node: of the rank.
        rank: this one.
        look: seconds between heartbeats on the board.
        poll: seconds between lookups of a request.
        heartbeat: seconds between writes of the heartbeat file.
    """

    def __init__(self, run: RunDir, node: Node, rank: int, look: float, poll: float, heartbeat: float) -> None:
        self._run, self._node, self._place = run, node, node.members.index(rank)
        self._silence, self._poll, self._heartbeat = _SILENT_LOOKS * look, poll, heartbeat
        self._began = time.monotonic()
        self._poll_at = self._heartbeat_at = float("-inf")
        self._reported = False

    @property
    def acting(self) -> bool:
        """Whether this rank acts for its node: no rank before it is alive."""
        return not any(self._is_live(place) for place in range(self._place))

    def _is_live(self, place: int) -> bool:
        sign = self._node.board.read(place)
        # A rank that has not written yet counts as live for a while: it may still be starting.
        return time.monotonic() - (self._began if sign is None else sign.begun) < self._silence

    def pass_on_requests(self) -> None:
        """Check whether stacks are requested, or complete, and tell the node's ranks."""
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
        """After a request: mark when all ranks of the node have written their stacks."""
        if self._reported or not self._node.board.asked or not self.acting:
            return
        if all(self._wrote(place) for place in range(len(self._node.members))):
            self._reported = True
            answer_path(self._run, self._node.members).write_text("{}\n")

    def _wrote(self, place: int) -> bool:
        sign = self._node.board.read(place)
        if sign is not None and sign.answered:
            return True
        # A rank that is stuck in C code cannot set its flag, but faulthandler's timer writes its stacks all the same.
        return wrote(self._run, self._node.members[place])

    def beat_out(self, *, now: bool = False) -> None:
        """Write the node's heartbeat file, if it is due."""
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
        # Not flushed to disk, since only the newest one is of use. Named by rank, since two may act for a moment.
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
    """Return the last heartbeat of a rank; empty if there is none."""
    try:
        beats = json.loads(heartbeat_path(run, members).read_text())["ranks"]
    except (OSError, ValueError, KeyError):
        return {}
    return next((beat for beat in beats if beat.get("rank") == rank), {})
