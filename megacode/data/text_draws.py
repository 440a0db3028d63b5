"""Documents drawn by weight from several sources, to train and measure tokenizers: one pass, bounded memory.

Every document has a key: a hash of its text with the seed, a number in [0, 1). Documents with keys below `HELD_OUT` are
measured and never trained on. The others are taken in the order of their keys, until a source has given its share of
the bytes; the last one is cut. So what is drawn depends on the documents and the seed alone, not on the order of files
or on how the documents are divided among them. Copies of a document have one key, so a held-out text is in no source's
training part.
"""

from __future__ import annotations

import heapq
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import xxhash

from megacode.base.errors import ConfigError, DataError
from megacode.base.units import format_bytes
from megacode.data.inputs import find_inputs, read_records, sizes_of
from megacode.data.progress import PassProgress, tell_skipped
from megacode.data.records import EXAMPLES
from megacode.data.texts import Texts, texts_of

_LOG = logging.getLogger(__name__)
HELD_OUT = Fraction(1, 20)
HELD_OUT_BYTES = 2_000_000  # of each source, so that measuring takes about a second however large it is
_KEYS = 1 << 64
# Recipes hold documents out by a hash with the plain seed. With these keys nothing that they keep would be held out.
_OWN = 0x746F6B656E697A65
_TRAINED_FROM = math.ceil(HELD_OUT * _KEYS)
_WEIGHT = re.compile(r"\d{1,9}(\.\d{1,12})?|\.\d{1,12}", re.ASCII)
_FORM = "write for example --source code=0.5:'code/*.jsonl.zst'"

Text = tuple[bytes, ...]
"""The texts of one document in UTF-8, which are encoded one by one; control tokens between them are left out."""


@dataclass(frozen=True)
class TextSource:
    """Documents that are drawn with one weight.

    Attributes:
        name: in tables and messages.
        weight: of its bytes beside the other sources' weights; 0: its documents are measured only.
        patterns: as `inputs.find_inputs` takes them.
        option: the flag that named it, for messages.
    """

    name: str
    weight: Fraction
    patterns: tuple[str, ...]
    option: str = "--source"

    @property
    def called(self) -> str:
        """What messages call it."""
        return "the input" if self.option == "--input" else f"the source {self.name}"

    @staticmethod
    def parse(setting: str) -> TextSource:
        """Read `NAME=WEIGHT:GLOB`.

        Raises:
            ConfigError: it has another form.
        """
        name, _, rest = setting.partition("=")
        weight, _, pattern = rest.partition(":")
        if not (name.strip() and weight and pattern):
            raise ConfigError(f"{setting!r} is not of the form NAME=WEIGHT:GLOB", "--source", _FORM)
        if not _WEIGHT.fullmatch(weight):
            fix = f"{_FORM}; a weight is a number from 0 to 999,999,999"
            raise ConfigError(f"{weight!r} is not a weight", f"--source {name}", fix)
        # `Fraction` reads decimal text exactly.
        return TextSource(name.strip(), Fraction(weight), (pattern,))


def sources_of(inputs: Sequence[str], settings: Sequence[str]) -> list[TextSource]:
    """Return the sources of a command line: what `--input` names as one, or each `--source`.

    Raises:
        ConfigError: both are given, or neither; a source is not of the form NAME=WEIGHT:GLOB, or given twice.
    """
    if bool(inputs) == bool(settings):
        message = "give either --input or --source" if inputs else "there is no input"
        raise ConfigError(message, "--source", f"give --input FILE, or {_FORM.removeprefix('write ')}")
    if inputs:
        return [TextSource("input", Fraction(1), tuple(inputs), "--input")]
    sources = [TextSource.parse(setting) for setting in settings]
    names = [source.name for source in sources]
    if twice := next((name for name in names if names.count(name) > 1), None):
        fix = "give it once, with a glob or a directory that names all its files"
        raise ConfigError(f"the source {twice} is given twice", "--source", fix)
    return sources


