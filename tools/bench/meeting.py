"""Count the messages of the preflight's meeting: python tools/bench/meeting.py [NODES ...]

Every node is a thread that holds the real meeting, on one store in this process. Counted are calls of the store and the
bytes that they carry; what rank 0 asks of its own store while it waits depends on time, and is left out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megacode.mcore.rendezvous import Rendezvous
from megacode.preflight.meeting import Meeting

_REPORT = {"node": "node0000", "ok": True, "problems": [], "measured": {"gpu_flops": [700 * 10**12] * 8}}
# With the usual 8 MiB each, 4,096 threads would reserve 32 GiB of addresses.
_STACK_BYTES = 256 * 1024


class LocalStore:
    """What the meeting asks of a TCPStore, in this process; torch's HashStore would wake every waiter each time."""

    def __init__(self) -> None:
        self._lock, self._values = threading.Lock(), defaultdict[str, bytes](bytes)
        self._there = defaultdict[str, threading.Event](threading.Event)

    def append(self, key: str, value: str) -> None:
        """Add to a value."""
        with self._lock:
            self._values[key] += value.encode()

    def add(self, key: str, amount: int) -> int:
        """Count, and return the count."""
        with self._lock:
            self._values[key] = str(int(self._values[key] or b"0") + amount).encode()
            return int(self._values[key])

    def set(self, key: str, value: str) -> None:
        """Set a value, and wake those that wait for it."""
        with self._lock:
            self._values[key] = value.encode()
            self._there[key].set()

    def get(self, key: str) -> bytes:
        """Return a value."""
        with self._lock:
            return self._values[key]

    def check(self, keys: list[str]) -> bool:
        """Return whether values were set."""
        with self._lock:
            return all(self._there[key].is_set() for key in keys)

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Sleep until a value is set."""
        with self._lock:
            event = self._there[keys[0]]
        if not event.wait(timeout.total_seconds()):
            raise RuntimeError(f"no {keys[0]}")


class CountingStore:
    """A store that counts what one node asks of it.

    Args:
        store: where the nodes meet.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store, self.messages, self.bytes = store, 0, 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)

        def counted(*arguments: Any) -> Any:
            result = call(*arguments)
            # How often a rank polls depends on time, and not on the protocol.
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
    shared = LocalStore()
    stores = [CountingStore(shared) for _ in range(nodes)]
    failed: list[int] = []

    def hold(rank: int) -> None:
        meeting = Meeting(Rendezvous(rank, nodes, 0, "localhost", 20000), 0.0, stores[rank])
        # The five exchanges of a preflight, in its order.
        for topic, value in (("report", _REPORT), ("now", True), ("clock", 1.5), ("all-reduce", ""), ("last", _REPORT)):
            if meeting.exchange(topic, value, 600.0, lambda answers: {"nodes": len(answers)}) != {"nodes": nodes}:
                failed.append(rank)
        meeting.part()

    # For all threads that start from now on, so this belongs to a program of its own.
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
        # Threads that share this machine: no network is in it, so the messages are the result.
        "seconds": round(seconds, 3),
    }  # fmt: skip


def main() -> None:
    """Print one line for each number of nodes."""
    for nodes in [int(word) for word in sys.argv[1:]] or [4, 64, 512, 4096]:
        sys.stdout.write(json.dumps(count(nodes)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
