"""The map pass: one shard's records become documents that have passed the filters, with their signatures.

The result is a directory that appears when all of it is on disk. A killed pass leaves nothing that a later one reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from megacode.base.claims import claimed, remove_drafts
from megacode.base.files import Json, atomic_path, remove, to_json
from megacode.corpus.arrays import save_array
from megacode.corpus.decontaminate.index import Index
from megacode.corpus.decontaminate.match_files import MatchWriter
from megacode.corpus.document import Counts, Document
from megacode.corpus.duplicates.signature_files import SignatureWriter
from megacode.corpus.framed import FramedWriter
from megacode.corpus.inputs import AGAINST
from megacode.corpus.layout import MapDir
from megacode.corpus.steps import SourceSteps, source_steps
from megacode.corpus.work import RecipeWork
from megacode.data.inputs import Records, read_records
from megacode.data.machine_files import Shard
from megacode.data.records import EXAMPLES

BATCH_BYTES = 2 << 20  # of text; larger batches leave the cache, and hashing becomes several times slower
BATCH_DOCUMENTS = 256
HELD_OUT_BIT = 0x8000  # of a document's source number


Stretch = tuple[int, Path, tuple[int, int]]


@dataclass
class Came:
    """What came into a shard from one source, and what each step dropped.

    Attributes:
        records, documents, bytes: good records, what was made of them, and the bytes of their text.
        bad: records that cannot be read, and were skipped.
        skipped: the first three of these, in words, each with its place.
        read_bytes: of the inputs, on disk.
        steps: what each step dropped.
        replaced: personal data, by kind.
    """

    records: int = 0
    bad: int = 0
    skipped: list[str] = field(default_factory=list)
    read_bytes: int = 0
    documents: int = 0
    bytes: int = 0
    steps: dict[str, Counts] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)

    def as_json(self) -> Json:
        """Return it for a file."""
        steps = {name: counts.as_json() for name, counts in self.steps.items()}
        return {**self.__dict__, "steps": steps}


def map_shard(work: RecipeWork, shard: Shard, index: Index | None) -> None:
    """Run the map pass of a shard, unless its result is there.

    Args:
        work: what is to be done.
        shard: which part of the inputs.
        index: items of benchmarks to look for; None: none.

    Raises:
        ConfigError: another process is at this shard.
        DataError: an input is damaged.
    """
    place = work.out.mapped(shard)
    if place.counts.exists():
        return
    with claimed(place.path, "--shard"):
        remove_drafts(place.path)
        with atomic_path(place.path) as temporary:
            temporary.mkdir()
            _map(work, shard, index, MapDir(temporary))


def _map(work: RecipeWork, shard: Shard, index: Index | None, place: MapDir) -> None:
    began, came = time.process_time(), {}
    with _Sink(place, index, work) as sink:
        # Stretches of one source follow each other, so a kind sees its records in one stream.
        for source, stretches in groupby(work.parts(shard), lambda part: part[0]):
            steps = source_steps(work.recipe, source, place.scratch)
            counted = Came(steps=steps.counts)
            for document, line in _documents(steps, counted, list(stretches)):
                held_out = source != AGAINST and _is_held_out(work, source, document.text)
                counted.documents += 1
                counted.bytes += sink.add(document, line, source, held_out)
            counted.replaced = dict(steps.redact.replaced) if steps.redact else {}
            came[_name(work, source)] = counted
    remove(place.scratch)
    place.timing.write_text(to_json({"cpu_seconds": time.process_time() - began}))
    counts = {"identity": work.identity, "sources": {name: one.as_json() for name, one in came.items()}}
    # In a directory of its own until it is renamed, so no write here need be atomic by itself.
    place.counts.write_text(to_json(counts, indent=1))


def _name(work: RecipeWork, source: int) -> str:
    return "" if source == AGAINST else work.names[source]


def _documents(steps: SourceSteps, came: Came, stretches: list[Stretch]) -> Iterator[tuple[Document, bytes]]:
    """Yield the documents of some stretches that pass a source's filters, with their lines."""
    documents = (
        steps.of_records(_records(steps, came, stretches)) if steps.of_records else _of_files(steps, came, stretches)
    )
    for document in documents:
        kept = steps.keep(document)
        if kept is not None:
            yield kept


