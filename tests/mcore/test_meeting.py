"""How ranks meet: threads play them, each with a store of its own."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable

import pytest
import torch.distributed as dist

from megacode.base.errors import LaunchError, MegacodeError, StoppedError
from megacode.base.ports import free_port
from megacode.mcore import meeting
from megacode.mcore.meeting import Asked, MissingRanksError, meet, nobody_asks
from megacode.mcore.rendezvous import Rendezvous
from tests.limits import HANG

pytestmark = pytest.mark.one_release  # nothing here calls Megatron-core

End = dist.Store | MegacodeError


@pytest.fixture(autouse=True)
def one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread is a process that joins for the first time."""
    monkeypatch.setattr(meeting, "_joins", itertools.repeat(0))
    monkeypatch.setattr(meeting, "_LINGER_SECONDS", 2.0)


def place(rank: int, size: int, port: int) -> Rendezvous:
    return Rendezvous(rank, size, rank, "127.0.0.1", port)


def ends(*ranks: Callable[[], dist.Store]) -> list[End]:
    """Return how each of some ranks, all at once, has ended."""
    found: dict[int, End] = {}

    def run(number: int) -> None:
        try:
            found[number] = ranks[number]()
        except MegacodeError as error:
            found[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    return [found[number] for number in range(len(ranks))]


def rank(
    number: int, size: int, port: int, patience: float = HANG, asked: Asked = nobody_asks
) -> Callable[[], dist.Store]:
    return lambda: meet(place(number, size, port), patience, asked)


def interrupted() -> str:
    return "SIGINT"


def test_ranks_that_are_all_here_share_a_store() -> None:
    port = free_port()
    stores = ends(*(rank(number, 3, port) for number in range(3)))
    assert len(stores) == 3
    assert all(isinstance(store, dist.Store) for store in stores), stores
    stores[0].set("key", "value")  # type: ignore[union-attr]
    assert stores[2].get("key") == b"value"  # type: ignore[union-attr]


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_rank_ends_all_that_wait_for_another(who: int) -> None:
    port, started = free_port(), time.monotonic()
    signals: list[Asked] = [nobody_asks, nobody_asks]
    signals[who] = lambda: "SIGTERM" if time.monotonic() > started + 0.5 else None
    found = ends(*(rank(number, 3, port, asked=signals[number]) for number in range(2)))
    assert [type(end) for end in found] == [StoppedError, StoppedError], found
    for end in found:
        assert isinstance(end, StoppedError)
        assert (end.exit_code, end.of_all_ranks) == (75, True)
        assert "Stopped: SIGTERM came while the run was starting; nothing was trained" in str(end)


def test_a_rank_that_is_stopped_before_rank_0_is_there_tells_it_or_ends() -> None:
    port = free_port()

    def late() -> dist.Store:
        time.sleep(0.5)
        return rank(0, 3, port)()

    assert [type(end) for end in ends(late, rank(1, 3, port, asked=interrupted))] == [StoppedError, StoppedError]
    [alone] = ends(rank(1, 2, free_port(), asked=interrupted))
    assert isinstance(alone, StoppedError)


def test_what_does_not_answer_at_the_port_is_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 1.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", free_port()))
        other.listen()
        port = other.getsockname()[1]
        first, second = ends(rank(0, 2, port), rank(1, 2, port))
    assert type(first) is type(second) is LaunchError


def test_a_run_of_another_size_at_the_port_is_another_program() -> None:
    port = free_port()
    ended = threading.Event()
    first, second = ends(
        rank(0, 2, port, asked=lambda: "SIGTERM" if ended.is_set() else None),
        lambda: _then(ended, rank(1, 3, port)),
    )
    assert isinstance(first, StoppedError)
    assert type(second) is LaunchError
    assert "the run there has 2 ranks, and this is rank 1 of 3" in str(second)


def test_two_processes_with_one_number_are_refused() -> None:
    port = free_port()
    ended = threading.Event()

    def asked() -> str | None:
        return "SIGTERM" if ended.is_set() else None

    twice = [lambda: _then(ended, rank(1, 3, port, asked=asked))] * 2
    found = ends(rank(0, 3, port, asked=asked), *twice)
    assert sorted(type(end).__name__ for end in found) == ["LaunchError", "StoppedError", "StoppedError"]
    assert any(f"two processes are rank 1 at 127.0.0.1:{port}" in str(end) for end in found)


def _then(ended: threading.Event, work: Callable[[], dist.Store]) -> dist.Store:
    try:
        return work()
    finally:
        ended.set()


def test_missing_ranks_are_named_when_the_patience_ends() -> None:
    [alone] = ends(rank(0, 4, free_port(), patience=0.5))
    assert isinstance(alone, MissingRanksError)
    assert alone.exit_code == 1
    assert "gave up after waiting" in str(alone)
    assert "for 3 of 4 ranks (1, 2, 3)" in str(alone)
    [without] = ends(rank(2, 4, free_port(), patience=0.5))
    assert isinstance(without, MissingRanksError)
    assert "for rank 0 at 127.0.0.1" in str(without)
    assert "Connection refused" in str(without)


def test_who_is_waited_for_is_said_after_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(meeting, "_TELL_SECONDS", 0.1)
    ends(rank(0, 2, free_port(), patience=0.5))
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["waiting for 1 of 2 ranks (1)"]


def test_an_address_that_is_not_found_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 2.0)
    found = ends(lambda: meet(Rendezvous(0, 2, 0, "nowhere.invalid", free_port()), HANG))
    assert type(found[0]) is LaunchError
    assert "rank 0 cannot open its store at this address" in str(found[0])
    assert "set MASTER_ADDR" in str(found[0])
