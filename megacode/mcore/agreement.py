"""Make all ranks agree before they train: rank 0 decides, the others follow, and a handshake proves it.

Ranks read the same paths at different moments, through the caches of different nodes. So rank 0 alone reads what a
start resumes from, and broadcasts it (`decided`). What each node must see for itself is checked on every rank, and one
failure stops all (`on_all`). Before the first iteration all ranks compare digests of everything that decides what is
learned (`prove_equal`). If one rank would train a different run, all stop, and the error names ranks and setting.

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
    """The value that a call returned, or the user error that it raised."""

    value: T | None = None
    error: MegacodeError | None = None


def attempt(work: Callable[[], T]) -> Outcome[T]:
    """Call `work`, and capture a user error or an operating-system error in the outcome.

    A rank that raised here would leave the others waiting in the next collective until its timeout.
    """
    try:
        return Outcome(work())
    except MegacodeError as error:
        return Outcome(error=error)
    except OSError as error:
        # Anything else is a bug of ours: it keeps its traceback, and the launcher ends the other ranks.
        fix = "check that the path exists and that this user has access to it"
        other = LaunchError(error.strerror or str(error), str(error.filename or ""), fix)
        return Outcome(error=explained(error) if error.errno in DISK_FULL else other)


def decided(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 only, and return its result on all ranks.

    Raises:
        MegacodeError: rank 0's error, on every rank.
    """
    # The broadcast carries the outcome, not the value: a failure of rank 0 must reach the others too.
    outcome = attempt(work) if groups.rank() == 0 else None
    outcome = groups.broadcast_object(outcome)
    assert outcome is not None
    if outcome.error is not None:
        raise _of_all(outcome.error)
    return outcome.value  # type: ignore[return-value]


def on_all(work: Callable[[], T]) -> T:
    """Call `work` on every rank; return this rank's result once it has succeeded on all.

    Raises:
        MegacodeError: on every rank, with the problems of all ranks where it failed.
    """
    return all_succeeded(attempt(work))


def all_succeeded(outcome: Outcome[T]) -> T:
    """Return this rank's value, if the call failed on no rank.

    Raises:
        MegacodeError: on every rank, with the problems of all ranks where it failed.
    """
    # One reduced float in the usual case; errors are gathered from all ranks only where there is one.
    (failed,) = groups.any_of(outcome.error is not None)
    if failed:
        raise _merged(groups.gather_objects(outcome.error))
    return outcome.value  # type: ignore[return-value]


def stop_together(asked: str | None) -> None:
    """Stop all ranks during a start if any of them was asked to stop; call it where nothing is half done.

    Args:
        asked: name of the signal that this rank has received, or None.

    Raises:
        StoppedError: on every rank, if one was asked to stop.
    """
    (any_asked,) = groups.any_of(asked is not None)
    if any_asked:
        signals = [name for name in groups.gather_objects(asked) if name is not None]
        raise StoppedError(signals[0])


def _merged(errors: Sequence[MegacodeError | None]) -> MegacodeError:
    """Return one error that lists each problem once, with the ranks that have it unless all do."""
    # Its class decides the exit code. The lowest failing rank's is taken, so all ranks end with the same code.
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
    # With this mark only rank 0 prints the error; otherwise 512 ranks would print the same lines.
    error.of_all_ranks = True
    return error


def named(ranks: Sequence[int]) -> str:
    """Return ascending ranks in short form: `rank 3`, `ranks 0-2, 5`."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    listed = ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"


def code_digest() -> str:
    """Return a hash of megacode's own source files, since two checkouts of one version may differ."""
    root = Path(megacode.__file__).parent
    paths = sorted(root.rglob("*.py"))
    return digest(*(part for path in paths for part in (str(path.relative_to(root)), path.read_bytes())))


def prove_equal(facts: Mapping[str, Any]) -> None:
    """Check that all ranks would train the same run.

    Costs one all-reduce of two 64-bit numbers per fact. Only if a digest differs do ranks exchange the facts.

    Args:
        facts: what decides what is learned, as JSON values by name; the same names on all ranks. None where another
            rank of this node looks at the fact for this one.

    Raises:
        LaunchError: on every rank, with the ranks that differ from rank 0, the setting, and both values.
    """
    names = sorted(facts)
    numbers = [None if facts[name] is None else _number(facts[name]) for name in names]
    unequal = [name for name, equal in zip(names, groups.all_equal(numbers), strict=True) if not equal]
    if unequal:
        raise _disagreement({name: facts[name] for name in unequal})


def _number(value: Any) -> int:
    # 15 hexadecimal digits are 60 bits: they fit the int64 of `groups.all_equal`, negated too.
    return int(digest(json.dumps(value, sort_keys=True, default=str))[:15], 16)


def _disagreement(facts: Mapping[str, Any]) -> LaunchError:
    """Return an error that lists each setting in which ranks differ from rank 0."""
    # All ranks know the same unequal names, so all get here and these two collectives match up.
    reference = groups.broadcast_object(facts)
    assert reference is not None
    mine = [line for name in facts if facts[name] is not None for line in _lines(name, reference[name], facts[name])]
    # On 4,096 ranks a bad file is one line with a range of ranks, not 4,096 lines.
    holders: dict[tuple[str, str], list[int]] = {}
    for rank, lines in enumerate(groups.gather_objects(mine)):
        for line in lines:
            holders.setdefault(line, []).append(rank)
    fix = (
        "start all ranks from the same files and packages; after an edit on a network file system, wait a minute: "
        "each node caches files"
    )
    problems = [Problem(f"{named(ranks)}: {message}", where, fix) for (where, message), ranks in holders.items()]
    more = len(problems) - _SHOWN
    if more > 0:
        problems = [*problems[:_SHOWN], Problem(f"{more} more settings differ", "", fix)]
    error = LaunchError(problems=problems)
    _of_all(error)
    return error


def _lines(name: str, theirs: Any, mine: Any) -> Iterator[tuple[str, str]]:
    """Yield (setting, difference) between rank 0's value and this rank's, going down into mappings and lists."""
    if isinstance(theirs, Mapping) and isinstance(mine, Mapping):
        for key in sorted(theirs.keys() | mine.keys(), key=str):
            yield from _lines(f"{name}.{key}", theirs.get(key, _ABSENT), mine.get(key, _ABSENT))
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for number, (their_item, my_item) in enumerate(zip(theirs, mine, strict=True)):
            yield from _lines(f"{name}[{number}]", their_item, my_item)
    elif theirs is _ABSENT or mine is _ABSENT or theirs != mine:
        yield name, f"{_shown(mine)}, but {_shown(theirs)} on rank 0"


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:40]}..."
