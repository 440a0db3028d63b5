"""Write measurements: metrics.jsonl is the record, TensorBoard and the console are copies.

Only global rank 0 writes. metrics.jsonl is append-only: a run that resumes from iteration n adds a `segment` line, and
`metrics.reader` skips what that line supersedes.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megacode.base.files import RunDir, to_json
from megacode.base.progress import new_progress, on_terminal
from megacode.base.units import format_count, format_measured, format_rate
from megacode.metrics import probes
from megacode.metrics.numbers import numbers
from megacode.metrics.reader import SEGMENT, read_past

log = logging.getLogger(__name__)

Record = dict[str, Any]

_BLOCK = 1 << 16


class Sink(Protocol):
    """A destination of records."""

    def write(self, record: Record) -> None:
        """Write one record."""

    def close(self) -> None:
        """Flush and close."""


class Lines:
    """An append-only file of JSON lines; while the disk is full, new lines wait in memory.

    Args:
        path: the file; its directory exists. An incomplete last line, of a writer that was killed, is cut off. There
            must be only one writer at a time.
    """

    def __init__(self, path: Path) -> None:
        # Unbuffered: a killed process loses no line that was written.
        self._file = path.open("ab+", buffering=0)
        self._waiting, self._reported = b"", False
        self._cut_torn_line()

    def append(self, document: Record) -> None:
        """Append one line completely, or keep it for the next call."""
        self._waiting += to_json(document).encode() + b"\n"
        try:
            self._write()
            self._reported = False
        except OSError as error:
            if not self._reported:
                log.error("cannot write to %s: %s; new lines are kept in memory", self._file.name, error)
            self._reported = True

    def close(self) -> None:
        """Write waiting lines, or log how many are lost, and close the file."""
        try:
            self._write()
        except OSError as error:
            log.error(
                "%s: %d lines could not be written and are lost: %s", self._file.name, self._waiting.count(b"\n"), error
            )
        self._file.close()

    def _cut_torn_line(self) -> None:
        """Truncate the file after its last complete line; only its end is read."""
        end = place = self._file.seek(0, os.SEEK_END)
        newline = -1
        while place and newline < 0:
            size = min(_BLOCK, place)
            place = self._file.seek(place - size)
            newline = self._file.read(size).rfind(b"\n")
        if place + newline + 1 < end:
            self._file.truncate(place + newline + 1)

    def _write(self) -> None:
        """Write all waiting lines, or none: a partial write is undone."""
        # Half a line at the end of the file would make the next line unreadable, too.
        end, done = self._file.seek(0, os.SEEK_END), 0
        try:
            while done < len(self._waiting):
                done += self._file.write(self._waiting[done:])
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting = b""


class JsonlSink:
    """`metrics.jsonl`: append-only, one JSON object per line, written without buffering.

    Args:
        path: the file. If it has lines already, a `segment` line records where the run resumes.
        iteration: the last completed iteration; existing lines of later ones are superseded.
        consumed_samples: the clock.
    """

    def __init__(self, path: Path, iteration: int, consumed_samples: int = 0) -> None:
        self._lines = Lines(path)
        if path.stat().st_size:
            now = round(time.time(), 3)
            # Each segment line repeats what still counts, so a start never reads past the last one.
            past = read_past(path).back_to(iteration, now)
            clock = {"iteration": iteration, "consumed_samples": consumed_samples, "time": now}
            self._lines.append({"kind": SEGMENT, **clock, "scores": past.scores, "segments": past.segments})

    def write(self, record: Record) -> None:
        self._lines.append(record)

    def close(self) -> None:
        self._lines.close()


_other_threads = threading.excepthook


def _without_tensorboard(ended: threading.ExceptHookArgs) -> None:
    """Show no traceback of TensorBoard's own thread: the next value meets the same error, and that is told in words."""
    if not type(ended.thread).__module__.startswith("tensorboard."):
        _other_threads(ended)


