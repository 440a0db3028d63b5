#!/usr/bin/env python3
"""Fuzz the readers of untrusted files: whatever the bytes, an answer or a user's error; no crash, hang or huge memory.

    tools/bench/fuzz.py [--minutes 10] [--target jsonl gzip] [--keep DIR]

Each target runs in a process of its own under atheris (libFuzzer for Python), which is guided by the code that an
input reaches, from valid files as seeds. The time is shared equally. An input that fails is kept in `--keep`, and its
traceback is printed; the exit code is then 1. Without atheris (`pip install atheris`) the exit code is 2.

A new target is an entry of `TARGETS`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import importlib.util
import io
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

SLOWEST_INPUT = 25  # seconds for one input; more is a hang
MEMORY_MIB = 2048
LONGEST_INPUT = 1 << 16
# NaN, a list in place of a text, a blank line, CRLF, and no newline at the end.
LINES = b'{"text": "a", "id": 1}\n\n{"text": ["b", "\\u00e9"], "x": NaN}\r\n{"text": "c"}'


@dataclass(frozen=True)
class Target:
    """Something that reads bytes that a user did not make.

    Attributes:
        modules: whose code guides the fuzzer.
        seeds: return some valid inputs.
        read: read an input in an empty directory; raises nothing but errors of the user, which are ignored.
        change: make of an input, by a seed, one that libFuzzer's blind changes would hardly make; None: only those.
    """

    modules: tuple[str, ...]
    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], None]
    change: Callable[[bytes, int], bytes] | None = None


def _lines_seeds() -> list[bytes]:
    # A byte order mark, a pair of surrogates, deep nesting, and half of a pair.
    return [LINES, b"\xef\xbb\xbf" + LINES, b'{"a": {"b": "\\ud83d\\ude00"}}\n' * 9, b"[" * 50, b'"\\ud800"']


def _read_lines(data: bytes, place: Path, ending: str = "jsonl") -> None:
    """Read one input in chunks of several sizes and in parts; all must give the same records."""
    from megacode.base.errors import DataError
    from megacode.data.jsonl import read_lines
    from megacode.data.texts import texts_of

    path, found = place / f"a.{ending}", []
    path.write_bytes(data)
    middle = len(data) // 2
    # Chunks of 7 and 31 bytes cut lines, escapes and characters at all places.
    for size, parts in ((7, [None]), (1 << 16, [None]), (31, [(0, middle), (middle, len(data))])):
        rows: list[object] = []
        with contextlib.suppress(DataError):
            for part in parts:
                for records in read_lines(path, part, skip_bad=True, columns=["text"], size=size):
                    assert len(records.rows) == len(records.lines)
                    texts_of(records, ["text"], skip_bad=True)
                    rows += zip(records.lines, map(repr, records.rows), strict=True)
        found.append(rows)
    assert found[0] == found[1] == found[2], "chunks of other sizes, or parts, give other records"


def _gzip_seeds() -> list[bytes]:
    # Whole, cut short, and an empty member with zeros before the next one.
    return [gzip.compress(LINES), gzip.compress(LINES)[:-9], gzip.compress(b"") + bytes(9) + gzip.compress(LINES)]


def _zstandard_seeds() -> list[bytes]:
    import zstandard

    writer = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    # A flushed block does not end its frame: such files are left by writers that were killed.
    flushed = writer.compress(LINES) + writer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    whole = flushed + writer.compress(LINES) + writer.flush()
    # The last one begins with a skippable frame, which a reader has to pass over.
    return [whole, flushed, whole + whole, b"\x50\x2a\x4d\x18\x02\0\0\0ab" + whole]


def _parquet_seeds() -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "text": ["a", None, "\u00e9"] * 4,
        "word": pa.array(["a", "b", "a"] * 4).dictionary_encode(),
        "meta": pa.array([{"a": 1, "b": ["x"]}] * 12),
    }
    seeds = []
    # Plain, compressed, and of the older version: they reach other code in pyarrow.
    for options in ({"compression": "none", "store_schema": False}, {"compression": "snappy"}, {"version": "1.0"}):
        out = io.BytesIO()
        pa.parquet.write_table(pa.table(columns), out, row_group_size=5, write_statistics=False, **options)
        seeds.append(out.getvalue())
    return seeds


def _read_parquet(data: bytes, place: Path) -> None:
    """Read one input in a process of its own, as the reader does: pyarrow aborts on some damaged files.

    What is looked for is an end of that process that the reader does not expect, a hang, and rows that get lost.
    """
    (place / "a.parquet").write_bytes(data)
    (place / "error").unlink(missing_ok=True)
    # A fork, since importing pyarrow again would take most of the time of every input.
    if (child := os.fork()) == 0:
        try:
            for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL):
                signal.signal(number, signal.SIG_DFL)  # libFuzzer's own would report them
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            # The limit counts from what is mapped already. Below that every allocation would fail.
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (MEMORY_MIB << 20),) * 2)
            (place / "rows").write_text(str(_rows_of_parquet(place / "a.parquet")))
        # Whatever it is: nothing may carry the child back into libFuzzer's loop.
        except BaseException:
            (place / "error").write_text(traceback.format_exc())
        finally:
            os._exit(0)
    # How it ended does not count: pyarrow's crashes are expected, and only the file is a find.
    os.waitpid(child, 0)
    assert not (place / "error").exists(), (place / "error").read_text()


def _rows_of_parquet(path: Path) -> int | None:
    """Return how many rows a file has; None: it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet

    from megacode.data import parquet, parquet_child

    out = io.BytesIO()
    try:
        parquet_child.main(str(path), path.stat().st_size, 0, -1, 0, None, out)
    except (parquet_child.UnsuitableError, MemoryError, *parquet_child.ERRORS):
        return None
    found = 0
    with pa.ipc.open_stream(io.BytesIO(out.getvalue())) as stream:
        for batch in stream:
            rows, lines, bad = parquet.rows_of(batch, 1)
            assert len(rows) == len(lines) == batch.num_rows - len(bad)
            found += batch.num_rows
    assert found == pa.parquet.read_metadata(path).num_rows
    return found