@dataclass
class Drawn:
    """What was drawn from a source.

    Attributes:
        source: it.
        documents: of the source, with text.
        bytes: of their text, in UTF-8.
        training: texts to train on, by key.
        trained_bytes: of these.
        held_out: texts to measure, by key.
        held_out_bytes: of these.
        bad: records that were skipped.
        examples: three of them, in words.
    """

    source: TextSource
    documents: int = 0
    bytes: int = 0
    training: Sequence[Text] = ()
    trained_bytes: int = 0
    held_out: Sequence[Text] = ()
    held_out_bytes: int = 0
    bad: int = 0
    examples: list[str] = field(default_factory=list)


class SmallestKeys:
    """The documents with the smallest keys that fill a number of bytes: the same in whatever order they are offered.

    Holds less than twice this number of bytes.
    """

    def __init__(self, most: int) -> None:
        self.offered_bytes = 0
        self._most, self._held = most, 0
        # The largest key is at the head. The size counts a document that was cut as `most` bytes, since whole
        # characters may fill less.
        self._heap: list[tuple[int, Text, int]] = []

    def offer(self, key: int, text: Text) -> None:
        """Keep a document, if it is one of them."""
        size = _size(text)
        self.offered_bytes += size
        if self._held >= self._most and (not self._heap or -key < self._heap[0][0]):
            return
        size = min(size, self._most)
        heapq.heappush(self._heap, (-key, _cut(text, size), size))
        self._held += size
        while self._held - self._heap[0][2] >= self._most:
            self._held -= heapq.heappop(self._heap)[2]

    def take(self, most: int) -> list[Text]:
        """Return texts of `most` bytes in all, or all there are, in the order of their keys; the last one is cut."""
        taken = []
        for _, text, size in sorted(self._heap, reverse=True):
            if most <= 0:
                break
            taken.append(_cut(text, most))
            most -= size
        return taken


def draw(
    sources: Sequence[TextSource],
    keys: Sequence[str],
    max_bytes: int,
    seed: int,
    *,
    held_out_bytes: int = HELD_OUT_BYTES,
    skip_bad: bool = False,
) -> list[Drawn]:
    """Read all sources once, and draw from each.

    Args:
        sources: with different names.
        keys: of records, that hold text.
        max_bytes: to train on, of all sources together. If a source has less than its share, all others give less as
            well, so that the weights hold. 0: only held-out documents are drawn.
        seed: of the keys.
        held_out_bytes: to measure, of each source at most.
        skip_bad: skip and count records that cannot be read.

    Raises:
        ConfigError: two sources have a file in common.
        DataError: an input cannot be read, a source has no text, or one with a weight has nothing to train on.
    """
    files = files_of(sources)
    total = sum((source.weight for source in sources), Fraction(0))
    drawn_by_source, parts = [], []
    with PassProgress("reading", sum(sum(sizes_of(paths)) for paths in files)) as progress:
        for source, paths in zip(sources, files, strict=True):
            share = math.floor(max_bytes * source.weight / total) if total else 0
            drawn, training, held_out = Drawn(source), SmallestKeys(share), SmallestKeys(held_out_bytes)
            for text in _documents(paths, keys, skip_bad, drawn, progress):
                key = xxhash.xxh3_64_intdigest(b"\0".join(text), (seed + _OWN) % _KEYS)
                (held_out if key < _TRAINED_FROM else training).offer(key, text)
            if not drawn.documents:
                message = f"{source.called} contains no text"
                raise DataError(message, " ".join(source.patterns), "check the input and its keys")
            drawn.held_out = held_out.take(held_out_bytes)
            drawn.held_out_bytes = sum(map(_size, drawn.held_out))
            _tell(drawn)
            drawn_by_source.append(drawn)
            parts.append(training)
    if max_bytes:
        _share_out(drawn_by_source, parts, max_bytes, total)
    return drawn_by_source


def _tell(drawn: Drawn) -> None:
    if drawn.bad:
        tell_skipped(f"{drawn.source.called}: ", drawn.bad, drawn.examples)
    if not drawn.held_out:
        message = "%s: none of its %s documents is held out, so its bytes per token are not measured"
        _LOG.warning(message, drawn.source.called, f"{drawn.documents:,}")


