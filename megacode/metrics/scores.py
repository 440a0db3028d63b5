"""Scores as records: each score file of a run becomes one line of kind `score`, at the clock of its model.

Score files are written by other processes: a child of the trainer, a job, a person's command. The lines have one
writer at a time: a live run's trainer, which looks for new files while it trains; where nobody trains, the process that
scored (`merge`). What neither got to, the next start finds. A model that is scored again gets another line; the last
one counts.

A run that goes back to iteration 5 leaves the model of iteration 10 behind, and its score with it: the segment line
supersedes the score's line. Its file stays, or comes later from a job that was queued, and is no record of the model
that the run makes of iteration 10 the next time. So a file counts if the checkpoint that lies there has the seal that
the file names. Where none lies there any more, it counts if it was written after the run last went back to before it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from megacode.base.files import RunDir
from megacode.base.lock import while_idle
from megacode.metrics.reader import read_past, score_digest
from megacode.metrics.sinks import Lines, Record, TensorBoardSink


def score_record(document: Record) -> Record | None:
    """Return a score file's contents as a record, None where they do not say what a model had read."""
    try:
        facts, limit = document["model"]["megacode"], document["settings"]["limit"]
        means = {name: mean["score"] for name, mean in document["means"].items() if mean["score"] is not None}
        return {
            "kind": "score",
            "iteration": int(facts["iteration"]),
            "consumed_samples": int(facts["consumed_samples"]),
            "consumed_tokens": int(facts["consumed_tokens"]),
            "phase": str(facts["phase"]),
            "suite": str(document["suite"]),
            **({} if limit is None else {"limit": int(limit)}),
            "scores": document["scores"],
            **({"means": means} if means else {}),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def read_score_file(path: Path) -> Record:
    """Return a score file's contents, empty where there is none, or what is there is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


class ScoreBook:
    """Which of a run's score files its metrics lack.

    Args:
        run: the run; its metrics end where it stands.
        limit: of items per task, of the scores that the run itself asks for. Files with another limit are somebody's
            quick look, and no records.
        withheld: samples before a clock that the ledger withholds; a file of a model that had learned from them is of a
            past that was taken back.
        seal_of: returns the seal of the checkpoint that lies there of an iteration; empty where none does.
    """

    def __init__(
        self,
        run: RunDir,
        limit: int | None,
        withheld: Callable[[int], int],
        seal_of: Callable[[int], str] = lambda iteration: "",
    ) -> None:
        self._run, self._limit, self._withheld, self._seal_of = run, limit, withheld, seal_of
        self._past = read_past(run.metrics)
        self._seen: dict[str, int] = {}
        self._confirmed: set[str] = set()

    def new(self, upto: int | None = None) -> list[Record]:
        """Return records of the files that came or changed since the last call, and are no lines yet; oldest first.

        Args:
            upto: the newest checkpoint's iteration; files of later ones wait until the run has come so far (again).
        """
        found = []
        for path in self._files():
            written = _written(path)
            late = upto is not None and _iteration_of(path) > upto
            if self._seen.get(path.name) != written and not late:
                self._seen[path.name] = written
                found.append(self._lacking(path))
        return sorted((one for one in found if one is not None), key=lambda one: (one["iteration"], one["suite"]))

    def accept(self, suite: str, iteration: int, seal: str) -> bool:
        """Return whether a score file holds what the run asks for of the checkpoint with this seal; then it counts."""
        path = self._run.score(suite, iteration)
        document = read_score_file(path)
        record = score_record(document)
        if record is None or record.get("limit") not in (None, self._limit):
            return False
        if document["model"]["megacode"].get("checkpoint_seal") != seal:
            return False
        if not self._knows(record):
            self._seen.pop(path.name, None)
            self._confirmed.add(path.name)
        return True

    def _files(self) -> list[Path]:
        return [path for path in self._run.eval.glob("*@*.json") if not path.name.startswith(".")]

    def _lacking(self, path: Path) -> Record | None:
        """Return the record of a file that belongs to the run's present past, and is no line yet."""
        document = read_score_file(path)
        record = score_record(document)
        if record is None or record.get("limit") not in (None, self._limit):
            return None
        facts = document["model"]["megacode"]
        if facts.get("withheld", 0) != self._withheld(record["consumed_samples"]):
            return None
        if self._knows(record) or self._left(path, record["iteration"], facts.get("checkpoint_seal")):
            return None
        self._past.scores[_name(record)] = score_digest(record)
        return record

    def _knows(self, record: Record) -> bool:
        return self._past.scores.get(_name(record)) == score_digest(record)

    def _left(self, path: Path, iteration: int, seal: str | None) -> bool:
        """Return whether a file is of a model that the run has left behind."""
        lies = self._seal_of(iteration)
        if lies and seal:
            return lies != seal
        return path.name not in self._confirmed and self._past.left(iteration, _written(path) / 1e9)


def _iteration_of(path: Path) -> int:
    """Return the iteration that a score file's name tells; 0 where it tells none."""
    digits = path.stem.rpartition("iter_")[2]
    return int(digits) if digits.isdigit() else 0


def _name(record: Record) -> str:
    return f"{record['suite']}@{record['iteration']}"


def _written(path: Path) -> int:
    """Return when a file was written; 0 where it has gone meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def merge(
    run: RunDir,
    limit: int | None,
    withheld: Callable[[int], int],
    seal_of: Callable[[int], str] = lambda iteration: "",
    upto: int | None = None,
) -> list[Record] | None:
    """Add what a run's metrics and TensorBoard lack of its scores, if nobody trains there.

    Args:
        run: the run.
        limit, withheld, seal_of: see `ScoreBook`.
        upto: see `ScoreBook.new`.

    Returns:
        The new records; None where a live run will add them itself.
    """
    if not run.metrics.exists():
        return []
    with while_idle(run) as idle:
        if not idle:
            return None
        records = ScoreBook(run, limit, withheld, seal_of).new(upto)
        lines = Lines(run.metrics)
        for record in records:
            lines.append(record)
        lines.close()
    if records and run.tensorboard.exists():
        mirror = TensorBoardSink(run.tensorboard)
        for record in records:
            mirror.write(record)
        mirror.close()
    return records
