"""Inputs that a user names: files, directories, globs, URLs, standard input; read as records whatever their format."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from megacode.base.errors import ConfigError, DataError
from megacode.base.urls import is_url
from megacode.data import object_listing
from megacode.data.jsonl import STANDARD_INPUT, read_lines
from megacode.data.objects import ObjectPath
from megacode.data.parquet import is_parquet, read_rows
from megacode.data.recipe_output import MANIFEST, recipe_files
from megacode.data.records import Records

_LOG = logging.getLogger(__name__)
# What directories are searched for; a file that is named may end otherwise.
_READ = (".jsonl", ".json", ".gz", ".zst", ".zstd", ".parquet")
# Formats that are not supported. Without this list their bytes would be reported as lines that are not JSON.
_NOT_READ = (".bz2", ".xz", ".lz4", ".zip", ".7z", ".arrow", ".feather", ".orc", ".avro", ".tar", ".tgz")


def find_inputs(patterns: Sequence[str], option: str = "--input", *, also: Sequence[str] = ()) -> list[Path]:
    """Return the files that are named: in the order given, those of a glob and below a directory sorted.

    Args:
        patterns: files, globs, directories (all files below that can be read, hidden ones left out; links are
            followed; of a recipe's directory the files of its sources, without held-out ones), URLs of all three in
            object storage, or `-`, which is standard input. What is left out is counted in a warning.
        option: that names them, for messages.
        also: further endings of files that directories are searched for.

    Raises:
        DataError: if one matches no file, or one in an unsupported format.
        ConfigError: if two of them name the same file, by whatever path.
    """
    inputs = [path for pattern in patterns for path in _matches(pattern, option, also)]
    for path in inputs:
        if path.suffix in _NOT_READ or ".tar" in path.suffixes:
            fix = "decompress it, or convert it to JSON lines or Parquet; .gz and .zst are read directly"
            raise DataError(f"{path.suffix} files are not supported", str(path), fix)
    first_named: dict[str, Path] = {}
    for path in inputs:
        first = first_named.setdefault(os.path.realpath(path), path)
        if first is not path:
            also = "" if first == path else f", also as {first}"
            fix = "list it once; otherwise its documents would appear twice"
            raise ConfigError(f"the same file is listed twice{also}", f"{option} {path}", fix)
    return inputs


def _matches(pattern: str, option: str, also: Sequence[str]) -> list[Path]:
    if pattern == str(STANDARD_INPUT):
        return [STANDARD_INPUT]
    if is_url(pattern):
        return _objects(pattern, option, also)
    if Path(pattern).is_file():
        return [Path(pattern)]
    # A directory first: its name may hold brackets, which a glob would read as a pattern.
    names = [pattern] if Path(pattern).is_dir() else sorted(glob.glob(pattern, recursive=True))
    files = [Path(name) for name in names if Path(name).is_file()]
    directories = [Path(name) for name in names if Path(name).is_dir()]
    if files:
        # A glob such as `raw/**` matches directories beside the files in them.
        missed = [item for item in directories if not any(item in file.parents for file in files)]
        if missed:
            message = "%s %s matches files and directories, and only the files are read; left out: %s"
            _LOG.warning(
                message, option, pattern, ", ".join(map(str, missed[:3])) + (", ..." if len(missed) > 3 else "")
            )
        return files
    files = [path for directory in directories for path in _files_below(directory, also)]
    if not files and Path(pattern).exists() and not directories:
        raise DataError(
            "it is not a regular file", f"{option} {pattern}", f"pipe it to the command, and give {option} -"
        )
    if not files:
        fix = "give JSON-lines or Parquet files, a directory of them, or a quoted glob"
        raise DataError("there is no such file", f"{option} {pattern}", fix)
    return files


def _objects(pattern: str, option: str, also: Sequence[str]) -> list[Path]:
    matching, inside = object_listing.matching(pattern)
    if matching:
        if inside:
            message = "%s %s matches objects and directories; %d objects below the directories are left out"
            _LOG.warning(message, option, pattern, len(inside))
        return [*matching]
    if any(path.name == MANIFEST for path in inside):
        files = recipe_files(ObjectPath(pattern.rstrip("/")))
        if files is not None:
            return files
    readable = _readable(inside, pattern, also)
    if not readable:
        fix = "check the bucket and the key; give JSON-lines or Parquet objects, a directory of them, or a quoted glob"
        raise DataError("there is no such object", f"{option} {pattern}", fix)
    return readable


def _files_below(directory: Path, also: Sequence[str]) -> list[Path]:
    # The manifest and the held-out documents of a recipe lie in one directory with its corpus.
    if (files := recipe_files(directory)) is not None:
        return files
    return _readable(list(_visible_files(directory, set())), str(directory), also)


def _readable(visible: Sequence[Path], directory: str, also: Sequence[str]) -> list[Path]:
    """Return the files of a directory that can be read by their names, and count the others in a warning."""
    # Unsupported formats stay in: `find_inputs` refuses them by name, which is better than leaving them out.
    readable = sorted(path for path in visible if path.suffix in (*_READ, *_NOT_READ, *also))
    if len(readable) < len(visible):
        other = sorted({path.suffix or path.name for path in visible} - {path.suffix for path in readable})
        counts = len(visible) - len(readable), ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
        _LOG.warning("%s has %d files that are not read, since their names end otherwise (%s)", directory, *counts)
    return readable


def _visible_files(directory: Path, above: set[str]) -> Iterator[Path]:
    """Yield the files below a directory; links are followed, unless they lead back to a directory above."""
    above = above | {os.path.realpath(directory)}
    for path in directory.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and os.path.realpath(path) not in above:
            yield from _visible_files(path, above)


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
        done: continue after records that were read before: their `done`, with the same `part`; 0: from the beginning.

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
        message = f"{problem.what}; {good:,} good documents{of} before it"
        raise DataError(message, problem.where, problem.fix) from None


def sizes_of(paths: Sequence[Path]) -> list[int]:
    """Return the bytes of each input on disk; standard input has none."""
    return [0 if path == STANDARD_INPUT else path.stat().st_size for path in paths]


def refuse_standard_input(paths: Sequence[Path], problem: str) -> None:
    """Raise a ConfigError that says `problem` where one of the inputs is standard input."""
    if STANDARD_INPUT in paths:
        raise ConfigError(problem, "--input -", "write it to a file, and give that")
