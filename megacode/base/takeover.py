"""Take over the record of a dead owner, and give a record back: what `lock` and `claims` have in common.

Two operations are atomic on every shared file system: creating a name that must not exist, and replacing a name. So a
record is first written under a private name, the draft, and readers see a complete record or none.

* **A dead owner's record** may be replaced only by the holder of a claim on it: the file `.RECORD.after.TOKEN`, made
  like any record. The holder checks again, since the owner may have changed before the claim. It then replaces the
  record and removes the claim. A claim whose holder has died is itself claimed, so no manual cleanup is needed.
* **A release** first renews the heartbeat, then looks for a claim, then removes the record. A claimant first claims,
  then looks at the heartbeat. So at least one of the two sees the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megacode.base.ownership import Owner, age, alive, generation, publish_once, read, write

PAUSE_SECONDS = 0.1
# Where a file system has no hard links, a record that is not JSON may still be in the middle of being written.
_TORN_SECONDS = 1.0
# A claim is held for milliseconds. Its holder gives up long before others consider it dead.
_CLAIM_STALE_SECONDS = 60.0
_CLAIM_SECONDS = 20.0


@contextmanager
def drafted(record: Path, mine: Owner) -> Iterator[Path]:
    """Write a record under a private name beside it, and remove that name afterwards."""
    draft = record.with_name(f".{record.name}.{mine.token}")
    try:
        write(draft, mine)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def busy(record: Path, holder: Owner | None, mine: Owner, patience: float) -> bool:
    """Return whether to wait for a record: it is still being written, or its owner is alive.

    Args:
        record: the record.
        holder: its owner as just read; None: it is not readable.
        mine: this process.
        patience: see `ownership.alive`.
    """
    return age(record) < _TORN_SECONDS if holder is None else alive(holder, mine, record, patience)


@contextmanager
def taking_over(
    record: Path, token: str, mine: Owner, draft: Path, patience: float, *, known_dead: bool = False
) -> Iterator[bool]:
    """Hold the exclusive right to replace or remove a dead owner's record; yields whether this process got it.

    Args:
        record: the record.
        token: its generation.
        mine: this process.
        draft: its own record under a private name.
        patience: see `ownership.alive`.
        known_dead: the owner is dead, however recent its last heartbeat is.
    """
    began = time.monotonic()
    claims = _claim(record, token, mine, draft)
    if not claims:
        yield False
        return
    try:
        holder = read(record)
        # Look again now that the claim is ours: the owner may have changed, or come back to life, before it.
        dead = known_dead or holder is None or not alive(holder, mine, record, patience)
        # A claim held for long may have been taken over by others: give up before that.
        yield dead and generation(record) == token and time.monotonic() - began < _CLAIM_SECONDS
    finally:
        # If another process considered us dead and claimed our claim, these files are now its to remove.
        for claim in claims if not claim_path(record, mine.token).exists() else []:
            claim.unlink(missing_ok=True)


def _claim(record: Path, token: str, mine: Owner, draft: Path) -> list[Path]:
    """Return the chain of claims from the dead record to ours; empty where a live process holds one of them."""
    claims: list[Path] = []
    while True:
        claims.append(claim_path(record, token))
        if publish_once(draft, claims[-1]):
            return claims
        other = read(claims[-1])
        if other is None and age(claims[-1]) < _CLAIM_STALE_SECONDS:
            return []  # being written or removed right now
        if other is not None and alive(other, mine, claims[-1], _CLAIM_STALE_SECONDS):
            return []
        # The claim's holder died too: claim its claim, and so on down the chain.
        token = generation(claims[-1]) or ""
        if not token:
            return []


def claim_path(record: Path, token: str) -> Path:
    """Return the file that claims a generation of a record."""
    return record.with_name(f".{record.name}.after.{token}")


def give_back(record: Path, token: str) -> None:
    """Remove a record if it is still of this generation and nobody is about to take it over."""
    if generation(record) != token:
        return
    with suppress(FileNotFoundError):
        os.utime(record)
    # A claimant saw no heartbeat and is about to take over: leave the record to it.
    if claim_path(record, token).exists() or generation(record) != token:
        return
    record.unlink(missing_ok=True)
