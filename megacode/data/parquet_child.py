"""Read a Parquet file in a process of its own, which writes Arrow's stream of batches; `parquet` starts it.

pyarrow's reader has crashed on damaged files before. Here a crash, or a damaged length that asks for all memory, ends
this process alone. It is started as a script and imports nothing of megacode: starting takes 0.25 s of CPU.
"""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

# Text in a batch, as far as the file's own sizes tell; rows in a batch at most.
_BATCH_BYTES, _BATCH_ROWS = 4 << 20, 4096
# Columns are decompressed in pieces of this size, not a row group at once.
_BUFFER_BYTES = 1 << 20
UNSUITABLE = 3  # exit code: the file may be whole, but its columns cannot be used
# What pyarrow raises is of these classes, or of a subclass.
ERRORS = (OSError, ValueError, ArithmeticError, TypeError, LookupError, RuntimeError)


class UnsuitableError(Exception):
    """The columns that are wanted are not there, or hold something else than texts, numbers and lists of them."""


@dataclass(frozen=True)
class Group:
    """A row group: its number, its first row (from 1), how many it has, and its bytes up to the next one's."""

    number: int
    first: int
    rows: int
    begin: int
    end: int


class Served(io.RawIOBase):
    """A file whose bytes another process reads: see `object_ranges`.

    Args:
        handle: of the socket.
        size: bytes of the file.
    """

    def __init__(self, handle: int, size: int) -> None:
        self._socket, self._size, self._at = socket.socket(fileno=handle), size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, and return how many bytes it got; fewer only at the end.

        Raises:
            OSError: the other process could not read them.
        """
        view = memoryview(buffer).cast("B")
        view = view[: max(0, min(len(view), self._size - self._at))]
        self._socket.sendall(struct.pack("<QQ", self._at, len(view)))
        filled = 0
        while filled < len(view):
            read = self._socket.recv_into(view[filled:])
            if not read:
                raise OSError("the connection to the process that reads the object has ended")
            filled += read
        self._at += filled
        return filled


def main(
    source: str | Served, size: int, start: int, end: int, done: int, columns: Sequence[str] | None, out: BinaryIO
) -> None:
    """Write the batches of the row groups that begin in a part of a file.

    Args:
        source: the file, or its path.
        size: its bytes.
        start: first byte of the part.
        end: end of the part; -1: the file's.
        done: rows of the file to pass over.
        columns: which to read, nested ones as `a.b`; None: all.
        out: where the stream is written.

    Raises:
        UnsuitableError: see there.
        MemoryError: the limit of memory is reached.
        OSError, ValueError and others of `ERRORS`: the file is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    # Threads reserve address space each, which is what the limit counts.
    pyarrow.set_cpu_count(1)
    with pyarrow.parquet.ParquetFile(source, buffer_size=_BUFFER_BYTES, page_checksum_verification=True) as file:
        schema = _schema(file, columns)
        with pyarrow.ipc.new_stream(out, schema) as stream:
            for group in groups(file.metadata, size):
                if start <= group.begin and (end < 0 or group.begin < end) and group.first + group.rows > done + 1:
                    _write(stream, file, group, schema, columns, done)


def groups(metadata: Any, size: int) -> list[Group]:
    """Return the row groups of a file of `size` bytes.

    Raises:
        ValueError: if the footer contradicts itself.
    """
    facts = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in facts]
    # Counts of a damaged footer may be negative, and still add up.
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"its footer names {metadata.num_rows:,} rows, its row groups have {sum(rows):,}")
    begins = [0]
    for group in facts[1:]:
        column = group.column(0)
        # A dictionary page, where there is one, comes before the data pages.
        begin = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
        # Whatever a damaged footer says, they follow each other and each belongs to one part of the file.
        begins.append(max(begins[-1], min(begin, size - 1)))
    ends = [*begins[1:], size]
    return [Group(n, 1 + sum(rows[:n]), rows[n], begins[n], ends[n]) for n in range(len(rows))]


