"""Add each score file of a run to its metrics, as one line of kind `score` at the clock of its model.

Score files are written by other processes: a child of the trainer, a job, or a user's command. The lines have one
writer at a time: the trainer of a live run, which looks for new files, or else the process that scored (`merge`). What
neither has added, the next start adds. A model that is scored again gets another line; the last one is valid.

A run that returns to iteration 5 abandons the model of iteration 10 and its score: the segment line supersedes the
score's line. But the score file remains, or arrives later from a queued job, and must not count for the new model of
iteration 10. So a file counts if the present checkpoint has the seal that the file names. Without a checkpoint, it
counts if it was written after the run last returned to before that iteration.
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
    """Return a score file's contents as a record; None where it does not say what the model had read."""
    try:
        facts, limit = document["model"]["megacode"], document["settings"]["limit"]
        # A mean without a score lacks some of its tasks.
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
    """Return a score file's contents; empty where it is missing or not a score file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


class ScoreBook:
    """Finds the score files that are missing in a run's metrics.

    Args:
        run: the run.
        limit: items per task that the run's own config asks for. Files with another limit are quick checks, and are not
            recorded.
        withheld: returns the samples before a clock that the ledger withholds. The file of a model that had learned
            from them is of an abandoned past.
        seal_of: returns the seal of the present checkpoint of an iteration; empty if there is none.
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
        """Return records of files that are new or changed since the last call and not in the metrics yet; oldest first.

        Args:
            upto: iteration of the newest checkpoint; files of later ones wait until the run has reached them (again).
        """
        records = []
        for path in self._files():
            written = _written(path)
            # A job may score a checkpoint that the run has abandoned and will reach again.
            late = upto is not None and _iteration_of(path) > upto
            # By modification time: a file that has not changed is not read again.
            if self._seen.get(path.name) != written and not late:
                self._seen[path.name] = written
                records.append(self._lacking(path))
        return sorted(filter(None, records), key=lambda record: (record["iteration"], record["suite"]))

    def accept(self, suite: str, iteration: int, seal: str) -> bool:
        """Return whether a score file is as requested and of the checkpoint with this seal; if so, it counts."""
        path = self._run.score(suite, iteration)
        document = read_score_file(path)
        record = score_record(document)
        if record is None or record.get("limit") not in (None, self._limit):
            return False
        if document["model"]["megacode"].get("checkpoint_seal") != seal:
            return False
        if not self._knows(record):
            # Look at it again at the next call: it may have been skipped as abandoned before.
            self._seen.pop(path.name, None)
            self._confirmed.add(path.name)
        return True

    def _files(self) -> list[Path]:
        return [path for path in self._run.eval.glob("*@*.json") if not path.name.startswith(".")]

    def _lacking(self, path: Path) -> Record | None:
        """Return the record of a file that belongs to the run's present past and is not in the metrics yet, or None."""
        document = read_score_file(path)
        record = score_record(document)
        if record is None or record.get("limit") not in (None, self._limit):
            return None
        facts = document["model"]["megacode"]
        # The ledger has changed since: this model learned from samples that are now withheld, or the reverse.
        if facts.get("withheld", 0) != self._withheld(record["consumed_samples"]):
            return None
        if self._knows(record) or self._left(path, record["iteration"], facts.get("checkpoint_seal")):
            return None
        # Recorded in memory at once, so that it is returned only once.
        self._past.scores[_name(record)] = score_digest(record)
        return record

    def _knows(self, record: Record) -> bool:
        return self._past.scores.get(_name(record)) == score_digest(record)

    def _left(self, path: Path, iteration: int, seal: str | None) -> bool:
        """Return whether a file is of a model that the run has abandoned."""
        present = self._seal_of(iteration)
        if present and seal:
            return present != seal
        # Without a checkpoint or a seal only time tells: was it written before the run went back?
        return path.name not in self._confirmed and self._past.left(iteration, _written(path) / 1e9)


def _iteration_of(path: Path) -> int:
    """Return the iteration in a score file's name; 0 without one."""
    digits = path.stem.rpartition("iter_")[2]
    # 0 is never late: a file that somebody renamed is read, and its contents decide.
    return int(digits) if digits.isdigit() else 0


def _name(record: Record) -> str:
    return f"{record['suite']}@{record['iteration']}"


def _written(path: Path) -> int:
    """Return the modification time of a file in ns; 0 if it has been deleted meanwhile."""
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
    """Add missing scores to a run's metrics and TensorBoard, if no process trains there.

    Args:
        run: the run.
        limit, withheld, seal_of: see `ScoreBook`.
        upto: see `ScoreBook.new`.

    Returns:
        The new records; None if a live run will add them itself.
    """
    if not run.metrics.exists():
        return []
    # One writer at a time: the lock keeps a new start waiting while lines are added.
    with while_idle(run) as idle:
        if not idle:
            return None
        records = ScoreBook(run, limit, withheld, seal_of).new(upto)
        # Under the lock, so the end of the file cannot change meanwhile.
        lines = Lines(run.metrics)
        for record in records:
            lines.append(record)
        lines.close()
    if records and run.tensorboard.exists():
        # No `resume_iteration`: nothing is superseded, and a score stands at its model's iteration.
        mirror = TensorBoardSink(run.tensorboard)
        for record in records:
            mirror.write(record)
        mirror.close()
    return records
