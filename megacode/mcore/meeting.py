"""Wait for all ranks at a start, before there are groups, while reacting to signals and reporting missing ranks.

torch's own wait blocks in C++ until the hang timeout. Python's signal handlers do not run meanwhile, and a rank that
reaches another program's port waits just as long. So all ranks first meet in torch's store, which they poll. One key
holds the verdict: all ranks are present, or one was asked to stop. Whichever is written first holds for every rank.
The groups are then made with the same store, and find all ranks present.
"""

from __future__ import annotations

import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

from megacode.base.errors import EXIT_FAILURE, LaunchError, StoppedError
from megacode.base.units import format_seconds
from megacode.mcore.rendezvous import Rendezvous, from_agent, refuse_busy_port

log = logging.getLogger(__name__)

_PAUSES = (0.02, 1.0)  # seconds between polls: doubled from first to last, which spares rank 0's store on 4,096 ranks
_ANSWER_SECONDS = 20.0  # rank 0's store answers within this time, even to 4,096 ranks; else it is another program
_TELL_SECONDS = 60.0  # after this time a rank logs whom it waits for
_LINGER_SECONDS = 10.0  # how long a rank that is asked to stop stays, so that the others learn of it
_RANKS, _ALL, _STOPPED = "megacode/ranks", "all", "stopped by "
_joins = itertools.count()  # torchrun's store outlives a join; a process that joins again must not find old keys

Asked = Callable[[], str | None]


class MissingRanksError(LaunchError):
    """Other ranks did not start, or have exited; not a mistake in the input (exit code 1)."""

    exit_code = EXIT_FAILURE


def nobody_asks() -> str | None:
    """Return None: no signal has asked this process to stop."""
    return None


def meet(place: Rendezvous, patience: float, asked: Asked = nobody_asks) -> dist.Store:
    """Wait until all ranks of a run have joined, and return their common store, for `init_process_group`.

    Args:
        place: this process's rendezvous, with an address.
        patience: seconds to wait for the others.
        asked: returns the name of the signal that has asked this process to stop, or None.

    Raises:
        StoppedError: on every rank, if one was asked to stop before all had joined.
        LaunchError: another program uses rank 0's port, or two processes have the same rank.
        MissingRanksError: ranks are missing after `patience` seconds, or rank 0 has exited.
    """
    refuse_busy_port(os.environ)
    deadline = time.monotonic() + patience
    try:
        tcp = _open(place, deadline, asked)
        store = dist.PrefixStore(f"megacode/{next(_joins)}", tcp)
        _arrive(store, place, deadline, asked)
    except dist.DistNetworkError as error:
        # A signal usually reaches all ranks. Rank 0, which holds the store, may have stopped a moment earlier.
        if signal := asked():
            raise StoppedError(signal) from None
        message = f"rank 0 at {_where(place)} exited while ranks were joining"
        raise MissingRanksError(
            message, f"rank {place.rank}", "read rank 0's error message, then start again"
        ) from error
    # The short timeout was for joining; the groups use this store for the whole run.
    tcp.set_timeout(timedelta(seconds=patience))
    return store


def _where(place: Rendezvous) -> str:
    return f"{place.address}:{place.port}"


def _open(place: Rendezvous, deadline: float, asked: Asked) -> dist.TCPStore:
    """Return rank 0's store: rank 0 opens it, the others connect; under torchrun the agent has opened it."""
    if from_agent(os.environ):
        return _connected(place, deadline, asked)
    if place.rank != 0:
        store = _connected(place, deadline, asked)
        _check_run(store, place)
        return store
    try:
        store = dist.TCPStore(
            place.address, place.port, place.world_size, is_master=True, wait_for_workers=False, multi_tenant=True,
            timeout=timedelta(seconds=_ANSWER_SECONDS),
        )  # fmt: skip
    except dist.DistError as error:
        fix = "set MASTER_ADDR to an address of the node of rank 0, and MASTER_PORT to a port that is free there"
        message = f"rank 0 cannot open its store at this address: {str(error).splitlines()[0]}"
        raise LaunchError(message, _where(place), fix) from None
    # What tells this store from another program's, and from that of a run of another size.
    store.set(_RANKS, str(place.world_size))
    return store