def _index_seeds() -> list[bytes]:
    import numpy as np

    from megacode.data.indexed import IndexedDatasetWriter, idx_path

    seeds = []
    with tempfile.TemporaryDirectory() as name:
        # Each has 64 bytes of tokens, as many as `_read_index` puts beside it.
        for dtype, lengths in (("uint16", [8, 8, 16]), ("int32", [3, 13]), ("uint16", [32])):
            prefix = Path(name, f"{dtype}_{len(lengths)}")
            with IndexedDatasetWriter(prefix, np.dtype(dtype)) as writer:
                writer.add(np.arange(sum(lengths)), np.array(lengths))
                writer.finish()
            seeds.append(idx_path(prefix).read_bytes())
    return seeds


def _read_index(data: bytes, place: Path) -> None:
    """Open an index beside 64 bytes of tokens; one that `verify` accepts is read to its end."""
    from megacode.base.errors import DataError
    from megacode.data.indexed import IndexedDataset, bin_path, idx_path

    idx_path(place / "a").write_bytes(data)
    bin_path(place / "a").write_bytes(bytes(64))
    try:
        found = IndexedDataset(place / "a")
        found.verify()
    except DataError:
        return
    for document in range(found.documents):
        first, last = found.document_bounds(document)
        found.read(first, last - first + 1)
    assert sum(found.lengths()) == found.tokens


def _notebook_seeds() -> list[bytes]:
    cells = b'{"cell_type": "markdown", "source": ["# T"]}, {"cell_type": "code", "source": "x", "outputs": [%s]}'
    output = b'{"output_type": "stream", "text": ["1"]}, {"data": {"text/plain": "2", "image/png": "iVBO"}}'
    python = b'"metadata": {"kernelspec": {"language": "python"}}'
    old = b'{"cell_type": "heading", "level": 2, "source": "H"}, {"cell_type": "code", "input": "x", "outputs": 1}'
    third = b'{"worksheets": [{"cells": [%s]}]}' % old
    # Version 4, version 3, cells that are no objects, and deep nesting.
    return [b'{%s, "cells": [%s]}' % (python, cells % output), third, b'{"cells": [NaN, {}]}', b"[" * 50]


def _read_notebook(data: bytes, place: Path) -> None:
    """Make a document of a notebook in both forms, or count it."""
    from megacode.corpus.document import Counts
    from megacode.corpus.kinds import make_kind
    from megacode.data.records import Records

    for form in ("structured", "script"):
        counts, row = Counts(), {"text": data.decode(errors="replace")}
        settings = {"form": form, "languages": []}
        made = list(make_kind("notebooks", settings, counts)(iter([Records(place, 1, [row], [1], 0)])))
        assert len(made) + sum(entry.documents for entry in counts.reasons.values()) == 1
        assert all(document.line() for document in made)


def _posts_seeds() -> list[bytes]:
    question = (
        b'<row Id="1" PostTypeId="1" AcceptedAnswerId="2" Body="&lt;p&gt;a &lt;code&gt;b&lt;/code&gt;" Title="T" />'
    )
    answer = b'<row Id="2" PostTypeId="2" ParentId="1" Score="5" Body="&lt;pre&gt;c&lt;/pre&gt;&lt;li&gt;d" />'
    head = b"<?xml version='1.0'?>\n<posts>\n"
    bomb = b'<!DOCTYPE p [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n<posts><row Body="&b;" /></posts>'
    # Whole, cut short with a byte order mark, and entities that would expand.
    return [head + question + b"\n" + answer + b"\n</posts>", b"\xef\xbb\xbf" + head + answer, bomb]


