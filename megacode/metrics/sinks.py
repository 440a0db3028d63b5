"""Where measurements go: metrics.jsonl is the truth, the others mirror it.

Only global rank 0 writes. metrics.jsonl only grows: a run that goes on from iteration n says so by a `segment` line,
and `metrics.reader` leaves out what that line supersedes.
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
from megacode.metrics.reader import SEGMENT, read_past

log = logging.getLogger(__name__)

Record = dict[str, Any]

_BLOCK = 1 << 16


class Sink(Protocol):
    """Something that takes records, one after another."""

    def write(self, record: Record) -> None:
        """Take one record."""

    def close(self) -> None:
        """Write out what is still held."""


class Lines:
    """A file of JSON lines that grows while the disk has room; what finds none waits in memory until there is.

    Args:
        path: the file; its directory is there. A torn last line, of a writer that was killed, is cut off. It has one
            writer at a time.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab+", buffering=0)
        self._waiting, self._told = b"", False
        self._cut_torn_line()

    def append(self, document: Record) -> None:
        """Append one line, whole, or keep it for the next call."""
        self._waiting += to_json(document).encode() + b"\n"
        try:
            self._write()
            self._told = False
        except OSError as error:
            if not self._told:
                log.error("cannot write to %s: %s; its lines wait in memory", self._file.name, error)
            self._told = True

    def close(self) -> None:
        """Write what still waits, or say that it is lost, and close the file."""
        try:
            self._write()
        except OSError as error:
            log.error("%s lacks %d lines: %s", self._file.name, self._waiting.count(b"\n"), error)
        self._file.close()

    def _cut_torn_line(self) -> None:
        """Cut the file behind its last whole line; only its end is read."""
        end = place = self._file.seek(0, os.SEEK_END)
        newline = -1
        while place and newline < 0:
            size = min(_BLOCK, place)
            place = self._file.seek(place - size)
            newline = self._file.read(size).rfind(b"\n")
        if place + newline + 1 < end:
            self._file.truncate(place + newline + 1)

    def _write(self) -> None:
        """Write all that waits, or nothing: what a full disk took in part is taken back."""
        end, done = self._file.seek(0, os.SEEK_END), 0
        try:
            while done < len(self._waiting):
                done += self._file.write(self._waiting[done:])
        except OSError:
            self._file.truncate(end)
            raise
        self._waiting = b""


