"""Where nodes meet before a run: a key-value store that rank 0 opens, and patience that ends.

What N nodes exchange costs N messages a step, not N x N: each node adds its value to one list and counts itself; the
last one to come tells rank 0, which reads the list once and gives one answer, the same small one for all. Whoever
waits for it sends one message and is woken. Rank 0 alone looks again and again: it has the store at hand, and torch
would print a page of C++ frames where its patience ends.
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
_NODES_A_SECOND = 100  # slower than a busy rank 0 serves them
_PORTS_APART = 10000
_POLL_SECONDS = 0.1

T = TypeVar("T")


def soon(nodes: int) -> float:
    """Return the seconds within which so many nodes say something that they have ready."""
    return _FAREWELL_SECONDS + nodes / _NODES_A_SECOND


class Meeting:
    """Where the nodes tell each other what they found.

    Args:
        place: this node's process among those of all nodes.
        deadline: by `time.monotonic`, until which rank 0 may take to open the store.
        store: where they meet; absent: one that rank 0 opens at its address.

    Attributes:
        present: on rank 0, the ranks that took part in the last exchange; elsewhere this one.
        error: why the store cannot be reached; empty where it can.
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
        """Return a connection of its own to the store; on rank 0 the first one opens it."""
        if self.place.world_size == 1:
            return dist.HashStore()
        opens = self.place.rank == 0 and self._store is None
        where = (self.place.address, self.port, self.place.world_size)
        if not opens:
            _await_listener(where[:2], time.monotonic() + timeout)
        limit = timedelta(seconds=timeout)
        return within(timeout + 1.0, lambda: dist.TCPStore(*where, opens, limit, wait_for_workers=False))

    @property
    def is_open(self) -> bool:
        """Whether this node can reach the store."""
        return self._store is not None

    def exchange(
        self, topic: str, value: Any, seconds: float, answer: Callable[[dict[int, Any]], T], late: float = 0.0
    ) -> T | None:
        """Return on every node what rank 0 makes of all nodes' values.

        Args:
            topic: of this exchange; never used twice.
            value: this node's, JSON.
            seconds: that rank 0 waits for the nodes.
            answer: on rank 0, makes the answer of the values by rank, of those nodes that came; JSON, and small.
            late: seconds that rank 0 may begin later than this node.

        Returns:
            The answer; None where rank 0 cannot be reached, or gave none in time.
        """
        if not self.is_open:
            return None
        patience = seconds + late + 2 * soon(self.place.world_size)
        try:
            return within(patience, lambda: self._exchange(topic, value, seconds, patience, answer))
        except (RuntimeError, TimeoutError) as error:
            self._fail(error)
            return None

    def _exchange(
        self, topic: str, value: Any, seconds: float, patience: float, answer: Callable[[dict[int, Any]], T]
    ) -> T:
        self._store.append(f"{topic}/values", json.dumps([self.place.rank, value]) + "\n")
        if self._store.add(f"{topic}/count", 1) == self.place.world_size:
            self._store.set(f"{topic}/full", "")
        if self.place.rank:
            self._await(f"{topic}/answer", patience)
            told: T = json.loads(self._store.get(f"{topic}/answer"))
            return told
        with suppress(RuntimeError):  # not all came
            self._await(f"{topic}/full", seconds)
        lines = self._store.get(f"{topic}/values").decode().splitlines()
        values = dict(map(json.loads, lines))
        self.present = sorted(values)
        result = answer(values)
        self._store.set(f"{topic}/answer", json.dumps(result))
        return result

    def part(self) -> None:
        """Leave: rank 0 first, when it has spoken, and it keeps the store until the others have heard of that."""
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
        """Sleep until a key is there; for all but rank 0 one message, however long it takes.

        Raises:
            RuntimeError: it is not there in time, or rank 0 is gone.
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
    """Wait until rank 0 listens; torch's store would wait as well, but say why not in a page of C++ frames.

    Raises:
        OSError: it does not until the deadline; the last reason.
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
    """Return what some work returns, or go on without it: the thread it is done in is left behind.

    Raises:
        TimeoutError: it did not end in time.
    """
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
    """Return a port for the preflight, far from that of the run, which follows at once."""
    return port - _PORTS_APART if port >= _PORTS_APART + 2000 else port + _PORTS_APART