class TensorBoardSink:
    """A copy for TensorBoard: every number of a record, by kind and name. A full disk stops it, but not the run.

    TensorBoard takes 0.1 ms per number, and blocks its caller while the disk is slow. So it is called from a thread of
    its own.

    Args:
        directory: of its files.
        resume_iteration: later values are purged; None: none are.
    """

    def __init__(self, directory: Path, resume_iteration: int | None = None) -> None:
        # Imported late: it is slow, and only rank 0 needs it.
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_iteration is None else resume_iteration + 1
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)
        if threading.excepthook is not _without_tensorboard:
            global _other_threads
            _other_threads, threading.excepthook = threading.excepthook, _without_tensorboard
        self._thread = ThreadPoolExecutor(1, "megacode-tensorboard")

    def write(self, record: Record) -> None:
        self._thread.submit(self._mirror, self._add_scalars, record)

    def close(self) -> None:
        self._thread.submit(self._mirror, self._end)
        # Waits for all records, so that none is lost at the end of a run.
        self._thread.shutdown()

    def _mirror(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            if self._writer is not None:
                action(*arguments)
        except Exception as error:  # an exception in this thread would otherwise be lost
            log.warning("writing to TensorBoard has stopped until the next start: %s", error)
            self._writer = None

    def _add_scalars(self, record: Record) -> None:
        for name, value in numbers(record):
            if name[-1] != "time":  # TensorBoard has its own
                self._writer.add_scalar("/".join(name), value, record["iteration"])

    def _end(self) -> None:
        self._writer.close()


class ConsoleSink:
    """One log line per record, and a progress bar if standard error is a terminal."""

    def __init__(self, total_iterations: int, iteration: int) -> None:
        self._total = total_iterations
        self._bar: Progress | None = None
        if on_terminal():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = new_progress(*columns)
            self._task = self._bar.add_task("training", total=total_iterations, completed=iteration)
            self._bar.start()

    def write(self, record: Record) -> None:
        if record["kind"] == "train":
            log.info("%s", train_line(record, self._total))
        elif record["kind"] == "validation":
            losses = " ".join(f"{name} {loss:.4f}" for name, loss in record["loss_by_source"].items())
            log.info("validation at iteration %d (%s): %s", record["iteration"], record["reason"], losses)
        elif record["kind"] == "fp8_probe":
            log.info("FP8 probe before iteration %d: %s", record["iteration"], probes.found(record))
        elif record["kind"] == "alignment":
            log.info("%s", alignment_line(record))
        elif record["kind"] == "score":
            log.info("%s", score_line(record))
        if self._bar is not None and record["kind"] != "score":  # a score is of an earlier iteration
            self._bar.update(self._task, completed=record["iteration"], description=record["phase"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def train_line(record: Record, total_iterations: int) -> str:
    """Return the log line of one iteration."""
    losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss_by_source"].items())
    mfu = f" {record['mfu']:.1%} MFU" if record["mfu"] is not None else ""
    speed = f"{format_count(record['tokens_per_second'])} tokens/s {format_rate(record['flops_per_second'], 'FLOP/s')}"
    return (
        f"iteration {record['iteration']}/{total_iterations} {record['phase']} loss {record['loss']:.4f} ({losses})"
        f" lr {record['learning_rate']:.3e} grad norm {record['grad_norm']:.3f}"
        f" {speed}{mfu}"
    )


def score_line(record: Record) -> str:
    """Return the log line of a model's scores: the means of its suite, or the first metric of each task."""
    firsts = {f"{task} {next(iter(scores))}": next(iter(scores.values())) for task, scores in record["scores"].items()}
    shown = record.get("means") or firsts
    listed = ", ".join(f"{name} {format_measured(value, 3)}" for name, value in shown.items())
    return f"scores at iteration {record['iteration']} ({record['suite']}): {listed}"


def alignment_line(record: Record) -> str:
    """Return the log line of a comparison of gradients: the pair that helps most, and the one that helps least."""
    names, where = record["sources"], f"gradients compared at iteration {record['iteration']}"
    pairs = {
        f"{step} to {loss}": value
        for step, row in zip(names, record["transfer"], strict=True)
        for loss, value in zip(names, row, strict=True)
        if step != loss
    }
    if not pairs:
        return f"{where}: one source"
    least, most = (choose(pairs, key=pairs.__getitem__) for choose in (min, max))
    shown = dict.fromkeys((most, least))
    return f"{where}: {', '.join(f'{pair} {pairs[pair] + 0.0:+.3g}' for pair in shown)} nats a step"


def open_sinks(run: RunDir, iteration: int, consumed_samples: int, total_iterations: int) -> list[Sink]:
    """Open all sinks of a run that starts or resumes after an iteration, at the clock `consumed_samples`."""
    return [
        JsonlSink(run.metrics, iteration, consumed_samples),
        TensorBoardSink(run.tensorboard, iteration),
        ConsoleSink(total_iterations, iteration),
    ]


class Events:
    """`events.jsonl`: starts, stops, saves, spikes and other events of a run, in order. Only on rank 0."""

    def __init__(self, run: RunDir) -> None:
        run.create()
        self._lines = Lines(run.events)

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the time in seconds since 1970."""
        self._lines.append(_event(event, facts))


def write_hang(run: RunDir, **facts: Any) -> None:
    """Add a `hang` event, from any rank, to a separate file, so that two nodes never write to one file.

    Only one rank of a start calls it, the first that notices. An incomplete last line of an earlier writer is ended
    first.

    Raises:
        OSError: the disk is full or missing.
    """
    descriptor = os.open(run.hangs, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        # One byte tells whether the last line was completed.
        torn = end and os.pread(descriptor, 1, end - 1) != b"\n"
        line = to_json(_event("hang", facts)) + "\n"
        os.write(descriptor, (("\n" if torn else "") + line).encode())
        os.fsync(descriptor)  # the process ends soon after
    finally:
        os.close(descriptor)


def _event(event: str, facts: Record) -> Record:
    return {"time": round(time.time(), 3), "event": event, **facts}