def files_of(sources: Sequence[TextSource]) -> list[list[Path]]:
    """Return the files of each source.

    Raises:
        ConfigError: two sources have a file in common.
        DataError: one matches no file, or one in an unsupported format.
    """
    files = [find_inputs(source.patterns, source.option) for source in sources]
    owners: dict[Path, str] = {}
    for source, paths in zip(sources, files, strict=True):
        for path in paths:
            # Resolved: a link to a file of another source would draw its documents twice.
            owner = owners.setdefault(path.resolve(), source.name)
            if owner != source.name:
                message = f"{path} is in the source {owner} as well"
                raise ConfigError(message, f"{source.option} {source.name}", "list each file in one source")
    return files


def _share_out(
    drawn_by_source: Sequence[Drawn], parts: Sequence[SmallestKeys], max_bytes: int, total: Fraction
) -> None:
    """Give every source its share of the bytes, or of as many as the scarcest source allows."""
    weighted = [(drawn, part) for drawn, part in zip(drawn_by_source, parts, strict=True) if drawn.source.weight]
    for drawn, part in weighted:
        if not part.offered_bytes:
            message = f"{drawn.source.called} has no documents to train on: all {drawn.documents:,} are held out"
            raise DataError(message, " ".join(drawn.source.patterns), "give more documents, or another --seed")
    # How much all may give so that this source's share is what it has.
    limits = [part.offered_bytes * total / drawn.source.weight for drawn, part in weighted]
    most = min([Fraction(max_bytes), *limits])
    for drawn, part in weighted:
        # Exact fractions up to here: with floats, the last document could be cut at another byte.
        drawn.training = part.take(math.floor(most * drawn.source.weight / total))
        drawn.trained_bytes = sum(map(_size, drawn.training))
    if most < max_bytes and len(weighted) > 1:
        scarcest = weighted[limits.index(most)][0].source.name
        _LOG.warning(
            "the source %s has less text than its share of %s: all sources give less, %s together, so that the "
            "weights hold; give it a smaller weight to use more",
            scarcest,
            format_bytes(max_bytes),
            format_bytes(math.floor(most)),
        )


def _documents(
    paths: Sequence[Path], keys: Sequence[str], skip_bad: bool, drawn: Drawn, progress: PassProgress
) -> Iterator[Text]:
    """Yield the documents of a source that have text, and count them."""
    for path in paths:
        for records in read_records(path, columns=keys, skip_bad=skip_bad, numbered=False):
            parsed = texts_of(records, keys, skip_bad)
            drawn.bad += parsed.bad
            drawn.examples += records.told(parsed.skipped[: max(0, EXAMPLES - len(drawn.examples))])
            progress.advance(parsed.documents, records.read_bytes)
            for columns in zip(*map(_by_document, parsed.texts.values()), strict=True):
                text = tuple(part.encode() for column in columns for part in column if part)
                if text:
                    drawn.documents += 1
                    drawn.bytes += _size(text)
                    yield text


def _by_document(texts: Texts) -> Iterator[Sequence[str]]:
    """Yield the texts of each document; an empty one stands for a control token."""
    if texts.counts is None:
        yield from ([text] for text in texts.texts)
        return
    sizes = iter(texts.parts) if texts.parts is not None else None
    first = 0
    for count in texts.counts:
        end = first + (count if sizes is None else sum(next(sizes) for _ in range(count)))
        yield texts.texts[first:end]
        first = end


def _size(text: Text) -> int:
    return sum(map(len, text))


def _cut(text: Text, most: int) -> Text:
    """Return the beginning of a document, whole characters of at most some bytes."""
    if _size(text) <= most:
        return text
    kept = []
    for part in text:
        # A character that the cut divides is left out: what remains must be valid text.
        kept.append(part[:most].decode(errors="ignore").encode())
        most -= len(part)
        if most <= 0:
            break
    return tuple(kept)
