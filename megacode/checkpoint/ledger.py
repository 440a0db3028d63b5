"""The ledger: samples that were read, but withheld from learning, and why; `ledger.jsonl` in the run directory.

The schedule says what a run reads; the ledger is the one record of what it did not learn from. The law: an iteration
any of whose samples is withheld is computed and measured as always, but its update is not applied; so data, random
states, metrics and clock are those of the first time, and a run that starts again from before it repeats it exactly.
Of every source, planned samples are those learned from and those withheld, and no others.

A line is on disk before the iteration after it begins. A killed writer can leave a torn last line: it is left out, and
cut off before the next line is added. Any other damage is an error, since a lost line would change what is learned.
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
    """A range of samples that were read and not learned from.

    Attributes:
        first_sample: the first of them.
        last_sample: the first one behind them.
        phase: name of the phase they lie in.
        iteration: the iteration that read them when they were withheld.
        reason: loss or gradient were not finite; they leaped; or the iterations led to a leap and were rolled back.
        loss, grad_norm: of that iteration; None where it was not finite, or not known.
        time: when, in seconds since 1970.
        to_iteration: the checkpoint's that a rollback went back to; None for other reasons.
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
        """Return it as JSON; `to_iteration` is there only after a rollback."""
        return {name: value for name, value in asdict(self).items() if name != "to_iteration" or value is not None}

    def overlaps(self, first_sample: int, last_sample: int) -> bool:
        """Return whether any sample of first_sample .. last_sample - 1 is among these."""
        return first_sample < self.last_sample and self.first_sample < last_sample


class Ledger:
    """What a run withheld; the same on every rank.

    Every rank comes to the same verdicts and adds the same ranges, so that each knows the ledger without asking; only
    the rank that `writes` puts them on disk.

    Args:
        run: the run directory.
        entries: what it has withheld so far.
        writes: whether this process keeps the file: rank 0.
    """

    def __init__(self, run: RunDir, entries: Iterable[Withheld] = (), writes: bool = False) -> None:
        self._run, self._writes = run, writes
        self.entries = list(entries)

    @classmethod
    def read(cls, run: RunDir, writes: bool = False) -> Ledger:
        """Read the ledger of a run directory; one without a ledger has withheld nothing.

        Raises:
            DataError: if a line other than a torn last one is damaged.
        """
        text = run.ledger.read_text(encoding="utf-8", errors="replace") if run.ledger.exists() else ""
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

        Nothing is added where each of them is withheld already. So an iteration that overlaps an entry may be added
        whole: where batches have changed since, the samples beside the entry are withheld with it, and are named here.

        Returns:
            Whether an entry was added.
        """
        assert 0 <= first_sample < last_sample, (first_sample, last_sample)
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
        """Add what the trunk of a branch withheld, as its checkpoint tells; what is known already stays as it is."""
        for entry in (Withheld(**facts) for facts in entries):
            if entry not in self.entries:
                self._add(entry)

    def up_to(self, clock: int) -> list[dict[str, Any]]:
        """Return the entries that withhold samples before a clock, as JSON."""
        return [entry.document() for entry in self.entries if entry.first_sample < clock]

    def rollbacks(self) -> tuple[int, int]:
        """Return the checkpoint's iteration that the last rollback went back to, and how often in a row; (-1, 0)."""
        targets = [entry.to_iteration for entry in self.entries if entry.to_iteration is not None]
        if not targets:
            return -1, 0
        others = (number for number, target in enumerate(reversed(targets)) if target != targets[-1])
        return targets[-1], next(others, len(targets))

    def ranges(self) -> list[tuple[int, int]]:
        """Return the withheld samples as ranges (first, one behind the last), in order, that do not touch."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted((entry.first_sample, entry.last_sample) for entry in self.entries):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        return merged

    def samples(self, clock: int | None = None) -> int:
        """Return how many samples are withheld, each counted once; before a clock, where one is given."""
        limit = math.inf if clock is None else clock
        return int(sum(min(last, limit) - first for first, last in self.ranges() if first < limit))

    def samples_by_source(self, schedule: Schedule, clock: int | None = None) -> dict[str, int]:
        """Return how many samples of each of a run's sources are withheld, of those before a clock.

        Args:
            schedule: of the run.
            clock: a number of samples; absent: all of the run's.
        """
        limit = schedule.total_samples if clock is None else clock
        counts = dict.fromkeys(schedule.source_names, 0)
        for first, last in self.ranges():
            before, after = (schedule.counts_at(min(sample, limit)) for sample in (first, last))
            for name in counts:
                counts[name] += after[name] - before[name]
        return counts


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _parsed(line: str, number: int, run: RunDir) -> Withheld:
    try:
        entry = Withheld(**json.loads(line))
        whole = all(type(value) is int for value in (entry.first_sample, entry.last_sample, entry.iteration))
        if not whole or not 0 <= entry.first_sample < entry.last_sample or entry.reason not in get_args(Reason):
            raise ValueError("it names no range of samples, or no known reason")
    except (ValueError, TypeError) as error:
        fix = f"bring the file back from a copy, or remove line {number}: what it withheld will then be learned from"
        raise DataError(f"this line of the ledger is damaged: {error}", f"{run.ledger}:{number}", fix) from None
    return entry


def _append(run: RunDir, line: str) -> None:
    """Add a line behind the last whole one, and wait until the disk has it."""
    descriptor = os.open(run.ledger, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        end = os.pread(descriptor, size, 0).rfind(b"\n") + 1 if size else 0
        os.ftruncate(descriptor, end)
        os.pwrite(descriptor, line.encode(), end)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_directory(run)


def _sync_directory(run: RunDir) -> None:
    descriptor = os.open(run.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
