"""The ledger, `ledger.jsonl` in the run directory: samples that were read but withheld from learning, and why.

The schedule says what a run reads; the ledger is the only record of what it did not learn from. The law: an iteration
with a withheld sample is computed and measured as always, but its update is not applied. So data, random states,
metrics and clock do not change, and a run that resumes from before it repeats it exactly. The planned samples of a
source are exactly those learned from plus those withheld.

A line is on disk before the next iteration begins. A killed writer can leave an incomplete last line: it is ignored,
and removed before the next line is added. Any other damage is an error, since a lost line would change what is learned.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from megacode.base.errors import DataError
from megacode.base.files import RunDir, to_json
from megacode.plan.phases import Schedule

Reason = Literal["non-finite", "spike", "rollback"]


@dataclass(frozen=True)
class Withheld:
    """A range of samples that were read but not learned from.

    Attributes:
        first_sample: first sample of the range.
        last_sample: first sample after the range.
        phase: name of their phase.
        iteration: the iteration that read them when they were withheld.
        reason: loss or gradient were not finite; they spiked; or the iterations led to a spike and were rolled back.
        loss, grad_norm: of that iteration; None where not finite or unknown.
        time: in seconds since 1970.
        to_iteration: checkpoint that a rollback returned to; None for other reasons.
    """

    first_sample: int
    last_sample: int
    phase: str
    iteration: int
    reason: Reason
    loss: float | None
    grad_norm: float | None
    time: float
    to_iteration: int | None = None

    def document(self) -> dict[str, Any]:
        """Return it as plain values for JSON; `to_iteration` is present only after a rollback."""
        return {name: value for name, value in asdict(self).items() if name != "to_iteration" or value is not None}

    def overlaps(self, first_sample: int, last_sample: int) -> bool:
        """Return whether the range contains any of the samples first_sample .. last_sample - 1."""
        return first_sample < self.last_sample and self.first_sample < last_sample


class Ledger:
    """All samples that a run withheld; identical on every rank.

    Every rank reaches the same decisions and adds the same ranges, so no communication is needed. Only the rank that
    `writes` saves them to disk.

    Args:
        run: the run directory.
        entries: the ranges withheld so far.
        writes: whether this process writes the file: rank 0.
    """

    def __init__(self, run: RunDir, entries: Iterable[Withheld] = (), writes: bool = False) -> None:
        self._run, self._writes = run, writes
        self.entries = list(entries)

    @classmethod
    def read(cls, run: RunDir, writes: bool = False) -> Ledger:
        """Read the ledger of a run directory; empty where there is none.

        Raises:
            DataError: if a line other than an incomplete last one is damaged.
        """
        text = run.ledger.read_text(encoding="utf-8", errors="replace") if run.ledger.exists() else ""
        # What follows the last newline is empty, or a line whose writer was killed.
        lines = text.split("\n")[:-1]
        return cls(run, (_parsed(line, number, run) for number, line in enumerate(lines, 1)), writes)

    def withheld(self, first_sample: int, last_sample: int) -> Withheld | None:
        """Return the first entry that withholds any sample of first_sample .. last_sample - 1, if there is one."""
        return next((entry for entry in self.entries if entry.overlaps(first_sample, last_sample)), None)

    def add(
        self,
        first_sample: int,
        last_sample: int,
        *,
        phase: str,
        iteration: int,
        reason: Reason,
        loss: float | None = None,
        grad_norm: float | None = None,
        to_iteration: int | None = None,
    ) -> bool:
        """Withhold samples first_sample .. last_sample - 1 from now on; durable on return where this rank writes.

        Nothing is added if all of them are withheld already. An iteration that only overlaps an entry is added whole:
        if the batch size has changed since, its other samples are withheld with it, and must be recorded.

        Returns:
            Whether an entry was added.
        """
        assert 0 <= first_sample < last_sample, (first_sample, last_sample)
        # The ranges are disjoint, so overlaps can be summed.
        known = sum(max(0, min(last, last_sample) - max(first, first_sample)) for first, last in self.ranges())
        if known == last_sample - first_sample:
            return False
        measured = (_finite(loss), _finite(grad_norm))
        now = round(time.time(), 3)
        self._add(Withheld(first_sample, last_sample, phase, iteration, reason, *measured, now, to_iteration))
        return True

    def _add(self, entry: Withheld) -> None:
        self.entries.append(entry)
        if self._writes:
            _append(self._run, to_json(entry.document()) + "\n")

    def inherit(self, entries: Iterable[dict[str, Any]]) -> None:
        """Add the entries of a branch's trunk, as stored in its checkpoint; known entries are skipped."""
        for entry in (Withheld(**facts) for facts in entries):
            # A branch that resumes inherits again at every start.
            if entry not in self.entries:
                self._add(entry)

    def up_to(self, clock: int) -> list[dict[str, Any]]:
        """Return the entries with samples before a clock, as plain values for JSON."""
        return [entry.document() for entry in self.entries if entry.first_sample < clock]

    def rollbacks(self) -> tuple[int, int]:
        """Return the checkpoint of the last rollback, and how often in a row it was used; (-1, 0) without rollbacks."""
        targets = [entry.to_iteration for entry in self.entries if entry.to_iteration is not None]
        if not targets:
            return -1, 0
        # Counts from the newest backwards, until another target.
        others = (number for number, target in enumerate(reversed(targets)) if target != targets[-1])
        return targets[-1], next(others, len(targets))

    def ranges(self) -> list[tuple[int, int]]:
        """Return the withheld samples as sorted, disjoint ranges [first, last)."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted((entry.first_sample, entry.last_sample) for entry in self.entries):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged

    def samples(self, clock: int | None = None) -> int:
        """Return the number of withheld samples, each counted once; only those before a clock, if one is given."""
        limit = math.inf if clock is None else clock
        return int(sum(min(last, limit) - first for first, last in self.ranges() if first < limit))

    def samples_by_source(self, schedule: Schedule, clock: int | None = None) -> dict[str, int]:
        """Return the number of withheld samples of each source, of those before a clock.

        Args:
            schedule: of the run.
            clock: a number of samples; None: the whole run.
        """
        limit = schedule.total_samples if clock is None else clock
        counts = dict.fromkeys(schedule.source_names, 0)
        for first, last in self.ranges():
            # Two look-ups per range, however many samples it holds.
            before, after = (schedule.counts_at(min(sample, limit)) for sample in (first, last))
            for name in counts:
                counts[name] += after[name] - before[name]
        return counts


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _parsed(line: str, number: int, run: RunDir) -> Withheld:
    try:
        entry = Withheld(**json.loads(line))
        # isinstance would accept booleans, and 1.0 would pass comparisons.
        whole = all(type(value) is int for value in (entry.first_sample, entry.last_sample, entry.iteration))
        if not whole or not 0 <= entry.first_sample < entry.last_sample or entry.reason not in get_args(Reason):
            raise ValueError("it has no valid range of samples, or no known reason")
    except (ValueError, TypeError) as error:
        fix = f"restore the file from a backup, or remove line {number}: its samples will then be learned from"
        raise DataError(f"this line of the ledger is damaged: {error}", f"{run.ledger}:{number}", fix) from None
    return entry


def _append(run: RunDir, line: str) -> None:
    """Add a line after the last complete one, and wait until it is on disk."""
    descriptor = os.open(run.ledger, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, size, 0).rfind(b"\n") + 1 if size else 0
        # Cut an incomplete last line, or the new one would be appended to it.
        os.ftruncate(descriptor, end)
        os.pwrite(descriptor, line.encode(), end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # A new file is durable only when its directory is, too.
    _sync_directory(run)


def _sync_directory(run: RunDir) -> None:
    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
