"""Inputs that a user names: files, directories, globs and standard input, read as records whatever their format."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from megacode.base.errors import ConfigError, DataError
from megacode.data.jsonl import STANDARD_INPUT, read_lines
from megacode.data.parquet import is_parquet, read_rows
from megacode.data.records import Records

# What directories are searched for; a file that is named may end otherwise.
_READ = (".jsonl", ".json", ".gz", ".zst", ".zstd", ".parquet")
# Formats that are not supported. Without this list their bytes would be reported as lines that are not JSON.
_NOT_READ = (".bz2", ".xz", ".lz4", ".zip", ".7z", ".arrow", ".feather", ".orc", ".avro", ".tar", ".tgz")


def find_inputs(patterns: Sequence[str], option: str = "--input") -> list[Path]:
    """Return the files that are named: in the order given, those of a glob and below a directory sorted.

    Args:
        patterns: files, globs, directories (all files below that can be read, hidden ones left out), or `-`, which is
            standard input.
        option: that names them, for messages.

    Raises:
        DataError: if one matches no file, or one in an unsupported format.
        ConfigError: if two of them name the same file.
    """
    inputs = [path for pattern in patterns for path in _matches(pattern, option)]
    for path in inputs:
        if path.suffix in _NOT_READ or ".tar" in path.suffixes:
            fix = "decompress it, or convert it to JSON lines or Parquet; .gz and .zst are read directly"
            raise DataError(f"{path.suffix} files are not supported", str(path), fix)
    twice = [path for path, times in Counter(inputs).items() if times > 1]
    if twice:
        fix = "list it once; otherwise its documents would appear twice"
        raise ConfigError("the same file is listed twice", f"{option} {twice[0]}", fix)
    return inputs


def _matches(pattern: str, option: str) -> list[Path]:
    if pattern == str(STANDARD_INPUT):
        return [STANDARD_INPUT]
    if Path(pattern).is_file():
        return [Path(pattern)]
    names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))
    # A glob such as `raw/**` matches directories beside the files in them.
    files = [Path(name) for name in names if Path(name).is_file()]
    files = files or [path for name in names for path in _files_below(Path(name))]
    if not files:
        fix = "give JSON-lines or Parquet files, a directory of them, or a quoted glob"
        raise DataError("there is no such file", f"{option} {pattern}", fix)
    return files


def _files_below(directory: Path) -> list[Path]:
    found = sorted(path for path in directory.rglob("*") if path.suffix in _READ + _NOT_READ and path.is_file())
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(directory).parts)]


def read_records(
    path: Path,
    part: tuple[int, int] | None = None,
    *,
    skip_bad: bool = False,
    columns: Sequence[str] | None = None,
    numbered: bool = True,
    done: int = 0,
) -> Iterator[Records]:
    """Yield the records of a file, some at a time, in order.

    Args:
        path: one of `find_inputs`.
        part: first byte and end, as of `machine_files.Shard.parts`: the lines or row groups that begin there; of a
            compressed file, the chunks whose reading began there. None: the whole file.
        skip_bad: skip and count records that cannot be read, instead of stopping at the first one.
        columns: keys that are needed, nested ones as `a.b`; a record may hold others too, and those are not checked.
            None: all.
        numbered: whether records must have the line numbers of the whole file. For a part of a plain file its head
            is read to count them, at a few GB a second; else they count from `counted_from`.
        done: go on after records that were read before: their `done`, with the same `part`; 0: from the beginning.

    Raises:
        DataError: at the first bad record, unless they are skipped, and where the file is damaged, with the number of
            good documents before. Those are yielded first. A truncated file is never skipped.
    """
    good = 0
    if is_parquet(path):
        read = read_rows(path, part, skip_bad=skip_bad, columns=columns, done=done)
    else:
        read = read_lines(path, part, skip_bad=skip_bad, columns=columns, numbered=numbered, done=done)
    try:
        for records in read:
            good += len(records.rows)
            yield records
    except DataError as error:
        problem = error.problems[0]
        of = "" if part is None or part[0] == 0 else " of this part"
        what = f"{problem.what}; {good:,} good documents{of} before it"
        raise DataError(what, problem.where, problem.fix) from None


def sizes_of(paths: Sequence[Path]) -> list[int]:
    """Return the bytes of each input on disk; standard input has none."""
    return [0 if path == STANDARD_INPUT else path.stat().st_size for path in paths]


def refuse_standard_input(paths: Sequence[Path], what: str) -> None:
    """Raise a ConfigError that says `what` where one of the inputs is standard input."""
    if STANDARD_INPUT in paths:
        raise ConfigError(what, "--input -", "write it to a file, and give that")
