"""What ranks agree on before they train together: rank 0 decides, all others follow, and a handshake proves it.

Ranks read the same paths at different moments, through the caches of different nodes. So what a start goes on from is
read by rank 0 alone and told to the others (`decided`), what each node must see for itself is checked there and refused
by all (`on_all`), and before the first iteration every rank compares a digest of all that decides what is learned
(`prove_equal`). One rank that would train another run ends all of them, with the ranks and the setting named.

All functions here are collective: every rank calls them in the same order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import megacode
from megacode.base.errors import LaunchError, MegacodeError, Problem, StoppedError
from megacode.base.files import DISK_FULL, digest
from megacode.base.user_paths import explained
from megacode.mcore import groups

T = TypeVar("T")

_SHOWN = 12  # differing settings that a message names
_ABSENT = object()


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What a call returned, or the user's mistake that it ended with."""

    value: T | None = None
    error: MegacodeError | None = None


def attempt(work: Callable[[], T]) -> Outcome[T]:
    """Call something; a mistake of the user's, or a file that cannot be read, becomes a part of the outcome."""
    try:
        return Outcome(work())
    except MegacodeError as error:
        return Outcome(error=error)
    except OSError as error:
        fix = "check that the path is there, and that this user may use it"
        other = LaunchError(error.strerror or str(error), str(error.filename or ""), fix)
        return Outcome(error=explained(error) if error.errno in DISK_FULL else other)


def decided(work: Callable[[], T]) -> T:
    """Return on all ranks what `work` returns on rank 0, which alone calls it.

    Raises:
        MegacodeError: rank 0's, on every rank.
    """
    outcome = attempt(work) if groups.rank() == 0 else None
    outcome = groups.broadcast_object(outcome)
    assert outcome is not None
    if outcome.error is not None:
        raise _of_all(outcome.error)
    return outcome.value  # type: ignore[return-value]


def on_all(work: Callable[[], T]) -> T:
    """Call `work` on every rank and return its result there, once it has succeeded on all.

    Raises:
        MegacodeError: with the problems of every rank where it failed, on every rank.
    """
    return all_succeeded(attempt(work))


def all_succeeded(outcome: Outcome[T]) -> T:
    """Return this rank's value, if no rank's call has failed.

    Raises:
        MegacodeError: with the problems of every rank where it failed, on every rank.
    """
    (failed,) = groups.any_of(outcome.error is not None)
    if failed:
        raise _merged(groups.gather_objects(outcome.error))
    return outcome.value  # type: ignore[return-value]


def stop_together(asked: str | None) -> None:
    """End the start on all ranks, if any was asked to stop; for moments at which nothing is half done.

    Args:
        asked: name of the signal that has asked this rank, or None.

    Raises:
        StoppedError: on every rank, where one was asked.
    """
    (any_asked,) = groups.any_of(asked is not None)
    if any_asked:
        signals = [name for name in groups.gather_objects(asked) if name is not None]
        raise StoppedError(signals[0])


def _merged(errors: Sequence[MegacodeError | None]) -> MegacodeError:
    """Return one error with each problem once, and the ranks that have it where not all have."""
    first = next(error for error in errors if error is not None)
    holders: dict[Problem, list[int]] = {}
    for rank, error in enumerate(errors):
        for problem in error.problems if error is not None else ():
            holders.setdefault(problem, []).append(rank)
    problems = [
        problem if len(ranks) == len(errors) else replace(problem, what=f"on {named(ranks)}: {problem.what}")
        for problem, ranks in holders.items()
    ]
    return _of_all(type(first)(problems=problems))


def _of_all(error: MegacodeError) -> MegacodeError:
    error.of_all_ranks = True
    return error


def named(ranks: Sequence[int]) -> str:
    """Return some ranks as people write them: `rank 3`, `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    listed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def code_digest() -> str:
    """Return a hash of megacode's own source files: two checkouts of one version may differ."""
    root = Path(megacode.__file__).parent
    paths = sorted(root.rglob("*.py"))
    return digest(*(part for path in paths for part in (str(path.relative_to(root)), path.read_bytes())))


def prove_equal(facts: Mapping[str, Any]) -> None:
    """Prove that all ranks would train the same run.

    Costs one reduction of two 64-bit numbers a fact; only where a digest differs do ranks show each other what they
    have.

    Args:
        facts: by name, what decides what is learned, as JSON values; the same names on all ranks. None where this rank
            does not look for itself, because another one of its node does.

    Raises:
        LaunchError: on every rank, with the ranks that differ from rank 0, in which setting, and both values.
    """
    names = sorted(facts)
    numbers = [None if facts[name] is None else _number(facts[name]) for name in names]
    unequal = [name for name, equal in zip(names, groups.all_equal(numbers), strict=True) if not equal]
    if unequal:
        raise _disagreement({name: facts[name] for name in unequal})


def _number(value: Any) -> int:
    return int(digest(json.dumps(value, sort_keys=True, default=str))[:15], 16)


def _disagreement(facts: Mapping[str, Any]) -> LaunchError:
    """Return what differs from rank 0's facts, setting by setting, with the ranks."""
    reference = groups.broadcast_object(facts)
    assert reference is not None
    mine = [line for name in facts if facts[name] is not None for line in _lines(name, reference[name], facts[name])]
    holders: dict[tuple[str, str], list[int]] = {}
    for rank, lines in enumerate(groups.gather_objects(mine)):
        for line in lines:
            holders.setdefault(line, []).append(rank)
    fix = (
        "start all ranks from the same files and packages; after an edit on a network file system, wait until every "
        "node sees it (its cache may be a minute old)"
    )
    problems = [Problem(f"{named(ranks)}: {what}", where, fix) for (where, what), ranks in holders.items()]
    more = len(problems) - _SHOWN
    if more > 0:
        problems = [*problems[:_SHOWN], Problem(f"{more} more settings differ", "", fix)]
    error = LaunchError(problems=problems)
    _of_all(error)
    return error


def _lines(name: str, theirs: Any, mine: Any) -> Iterator[tuple[str, str]]:
    """Yield (setting, what differs) between rank 0's value and this rank's, as deep as both are mappings."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in sorted(theirs.keys() | mine.keys(), key=str):
            yield from _lines(f"{name}.{key}", theirs.get(key, _ABSENT), mine.get(key, _ABSENT))
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for number, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            yield from _lines(f"{name}[{number}]", one, other)
    elif theirs is _ABSENT or mine is _ABSENT or theirs != mine:
        yield name, f"{_shown(mine)} there, {_shown(theirs)} on rank 0"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:40]}..."
