"""Atomic writes, strict JSON, hashes, and the paths of a run directory.

`RunDir` is the only place that knows path names inside a run directory. Processes of a run communicate through files,
and all of them take the paths from here.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import orjson

from megacode.base.errors import DataError

Json: TypeAlias = dict[str, Any]

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_HASH_BLOCK = 1 << 20


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a full disk's error name the file: the system names one where it is opened, but not where it is written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in DISK_FULL:
            error.filename = os.fspath(path)
        raise


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there is renamed to `path` when the block succeeds.

    The contents are flushed to disk before the rename. On an exception the temporary is removed; `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same directory, since a rename is atomic only inside one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        with naming(path):
            yield temporary
            publish(temporary, path)
    # Also on KeyboardInterrupt: a temporary checkpoint left by Ctrl-C may be hundreds of gigabytes.
    except BaseException:
        remove(temporary)
        raise


def publish(temporary: Path, path: Path, *, flushed: bool = False) -> None:
    """Flush a finished file or directory to disk and rename it to `path`, replacing what was there.

    A reader of `path` sees the old version or the new one, never neither. One exception: where the file system cannot
    exchange two names (NFS), a directory is missing for a moment. A kill at that moment leaves it as `.NAME.PID.old`.

    Args:
        temporary: the finished file or directory.
        path: its final name.
        flushed: the caller has already flushed the contents of the directory to disk.
    """
    for item in [temporary, *temporary.rglob("*")] if temporary.is_dir() and not flushed else [temporary]:
        flush(item)
    if path.is_dir() and not path.is_symlink():
        # rename() cannot replace a directory that is not empty, hence the exchange.
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if _exchange(temporary, path):
            os.replace(temporary, old)
        else:
            os.replace(path, old)
            os.replace(temporary, path)
        flush(path.parent)
        remove(old)
    else:
        os.replace(temporary, path)
        flush(path.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names atomically, which Linux can do on most file systems; return whether it worked."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    at_fdcwd, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>
    return bool(rename(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), exchange) == 0)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file or directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # A descriptor for reading is enough, and the only one that a directory gives.
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically, keys in the order given."""
    write_text(path, to_json(document, indent=2) + "\n")


def to_json(document: Any, indent: int | None = None, *, other: Callable[[Any], Any] | None = None) -> str:
    """Return a document as strict JSON, keys in the order given. All JSON for other programs is made here.

    NaN and infinity become null, since strict readers refuse `NaN`. A character that UTF-8 cannot encode, such as an
    undecodable byte of a path, becomes `?`.

    Args:
        document: what to write.
        indent: spaces per level; None: one line.
        other: converts a value of a type that JSON does not have; None: such a value is an error.
    """
    # json, not orjson: orjson refuses integers above 64 bits and cannot indent by other than 2.
    return json.dumps(strict(document), indent=indent, ensure_ascii=False, allow_nan=False, default=other)