class JsonlSink:
    """`metrics.jsonl`: one JSON object a line, on its way to the disk at once; the file only grows.

    Args:
        path: the file. Where it holds lines already, a `segment` line says where the run goes on.
        iteration: the run stands after it; lines of later iterations that are there do not count any more.
        consumed_samples: the clock.
    """

    def __init__(self, path: Path, iteration: int, consumed_samples: int = 0) -> None:
        self._lines = Lines(path)
        if path.stat().st_size:
            now = round(time.time(), 3)
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
    """A mirror for TensorBoard: every number of a record, by kind and name. A full disk ends it, not the run.

    TensorBoard takes a tenth of a millisecond a number, and where its disk is slow it lets its caller wait; so a thread
    of its own tells it, and training does not.

    Args:
        directory: where its files lie.
        resume_iteration: values after it are taken back; absent: none are.
    """

    def __init__(self, directory: Path, resume_iteration: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = None if resume_iteration is None else resume_iteration + 1
        self._writer: Any = SummaryWriter(str(directory), purge_step=purge)
        if threading.excepthook is not _without_tensorboard:
            global _other_threads
            _other_threads, threading.excepthook = threading.excepthook, _without_tensorboard
        self._thread = ThreadPoolExecutor(1, "megacode-tensorboard")

    def write(self, record: Record) -> None:
        self._thread.submit(self._mirror, self._tell, record)

    def close(self) -> None:
        self._thread.submit(self._mirror, self._end)
        self._thread.shutdown()

    def _mirror(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            if self._writer is not None:
                action(*arguments)
        except Exception as error:  # in a thread nobody else would hear of it
            log.warning("TensorBoard's files get no more values in this start: %s", error)
            self._writer = None

    def _tell(self, record: Record) -> None:
        numbers = _score_numbers(record) if record["kind"] == "score" else _numbers(record, record["kind"])
        for name, value in numbers:
            self._writer.add_scalar(name, value, record["iteration"])

    def _end(self) -> None:
        self._writer.close()


def _numbers(record: Record, prefix: str) -> list[tuple[str, float]]:
    """Return a record's numbers with their path as name: `train/loss_by_source/code`."""
    found: list[tuple[str, float]] = []
    for key, value in record.items():
        if isinstance(value, dict):
            found += _numbers(value, f"{prefix}/{key}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}/{key}", float(value)))
    return found


def _score_numbers(record: Record) -> list[tuple[str, float]]:
    """Return scores and means by suite and task: `score/demo/demo_bits_code/bits_per_byte`."""
    found = _numbers({"means": record.get("means", {}), **record["scores"]}, f"score/{record['suite']}")
    return [(name, value) for name, value in found if not name.endswith("_stderr")]


class ConsoleSink:
    """One log line a record, and a progress bar where standard error is a terminal."""

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
        elif record["kind"] == "score":
            log.info("%s", score_line(record))
        if self._bar is not None and record["kind"] != "score":  # which is of an iteration long ago
            self._bar.update(self._task, completed=record["iteration"], description=record["phase"])

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def train_line(record: Record, total_iterations: int) -> str:
    """Return one iteration's line."""
    losses = " ".join(f"{name} {loss:.3f}" for name, loss in record["loss_by_source"].items())
    mfu = f" {record['mfu']:.1%} MFU" if record["mfu"] is not None else ""
    speed = f"{format_count(record['tokens_per_second'])} tokens/s {format_rate(record['flops_per_second'], 'FLOP/s')}"
    return (
        f"iteration {record['iteration']}/{total_iterations} {record['phase']} loss {record['loss']:.4f} ({losses})"
        f" lr {record['learning_rate']:.3e} grad norm {record['grad_norm']:.3f}"
        f" {speed}{mfu}"
    )


def score_line(record: Record) -> str:
    """Return a model's scores as a line: its suite's means, or each task's first metric."""
    firsts = {f"{task} {next(iter(scores))}": next(iter(scores.values())) for task, scores in record["scores"].items()}
    shown = record.get("means") or firsts
    listed = ", ".join(f"{name} {format_measured(value, 3)}" for name, value in shown.items())
    return f"scores at iteration {record['iteration']} ({record['suite']}): {listed}"


def open_sinks(run: RunDir, iteration: int, consumed_samples: int, total_iterations: int) -> list[Sink]:
    """Open every sink of a run that starts or goes on after an iteration, where the clock is `consumed_samples`."""
    return [
        JsonlSink(run.metrics, iteration, consumed_samples),
        TensorBoardSink(run.tensorboard, iteration),
        ConsoleSink(total_iterations, iteration),
    ]


class Events:
    """`events.jsonl`: starts, stops, saves, spikes and whatever else happens to a run, in order. Rank 0 has one."""

    def __init__(self, run: RunDir) -> None:
        run.create()
        self._lines = Lines(run.events)

    def write(self, event: str, **facts: Any) -> None:
        """Append one event with the time in seconds since 1970."""
        self._lines.append(_event(event, facts))


def write_hang(run: RunDir, **facts: Any) -> None:
    """Add a `hang` event, from any rank, to a file of its own: so no line of rank 0's can be torn by another node's.

    One rank of a start may call it: the first that notices. A torn last line, of an earlier writer, is ended first.

    Raises:
        OSError: the disk is full, or not there.
    """
    descriptor = os.open(run.hangs, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.fstat(descriptor).st_size
        torn = end and os.pread(descriptor, 1, end - 1) != b"\n"
        line = to_json(_event("hang", facts)) + "\n"
        os.write(descriptor, (("\n" if torn else "") + line).encode())
        os.fsync(descriptor)  # the process ends soon after
    finally:
        os.close(descriptor)


def _event(event: str, facts: Record) -> Record:
    return {"time": round(time.time(), 3), "event": event, **facts}
