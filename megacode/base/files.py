"""Files: written whole or not at all, known by their hash, and named in one place.

`RunDir` is the only owner of path names inside a run directory; every process that speaks through files asks it.
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
    """Yield a temporary path beside `path`; a file or directory written there takes its name when the block succeeds.

    On an exception the temporary is removed and `path` stays as it was. The contents are flushed to disk first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove(temporary)
    try:
        with naming(path):
            yield temporary
            publish(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def publish(temporary: Path, path: Path, *, flushed: bool = False) -> None:
    """Flush a finished file or directory to disk and give it its name, in place of what stood there.

    Whoever looks at `path` sees what stood there or the new one, never neither. Only where the file system cannot
    exchange two names (NFS) a directory is gone for a moment; a kill just then leaves it as `.NAME.PID.old` beside.

    Args:
        temporary: the finished one.
        path: its name.
        flushed: what is in the directory is on disk already: whoever wrote it has seen to that.
    """
    for item in [temporary, *temporary.rglob("*")] if temporary.is_dir() and not flushed else [temporary]:
        _sync(item)
    if path.is_dir() and not path.is_symlink():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        if _exchange(temporary, path):
            os.replace(temporary, old)
        else:
            os.replace(path, old)
            os.replace(temporary, path)
        _sync(path.parent)
        remove(old)
    else:
        os.replace(temporary, path)
        _sync(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step, as Linux can on most file systems; return whether it did."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of <fcntl.h> and <linux/fs.h>
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document whole or not at all, keys in the order given."""
    write_text(path, to_json(document, indent=2) + "\n")


def to_json(document: Any, indent: int | None = None, *, other: Callable[[Any], Any] | None = None) -> str:
    """Return a document as strict JSON, keys in the order given; all JSON that megacode writes for others is made here.

    A number that is not finite becomes null: strict readers refuse `NaN`. Text that UTF-8 cannot hold, such as a path
    of other bytes, keeps a `?` in the place of each such character.

    Args:
        document: what to write.
        indent: spaces a level; None: one line.
        other: makes a value of a type that JSON does not have one that it has; None: such a value is an error.
    """
    return json.dumps(strict(document), indent=indent, ensure_ascii=False, allow_nan=False, default=other)


def strict(document: Any) -> Any:
    """Return a document without what strict JSON cannot hold; see `to_json`."""
    if isinstance(document, dict):
        return {strict(key): strict(value) for key, value in document.items()}
    if isinstance(document, (list, tuple)):
        return [strict(value) for value in document]
    if hasattr(document, "tolist"):  # numpy's and torch's arrays, and their scalars
        return strict(document.tolist())
    if isinstance(document, float):
        return document if math.isfinite(document) else None
    if isinstance(document, str) and not document.isascii():
        return document.encode(errors="replace").decode()
    return document


def parse_line(line: bytes) -> dict[str, Any]:
    """Return the object of one JSON line; `NaN`, which older files hold, is read as None.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        document = orjson.loads(line)
    except orjson.JSONDecodeError:
        document = strict(json.loads(line.decode("utf-8")))
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    return document


def read_json(path: Path) -> Json:
    """Return a small JSON file's object; empty where it is not there, or half."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def read_jsonl(path: Path, damaged: list[str] | None = None) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line; a torn last line (a writer was killed) is left out.

    Args:
        path: the file; one that is not there is empty.
        damaged: gets a text for each whole line that cannot be read; absent: such a line is an error.

    Raises:
        DataError: a line is damaged, and nobody takes note of it.
    """
    if not path.exists():
        return []
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and not line.isspace():
                try:
                    rows.append(parse_line(line))
                except ValueError as error:
                    note_damage(path, number, error, damaged)
    return rows


def note_damage(path: Path, number: int, error: ValueError, damaged: list[str] | None) -> None:
    """Take note of a damaged line, or raise where nobody takes note."""
    if damaged is None:
        what = f"the line is damaged: {error}"
        raise DataError(what, f"{path}:{number}", "bring the file back from a copy, or remove the line") from None
    damaged.append(f"{path.name}:{number}: {error}")


def digest(*parts: bytes | str) -> str:
    """Return the SHA-256 of some parts, each prefixed by its length, as 64 hexadecimal digits."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little"))
        state.update(raw)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_digest(paths: Iterable[Path]) -> str:
    """Return one digest of the names and bytes of some files, whatever their order."""
    return digest(*(part for path in sorted(paths) for part in (path.name, file_digest(path))))


class RunDir:
    """The layout of a run directory.

    Args:
        path: the directory; made by `create`.

    Attributes:
        config: the resolved config, YAML.
        plan: the plan, as `megacode plan --json` prints it.
        metrics: one JSON object a measurement; the truth. It only grows: `metrics.reader` returns what counts.
        events: starts, stops and saves, one JSON object each; rank 0 alone writes it.
        hangs: the watchdog's events; the rank that first notices a hang writes them, as rank 0 may hang itself.
        tensorboard: TensorBoard's mirror of the metrics.
        checkpoints: one directory a checkpoint.
        abandoned: checkpoints that the run went back from, with the reason in their names; it goes on from none.
        latest: a text file with the name of the newest whole checkpoint.
        hf: exported Hugging Face models, one directory a checkpoint.
        exports: exports that were published outside of this directory, one JSON object each.
        samples: what exported models write to shipped prompts, one JSON file a checkpoint.
        eval: scores, one JSON file a suite and checkpoint.
        provenance: what was started, when, with which packages.
        ledger: the samples that were withheld from training, and why, one JSON object a range.
        lock: who is training here.
        heartbeats: one small JSON file a node: where its ranks are.
        stacks: Python stacks of ranks that hung, one file a rank.
        replays: what `megacode replay` found, one JSON file an iteration.
        attempts: how each job of this run began and ended, one JSON object each; `megacode job` writes it.
        preflight: what each node's health check found, one JSON file a node.
        save_request, stop_request: touch them to have the run save, or save and stop.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "run.yaml"
        self.plan = self.path / "plan.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.hangs = self.path / "hangs.jsonl"
        self.tensorboard = self.path / "tensorboard"
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
        """Return the iteration that a checkpoint's name tells."""
        return int(checkpoint.name.removeprefix("iter_"))

    def checkpoint(self, iteration: int) -> Path:
        """Return the directory of the checkpoint that was saved after an iteration."""
        return self.checkpoints / self.iteration_name(iteration)

    def score(self, suite: str, iteration: int) -> Path:
        """Return the score file of a suite for the model of an iteration."""
        return self.eval / f"{suite}@{self.iteration_name(iteration)}.json"

    def scoring(self, iteration: int) -> RunDir:
        """Return the place of the lock of whoever scores a checkpoint."""
        place = RunDir(self.eval / ".scoring")
        place.lock = place.path / f"{self.iteration_name(iteration)}.lock"
        return place

    def score_log(self, suite: str, iteration: int) -> Path:
        """Return the log of the process that scores a checkpoint while the run goes on."""
        return self.eval / "logs" / f"{suite}@{self.iteration_name(iteration)}.log"

    def passing_export(self, iteration: int) -> Path:
        """Return where a model lies that is exported for its scores alone, and removed after them."""
        return self.hf / ".scoring" / self.iteration_name(iteration)

    def iterations(self) -> list[int]:
        """Return the iterations of the published checkpoints, in order; other names, such as `iter_10`, are none.

        Raises:
            OSError: the directory is there, and cannot be read: it may well hold some.
        """
        try:
            items = [item for item in self.checkpoints.iterdir() if item.name.startswith("iter_") and item.is_dir()]
        except FileNotFoundError:
            return []
        numbers = [self.iteration_of(item) for item in items if item.name.removeprefix("iter_").isdecimal()]
        return sorted({number for number in numbers if self.checkpoint(number) in items})
