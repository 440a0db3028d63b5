"""What a start's checks, a quiet hour, a hang and the preflight's meeting cost a number of ranks; see ranks.py `watch`.

*before* is the rule of the code until c22156b: each rank checked each source, looked for a request and wrote a
heartbeat, all ranks looked at all stacks twice a second, and each node read each other node's value in each exchange.
What is so now comes from the modules themselves: their constants, and a meeting that is really held.
"""

from __future__ import annotations

from typing import Any

from meeting import count

from megacode.data import block_hashes, source_stream
from megacode.train.watchdog import Pace

# uint16, as for all vocabularies below 65,500. Larger ones take 4 bytes.
_TOKEN_BYTES = 2
_EXCHANGES = 5  # of a meeting: report, time, clock, all-reduce, last


def checked_bytes() -> int:
    """Return the bytes that checking one source reads: sampled blocks of two files, and of the tokens."""
    blocks = 2 * block_hashes._SAMPLED * block_hashes._SAMPLE_BYTES
    return blocks + source_stream._CHECKED_BLOCKS * source_stream._CHECKED_TOKENS * _TOKEN_BYTES


def row(ranks: int, ranks_a_node: int, sources: int) -> dict[str, Any]:
    """Return the costs of so many ranks, before and now."""
    nodes, pace = ranks // ranks_a_node, Pace()
    checked = sources * checked_bytes() / 1e9
    # Squares of the ranks hurt most: 33.6 million stats a second at 4,096, and 2.6 million messages.
    return {
        "ranks": ranks,
        "nodes": nodes,
        "sources, GB before": round(ranks * checked, 1),
        "sources, GB": round(nodes * checked, 1),
        "looks/s before": round(ranks / pace.look),
        "looks/s": round(nodes / pace.poll, 1),
        "writes/s before": round(ranks / pace.heartbeat, 1),
        "writes/s": round(nodes / pace.heartbeat, 1),
        "hang, stats/s before": round(ranks * ranks / (pace.look / 2)),
        "hang, listings/s": round(1 / pace.look, 1),
        "meeting before": _EXCHANGES * nodes * (2 * nodes + 1),
        "meeting": count(nodes)["messages"],
    }