def strict(document: Any) -> Any:
    """Return a document with the values that strict JSON cannot hold replaced; see `to_json`."""
    if isinstance(document, dict):
        return {strict(key): strict(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [strict(value) for value in document]
    if hasattr(document, "tolist"):  # numpy's and torch's arrays, and their scalars
        return strict(document.tolist())
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    # Linux paths are bytes; Python decodes invalid ones to surrogates, which UTF-8 refuses.
    if isinstance(document, str) and not document.isascii():
        return document.encode(errors="replace").decode()
    return document


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the object of one JSON line; `NaN` is read as None.

    Raises:
        ValueError: the line is not a JSON object.
    """
    try:
        # orjson is several times faster than json, but refuses the `NaN` that other writers leave.
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = strict(json.loads(line.decode("utf-8")))
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def read_json(path: Path) -> Json:
    """Return the object in a small JSON file; empty where the file is missing or damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_jsonl(path: Path, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a file of one JSON object per line; an incomplete last line (its writer was killed) is skipped.

    Args:
        path: the file; a missing one is empty.
        damaged: collects a message for each complete line that cannot be read; None: such a line is an error.

    Raises:
        DataError: a line is damaged, and `damaged` is None.
    """
    if not path.exists():
        return []
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            # A line without a newline is one whose writer was killed, or is still writing.
            if line.endswith(b"\n") and not line.isspace():
                try:
                    rows.append(parse_line(line))
                except ValueError as error:
                    note_damage(path, number, error, damaged)
    return rows


def note_damage(path: Path, number: int, error: ValueError, damaged: list[str] | None) -> None:
    """Add a damaged line to the list, or raise where there is no list."""
    if damaged is None:
        message = f"the line is damaged: {error}"
        raise DataError(message, f"{path}:{number}", "restore the file from a backup, or delete this line") from None
    damaged.append(f"{path.name}:{number}: {error}")


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of several strings, each prefixed by its length, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        # Without the lengths, ("ab", "c") and ("a", "bc") would have one hash.
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(paths: Iterable[Path]) -> str:
    """Return one digest over the names and bytes of files, independent of their order."""
    return digest(*(part for path in sorted(paths) for part in (path.name, file_digest(path))))


class RunDir:
    """The layout of a run directory.

    Args:
        path: the directory; `create` makes it.

    Attributes:
        config: the resolved config, YAML.
        plan: the plan, as `megacode plan --json` prints it.
        chat_template: the template that wrote the conversations of its sources, if any.
        metrics: all measurements, one JSON object each. Append-only: `metrics.reader` returns the valid ones.
        events: starts, stops and saves, one JSON object each; only rank 0 writes it.
        hangs: the watchdog's events, written by the rank that first notices a hang: rank 0 may be the one that hangs.
        tensorboard: a copy of the metrics for TensorBoard.
        mirrors: how far each mirror of the metrics is, its log, and files of its library.
        checkpoints: one directory a checkpoint.
        abandoned: checkpoints that were moved aside, with the reason in their names; the run never resumes from them.
        latest: a text file with the name of the newest complete checkpoint.
        hf: exported Hugging Face models, one directory a checkpoint.
        exports: exports that were written outside of this directory, one JSON object each.
        samples: completions of the shipped prompts by exported models, one JSON file a checkpoint.
        eval: scores, one JSON file a suite and checkpoint.
        provenance: command, time and package versions of each start.
        ledger: the samples that were withheld from training, and why, one JSON object a range.
        lock: the process that trains in this directory.
        heartbeats: the progress of the ranks, one small JSON file a node.
        stacks: Python stacks of ranks that hung, one file a rank.
        replays: results of `megacode replay`, one JSON file an iteration.
        attempts: start and end of each SLURM attempt, one JSON object each; `megacode job` writes it.
        preflight: results of the node health checks, one JSON file a node.
        save_request, stop_request: touch them to make the run save, or save and stop.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "run.yaml"
        self.plan = self.path / "plan.json"
        self.chat_template = self.path / "chat_template.jinja"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.hangs = self.path / "hangs.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.mirrors = self.path / "mirrors"
        self.checkpoints = self.path / "checkpoints"
        self.abandoned = self.checkpoints / "abandoned"
        self.latest = self.path / "latest"
        self.hf = self.path / "hf"
        self.exports = self.path / "exports.jsonl"
        self.samples = self.path / "samples"
        self.eval = self.path / "eval"
        self.provenance = self.path / "provenance"
        self.ledger = self.path / "ledger.jsonl"
        self.lock = self.path / "run.lock"
        self.heartbeats = self.path / "heartbeats"
        self.stacks = self.path / "stacks"
        self.replays = self.path / "replays"
        self.attempts = self.path / "attempts.jsonl"
        self.preflight = self.path / "preflight"
        self.save_request = self.path / "save"
        self.stop_request = self.path / "stop"

    def create(self) -> RunDir:
        """Make the directory."""
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    @staticmethod
    def iteration_name(iteration: int) -> str:
        """Return the name of a checkpoint: `iter_0001000`."""
        return f"iter_{iteration:07d}"

    @staticmethod
    def iteration_of(checkpoint: Path) -> int:
        """Return the iteration in a checkpoint's name."""
        return int(checkpoint.name.removeprefix("iter_"))

    def checkpoint(self, iteration: int) -> Path:
        """Return the directory of the checkpoint that was saved after an iteration."""
        return self.checkpoints / self.iteration_name(iteration)

    def score(self, suite: str, iteration: int) -> Path:
        """Return the score file of a suite for the model of an iteration."""
        return self.eval / f"{suite}@{self.iteration_name(iteration)}.json"

    def scoring(self, iteration: int) -> RunDir:
        """Return the directory whose lock is held by the process that scores a checkpoint."""
        # A scoring process locks its checkpoint with the same RunLock, in a directory of its own.
        place = RunDir(self.eval / ".scoring")
        place.lock = place.path / f"{self.iteration_name(iteration)}.lock"
        return place

    def score_log(self, suite: str, iteration: int) -> Path:
        """Return the log of the process that scores a checkpoint during training."""
        return self.eval / "logs" / f"{suite}@{self.iteration_name(iteration)}.log"

    def passing_export(self, iteration: int) -> Path:
        """Return the path of a temporary export, which is deleted once it has its scores."""
        return self.hf / ".scoring" / self.iteration_name(iteration)

    def iterations(self) -> list[int]:
        """Return the iterations of the published checkpoints, ascending; other names, such as `iter_10`, are ignored.

        Raises:
            OSError: the directory exists but cannot be read, so whether it holds checkpoints is unknown.
        """
        try:
            items = [item for item in self.checkpoints.iterdir() if item.name.startswith("iter_") and item.is_dir()]
        except (FileNotFoundError, NotADirectoryError):  # a file in its place holds none either
            return []
        numbers = [self.iteration_of(item) for item in items if item.name.removeprefix("iter_").isdecimal()]
        # The name made again must exist: `iter_10` is not `iter_0000010`.
        return sorted({number for number in numbers if self.checkpoint(number) in items})
