"""Who says what: rank 0 for all ranks, and what is met several times at a start once."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from megacode.base.logs import OF_ALL_RANKS, ONCE, OPENED, setup_logging

log = logging.getLogger("megacode.test")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("RANK", "SLURM_PROCID", OPENED):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("megacode").setLevel(logging.NOTSET)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    setup_logging()
    for _ in range(2):
        log.warning("own")
        log.warning("of all", extra=OF_ALL_RANKS)
        log.warning("a file %s", "x", extra=ONCE)
    return capsys.readouterr().err


def test_rank_0_says_what_all_ranks_would_say(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys)
    assert (text.count("own"), text.count("of all"), text.count("a file x")) == (2, 2, 1)
    monkeypatch.setenv("RANK", "3")
    text = said(capsys)
    assert (text.count("[rank 3] own"), text.count("of all"), text.count("a file x")) == (2, 0, 0)


def test_a_rank_does_not_repeat_what_the_process_that_started_it_has_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(OPENED, "1")
    text = said(capsys)
    assert (text.count("own"), text.count("of all"), text.count("a file x")) == (2, 2, 0)
