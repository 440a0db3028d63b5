"""The apply pass: one shard's documents without those that are dropped, a file a source, and what they are like."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from megacode.base.claims import claimed, remove_drafts
from megacode.base.files import Json, atomic_path, publish, read_json, remove, write_json
from megacode.corpus.document import Counts, Document
from megacode.corpus.framed import FramedWriter
from megacode.corpus.inputs import AGAINST
from megacode.corpus.reasons import REASONS, DropReason
from megacode.corpus.shards import MappedShard, Numbered
from megacode.corpus.tally import Tally, TokenCounter, Utf8, is_tokenized, text_key
from megacode.corpus.tokens import card_tokenizer
from megacode.corpus.work import RecipeWork
from megacode.data.inputs import read_records
from megacode.data.machine_files import Shard
from megacode.data.recipe_output import HELD_OUT

_BLOCK = 1 << 20


def is_applied(work: RecipeWork, shard: Shard) -> bool:
    """Return whether a shard's files are there, with its tokens counted if the recipe names a tokenizer."""
    marker, encode = read_json(work.out.applied(shard)), card_tokenizer(work.recipe.tokenizer)
    return bool(marker) and (encode is None or marker["tokenizer"] == encode.hash)


def count_tokens(work: RecipeWork, shard: Shard) -> None:
    """Count the tokens of a shard whose files were made without a tokenizer, or with another one."""
    marker, encode = work.out.applied(shard), card_tokenizer(work.recipe.tokenizer)
    assert encode is not None
    with claimed(marker, "--shard"):
        remove_drafts(marker)
        record = read_json(marker)
        for item in record["outputs"]:
            tally = Tally.of_json({**record["tallies"][item["source"]], "tokenized_bytes": 0, "tokens": 0})
            # Keys are those of the apply pass, so the same documents are counted as with a tokenizer from the start.
            for documents in _documents_in(work.out.corpus / item["path"]):
                chosen = [text for text in documents if _is_counted(work, text.encode())]
                tally.count_tokens(chosen, encode)
            record["tallies"][item["source"]] = tally.as_json()
        write_json(marker, {**record, "tokenizer": encode.hash})


def _documents_in(path: Path) -> Iterator[list[str]]:
    for records in read_records(path):
        yield [Document.of_row(row).text for row in records.rows]


def _is_counted(work: RecipeWork, raw: Utf8) -> bool:
    return is_tokenized(text_key(raw, work.recipe.seed), work.total_bytes())


def apply_shard(work: RecipeWork, shard: Shard, every: Numbered, encode: TokenCounter | None) -> None:
    """Run the apply pass of a shard, unless its result is there.

    Args:
        work: what is to be done.
        shard: which part.
        every: the documents of all shards.
        encode: counts tokens for the card; None: they are not counted.
    """
    marker = work.out.applied(shard)
    if is_applied(work, shard):
        return
    if marker.exists():
        count_tokens(work, shard)
        return
    with claimed(marker, "--shard"):
        remove_drafts(marker, work.out.dropped_list(shard))
        # Files of a pass that was killed before it wrote its marker are made again.
        _Apply(work, shard, every, encode).run()