def _records(steps: SourceSteps, came: Came, stretches: list[Stretch]) -> Iterator[Records]:
    for _, path, part in stretches:
        for some in _read(steps, path, part):
            came.records += len(some.rows)
            came.bad += some.bad
            if some.skipped and len(came.skipped) < EXAMPLES:
                came.skipped = [*came.skipped, *some.told(some.skipped)][:EXAMPLES]
            came.read_bytes += some.read_bytes
            yield some


def _read(steps: SourceSteps, path: Path, part: tuple[int, int]) -> Iterator[Records]:
    whole = steps.whole_files.get(path.suffix)
    if whole is None:
        return read_records(path, part, skip_bad=steps.skip_bad)
    # It belongs to the shard that has its first byte.
    return iter([whole(path)] if part[0] == 0 else [])


def _of_files(steps: SourceSteps, came: Came, stretches: list[Stretch]) -> Iterator[Document]:
    """Yield the documents of a kind that reads whole files: a file belongs to the shard that has its first byte."""
    assert steps.of_file is not None
    for _, path, (start, _) in stretches:
        # Two shards that begin in one file would both make all of its documents.
        if start == 0:
            before = came.documents + _dropped(steps)
            yield from steps.of_file(path)
            # What a kind made or refused counts as its records.
            came.records += came.documents + _dropped(steps) - before
            came.read_bytes += path.stat().st_size


def _dropped(steps: SourceSteps) -> int:
    return sum(entry.documents for counts in steps.counts.values() for entry in counts.reasons.values())


def _is_held_out(work: RecipeWork, source: int, text: str) -> bool:
    """Tell by a keyed hash of its text whether a document is held out: exact copies share their fate."""
    share = work.recipe.sources[work.names[source]].held_out
    return share > 0 and xxhash.xxh3_64_intdigest(text.encode(), work.recipe.seed & (2**64 - 1)) < share * 2.0**64


class _Sink:
    """Where the documents of a shard go; a context."""

    def __init__(self, place: MapDir, index: Index | None, work: RecipeWork) -> None:
        self._place = place
        self._seed = work.recipe.seed & (2**64 - 1)
        self._writer = FramedWriter(place.documents)
        rules = work.recipe.duplicates
        self._signatures = SignatureWriter(place.signatures, rules.ngram) if rules else None
        self._matches = MatchWriter(place.matches, index) if index is not None else None
        self._batch: list[str] = []
        self._batch_bytes = 0
        self._sources: list[int] = []
        self._keys: list[int] = []
        self._id_ends: list[int] = [0]

    def __enter__(self) -> _Sink:
        self._writer.__enter__()
        self._ids = self._place.ids.open("wb")
        return self

    def add(self, document: Document, line: bytes, source: int, held_out: bool) -> int:
        """Write a document; return the bytes of its text."""
        name, raw = document.id.encode(errors="replace"), document.text.encode()
        self._writer.write(line)
        self._ids.write(name)
        self._id_ends.append(self._id_ends[-1] + len(name))
        # The key decides which of several duplicates is kept; it must not depend on the order of inputs.
        self._keys.append(xxhash.xxh3_64_intdigest(name, self._seed))
        self._sources.append((source + 1) | HELD_OUT_BIT * held_out)
        self._batch.append(document.text)
        self._batch_bytes += len(raw)
        if self._batch_bytes >= BATCH_BYTES or len(self._batch) >= BATCH_DOCUMENTS:
            self._flush()
        return len(raw)

    def _flush(self) -> None:
        texts, self._batch, self._batch_bytes = self._batch, [], 0
        if texts and self._signatures is not None:
            self._signatures.add(texts)
        if texts and self._matches is not None:
            self._matches.add(texts)

    def __exit__(self, kind: object, *rest: Any) -> None:
        if kind is None:
            self._flush()
        self._writer.__exit__(kind, *rest)
        self._ids.close()
        if kind is None:
            for columns in (self._signatures, self._matches):
                if columns is not None:
                    columns.close()
            save_array(self._place.array("sources"), np.array(self._sources, np.uint16))
            save_array(self._place.array("keys"), np.array(self._keys, np.uint64))
            save_array(self._place.array("id_ends"), np.array(self._id_ends, np.int64))
            save_array(self._place.array("frames"), self._writer.frames())