def _schema(file: Any, columns: Sequence[str] | None) -> Any:
    """Return the schema of the batches to write.

    Raises:
        UnsuitableError: if none of the columns is there, or one has a type that is not supported.
    """
    import pyarrow

    names = file.schema_arrow.names
    if columns is not None and not any(key in names or key.split(".")[0] in names for key in columns):
        wanted = ", ".join(map(repr, columns))
        raise UnsuitableError(f"it has no column {wanted}; its columns are {', '.join(map(repr, names)) or 'none'}")
    # Reading no row group shows what the library makes of nested columns.
    schema = file.schema_arrow if columns is None else file.read_row_groups([], columns=list(columns)).schema
    return pyarrow.schema([pyarrow.field(field.name, _plain(field.name, field.type)) for field in schema])


def _plain(name: str, kind: Any) -> Any:
    """Return the type that a column is converted to: what JSON has.

    Raises:
        UnsuitableError: if it is not supported.
    """
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        return _plain(name, kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.large_list(_plain(name, kind.value_type))
    if types.is_struct(kind):
        return pyarrow.struct([pyarrow.field(field.name, _plain(f"{name}.{field.name}", field.type)) for field in kind])
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return kind
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_null(kind):
        return kind
    if types.is_temporal(kind) and not types.is_duration(kind):
        return pyarrow.string()
    message = f"its column {name!r} holds {kind}, which is not supported"
    raise UnsuitableError(f"{message}: texts are string or large_string")


def _write(out: Any, file: Any, group: Group, schema: Any, columns: Sequence[str] | None, done: int) -> None:
    """Write the batches of a row group, without the rows of the file that are done."""
    row = group.first
    for batch in _batches(file, group, schema, columns):
        # A batch's share of the bytes, so that those of all batches together are the file.
        share = (group.end - group.begin) * batch.num_rows // group.rows
        facts = {"row": max(row, done + 1), "bytes": share, "begin": group.begin, "end": group.end}
        if row + batch.num_rows > done + 1:
            out.write_batch(batch.slice(max(0, done + 1 - row)), custom_metadata={"facts": json.dumps(facts)})
        row += batch.num_rows


def _batches(file: Any, group: Group, schema: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    """Yield the batches of a row group.

    Raises:
        ValueError: if it is damaged; says where it lies.
    """
    facts, done = file.metadata.row_group(group.number), 0
    # By the mean size of a row, so long documents come in batches of few.
    rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, facts.total_byte_size // max(1, group.rows))))
    wanted = None if columns is None else list(columns)
    batches = file.iter_batches(rows, [group.number], wanted, use_threads=False)
    place = f"in row group {group.number}, bytes {group.begin:,} to {group.end:,}"
    while True:
        try:
            batch = next(batches, None)
            if batch is None:
                break
            # Cheap checks of lengths and buffers: a damaged batch must not reach the conversion.
            batch.validate()
            batch = _converted(batch, schema)
        except MemoryError:
            raise
        except ERRORS as error:
            raise ValueError(f"{_said(error)} ({place})") from None
        yield batch
        done += batch.num_rows
    # A damaged row group may end early without an error of pyarrow's.
    if done != group.rows:
        raise ValueError(f"{done:,} rows are there, the footer has {group.rows:,} ({place})")


def _converted(batch: Any, schema: Any) -> Any:
    import pyarrow

    if not schema.names:
        return batch
    columns = [column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(".") or type(error).__name__


def _run(
    memory: int,
    remote: Sequence[int] | None,
    path: str,
    start: int,
    end: int,
    done: int,
    columns: Sequence[str] | None,
) -> int:
    """Run `main` with a limit on memory; write an error to standard error, and return the exit code."""
    # Address space: a limit on resident memory does nothing on Linux.
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    try:
        source = path if remote is None else Served(*remote)
        size = os.path.getsize(path) if remote is None else remote[1]
        main(source, size, start, end, done, columns, sys.stdout.buffer)
        sys.stdout.flush()
    except UnsuitableError as error:
        sys.stderr.write(str(error))
        return UNSUITABLE
    except MemoryError:
        sys.stderr.write(f"reading it takes more than {memory >> 20:,} MiB of memory")
        return 1
    except ERRORS as error:
        sys.stderr.write(_said(error))
        return 1
    return 0


if __name__ == "__main__":
    _status = _run(*json.loads(sys.argv[1]))
    sys.stderr.flush()
    # Threads of pyarrow may still hold the file, and abort the process where Python takes it apart.
    os._exit(_status)
