"""Items that are made from the documents no phase trains on: those of the suites `demo` and `heldout`.

They are made for one run, or once for all runs of a study, so that every arm answers the same items. Passages that the
training part of any source holds as well are left out; see `unread`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import digest, remove, write_json
from megacode.config.evaluate import MADE_SUITES
from megacode.config.model import TokenizerConfig
from megacode.config.objects import Objects
from megacode.config.run import RunConfig
from megacode.data import objects
from megacode.data.demo_items import INDEX, LEAST_CLEAN, SOURCES, build_demo_tasks, write_items
from megacode.data.indexed import IndexedDataset
from megacode.data.manifest import identity
from megacode.data.source_stream import SourceStream
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.unread import Tokens, Unread

_LOG = logging.getLogger(__name__)

DOCUMENTS = 200  # of a source in the suite `heldout`
DOCUMENT_TOKENS = 8_192  # a long document would otherwise outweigh many others
LEAST_CHARACTERS = 200  # of a document's unread stretch, in the suite `heldout`
_CANDIDATES = 2 * DOCUMENTS
_RULE = 2  # of what is made from the same documents


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    eod: int | None

    def decode(self, ids: list[int]) -> str:
        """Return the text of some ids."""


@dataclass(frozen=True)
class _DataSet:
    """A data set whose last documents are held out, and how to read them."""

    name: str
    path: str
    fraction: float
    tokenizer: TokenizerConfig
    objects: Objects

    def identity(self) -> str:
        """Return the hash of its contents."""
        objects.use(self.objects)
        return identity(self.path)

    def stream(self) -> SourceStream:
        """Open what training may read of it."""
        objects.use(self.objects)
        return SourceStream(self.name, self.path, self.fraction, seq_length=None)


@dataclass(frozen=True)
class _HeldOut:
    """Held-out documents of a data set.

    Attributes:
        ids: tokens of each, int64.
        texts: of each.
        tokenizer: decodes.
    """

    ids: list[Tokens]
    texts: list[str]
    tokenizer: Tokenizer

    @staticmethod
    def of(one: _DataSet, limit: int | None, longest: int | None) -> _HeldOut:
        """Read them, as `heldout_documents` does."""
        objects.use(one.objects)
        tokenizer = load_tokenizer(one.tokenizer)
        documents = heldout_documents(one.name, one.path, one.fraction, tokenizer, limit, longest)
        return _HeldOut([ids for ids, _ in documents], [text for _, text in documents], tokenizer)

    def unread(self, unread: Unread) -> list[str]:
        """Return the longest stretch of each document that training data hold nowhere, if it is long enough."""
        found = []
        for ids, text in zip(self.ids, self.texts, strict=True):
            first, last = unread.longest(ids)
            if last - first < len(ids):
                text = _whole_lines(self.tokenizer.decode(ids[first:last].tolist()), first > 0, last < len(ids))
            if last - first == len(ids) or len(text) >= LEAST_CHARACTERS:
                found.append(text)
        return found


def build_items(configs: Sequence[RunConfig], suite: str, directory: Path) -> None:
    """Write the items of a suite for some runs, if they are not there already.

    All sources of all runs count, also those that only some of them read. What was made from other documents is
    replaced. A document counts as held out if every run holds it out.

    Args:
        configs: of the runs; the first one's seed chooses the items of `demo`.
        suite: `demo` or `heldout`.
        directory: where the items go; `megacode evaluate --tasks` names it.

    Raises:
        ConfigError: if a run has no tokenizer, or `demo` none of its sources.
        DataError: if a data set is missing, or holds out too few documents.
    """
    assert suite in MADE_SUITES, suite
    sets = [one for one in _data_sets(configs, suite) if suite != "demo" or one.name in SOURCES]
    if not sets:
        what = f"the demo suite needs a source named {', '.join(SOURCES)}, and there is none"
        raise ConfigError(what, "sources", "use the suite `heldout`, or one of your own: --suite FILE.yaml")
    seed = configs[0].seed
    # The seed chooses passages; whole documents are the same for all seeds.
    facts = [suite, str(_RULE), *([str(seed)] if suite == "demo" else [])]
    for one in sets:
        facts += [one.name, one.identity(), str(one.fraction), load_tokenizer(one.tokenizer).hash]
    made_from = digest(*facts)
    if _made_from(directory) == made_from:
        return
    remove(directory / INDEX)  # last written, first removed: half a set of items has no index
    for old in directory.glob("*.jsonl"):
        remove(old)
    bounds = (None, None) if suite == "demo" else (_CANDIDATES, DOCUMENT_TOKENS)
    documents = {one.name: _HeldOut.of(one, *bounds) for one in sets}
    unread = _unread(sets, documents)
    if suite == "demo":
        texts = {name: held.texts for name, held in documents.items()}
        clean = {name: one.holds for name, one in unread.items()}
        index = build_demo_tasks(texts, directory, seed, clean=clean)
    else:
        index = _document_tasks(documents, unread, directory)
    write_json(directory / INDEX, {**index, "made_from": made_from})


def source_names(configs: Sequence[RunConfig]) -> list[str]:
    """Return the names of the sources that the items of some runs are made from; see `build_items`."""
    return [name for name, *_ in _named_sources(configs)]


def heldout_documents(
    name: str,
    path: str,
    validation_fraction: float,
    tokenizer: Decoder,
    limit: int | None = None,
    longest: int | None = None,
) -> list[tuple[Tokens, str]]:
    """Return the held-out documents of a source, tokens (int64) and text: those after what training may read.

    Args:
        name: the source's name.
        path: prefix of its data set.
        validation_fraction: `validation.fraction` of the config, which sets where training's tokens end.
        tokenizer: decodes; its end-of-document token is dropped.
        limit: at most this many documents, at even distances.
        longest: tokens of a document at most; the rest of it is dropped.

    Raises:
        DataError: if the fraction leaves no document held out.
    """
    dataset = IndexedDataset(path)
    # The same cut as in training; the shortest windows keep short sources usable.
    stream = SourceStream(name, path, validation_fraction, seq_length=None)
    if stream.held_out_from >= dataset.tokens:
        raise DataError(
            f"validation.fraction {validation_fraction} holds out no document of this source",
            f"source {name} ({path})",
            "increase validation.fraction, or use more documents",
        )
    # The cut is at a document's border, so no document is half trained on.
    first = dataset.document_at(stream.held_out_from)
    assert dataset.document_bounds(first)[0] == stream.held_out_from, "training ends at a document's end"
    count = dataset.documents - first
    taken = min(count, limit or count)
    # Spread out: documents that lie together in a data set are often alike.
    found = (_tokens(dataset, first + count * i // taken, tokenizer.eod, longest) for i in range(taken))
    return [(ids, _text(ids, cut, tokenizer)) for ids, cut in found]


def _data_sets(configs: Sequence[RunConfig], suite: str) -> list[_DataSet]:
    """Return the data sets of some runs, each once; a second one of the same name gets a number."""
    # The smallest share is the one that all runs hold out: held-out documents are the last ones.
    fraction = min(config.validation.fraction for config in configs)
    found = []
    for name, path, config in _named_sources(configs):
        if config.tokenizer is None:
            what = f"the items of the suite {suite!r} are made with the run's tokenizer, and it has none"
            raise ConfigError(what, f"run {config.name}", "add tokenizer: {kind: huggingface, path: DIR}")
        found.append(_DataSet(name, path, fraction, config.tokenizer, config.objects))
    return found


def _named_sources(configs: Sequence[RunConfig]) -> list[tuple[str, str, RunConfig]]:
    """Return name, path and first config of each data set of some runs."""
    found: dict[Path, tuple[str, str, RunConfig]] = {}
    for config in configs:
        for name, source in config.sources.items():
            found.setdefault(objects.place(source.path).resolve(), (name, source.path, config))
    # Sorted, so that the order of arms in a study changes nothing.
    ordered = sorted(found.values(), key=lambda one: one[:2])
    places = [sum(other[0] == name for other in ordered[:i]) for i, (name, *_) in enumerate(ordered)]
    return [
        (f"{name}#{place + 1}" if place else name, path, config)
        for (name, path, config), place in zip(ordered, places, strict=True)
    ]


def _made_from(directory: Path) -> str | None:
    """Return what the items of a directory were made from; None if they are not complete."""
    try:
        index = orjson.loads((directory / INDEX).read_bytes())
        whole = all((directory / task["file"]).is_file() for task in index["tasks"].values())
        return str(index["made_from"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unread(sets: Sequence[_DataSet], documents: Mapping[str, _HeldOut]) -> dict[str, Unread]:
    """Return for each data set what tells its unread passages; those of one tokenizer share it."""
    alike: dict[str, list[_DataSet]] = {}
    for one in sets:
        # Tokens of two tokenizers cannot be compared.
        alike.setdefault(load_tokenizer(one.tokenizer).hash, []).append(one)
    found: dict[str, Unread] = {}
    for some in alike.values():
        held = [documents[one.name] for one in some]
        streams = [one.stream() for one in some]
        size = sum(len(text.encode("utf-8", "replace")) for one in held for text in one.texts)
        unread = Unread(load_tokenizer(some[0].tokenizer), streams, [ids for one in held for ids in one.ids], size)
        found |= {one.name: unread for one in some}
    return found


def _document_tasks(documents: Mapping[str, _HeldOut], unread: Mapping[str, Unread], directory: Path) -> dict[str, Any]:
    """Write the items `{text}` of the suite `heldout`, one task a source; return their index."""
    tasks = {}
    for name, held in documents.items():
        texts = [text for text in held.unread(unread[name]) if text]
        if len(texts) < min(LEAST_CLEAN, len(held.texts)):
            _LOG.warning("%s: most held-out documents are in the training data too, so items overlap with it", name)
            texts = [text for text in held.texts if text]
        if not texts:
            fix = "increase validation.fraction"
            raise DataError("the held-out documents of this source contain no text", f"source {name}", fix)
        count = min(len(texts), DOCUMENTS)
        items = [{"text": texts[len(texts) * i // count]} for i in range(count)]
        tasks[f"heldout_{name}"] = write_items(directory, f"heldout_{_file_name(name)}", items)
    return {"tasks": tasks}


def _file_name(source: str) -> str:
    """Return a part of a file name for a source, whose own name may hold a slash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", source)
    return plain if plain == source else f"{plain}_{digest(source)[:8]}"


def _whole_lines(text: str, front: bool, back: bool) -> str:
    """Return a stretch of a text without the pieces of lines where it was cut: in front, at the back."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[int(front) : len(lines) - int(back)])


def _tokens(dataset: IndexedDataset, document: int, eod: int | None, longest: int | None) -> tuple[Tokens, bool]:
    first, last = dataset.document_bounds(document)
    count = last + 1 - first
    ids = dataset.read(first, min(count, longest or count)).astype(np.int64)
    # The end-of-document token would decode to a visible marker at the end of the text.
    return ids[:-1] if len(ids) and ids[-1] == eod else ids, longest is not None and count > longest


def _text(ids: Tokens, cut: bool, tokenizer: Decoder) -> str:
    text = tokenizer.decode(ids.tolist())
    # A cut may fall inside a character.
    return text.rstrip("\ufffd") if cut else text
