"""Read a run directory, possibly while the run is writing to it: any file may be missing or incomplete."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from megacode.base import lock
from megacode.base.errors import ConfigError
from megacode.base.files import Json, RunDir, read_json, read_jsonl
from megacode.metrics import alignment
from megacode.metrics.reader import read_events, read_metrics

_FRESH_SECONDS = 60.0  # network file systems show a file's new time late
_FRESH_ITERATIONS = 10  # a silent run counts as dead after this many of its slowest recent iterations
_RECENT = 50  # iterations that rates are a median of


@dataclass(frozen=True)
class RunFiles:
    """A run directory's files, parsed.

    Attributes:
        run: names of the files.
        now: the time that ages are relative to, in seconds since 1970.
        plan: `plan.json`.
        train: lines of kind `train`, one per iteration, in order. Those before the last 50 keep only `iteration` and
            `seconds`, and for skipped updates `skipped` and `samples_by_source`: a run may have 100,000s of lines.
        scores: lines of kind `score`, the last one of each suite and iteration, by iteration.
        validation, health, fp8_probe: the last line of that kind; empty if there is none.
        alignment: the last one at a learning rate above 0, likewise.
        events: lines of `events.jsonl` and `hangs.jsonl`, by time.
        ledger: lines of `ledger.jsonl`.
        heartbeats: by rank: `rank`, `age` in seconds, and what the rank says of itself.
        damaged: lines of metrics, events and ledger that cannot be read: file, number and why.
    """

    run: RunDir
    now: float
    plan: Json
    train: list[Json]
    scores: list[Json]
    validation: Json
    health: Json
    fp8_probe: Json
    alignment: Json
    events: list[Json]
    ledger: list[Json]
    heartbeats: list[Json]
    damaged: list[str]

    @property
    def recent(self) -> list[Json]:
        """The last 50 iterations' lines."""
        return self.train[-_RECENT:]

    @property
    def seq_length(self) -> int:
        """Tokens per sample; 1 if unknown (then tokens are a count of samples)."""
        # plan.json may be lost or half-written; a line of metrics gives the same number.
        last = self.train[-1] if self.train else {}
        samples = int(last.get("consumed_samples") or 0)
        from_line = int(last.get("consumed_tokens") or 0) // samples if samples else 0
        return int(self.plan.get("seq_length") or from_line or 1)

    @cached_property
    def owner(self) -> Json | None:
        """The process that holds the run's lock: `host`, `pid`, `since`; None if no live process does."""
        holder = lock.owner(self.run)
        return None if holder is None else {"host": holder.host, "pid": holder.pid, "since": holder.since}

    @cached_property
    def alive(self) -> bool:
        """Whether a process is training: the lock's owner is alive or, without a lock, files are fresh."""
        if self.owner is not None or self.run.lock.exists():
            return self.owner is not None
        return self._fresh

    @property
    def _fresh(self) -> bool:
        """Whether some file changed recently, compared with the run's own pace."""
        slowest = max((float(line.get("seconds") or 0) for line in self.recent), default=0.0)
        patience = max(_FRESH_SECONDS, _FRESH_ITERATIONS * slowest)
        ages = [beat["age"] for beat in self.heartbeats]
        ages += [self.now - path.stat().st_mtime for path in (self.run.metrics, self.run.events) if path.exists()]
        return min(ages, default=patience) < patience


def read_files(path: Path, now: float) -> RunFiles:
    """Read a run directory.

    Raises:
        ConfigError: if it is not a run directory.
    """
    run = RunDir(path)
    # Any one of its files is enough: a run that died while starting is worth a status, too.
    fix = "name a directory that `megacode train` wrote (`run_dir` in the config, runs/<name> by default)"
    if not path.is_dir():
        raise ConfigError("there is no such directory", str(path), fix)
    if not any(item.exists() for item in (run.config, run.plan, run.metrics, run.events, run.lock)):
        message = "this is not a run directory: it has no run.yaml, plan.json, metrics.jsonl or events.jsonl"
        raise ConfigError(message, str(path), fix)
    damaged: list[str] = []
    last: dict[str, Json] = {}
    scores: list[Json] = []
    train = _slim(read_metrics(run.metrics, damaged=damaged), last, scores)
    return RunFiles(
        run=run,
        now=now,
        plan=read_json(run.plan),
        train=train,
        scores=sorted(scores, key=lambda line: (line["iteration"], str(line.get("suite")))),
        validation=last.get("validation", {}),
        health=last.get("health", {}),
        fp8_probe=last.get("fp8_probe", {}),
        alignment=last.get("alignment", {}),
        events=[event for event in read_events(run, damaged) if isinstance(event.get("time"), (int, float))],
        ledger=read_jsonl(run.ledger, damaged),
        heartbeats=_heartbeats(run.heartbeats, now),
        damaged=damaged,
    )


def _slim(lines: Iterable[Json], last: dict[str, Json], scores: list[Json]) -> list[Json]:
    """Return the lines of kind `train`; add scores to `scores`, and the last line of each kind to `last`."""
    # Lines are reduced while they are read: a long run's metrics take a gigabyte as Python objects.
    recent: deque[Json] = deque()
    earlier: list[Json] = []
    for line in lines:
        kind = str(line["kind"])
        # The end of a decay has no transfer to show; the comparison before it has.
        if kind != "alignment" or alignment.has_shares(line):
            last[kind] = line
        if kind == "score":
            scores.append(line)
        elif kind == "train":
            recent.append(line)
            if len(recent) > _RECENT:
                earlier.append(_kept(recent.popleft()))
    return sorted([*earlier, *recent], key=lambda line: int(line["iteration"]))


def _kept(line: Json) -> Json:
    """Return what is needed of a line that is not recent."""
    names = ("iteration", "seconds", *(("skipped", "samples_by_source") if line.get("skipped") else ()))
    return {name: line[name] for name in names if name in line}


def _heartbeats(directory: Path, now: float) -> list[Json]:
    """Return the ranks' last heartbeats, the oldest first."""
    beats = [beat for path in directory.glob("node_*.json") for beat in read_json(path).get("ranks") or []]
    aged = [
        {**beat, "age": round(max(0.0, now - float(beat["time"])), 3)}
        for beat in beats if isinstance(beat.get("time"), (int, float)) and isinstance(beat.get("rank"), int)
    ]  # fmt: skip
    return sorted(aged, key=lambda beat: -beat["age"])
