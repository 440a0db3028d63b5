"""Find out which ranks share a node, so that one of them can access the file system for all."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacode.mcore.nodes import node_name
from megacode.train.heartbeat_board import Board, board_path

_SLOTS = 64  # maximum number of ranks that share a board; further ones act for themselves


@dataclass(frozen=True)
class Node:
    """The node of a rank.

    Attributes:
        members: its ranks, in order; the first live one acts for all.
        board: their heartbeats, by place among the members.
        nodes: the members of every node of the run.
        hosts: machine name of each rank.
    """

    members: tuple[int, ...]
    board: Board
    nodes: tuple[tuple[int, ...], ...]
    hosts: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def alone(rank: int, ranks: int) -> Node:
        """Return a node of one rank, among as many nodes as there are ranks."""
        host = {rank: platform.node()}
        return Node((rank,), Board(1), tuple((other,) for other in range(ranks)), host)


def meet(rank: int, ranks: int, broadcast: Callable[[Any], Any], gather: Callable[[Any], list[Any]]) -> Node:
    """Find out, together with all ranks, which of them share this node, and open its board; collective.

    Ranks share a node if they have opened the same file in the same memory. So two containers on one machine with
    different /dev/shm are two nodes, and a rank that can open no file is a node of its own.

    Args:
        rank, ranks: this rank's number, and how many there are.
        broadcast: returns on all ranks what rank 0 passes in.
        gather: returns on all ranks what each passes in, by rank.
    """
    # A random name: a board that a killed start left behind is never opened again.
    token = broadcast(uuid.uuid4().hex if rank == 0 else None)
    mine = node_name()
    path = board_path(token, mine)
    board, identity = _open(path)
    # The gather is also a barrier: after it every rank has opened the file, and its name is not needed any more.
    entries = gather((mine, identity, platform.node()))
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return arrange(rank, ranks, [(*entry,) for entry in entries], board)


def arrange(rank: int, ranks: int, entries: list[tuple[str, tuple[int, int] | None, str]], board: Board | None) -> Node:
    """Return this rank's node.

    Args:
        rank, ranks: this rank's number, and how many there are.
        entries: for each rank the node's name, the identity of its board's file (None: no board), and its machine.
        board: this rank's; None if it could not be opened.
    """
    groups: dict[object, list[int]] = {}
    for other, (node, identity, _) in enumerate(entries):
        # Inode numbers repeat between machines, so the node's name is a part of the key.
        key: object = (node, tuple(identity)) if identity is not None else other
        if len(groups.setdefault(key, [])) < _SLOTS:
            groups[key].append(other)
        else:
            groups[other] = [other]
    nodes = tuple(sorted(tuple(members) for members in groups.values()))
    members = next(members for members in nodes if rank in members)
    hosts = {other: host for other, (_, _, host) in enumerate(entries)}
    return Node(members, board if board is not None and len(members) > 1 else Board(1), nodes, hosts)


def _open(path: Path) -> tuple[Board | None, tuple[int, int] | None]:
    try:
        board = Board(_SLOTS, path)
    except (OSError, ValueError):  # no shared memory, or it is full: this rank acts for itself
        return None, None
    return board, board.identity
