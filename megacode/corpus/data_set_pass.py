"""One pass over an indexed data set for its data card: lengths, exact copies, samples, and items of benchmarks.

Copies are found by a hash of a document's tokens. Of more than `MOST_HASHES` documents only those are compared whose
hashes begin with some zero bits: all copies of a document are in such a sample or none is, so their share stays true.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import xxhash

from megacode.base.files import Json
from megacode.base.progress import bar
from megacode.corpus.decontaminate import Benchmark, Index, MatchWriter, contamination_report, detector_of, read_matches
from megacode.corpus.duplicates.report import cluster_sizes
from megacode.corpus.tally import SAMPLES, cut, is_tokenized, length_bin
from megacode.data.document_ids import open_ids
from megacode.data.indexed import IndexedDataset
from megacode.data.tokenizer import Tokenizer

MOST_HASHES = 1 << 24  # 16 bytes each, and as much again while they are sorted
_SPAN_TOKENS = 1 << 20
_LARGEST = 10
_SHOWN_TOKENS = 600  # of a sample; its text is cut to 2 KB
_TEXT_BYTES = 4  # of a token, roughly: decides how many documents are decoded to measure bytes per token

Batch = list[tuple[int, npt.NDArray[np.integer]]]


class Copies:
    """The hashes of documents, in bounded memory."""

    def __init__(self, most: int = MOST_HASHES) -> None:
        self.zero_bits = 0
        self._most, self._held = most, 0
        self._parts: list[npt.NDArray[np.uint64]] = []

    def add(self, hashes: npt.NDArray[np.uint64], documents: npt.NDArray[np.uint64]) -> None:
        """Add documents, by their hashes and numbers."""
        part = self._sampled(np.stack([hashes, documents]))
        self._parts.append(part)
        self._held += part.shape[1]
        while self._held > self._most:
            self.zero_bits += 1
            # One array again: a hundred thousand small ones would each be filtered by itself.
            self._parts = [self._sampled(np.concatenate(self._parts, axis=1))]
            self._held = self._parts[0].shape[1]

    def _sampled(self, part: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        # By hash, not by chance: copies have equal hashes, so a cluster is in the sample as a whole or not at all.
        return part[:, part[0] >> np.uint64(64 - self.zero_bits) == 0] if self.zero_bits else part

    def report(self) -> tuple[Json, npt.NDArray[np.int64]]:
        """Return what is known, and the numbers of the documents that are copies of an earlier one."""
        hashes, documents = np.concatenate([np.zeros((2, 0), np.uint64), *self._parts], axis=1)
        # Stable, so that the first document of a cluster is the earliest.
        order = np.argsort(hashes, kind="stable")
        new = np.diff(hashes[order], prepend=~hashes[order[:1]]) != 0
        begins = np.flatnonzero(new)
        sizes = np.diff(np.append(begins, len(order)))
        firsts = documents[order[begins]].astype(np.int64)
        largest = np.lexsort((firsts, -sizes))[:_LARGEST]
        report = {
            "share": 2.0**-self.zero_bits,
            "documents": len(order),
            "copies": len(order) - len(begins),
            "clusters": {"number": int((sizes > 1).sum()), "sizes": cluster_sizes(sizes[sizes > 1])},
            "largest": [{"documents": int(sizes[one]), "first": int(firsts[one])} for one in largest if sizes[one] > 1],
        }
        return report, documents[order[~new]].astype(np.int64)


@dataclass
class DataSetContents:
    """What a pass over a data set found.

    Attributes:
        documents, tokens, empty, longest: how many; the longest one in tokens.
        lengths: documents by the bin of their number of tokens (`tally.length_bin`); empty ones are in none.
        decoded_tokens, decoded_bytes: of the documents that were decoded, without the token that ends them.
        ended: of those, how many end with the tokenizer's end-of-document token; `decoded` of them are not empty.
        samples: name and beginning of the five documents with the smallest hashes.
        copies: as `Copies.report` returns it; the first of each of the largest clusters has a `text`.
        contamination: as `contamination_report` returns it; empty: not asked for.
    """

    documents: int = 0
    tokens: int = 0
    empty: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    decoded: int = 0
    decoded_tokens: int = 0
    decoded_bytes: int = 0
    ended: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)
    copies: Json = field(default_factory=dict)
    contamination: Json = field(default_factory=dict)


def read_data_set(data: IndexedDataset, tokenizer: Tokenizer | None, benchmarks: list[Benchmark]) -> DataSetContents:
    """Read all of a data set once.

    Args:
        data: it.
        tokenizer: that made it; None: there are no texts, so no samples and no bytes per token.
        benchmarks: items to look for; needs the tokenizer, and decodes every document.
    """
    return _Reader(data, tokenizer, benchmarks).run()


class _Reader:
    def __init__(self, data: IndexedDataset, tokenizer: Tokenizer | None, benchmarks: list[Benchmark]) -> None:
        assert tokenizer is not None or not benchmarks
        self._data, self._tokenizer = data, tokenizer
        self._index = Index(benchmarks) if benchmarks else None
        self._ids = open_ids(data.prefix, data.documents)
        self._found, self._copies = DataSetContents(data.documents, data.tokens), Copies()
        self._smallest: dict[int, int] = {}  # documents by hash

    def run(self) -> DataSetContents:
        # Matches go to a file: how many there are depends on the data, and memory should not.
        with TemporaryDirectory() as scratch, bar("reading documents", self._data.documents) as advance:
            matches = MatchWriter(Path(scratch) / "matches", self._index) if self._index else None
            for batch in _batches(self._data):
                texts = self._add(batch, every=matches is not None)
                if matches is not None:
                    matches.add(texts)
                advance(len(batch))
            self._found.copies, copies = self._copies.report()
            if matches is not None and self._index is not None:
                matches.close()
                self._found.contamination = _contamination(self._index, Path(scratch) / "matches", copies)
        self._show()
        return self._found

    def _add(self, batch: Batch, *, every: bool) -> list[str]:
        """Count some documents; return the texts of all of them, or an empty list."""
        contents = self._found
        hashes = [xxhash.xxh3_64_intdigest(tokens.data) for _, tokens in batch]
        kept = [(value, number) for (number, tokens), value in zip(batch, hashes, strict=True) if len(tokens)]
        contents.empty += len(batch) - len(kept)
        contents.longest = max([contents.longest, *(len(tokens) for _, tokens in batch)])
        contents.lengths.update(length_bin(len(tokens)) for _, tokens in batch if len(tokens))
        columns = np.array(kept, np.uint64).reshape(-1, 2)
        self._copies.add(columns[:, 0], columns[:, 1])
        # The first document of equal ones, and the smallest hashes: the same on any machine.
        for value, number in kept:
            if len(self._smallest) < SAMPLES or value < max(self._smallest):
                self._smallest.setdefault(value, number)
                self._smallest = dict(sorted(self._smallest.items())[:SAMPLES])
        if self._tokenizer is None:
            return []
        size = _TEXT_BYTES * contents.tokens
        return [
            self._decoded(tokens) if every or (len(tokens) and is_tokenized(value, size)) else ""
            for (_, tokens), value in zip(batch, hashes, strict=True)
        ]

    def _decoded(self, tokens: npt.NDArray[np.integer]) -> str:
        """Return the text of a document, and count it."""
        assert self._tokenizer is not None
        if not len(tokens):
            return ""
        ends = self._tokenizer.eod is not None and int(tokens[-1]) == self._tokenizer.eod
        text = self._tokenizer.decode(tokens[: len(tokens) - ends].tolist())
        self._found.decoded += 1
        self._found.ended += ends
        self._found.decoded_tokens += len(tokens) - ends
        # A byte-level token may end inside a character, so a decoded text may hold what UTF-8 cannot.
        self._found.decoded_bytes += len(text.encode(errors="replace"))
        return text

    def _show(self) -> None:
        """Add the texts that the card shows."""
        if self._tokenizer is None:
            return
        self._found.samples = [(self._name(number), self._beginning(number)) for number in self._smallest.values()]
        for cluster in self._found.copies["largest"]:
            cluster["text"] = self._beginning(cluster["first"])

    def _name(self, document: int) -> str:
        return f"document {document:,}" + (f": {self._ids[document]}" if self._ids is not None else "")

    def _beginning(self, document: int) -> str:
        assert self._tokenizer is not None
        first, last = self._data.document_bounds(document)
        ids = self._data.read(first, min(_SHOWN_TOKENS, last + 1 - first)).tolist()
        return cut(self._tokenizer.decode(ids).encode(errors="replace"))


def _batches(data: IndexedDataset) -> Iterator[Batch]:
    """Yield all documents with their numbers, some at a time: reading each by itself would be slow over a network."""
    begin = 0
    while begin < data.documents:
        first, last = data.document_bounds(begin)
        bounds = [(first, last)]
        while last + 1 - first < _SPAN_TOKENS and begin + len(bounds) < data.documents:
            bounds.append(data.document_bounds(begin + len(bounds)))
            last = bounds[-1][1]
        tokens = data.read(first, last + 1 - first)
        yield [(begin + place, tokens[one - first : end + 1 - first]) for place, (one, end) in enumerate(bounds)]
        begin += len(bounds)


def _contamination(index: Index, matches: Path, copies: npt.NDArray[np.int64]) -> Json:
    """Return which items occur; how common a run of words is, is counted without copies, as recipes count it."""
    hits, documents = read_matches(matches, index)
    considered = np.ones(documents, bool)
    considered[copies] = False
    detector = detector_of([matches], index, [considered])
    return contamination_report(detector, detector.hits(hits))
