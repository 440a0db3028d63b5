"""What the documents of one source are like: counted while they are written, and added up over the shards.

Every figure is a sum, a maximum or a choice by a keyed hash, so it does not depend on how the input was divided.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import xxhash

from megacode.corpus.document import Document

SAMPLES = 5
SAMPLE_BYTES = 2048
# Bins of an eighth of an octave: quantiles read from them are within 7 % of the exact ones.
_PER_OCTAVE = 8
_TOKENIZED_BYTES = 64 << 20  # of the whole input; tokenizers read 1 to 2 MB per CPU-second
_LANGUAGE = ("language", "lang", "programming_language")
_LICENCE = ("license", "licence", "detected_licenses", "max_stars_repo_licenses")
_PATH = ("path", "max_stars_repo_path", "file_path", "filename")


Utf8 = bytes


class TokenCounter(Protocol):
    """The part of a tokenizer that is needed here."""

    hash: str

    def __call__(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of some texts."""


@dataclass
class Tally:
    """Counts of the documents of one source.

    Attributes:
        documents: how many.
        bytes: of UTF-8 text.
        longest: bytes of the longest one.
        lengths: how many documents have so many bytes, by bin (`length_bin`).
        languages: documents by language, or by the extension of their path.
        licences: documents by licence.
        tokenized_bytes, tokens: of the documents, chosen by a hash, that were tokenized.
        samples: id and beginning of the five documents with the smallest keyed hash, by that hash.
    """

    documents: int = 0
    bytes: int = 0
    longest: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    tokenized_bytes: int = 0
    tokens: int = 0
    samples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, document: Document, raw: Utf8, key: int) -> None:
        """Count a document.

        Args:
            document: the document.
            raw: its text in UTF-8.
            key: keyed hash of its text.
        """
        self.documents += 1
        self.bytes += len(raw)
        self.longest = max(self.longest, len(raw))
        self.lengths[length_bin(len(raw))] += 1
        self.languages[_language(document.fields)] += 1
        licence = _first(document.fields, _LICENCE)
        if licence:
            self.licences[licence] += 1
        name = f"{key:016x}"
        if len(self.samples) < SAMPLES or name < max(self.samples):
            # Keyed by the hash: equal texts share one sample, and shards merge by taking the smallest keys.
            self.samples[name] = [document.id, cut(raw)]
            self._trim()

    def count_tokens(self, texts: Sequence[str], encode: TokenCounter) -> None:
        """Count the tokens of some documents."""
        self.tokenized_bytes += sum(len(text.encode()) for text in texts)
        self.tokens += encode(texts)

    def merge(self, other: Tally) -> None:
        """Add the counts of another shard."""
        for name in ("documents", "bytes", "tokenized_bytes", "tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.longest = max(self.longest, other.longest)
        for name in ("lengths", "languages", "licences"):
            getattr(self, name).update(getattr(other, name))
        self.samples |= other.samples
        self._trim()

    def _trim(self) -> None:
        self.samples = dict(sorted(self.samples.items())[:SAMPLES])

    def quantile(self, share: float) -> int:
        """Return the length in bytes that a share of the documents does not exceed, to within a bin."""
        below, wanted = 0, share * self.documents
        for number, count in sorted(self.lengths.items()):
            below += count
            # The bin's end, not its middle: a limit read from the card then holds for that share of documents.
            if below >= wanted:
                return min(bin_start(number + 1) - 1, self.longest)
        return self.longest

    @property
    def bytes_per_token(self) -> float | None:
        """Bytes of text a token, of the documents that were tokenized; None: none was."""
        return self.tokenized_bytes / self.tokens if self.tokens else None

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a file."""
        sort = {"languages": _by_count(self.languages), "licences": _by_count(self.licences)}
        return {**self.__dict__, **sort, "lengths": {str(key): self.lengths[key] for key in sorted(self.lengths)}}

    @classmethod
    def of_json(cls, row: Mapping[str, Any]) -> Tally:
        """Return the counts that `as_json` wrote."""
        counters = {name: Counter(row[name]) for name in ("languages", "licences")}
        lengths = Counter({int(key): count for key, count in row["lengths"].items()})
        return cls(**{**row, **counters, "lengths": lengths, "samples": dict(row["samples"])})


def is_tokenized(key: int, input_bytes: int) -> bool:
    """Tell whether a document is among those that are tokenized: all of a small input, an even share of a large one."""
    # The middle bits: the top ones may have decided which documents are held out.
    return (key >> 16) % (1 + input_bytes // _TOKENIZED_BYTES) == 0


def text_key(raw: bytes, seed: int) -> int:
    """Return the keyed hash of a text that decides whether it is a sample."""
    return xxhash.xxh3_64_intdigest(raw, (seed + 1) & (2**64 - 1))


def length_bin(length: int) -> int:
    """Return the bin of a length: eight to an octave."""
    if length < 1:
        return 0
    # The three bits after the leading one: no logarithm, so that every machine finds the same bin.
    octave = length.bit_length() - 1
    return 1 + octave * _PER_OCTAVE + ((length * _PER_OCTAVE >> octave) & (_PER_OCTAVE - 1))


def bin_start(number: int) -> int:
    """Return the smallest length of a bin."""
    if number < 1:
        return 0
    octave, part = divmod(number - 1, _PER_OCTAVE)
    # Rounded up: below 8 bytes some bins hold no whole number.
    return -(-((_PER_OCTAVE + part) << octave) // _PER_OCTAVE)


def octaves(lengths: Mapping[int, int]) -> dict[int, int]:
    """Return how many documents have 2^k to 2^(k+1) - 1 bytes, by k; empty ones are at -1."""
    counts_by_octave: Counter[int] = Counter()
    for number, count in lengths.items():
        counts_by_octave[(number - 1) // _PER_OCTAVE] += count
    return dict(sorted(counts_by_octave.items()))


def cut(raw: bytes, limit: int = SAMPLE_BYTES) -> str:
    """Return the beginning of a text in UTF-8, in whole characters."""
    return raw[:limit].decode("utf-8", "ignore")


def _language(fields: Mapping[str, Any]) -> str:
    named = _first(fields, _LANGUAGE)
    if named:
        return named
    path = _first(fields, _PATH)
    return (os.path.splitext(path.removesuffix(".gz"))[1].lower() or "no extension") if path else "not given"


def _first(fields: Mapping[str, Any], keys: Sequence[str]) -> str:
    for key in keys:
        value = fields.get(key)
        if isinstance(value, list):
            # A list is no expression: whether all of its licences apply, or any, is for the reader of the dump to say.
            value = ", ".join(map(str, value))
        if value:
            return str(value)[:80]
    return ""


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
