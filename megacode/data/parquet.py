"""Parquet files: records in batches, of the columns that are needed, read by a process with a limit on memory.

Row groups belong to the part of a file in whose bytes they begin. Memory holds some batches of a few MiB, and in the
other process the pages that are being decompressed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megacode.base.errors import DataError
from megacode.data.object_ranges import RangeServer
from megacode.data.objects import ObjectPath
from megacode.data.parquet_child import UNSUITABLE
from megacode.data.records import EXAMPLES, Records, SkippedRecord

MEMORY_BYTES = 4 << 30  # of address space; pyarrow alone takes 0.2 GiB
_CHILD = Path(__file__).with_name("parquet_child.py")
_DAMAGED = "download or copy the file again"
_SKIP = "fix the row, or use --skip-bad-lines to skip and count such rows"
# One thread and one heap: more reserve address space, which is limited.
_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"}


def is_parquet(path: Path) -> bool:
    """Tell by its name whether a file is Parquet."""
    return path.suffix == ".parquet"


def read_rows(
    path: Path,
    part: tuple[int, int] | None = None,
    *,
    skip_bad: bool = False,
    columns: Sequence[str] | None = None,
    done: int = 0,
) -> Iterator[Records]:
    """Yield the records of a Parquet file; arguments as of `inputs.read_records`.

    Raises:
        DataError: if the file is damaged or has columns of other types, and at the first bad row, unless they are
            skipped; the records before are yielded first.
    """
    if not path.is_file():
        raise DataError("there is no such file", str(path), "give a Parquet file")
    request = [str(path), *(part or (0, -1)), done, None if columns is None else list(columns)]
    with _started(request, path) as child:
        for batch, facts in child.batches():
            rows, lines, bad = rows_of(batch, facts["row"])
            last = facts["row"] + batch.num_rows - 1
            if bad and not skip_bad:
                # The rows before it come first: the caller writes them, and a later attempt continues there.
                before = [number for number in lines if number < bad[0][0]]
                if before:
                    yield Records(path, facts["row"], rows[: len(before)], before, 0, done=bad[0][0] - 1)
                where = f"in the row group of bytes {facts['begin']:,} to {facts['end']:,}"
                raise DataError(f"{bad[0][1]} ({where})", f"{path}:{bad[0][0]}", _SKIP)
            skipped = tuple(SkippedRecord.of(number, message) for number, message in bad[:EXAMPLES])
            yield Records(path, facts["row"], rows, lines, facts["bytes"], len(bad), done=last, skipped=skipped)
        child.check(path)


def rows_of(batch: Any, first: int) -> tuple[list[dict[str, Any]], list[int], list[tuple[int, str]]]:
    """Return the records of a batch, their row numbers, and the bad rows with what is wrong."""
    names, numbers = batch.schema.names, range(first, first + batch.num_rows)
    if not names:
        return [{} for _ in numbers], list(numbers), []
    try:
        # By columns: pyarrow makes Python objects of a whole column much faster than of single values.
        columns = [column.to_pylist() for column in batch.columns]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)], list(numbers), []
    except UnicodeDecodeError:
        # Slow, and only for batches with a bad text: the fast way cannot tell which row it is in.
        return _rows_one_by_one(batch, numbers)


def _rows_one_by_one(batch: Any, numbers: range) -> tuple[list[dict[str, Any]], list[int], list[tuple[int, str]]]:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    bad: list[tuple[int, str]] = []
    for place, number in enumerate(numbers):
        row: dict[str, Any] = {}
        try:
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                row[name] = column[place].as_py()
        except UnicodeDecodeError as error:
            message = f"the key {name!r} is not UTF-8: {error.reason} at its byte {error.start + 1}"
            bad.append((number, message))
            continue
        rows.append(row)
        lines.append(number)
    return rows, lines, bad


@dataclass(frozen=True)
class _Child:
    """The process that reads, the file of its errors, and what reads object storage for it."""

    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    server: RangeServer | None

    def batches(self) -> Iterator[tuple[Any, dict[str, int]]]:
        """Yield its batches and what is told of each; where it fails they end early, see `check`."""
        import pyarrow

        try:
            with pyarrow.ipc.open_stream(self.process.stdout) as stream:
                while True:
                    # Arrow's stream carries our facts beside each batch, so no second pipe is needed.
                    batch, metadata = stream.read_next_batch_with_custom_metadata()
                    yield batch, json.loads(metadata["facts"])
        except (StopIteration, pyarrow.ArrowException, OSError):
            # The end of the stream, or of a process that failed.
            return

    def check(self, path: Path) -> None:
        """Raise a DataError where the process did not end well."""
        code = self.process.wait()
        if self.server is not None and self.server.error is not None:
            raise self.server.error
        if code == 0:
            return
        # A file and no pipe: a child that writes many errors would block on a full one.
        self.errors.seek(0)
        message = self.errors.read().decode(errors="replace").strip()
        if code == UNSUITABLE:
            raise DataError(message, str(path), "name other keys, or convert the file")
        # Python's sign for an end by a signal: pyarrow aborted or crashed.
        if code < 0:
            last = f": {message.splitlines()[-1][:200]}" if message else ""
            message = f"pyarrow crashed on it ({signal.Signals(-code).name}){last}"
        raise DataError(
            f"it cannot be read: {message}; the file has {path.stat().st_size:,} bytes", str(path), _DAMAGED
        )


@contextmanager
def _started(request: list[Any], path: Path) -> Iterator[_Child]:
    """Start the process that reads; it ends with the `with` block."""
    server = RangeServer(path) if isinstance(path, ObjectPath) else None
    with tempfile.TemporaryFile() as errors, server.serving() if server else nullcontext() as connection:
        handles = [] if connection is None else [connection.fileno()]
        remote = [handles[0], path.stat().st_size] if handles else None
        # -P: the script's folder is not searched for modules, so none of megacode's hides one of pyarrow's.
        command = [sys.executable, "-P", str(_CHILD), json.dumps([MEMORY_BYTES, remote, *request])]
        # Ctrl-C is for this process alone: the other one, ended by it, would look like a damaged file.
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT},
            process_group=0,
            pass_fds=handles,
        )
        if connection is not None:
            connection.close()  # so that the end of the other process ends the connection
        try:
            yield _Child(process, errors, server)
        finally:
            # Where the caller stops early the child waits for room in the pipe, and would never end.
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
