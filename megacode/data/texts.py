"""Texts of documents, as their records hold them: a text, a list of texts, or a list of texts and control tokens.

A list of texts makes a document of several sequences. A list that holds an object `{"token": "<commit_before>"}` makes
a document of one sequence: each text is encoded as text, and each object becomes the id of that control token. So the
formats of a corpus can use control tokens, and no text can forge one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from megacode.base.errors import DataError
from megacode.data.document_ids import Ids
from megacode.data.encoders import Encoded
from megacode.data.records import EXAMPLES, Records, SkippedRecord, field_of, text_of, value_in


@dataclass(frozen=True)
class ControlToken:
    """A control token in a document: a single id, never text."""

    name: str


Part = str | ControlToken


@dataclass
class Texts:
    """The texts under one key.

    Attributes:
        texts: all of them, one after another; an empty one stands in the place of each control token.
        counts: sequences of each document; None: one each.
        parts: texts of each sequence; None: one each.
        controls: the places of control tokens in `texts`, and which ones they are.
    """

    texts: list[str] = field(default_factory=list)
    counts: list[int] | None = None
    parts: list[int] | None = None
    controls: list[tuple[int, ControlToken]] = field(default_factory=list)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.texts if self.counts is None else self.counts)

    @staticmethod
    def of(documents: Sequence[Sequence[Part]]) -> Texts:
        """Return the texts of documents that are lists of parts; see the module."""
        texts_read = Texts(counts=[], parts=[])
        assert texts_read.counts is not None
        assert texts_read.parts is not None
        for document in documents:
            first = len(texts_read.texts)
            texts_read.texts += [part if isinstance(part, str) else "" for part in document]
            controls = [(first + n, part) for n, part in enumerate(document) if isinstance(part, ControlToken)]
            texts_read.controls += controls
            # One control token makes the whole list one sequence.
            texts_read.parts += [len(document)] if controls else [1] * len(document)
            texts_read.counts.append(1 if controls else len(document))
        # Without control tokens `parts` would be all ones, and `joined` has a quick path for None.
        return texts_read if texts_read.controls else Texts(texts_read.texts, texts_read.counts)

    def joined(self, flat: Any, offsets: Any, ids: dict[str, int]) -> Encoded:
        """Put control tokens into encoded texts, and join the texts of each sequence.

        Args:
            flat: ids of `texts`, one after another.
            offsets: where each text begins, and the end, int64 [texts + 1].
            ids: of the control tokens, by name.

        Returns:
            ids of all sequences, and where each begins, and the end, int64 [sequences + 1].
        """
        if self.parts is None:
            return flat, offsets
        places = np.array([place for place, _ in self.controls])
        tokens = np.array([ids[control.name] for _, control in self.controls], dtype=flat.dtype)
        # All at once: an insertion for each token would copy the batch each time.
        flat = np.insert(flat, offsets[places], tokens)
        # Each text begins later by the number of control tokens before it.
        before = np.searchsorted(places, np.arange(len(offsets)))
        ends = np.concatenate(([0], np.cumsum(self.parts)))
        return flat, (offsets + before)[ends]


def parts_of(value: Any, key: str) -> list[Part]:
    """Return the parts of the document that a record holds under a key.

    Raises:
        ValueError: it is neither a text nor a list of texts and control tokens; the message says why.
    """
    return [_part(item, key) for item in value] if isinstance(value, list) else [text_of(value, key)]


def _part(item: Any, key: str) -> Part:
    if not isinstance(item, dict):
        return text_of(item, key)
    name = item.get("token")
    if len(item) != 1 or not isinstance(name, str) or not name:
        shown = json.dumps(item)[:40]
        raise ValueError(f'the list under the key {key!r} holds {shown}, not a text or {{"token": "<name>"}}')
    return ControlToken(name)


def id_of(value: Any, key: str) -> str:
    """Return the id that a record holds under a key: a string, or an integer.

    Raises:
        ValueError: it is neither; the message says why.
    """
    # In Python `True` is an integer.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        shown = json.dumps(value)[:40]
        raise ValueError(f"the key {key!r} holds {shown}, which is no id: give a string or an integer")
    return text_of(value, key)


@dataclass(frozen=True)
class Parsed:
    """What some records hold.

    Attributes:
        texts: by key.
        ids: of the documents; None: they were not asked for.
        bad: records that were skipped.
        skipped: the first three of them, as `Records.skipped` has them.
    """

    texts: dict[str, Texts]
    ids: Ids | None
    bad: int
    skipped: tuple[SkippedRecord, ...] = ()

    @property
    def documents(self) -> int:
        """Number of documents, which is the same under all keys."""
        return next(iter(self.texts.values())).documents


def texts_of(records: Records, keys: Sequence[str], skip_bad: bool = False, id_key: str | None = None) -> Parsed:
    """Return what stands under some keys of each record: a text or a list, see the module, and the document's id.

    Args:
        records: read with these keys as `columns`, or with all.
        keys: of texts; each may be nested.
        skip_bad: skip and count records that have nothing of this kind under one of the keys.
        id_key: of the ids; None: they are not read.

    Raises:
        DataError: at the first bad record, unless they are skipped.
    """
    try:
        texts = {key: _column([field_of(row, key) for row in records.rows], key) for key in keys}
        ids = None
        if id_key:
            ids = Ids.of([id_of(field_of(row, id_key), id_key) for row in records.rows])
    except ValueError:
        # The slow path finds out which record it is.
        return _texts_one_by_one(records, keys, skip_bad, id_key)
    return Parsed(texts, ids, records.bad, records.skipped)


def _column(values: list[Any], key: str) -> Texts:
    # Lists of texts are rare and take the slow path.
    if set(map(type, values)) <= {str}:
        return Texts(values)
    return Texts.of([parts_of(value, key) for value in values])


def _texts_one_by_one(records: Records, keys: Sequence[str], skip: bool, id_key: str | None) -> Parsed:
    documents: dict[str, list[list[Part]]] = {key: [] for key in keys}
    ids: list[str] = []
    bad, own = records.bad, list[SkippedRecord]()
    for row, line in zip(records.rows, records.lines, strict=True):
        try:
            parts = {key: parts_of(value_in(row, key), key) for key in keys}
            if id_key:
                ids.append(id_of(value_in(row, id_key), id_key))
        except ValueError as error:
            if not skip:
                fix = "fix the line, or use --skip-bad-lines to skip and count such lines"
                raise DataError(str(error), records.place(line), fix) from None
            bad += 1
            if len(own) < EXAMPLES:
                own.append(SkippedRecord.of(line, str(error), json.dumps(row, ensure_ascii=False, default=str)))
            continue
        for key, document in parts.items():
            documents[key].append(document)
    # Only whole records are in: one bad key drops the record from all of its data sets, which stay parallel.
    texts = {key: Texts.of(column) for key, column in documents.items()}
    skipped = sorted([*records.skipped, *own], key=lambda one: one.line)
    return Parsed(texts, Ids.of(ids) if id_key else None, bad, tuple(skipped[:EXAMPLES]))