def _connected(place: Rendezvous, deadline: float, asked: Asked) -> dist.TCPStore:
    """Return a connection to rank 0's store, as soon as it listens."""
    # Lists, since the functions below change them: the latest refusal, and when to give up.
    refusal, until = [""], [deadline]

    def give_up() -> str | None:
        """Return the signal, but not before rank 0 has had a moment to start, so that it can be told."""
        signal, now = asked(), time.monotonic()
        if signal is not None:
            until.append(min(until[-1], now + _LINGER_SECONDS))
        return signal if now > until[-1] else None

    for _ in _waiting(place, deadline, give_up, lambda: f"rank 0 at {_where(place)} ({refusal[-1]})"):
        # A plain connection first: unlike torch's client it fails at once where nothing listens.
        try:
            socket.create_connection((place.address, place.port), timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            refusal[:] = [error.strerror or str(error)]
        else:
            return _answer(place, asked)
    raise AssertionError("`_waiting` ends by raising")


def _answer(place: Rendezvous, asked: Asked) -> dist.TCPStore:
    """Return a connection to whatever listens at rank 0's address, if it answers like a store.

    In a thread, since torch waits forever for the first answer. If another program listens, the thread is abandoned.
    """
    results: list[dist.TCPStore | Exception] = []

    def connect() -> None:
        timeout = timedelta(seconds=_ANSWER_SECONDS)
        try:
            results.append(
                dist.TCPStore(
                    place.address,
                    place.port,
                    place.world_size,
                    is_master=False,
                    wait_for_workers=False,
                    timeout=timeout,
                )
            )
        except dist.DistError as error:
            results.append(error)

    thread = threading.Thread(target=connect, name="meeting", daemon=True)
    thread.start()
    end = time.monotonic() + _ANSWER_SECONDS
    # Short joins instead of one long one: Python runs signal handlers in between.
    while thread.is_alive() and time.monotonic() < end:
        thread.join(_PAUSES[0])
    if results and isinstance(results[0], dist.TCPStore):
        return results[0]
    if signal := asked():
        raise StoppedError(signal)
    raise _another(place, "it does not answer like rank 0")


def _check_run(store: dist.TCPStore, place: Rendezvous) -> None:
    """Reject the store of another program, or of a run with another number of ranks."""
    try:
        ranks = store.get(_RANKS).decode()
    except dist.DistStoreError:  # a timeout: nobody sets the key
        raise _another(place, "its store is not megacode's") from None
    if ranks != str(place.world_size):
        raise _another(place, f"the run there has {ranks} ranks, and this is rank {place.rank} of {place.world_size}")


def _another(place: Rendezvous, why: str) -> LaunchError:
    message = f"another program listens at {_where(place)}, where rank 0 should be: {why}"
    return LaunchError(message, "MASTER_PORT", "set another port on all ranks, or end the other program")


def _arrive(store: dist.Store, place: Rendezvous, deadline: float, asked: Asked) -> None:
    """Announce this rank, then wait until all ranks are present or one was asked to stop."""
    # `add` is atomic in the store, so exactly one rank sees each count.
    if store.add(f"rank/{place.rank}", 1) > 1:
        message = f"two processes are rank {place.rank} at {_where(place)}"
        raise LaunchError(message, "RANK", "give each process its own RANK, and each run its own MASTER_PORT")
    if store.add("here", 1) == place.world_size:
        # Written only if absent: a stop that came first stays the verdict.
        store.compare_set("verdict", "", _ALL)

    def leave() -> str | None:
        if signal := asked():
            store.compare_set("verdict", "", _STOPPED + signal)
        return None

    # `leave` writes the stop and returns None, so this rank too obeys the verdict and not its own signal.
    for _ in _waiting(place, deadline, leave, lambda: _missing(store, place)):
        if store.check(["verdict"]):
            break
    verdict = store.get("verdict").decode()
    if verdict != _ALL:
        _let_others_hear(store, place)
        raise StoppedError(verdict.removeprefix(_STOPPED))


def _let_others_hear(store: dist.Store, place: Rendezvous) -> None:
    """Keep rank 0, and so the store, alive until all ranks that have joined know the verdict."""
    heard, until = store.add("heard", 1), time.monotonic() + _LINGER_SECONDS
    while place.rank == 0 and heard < store.add("here", 0) and time.monotonic() < until:
        time.sleep(_PAUSES[0])
        heard = store.add("heard", 0)


def _missing(store: dist.Store, place: Rendezvous) -> str:
    # One question per rank, 4,096 of them: asked only for a log line or an error.
    missing = [rank for rank in range(place.world_size) if not store.check([f"rank/{rank}"])]
    named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"{len(missing)} of {place.world_size} ranks ({named})"


def _waiting(place: Rendezvous, deadline: float, asked: Asked, for_whom: Callable[[], str]) -> Iterator[None]:
    """Yield whenever it is time to poll again; raise at the deadline, or when asked to stop."""
    began, pause, told = time.monotonic(), _PAUSES[0], False
    while True:
        yield
        if signal := asked():
            raise StoppedError(signal)
        now = time.monotonic()
        waited = format_seconds(now - began)
        if now > deadline:
            fix = "check the missing ranks' logs, MASTER_ADDR, MASTER_PORT, and firewalls between the nodes"
            raise MissingRanksError(f"gave up after waiting {waited} for {for_whom()}", f"rank {place.rank}", fix)
        # One line per node, not one per rank.
        if not told and now - began > _TELL_SECONDS and place.local_rank == 0:
            told = True
            log.warning("waiting for %s, %s so far", for_whom(), waited)
        time.sleep(pause)
        pause = min(2 * pause, _PAUSES[1])
