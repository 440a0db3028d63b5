"""Where nodes meet before a run: a key-value store that rank 0 opens, and patience that ends."""

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

FAREWELL_SECONDS = 5.0  # for what takes no time unless something is wrong
_PORTS_APART = 10000
_POLL_SECONDS = 0.05

T = TypeVar("T")


class Meeting:
    """Where the nodes tell each other what they found.

    Args:
        place: this node's process among those of all nodes.
        deadline: by `time.monotonic`, until which rank 0 may take to open the store.

    Attributes:
        present: the ranks that took part in the last exchange.
        error: why the store cannot be reached; empty where it can.
    """

    def __init__(self, place: Rendezvous, deadline: float) -> None:
        self.place, self.error = place, ""
        self.port = port_beside(place.port)
        self._store: Any = None
        try:
            self._store = self.connect(max(1.0, deadline - time.monotonic()))
        except (RuntimeError, OSError) as error:
            self.error = str(error).strip().partition("\n")[0]
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

    def exchange(self, topic: str, value: Any, deadline: float) -> dict[int, Any]:
        """Return by rank what each node passes in, of those that did so before the deadline."""
        mine = {self.place.rank: value}
        if not self.is_open:
            return mine
        try:
            found = within(deadline - time.monotonic() + 2.0, lambda: self._exchange(topic, value, deadline))
        except (RuntimeError, TimeoutError) as error:
            self._store, self.error = None, str(error).strip().partition("\n")[0]
            return mine
        self.present = sorted(found)
        return found

    def _exchange(self, topic: str, value: Any, deadline: float) -> dict[int, Any]:
        self._store.set(f"{topic}/{self.place.rank}", json.dumps(value))
        ranks = range(self.place.world_size)
        while not self._store.check([f"{topic}/{rank}" for rank in ranks]) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        there = [rank for rank in ranks if self._store.check([f"{topic}/{rank}"])]
        return {rank: json.loads(self._store.get(f"{topic}/{rank}")) for rank in there}

    def part(self) -> None:
        """Leave: rank 0 first, when it has spoken, and it keeps the store until the others have heard of that."""
        if self.is_open and self.place.world_size > 1:
            with suppress(RuntimeError, TimeoutError):
                within(FAREWELL_SECONDS, self._part)

    def _part(self) -> None:
        if self.place.rank == 0:
            self._store.set("spoken", "")
            others = [f"left/{rank}" for rank in self.present if rank]
            while others and not self._store.check(others):
                time.sleep(_POLL_SECONDS)
            return
        while not self._store.check(["spoken"]):
            time.sleep(_POLL_SECONDS)
        self._store.set(f"left/{self.place.rank}", "")


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
            time.sleep(2 * _POLL_SECONDS)


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
