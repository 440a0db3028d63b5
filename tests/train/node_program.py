"""Ranks that find out who shares their node: real gloo ranks, two of which act as one machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megacode.mcore import groups
from megacode.train import heartbeat_board, node_ranks
from megacode.train.heartbeat_board import Sign


def meet(per_node: int, blind: int) -> dict[str, Any]:
    """Return what a rank finds; one rank is not able to open a board."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["MEGACODE_NODE"] = f"n{rank // per_node}"
    dist.init_process_group("gloo")
    opened: list[Path] = []
    where = heartbeat_board.board_path

    def noted(token: str, name: str) -> Path:
        opened.append(Path("/no/such/folder/board") if rank == blind else where(token, name))
        return opened[-1]

    node_ranks.board_path = noted
    found = node_ranks.meet(rank, ranks, groups.broadcast_object, groups.gather_objects)
    sign = Sign(rank, os.getpid(), 2, 3.0, 3.0, 5, 6, time.monotonic(), 1.0, f"I am {rank}", False)
    found.board.write(found.members.index(rank), sign)
    dist.barrier()
    signs = [found.board.read(place) for place in range(len(found.members))]
    dist.barrier()
    return {
        "members": found.members, "nodes": found.nodes, "hosts": len(found.hosts),
        "said": [sign.doing if sign is not None else None for sign in signs], "left": opened[0].exists(),
    }  # fmt: skip
