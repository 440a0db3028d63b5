"""Let all ranks meet at a start, before groups exist: each can handle signals, and learns which ranks are missing.

torch's own rendezvous waits in C++ for as long as a hang may last. No Python signal handler runs meanwhile, and a rank
that reaches another program's port waits just as long. So all ranks first meet in torch's store, by short queries. One
key is set when all have arrived, or when one has received a signal. Whichever comes first holds for every rank. The
groups are then made with the same store, and find all ranks present.
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

_PAUSES = (0.02, 1.0)  # seconds between queries: the first, doubled up to the last; 4,096 ranks then ask each second
_ANSWER_SECONDS = 20.0  # rank 0's store answers within this, even with 4,096 ranks; otherwise it is another program
_TELL_SECONDS = 60.0  # after which a rank logs which ranks it waits for
_LINGER_SECONDS = 10.0  # that a rank stays after a signal, so that the others learn of it
_RANKS, _ALL, _STOPPED = "megacode/ranks", "all", "stopped by "
_joins = itertools.count()  # torchrun's store outlives a join: a second join must not find the keys of the first

Asked = Callable[[], str | None]


class MissingRanksError(LaunchError):
    """Other ranks did not arrive, or have gone; not an error in the input (exit code 1)."""

    exit_code = EXIT_FAILURE


def nobody_asks() -> str | None:
    """Return None: for callers without signal handling."""
    return None


def meet(place: Rendezvous, patience: float, asked: Asked = nobody_asks) -> dist.Store:
    """Wait until all ranks of a run have arrived, and return the store that they met in, for `init_process_group`.

    Args:
        place: this process among them, with an address.
        patience: seconds to wait for the others.
        asked: returns the name of the signal that this process has received, or None.

    Raises:
        StoppedError: on every rank, if one received a signal before all had arrived.
        LaunchError: another program uses rank 0's port, or two processes have the same rank.
        MissingRanksError: ranks are missing at the timeout, or rank 0 has gone.
    """
    refuse_busy_port(os.environ)
    deadline = time.monotonic() + patience
    try:
        tcp = _open(place, deadline, asked)
        store = dist.PrefixStore(f"megacode/{next(_joins)}", tcp)
        _arrive(store, place, deadline, asked)
    except dist.DistNetworkError as error:
        if signal := asked():
            raise StoppedError(signal) from None
        what = f"rank 0 at {_where(place)} has gone while ranks were joining"
        raise MissingRanksError(what, f"rank {place.rank}", "see rank 0's log, then start again") from error
    tcp.set_timeout(timedelta(seconds=patience))
    return store


def _where(place: Rendezvous) -> str:
    return f"{place.address}:{place.port}"


def _open(place: Rendezvous, deadline: float, asked: Asked) -> dist.TCPStore:
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
        raise LaunchError(f"rank 0 cannot listen there: {str(error).splitlines()[0]}", _where(place), fix) from None
    store.set(_RANKS, str(place.world_size))
    return store


def _connected(place: Rendezvous, deadline: float, asked: Asked) -> dist.TCPStore:
    """Return a connection to rank 0's store, once it exists."""
    refusal, until = [""], [deadline]

    def give_up() -> str | None:
        """After a signal, keep trying for a moment: if rank 0 arrives, it must learn of the signal."""
        signal, now = asked(), time.monotonic()
        if signal is not None:
            until.append(min(until[-1], now + _LINGER_SECONDS))
        return signal if now > until[-1] else None

    for _ in _waiting(place, deadline, give_up, lambda: f"rank 0 at {_where(place)} ({refusal[-1]})"):
        try:
            socket.create_connection((place.address, place.port), timeout=_ANSWER_SECONDS).close()
        except OSError as error:
            refusal[:] = [error.strerror or str(error)]
        else:
            return _answer(place, asked)
    raise AssertionError("the waiting ends with an error")


def _answer(place: Rendezvous, asked: Asked) -> dist.TCPStore:
    """Return a connection to whatever listens at rank 0's address, if it answers as a store does.

    In a thread, because torch waits for the first answer without a timeout. If another program listens, the thread is
    abandoned.
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
    while thread.is_alive() and time.monotonic() < end:
        thread.join(_PAUSES[0])
    if results and isinstance(results[0], dist.TCPStore):
        return results[0]
    if signal := asked():
        raise StoppedError(signal)
    raise _another(place, "it does not answer as rank 0 does")


def _check_run(store: dist.TCPStore, place: Rendezvous) -> None:
    """Refuse the store of another program, or of a run of another size, on this run's port."""
    try:
        ranks = store.get(_RANKS).decode()
    except dist.DistStoreError:  # its timeout
        raise _another(place, "the store there is not megacode's") from None
    if ranks != str(place.world_size):
        raise _another(place, f"the run there has {ranks} ranks, but this is rank {place.rank} of {place.world_size}")


def _another(place: Rendezvous, why: str) -> LaunchError:
    what = f"another program listens at {_where(place)} instead of rank 0: {why}"
    return LaunchError(what, "MASTER_PORT", "give all ranks another port, or end the other program")


def _arrive(store: dist.Store, place: Rendezvous, deadline: float, asked: Asked) -> None:
    """Register this rank, and wait until all have arrived or one has received a signal."""
    if store.add(f"rank/{place.rank}", 1) > 1:
        what = f"two processes are rank {place.rank} at {_where(place)}"
        raise LaunchError(what, "RANK", "give each process its own RANK, and each run its own MASTER_PORT")
    if store.add("here", 1) == place.world_size:
        store.compare_set("verdict", "", _ALL)  # atomic: only the first value is kept, here and below

    def leave() -> str | None:
        if signal := asked():
            store.compare_set("verdict", "", _STOPPED + signal)
        return None

    for _ in _waiting(place, deadline, leave, lambda: _missing(store, place)):
        if store.check(["verdict"]):
            break
    verdict = store.get("verdict").decode()
    if verdict != _ALL:
        _let_others_hear(store, place)
        raise StoppedError(verdict.removeprefix(_STOPPED))


def _let_others_hear(store: dist.Store, place: Rendezvous) -> None:
    """Keep rank 0's store open until all ranks that have arrived have read the verdict."""
    heard, until = store.add("heard", 1), time.monotonic() + _LINGER_SECONDS
    while place.rank == 0 and heard < store.add("here", 0) and time.monotonic() < until:
        time.sleep(_PAUSES[0])
        heard = store.add("heard", 0)


def _missing(store: dist.Store, place: Rendezvous) -> str:
    missing = [rank for rank in range(place.world_size) if not store.check([f"rank/{rank}"])]
    named = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"{len(missing)} of {place.world_size} ranks ({named})"


def _waiting(place: Rendezvous, deadline: float, asked: Asked, for_whom: Callable[[], str]) -> Iterator[None]:
    """Yield whenever it is time to look again; raise at the deadline, or after a signal."""
    began, pause, announced = time.monotonic(), _PAUSES[0], False
    while True:
        yield
        if signal := asked():
            raise StoppedError(signal)
        now = time.monotonic()
        waited = format_seconds(now - began)
        if now > deadline:
            fix = "check their logs, MASTER_ADDR, MASTER_PORT, and that no firewall is between the nodes"
            raise MissingRanksError(f"waited {waited} in vain for {for_whom()}", f"rank {place.rank}", fix)
        if not announced and now - began > _TELL_SECONDS and place.local_rank == 0:  # one line per node
            announced = True
            log.warning("waiting for %s, %s so far", for_whom(), waited)
        time.sleep(pause)
        pause = min(2 * pause, _PAUSES[1])
