"""Count the messages of the preflight's meeting: python tools/bench/meeting.py [NODES ...]

Every node is a thread that holds the real meeting, on one store in this process. Counted are calls of the store and the
bytes that they carry; what rank 0 asks of its own store while it waits depends on time, and is left out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch.distributed as dist

from megacode.mcore.rendezvous import Rendezvous
from megacode.train.preflight_meeting import Meeting

_REPORT = {"node": "node0000", "ok": True, "problems": [], "measured": {"gpu_flops": [700 * 10**12] * 8}}
_STACK_BYTES = 256 * 1024


class CountingStore:
    """A store that counts what one node asks of it.

    Args:
        store: where the nodes meet.
    """

    def __init__(self, store: Any) -> None:
        self._store, self.messages, self.bytes = store, 0, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def counted(*arguments: Any) -> Any:
            result = call(*arguments)
            if name != "check":
                self.messages += 1
                self.bytes += sum(len(part) for part in (*arguments, result) if isinstance(part, (str, bytes)))
            return result

        return counted


def count(nodes: int) -> dict[str, float]:
    """Hold a whole meeting of so many nodes and count.

    Returns:
        `messages` and `bytes` of all nodes, the messages of rank 0 (`messages_first`), the most of any other
        (`messages_other`), and the `seconds` it took on this machine.
    """
    shared = dist.HashStore()
    stores = [CountingStore(shared) for _ in range(nodes)]
    failed: list[int] = []

    def hold(rank: int) -> None:
        meeting = Meeting(Rendezvous(rank, nodes, 0, "localhost", 20000), 0.0, stores[rank])
        for topic, value in (("report", _REPORT), ("now", True), ("clock", 1.5), ("all-reduce", ""), ("last", _REPORT)):
            if meeting.exchange(topic, value, 600.0, lambda said: {"nodes": len(said)}) != {"nodes": nodes}:
                failed.append(rank)
        meeting.part()

    threading.stack_size(_STACK_BYTES)
    threads = [threading.Thread(target=hold, args=(rank,)) for rank in range(nodes)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    assert not failed, f"{len(failed)} nodes did not hear of all"
    messages = [store.messages for store in stores]
    return {
        "nodes": nodes, "messages": sum(messages), "messages_first": messages[0],
        "messages_other": max(messages[1:], default=0), "bytes": sum(store.bytes for store in stores),
        "seconds": round(seconds, 3),
    }  # fmt: skip


def main() -> None:
    """Print one line for each number of nodes."""
    for nodes in [int(word) for word in sys.argv[1:]] or [4, 64, 256, 512]:
        sys.stdout.write(json.dumps(count(nodes)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
