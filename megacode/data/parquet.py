"""Parquet files: records in batches, of the columns that are needed, with memory bounded by a row group's column.

Row groups belong to the part of a file in whose bytes they begin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megacode.base.errors import DataError
from megacode.data.records import Records

_BATCH_BYTES = 4 << 20
_LARGEST_BATCH = 4096


def is_parquet(path: Path) -> bool:
    """Tell by its name whether a file is Parquet."""
    return path.suffix == ".parquet"


def read_rows(
    path: Path,
    part: tuple[int, int] | None = None,
    *,
    skip_bad: bool = False,
    columns: Sequence[str] | None = None,
) -> Iterator[Records]:
    """Yield the records of a Parquet file; arguments as of `inputs.read_records`."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as file:
        begins = _begins(file.metadata, path.stat().st_size)
        row = 1
        for group, (begin, end) in enumerate(begins):
            rows = file.metadata.row_group(group).num_rows
            if part is None or part[0] <= begin < part[1]:
                first = row
                for batch in file.iter_batches(512, [group], list(columns) if columns is not None else None):
                    found = batch.to_pylist()
                    lines = list(range(first, first + len(found)))
                    yield Records(path, first, found, lines, (end - begin) * len(found) // max(1, rows))
                    first += len(found)
            row += rows


def _begins(metadata: Any, size: int) -> list[tuple[int, int]]:
    begins = [0]
    for group in range(1, metadata.num_row_groups):
        column = metadata.row_group(group).column(0)
        begin = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
        begins.append(max(begins[-1], min(begin, size - 1)))
    return list(zip(begins, [*begins[1:], size], strict=True))


_ = DataError
