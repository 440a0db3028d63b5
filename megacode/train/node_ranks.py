"""Which ranks share a node, so that one of them speaks for all to the file system."""

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

_SLOTS = 64  # the most ranks that share a board; those beyond speak for themselves


@dataclass(frozen=True)
class Node:
    """The node of a rank.

    Attributes:
        members: its ranks, in order; the first that lives speaks for all.
        board: their signs, by place among the members.
        nodes: the members of every node of the run.
        hosts: name of the machine of each rank.
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
    """Find out, together with all ranks, who shares this node, and open its board.

    Ranks share a node where they have opened the same file in the same memory: so two containers on one machine that
    see different ones are two nodes, and a rank that can open none is a node of its own.

    Args:
        rank, ranks: this one, of how many.
        broadcast: returns on all ranks what rank 0 passes in.
        gather: returns on all ranks what each passes in, by rank.
    """
    token = broadcast(uuid.uuid4().hex if rank == 0 else None)
    mine = node_name()
    path = board_path(token, mine)
    board, identity = _open(path)
    # Also a barrier: after it nobody needs the file's name.
    told = gather((mine, identity, platform.node()))
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return arrange(rank, ranks, [(*entry,) for entry in told], board)


def arrange(rank: int, ranks: int, told: list[tuple[str, tuple[int, int] | None, str]], board: Board | None) -> Node:
    """Return this rank's node.

    Args:
        rank, ranks: this one, of how many.
        told: of each rank the node's name, what tells its board from others (None: it has none), and its machine.
        board: this rank's; None where it could not be opened.
    """
    found: dict[object, list[int]] = {}
    for other, (node, identity, _) in enumerate(told):
        key: object = (node, tuple(identity)) if identity is not None else other
        if len(found.setdefault(key, [])) < _SLOTS:
            found[key].append(other)
        else:
            found[other] = [other]
    nodes = tuple(sorted(tuple(ranks_there) for ranks_there in found.values()))
    members = next(ranks_there for ranks_there in nodes if rank in ranks_there)
    hosts = {other: host for other, (_, _, host) in enumerate(told)}
    return Node(members, board if board is not None and len(members) > 1 else Board(1), nodes, hosts)


def _open(path: Path) -> tuple[Board | None, tuple[int, int] | None]:
    try:
        board = Board(_SLOTS, path)
    except (OSError, ValueError):  # no memory to share, or a full one: this rank speaks for itself
        return None, None
    return board, board.identity