class _Apply:
    """One shard on its way to its files."""

    def __init__(self, work: RecipeWork, shard: Shard, every: Numbered, encode: TokenCounter | None) -> None:
        self._work, self._shard, self._every, self._encode = work, shard, every, encode
        self._part: MappedShard = every.shards[shard.index]
        # Mapped, not read: all shards' arrays together take 9 bytes a document, this shard's a few kilobytes.
        span = slice(self._part.first, self._part.first + self._part.documents)
        self._reasons = np.load(work.out.dropped, mmap_mode="r")[span]
        self._roots = np.load(work.out.roots, mmap_mode="r")[span]
        self._counts: dict[str, dict[str, Counts]] = {}
        self._tallies: dict[str, Tally] = {}
        self._writers: dict[str, tuple[Path, Path, FramedWriter]] = {}

    def run(self) -> None:
        """Write the shard's files, then its marker."""
        try:
            self._run()
        finally:
            for temporary, _, _ in self._writers.values():
                remove(temporary)

    def _run(self) -> None:
        listed = self._work.out.dropped_list(self._shard)
        with ExitStack() as files:
            self._files = files
            temporary = files.enter_context(atomic_path(listed))
            self._list = files.enter_context(FramedWriter(temporary))
            position = 0
            for documents in self._part.read():
                self._take(documents, position)
                position += len(documents)
        # Only now are all files complete. After a kill between two of them the next call writes the same again.
        outputs = [self._published(name) for name in self._writers]
        write_json(
            self._work.out.applied(self._shard),
            {
                "identity": self._work.identity,
                "tokenizer": self._encode.hash if self._encode is not None else "",
                "outputs": outputs,
                "tallies": {name: tally.as_json() for name, tally in self._tallies.items()},
                "steps": {
                    source: {step: counts.as_json() for step, counts in steps.items()}
                    for source, steps in self._counts.items()
                },
            },
        )

    def _published(self, name: str) -> Json:
        """Give a finished file its name, and return what the manifest says of it."""
        temporary, path, writer = self._writers[name]
        state = xxhash.xxh3_128()
        with temporary.open("rb") as file:
            while block := file.read(_BLOCK):
                state.update(block)
        size = temporary.stat().st_size
        publish(temporary, path)
        place = str(path.relative_to(self._work.out.corpus))
        facts = {"documents": writer.documents, "bytes": self._tallies[name].bytes, "file_bytes": size}
        return {"source": name, "path": place, **facts, "xxh3_128": state.hexdigest()}

    def _take(self, documents: Sequence[Document], position: int) -> None:
        """Write or drop the documents from a position on."""
        span = slice(position, position + len(documents))
        reasons = self._reasons[span]
        sources, held_out = self._part.source[span], self._part.held_out[span]
        self._note_dropped(documents, reasons, position)
        chosen: dict[str, list[str]] = {}
        for number, document in enumerate(documents):
            if sources[number] == AGAINST:
                continue
            name = self._work.names[sources[number]]
            if reasons[number] != DropReason.KEPT:
                step, reason = REASONS[DropReason(reasons[number])]
                steps = self._counts.setdefault(name, {})
                steps.setdefault(step, Counts()).drop(reason, document.text)
                continue
            name += HELD_OUT * bool(held_out[number])
            if self._write(name, document):
                chosen.setdefault(name, []).append(document.text)
        for name, texts in chosen.items():
            assert self._encode is not None
            self._tallies[name].count_tokens(texts, self._encode)

    def _note_dropped(self, documents: Sequence[Document], reasons: npt.NDArray[np.uint8], position: int) -> None:
        """Add the dropped documents to the shard's list, each with the id of the one that is kept in its place."""
        dropped = np.flatnonzero(reasons).tolist()
        roots = np.asarray(self._roots[position : position + len(documents)], np.int64)
        # One look-up a frame: the documents that stay may lie in any shard, and opening files is what costs.
        kept = self._every.ids(roots[dropped]) if dropped else {}
        for number in dropped:
            row = {"id": documents[number].id, "reason": REASONS[DropReason(reasons[number])][1]}
            root = int(roots[number])
            if root != self._part.first + position + number:
                row["kept"] = kept[root]
            self._list.write(orjson.dumps(row))

    def _write(self, name: str, document: Document) -> bool:
        """Write a document that is kept; return whether its tokens are to be counted."""
        if name not in self._writers:
            # Opened at the first document: a source that has none in this shard leaves no empty file.
            self._open(name)
        raw = document.text.encode()
        key = text_key(raw, self._work.recipe.seed)
        self._writers[name][2].write(document.line())
        self._tallies[name].add(document, raw, key)
        return self._encode is not None and is_tokenized(key, self._work.total_bytes())

    def _open(self, name: str) -> None:
        held_out = name.endswith(HELD_OUT)
        path = self._work.out.output(name.removesuffix(HELD_OUT), self._shard, held_out=held_out)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        writer = self._files.enter_context(FramedWriter(temporary))
        self._writers[name], self._tallies[name] = (temporary, path, writer), Tally()
