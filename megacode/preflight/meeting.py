"""Exchange between nodes before a run: a key-value store on rank 0, and timeouts on everything.

An exchange of N nodes costs N messages, not N x N. Each node appends its value to one list and increments a counter.
The last one sets a key that rank 0 waits for. Rank 0 reads the list once and sets one small answer, the same for all.
The other nodes wait for it in the store, which costs one message each. Only rank 0 polls: it holds the store itself,
and torch prints a page of C++ frames when a wait times out.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from megacode.base.units import format_seconds
from megacode.mcore.rendezvous import Rendezvous

_FAREWELL_SECONDS = 5.0  # for what takes no time unless something is wrong
_NODES_A_SECOND = 100  # a pessimistic rate at which rank 0 serves nodes
_PORTS_APART = 10000  # between the run's port and the preflight's
_POLL_SECONDS = 0.1

T = TypeVar("T")


def soon(nodes: int) -> float:
    """Return a timeout in seconds for an exchange for which all nodes have their values ready."""
    return _FAREWELL_SECONDS + nodes / _NODES_A_SECOND


class Meeting:
    """A node's connection to the store through which all nodes exchange values.

    Args:
        place: this node's process among those of all nodes.
        deadline: in `time.monotonic`; until then rank 0 may open the store.
        store: the store to use; None: one that rank 0 opens at its address.

    Attributes:
        present: on rank 0, the ranks that took part in the last exchange; elsewhere this rank alone.
        error: why the store cannot be reached; empty if it can.
    """

    def __init__(self, place: Rendezvous, deadline: float, store: Any = None) -> None:
        self.place, self.error = place, ""
        self.port = port_beside(place.port)
        self._store: Any = store
        try:
            self._store = store or self.connect(max(1.0, deadline - time.monotonic()))
        except (RuntimeError, OSError) as error:
            self._fail(error)
        self.present = [place.rank]

    def connect(self, timeout: float) -> Any:
        """Return a new connection to the store; the first one on rank 0 opens the store."""
        if self.place.world_size == 1:
            return dist.HashStore()  # in memory: a single node needs no port
        opens = self.place.rank == 0 and self._store is None
        where = (self.place.address, self.port, self.place.world_size)
        if not opens:
            _await_listener(where[:2], time.monotonic() + timeout)
        limit = timedelta(seconds=timeout)
        # A thread as well: resolving a host name may block for longer than torch's own timeout.
        return within(timeout + 1.0, lambda: dist.TCPStore(*where, opens, limit, wait_for_workers=False))

    @property
    def is_open(self) -> bool:
        """Whether this node can reach the store."""
        return self._store is not None

    def exchange(
        self, topic: str, value: Any, seconds: float, answer: Callable[[dict[int, Any]], T], late: float = 0.0
    ) -> T | None:
        """Return on every node what rank 0 computes from all nodes' values.

        Args:
            topic: name of this exchange; never used twice.
            value: this node's, JSON.
            seconds: time that rank 0 waits for the nodes.
            answer: on rank 0, computes the answer from the values by rank of those nodes that sent one; small JSON.
            late: seconds by which rank 0 may start later than this node.

        Returns:
            The answer; None if rank 0 cannot be reached or did not answer in time.
        """
        if not self.is_open:
            return None
        # A node waits for longer than rank 0 does, or it would give up just before the answer.
        patience = seconds + late + 2 * soon(self.place.world_size)
        try:
            return within(patience, lambda: self._exchange(topic, value, seconds, patience, answer))
        except (RuntimeError, TimeoutError) as error:
            self._fail(error)
            return None

    def _exchange(
        self, topic: str, value: Any, seconds: float, patience: float, answer: Callable[[dict[int, Any]], T]
    ) -> T:
        # `append` and `add` are atomic in the store. Values come before the count, so a full count means all values.
        self._store.append(f"{topic}/values", json.dumps([self.place.rank, value]) + "\n")
        if self._store.add(f"{topic}/count", 1) == self.place.world_size:
            self._store.set(f"{topic}/full", "")
        if self.place.rank:
            self._await(f"{topic}/answer", patience)
            received: T = json.loads(self._store.get(f"{topic}/answer"))
            return received
        with suppress(RuntimeError):  # some nodes are missing: continue without them
            self._await(f"{topic}/full", seconds)
        lines = self._store.get(f"{topic}/values").decode().splitlines()
        values = dict(map(json.loads, lines))
        self.present = sorted(values)
        result = answer(values)
        self._store.set(f"{topic}/answer", json.dumps(result))
        return result

    def part(self) -> None:
        """Disconnect: rank 0 announces its end, but keeps the store open until the other nodes have seen that."""
        if self.is_open and self.place.world_size > 1:
            with suppress(RuntimeError, TimeoutError):
                within(soon(self.place.world_size), self._part)

    def _part(self) -> None:
        patience = soon(self.place.world_size)
        if self.place.rank == 0:
            others = len(self.present) - 1
            self._store.set("spoken", str(others))
            if others:
                self._await("left", patience)
            return
        self._await("spoken", patience)
        if self._store.add("leaving", 1) == int(self._store.get("spoken")):
            self._store.set("left", "")

    def _await(self, key: str, seconds: float) -> None:
        """Wait until a key exists; on all ranks but rank 0 that costs one message, however long it takes.

        Raises:
            RuntimeError: it does not exist in time, or rank 0 is gone.
        """
        if self.place.rank:
            self._store.wait([key], timedelta(seconds=max(0.001, seconds)))
            return
        deadline = time.monotonic() + seconds
        while not self._store.check([key]):
            if time.monotonic() > deadline:
                raise RuntimeError(f"not all nodes answered within {format_seconds(seconds)}")
            time.sleep(_POLL_SECONDS / 2)

    def _fail(self, error: Exception) -> None:
        self._store, self.error = None, str(error).strip().partition("\n")[0]


def _await_listener(where: tuple[str, int], deadline: float) -> None:
    """Wait until rank 0 listens; torch's store would wait too, but reports a timeout with a page of C++ frames.

    Raises:
        OSError: it does not listen by the deadline; the error of the last attempt.
    """
    while True:
        try:
            socket.create_connection(where, timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Run some work in a thread and return its result; after a timeout the thread is abandoned.

    Raises:
        TimeoutError: it did not end in time.
    """
    # Python cannot stop a thread that is blocked in C. A daemon thread at least does not delay the process's exit.
    box: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            box.append((work(), None))
        except BaseException as error:
            box.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if not box:
        raise TimeoutError(f"no answer within {format_seconds(max(0.0, seconds))}")
    value, error = box[0]
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def port_beside(port: int) -> int:
    """Return a port for the preflight, other than the run's: the run starts at once, while this one is still in use."""
    return port - _PORTS_APART if port >= _PORTS_APART + 2000 else port + _PORTS_APART