def _read_posts(data: bytes, place: Path) -> None:
    """Read a dump in both forms."""
    from megacode.base.errors import DataError
    from megacode.corpus.document import Counts
    from megacode.corpus.kinds import make_file_kind

    path = place / "Posts.xml"
    path.write_bytes(data)
    for form in ("pile", "starcoder2"):
        with contextlib.suppress(DataError):
            for document in make_file_kind("stackexchange", {"form": form}, Counts(), place / "scratch")(path):
                assert document.line()


_LINES = ("megacode.data.jsonl", "megacode.data.records", "megacode.data.compressed")
_PARQUET = ("megacode.data.parquet", "megacode.data.parquet_child")
TARGETS = {
    "jsonl": Target(_LINES, _lines_seeds, _read_lines),
    "gzip": Target(_LINES, _gzip_seeds, lambda data, place: _read_lines(data, place, "gz")),
    "zstandard": Target(_LINES, _zstandard_seeds, lambda data, place: _read_lines(data, place, "zst")),
    "parquet": Target(
        _PARQUET,
        _parquet_seeds,
        _read_parquet,
        lambda data, seed: importlib.import_module("parquet_structure").changed(data, random.Random(seed)),
    ),
    "notebooks": Target(("megacode.corpus.kinds.notebooks",), _notebook_seeds, _read_notebook),
    "posts": Target(("megacode.corpus.kinds.stackexchange", "megacode.corpus.html_text"), _posts_seeds, _read_posts),
    "index": Target(("megacode.data.indexed",), _index_seeds, _read_index),
}


def fuzz(name: str, seconds: int, corpus: Path, kept: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    target = TARGETS[name]
    # Only these modules guide it. Instrumenting everything would make each input much slower.
    with atheris.instrument_imports(include=list(target.modules)):
        for module in target.modules:
            importlib.import_module(module)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed_{number}").write_bytes(seed)
    # In memory where there is such a place: a file is written for every input.
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))

    def once(data: bytes) -> None:
        target.read(data, place)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        made = target.change(data, seed) if target.change is not None and seed % 8 else data
        # Blind changes still find what no structure describes.
        return made if made != data and len(made) <= most else atheris.Mutate(data, most)

    options = {
        "max_total_time": seconds,
        "timeout": SLOWEST_INPUT,
        "rss_limit_mb": MEMORY_MIB,
        "max_len": LONGEST_INPUT,
        "artifact_prefix": f"{kept}/{name}-",
        "print_final_stats": 1,
    }
    flags = [f"-{key}={value}" for key, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], once, custom_mutator=mutated if target.change else None)
    atheris.Fuzz()


def run(name: str, seconds: int, kept: Path) -> bool:
    """Fuzz one target in a process of its own, print what came of it, and tell whether nothing failed."""
    with tempfile.TemporaryDirectory() as corpus:
        # libFuzzer ends its process at the first find, so the other targets need processes of their own.
        command = [sys.executable, __file__, "--child", name, str(seconds), corpus, str(kept)]
        made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    log = made.stdout + made.stderr
    # libFuzzer itself tells how many inputs it tried; a target that tried none has tested nothing.
    tried = re.search(r"number_of_executed_units:\s*(\d+)", log)
    is_good = made.returncode == 0 and tried is not None and int(tried[1]) > 0
    print(f"{name:10s} {seconds:5d} s {int(tried[1]) if tried else 0:10,d} inputs   {'ok' if is_good else 'FAILED'}")
    if not is_good:
        print("\n".join(_interesting(log)), flush=True)
    return is_good


def _interesting(log: str) -> Iterator[str]:
    """Yield the lines of libFuzzer's log without its progress."""
    yield from [line for line in log.splitlines() if not re.match(r"#\d+|INFO:|stat::", line)][-60:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the targets; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together")
    parser.add_argument("--target", nargs="+", choices=sorted(TARGETS), default=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=Path("fuzz_failures"), help="where failing inputs are kept")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    if given.child:
        name, seconds, corpus, kept = given.child
        fuzz(name, int(seconds), Path(corpus), Path(kept))
        return 0
    given.keep.mkdir(parents=True, exist_ok=True)
    share = max(1, round(given.minutes * 60 / len(given.target)))
    results = [run(name, share, given.keep) for name in given.target]
    with contextlib.suppress(OSError):
        given.keep.rmdir()  # only where nothing is kept
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
