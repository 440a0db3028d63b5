"""Real files of this machine as documents of three sources: code, text and markup.

Every file below the root directories is a candidate. Candidates are taken in the order of a keyed hash of their names
until each source reaches its limit of bytes. So the choice depends on the seed and on the files, never on directory
order. No document is taken twice: neither the same bytes under two names, nor the same words (licences come in
thousands of copies that differ in a name and a year), nor one document in two sources. Docstrings are taken out of
Python modules and become text, so code is code. Licence notices at the head of a file are removed. No package may give
more than a tenth of a source while other packages remain. The files stay on this machine: they are under the licences
of their packages.
"""

from __future__ import annotations

import gc
import gzip
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import orjson

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import atomic_path, digest, file_digest, write_json
from megacode.base.user_paths import refuse_existing, refuse_unwritable
from megacode.corpus.document import Counts, Document
from megacode.corpus.filters import make_filters
from megacode.corpus.machine.document_files import Candidate, candidates, default_roots
from megacode.corpus.machine.extract import manual_page_text, package_description, split_docstrings
from megacode.corpus.machine.licence_notices import without_notice

RULES = 3  # counted up when the same machine, limits and seed would give other documents
REPORT = "collect.json"
# UTF-8 text per source: enough for the demo's tokenizer and all of its phases.
DEFAULT_BYTES = {"code": 16_000_000, "text": 10_000_000, "markup": 6_000_000}
MAX_FILE_BYTES = 120_000  # larger files are mostly generated code or data tables
MIN_FILE_BYTES = 100
PACKAGE_SHARE = 0.1  # of a source's bytes; one large package would otherwise set a source's style

_NOT_A_LETTER = re.compile(r"[\W\d_]+")
_OWNER_LINE = re.compile(r"^.*(?:copyright|\(c\)|©).*$", re.IGNORECASE | re.MULTILINE)

_RULES = {
    "min_characters": 200, "max_characters": 400_000, "hexadecimal": True, "generated_by_in_first": 400,
    "control_characters": True, "max_floats": 1_000, "domain_list": True,
}  # fmt: skip
_FILTERS = {
    # Prose has paragraphs on one line and few symbols; markup lies in between.
    "code": make_filters({**_RULES, "max_line": 1_000, "mean_line": 100, "min_alphabetic": 0.25}),
    "text": make_filters({**_RULES, "max_line": 10_000, "mean_line": 2_000, "min_alphabetic": 0.5}),
    "markup": make_filters({**_RULES, "max_line": 2_000, "mean_line": 200, "min_alphabetic": 0.25}),
}

Progress = Callable[[str, int, int], None]


@dataclass
class _Selection:
    """The documents taken so far, and how many were dropped from each source for which reason."""

    limits: Mapping[str, int]
    progress: Progress | None = None
    documents: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    bytes: Counter[str] = field(default_factory=Counter)
    package_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: dict[str, Counts] = field(default_factory=dict)
    files: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)

    def open_sources(self, candidate: Candidate, share: float) -> list[str]:
        """Return the sources of a candidate that can still take from its package."""
        return [
            source
            for source in candidate.sources
            # A source may exceed its limit by one document, which keeps documents whole.
            if self.bytes[source] < self.limits.get(source, 0)
            and self.package_bytes[source, candidate.package] <= share * self.limits[source]
        ]

    def drop(self, source: str, reason: str, text: str) -> None:
        self.dropped.setdefault(source, Counts()).drop(reason, text)

    def offer(self, candidate: Candidate, source: str, name: str, text: str) -> None:
        """Take a document, or count the reason for dropping it."""
        reason = _FILTERS[source](Document(text, name))
        # The hash costs a pass of regular expressions, so it is only made for documents that pass the filters.
        identity = None if reason else same_words_digest(text)
        if reason or identity in self.seen:
            return self.drop(source, reason or "duplicate", text)
        assert identity is not None
        self.seen.add(identity)
        size = len(text.encode())
        self.documents.setdefault(source, []).append({"text": text, "path": name, "sha256": digest(text)})
        self.bytes[source] += size
        self.package_bytes[source, candidate.package] += size
        self.files[source] += 1
        if self.progress:
            self.progress(source, min(self.bytes[source], self.limits[source]), self.limits[source])


def collect(
    output: Path,
    roots: Sequence[Path] | None = None,
    limits: Mapping[str, int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Collect real files into `code.jsonl`, `text.jsonl` and `markup.jsonl`, and write the report `collect.json`.

    Each line is `{"text", "path", "sha256"}`. The same call again finds its own report and does nothing.

    Args:
        output: the directory to write to; each file is written whole or not at all, the report last.
        roots: directories to search; default: `default_roots()`.
        limits: bytes of UTF-8 text per source, default `DEFAULT_BYTES`; a source with 0 is skipped.
        seed: a different seed takes different files in a different order.
        progress: called with (source, bytes so far, limit).
        overwrite: replace the corpus of an earlier call.

    Returns:
        The report: settings, documents, bytes and hash of each source, and what was dropped for which reason.

    Raises:
        ConfigError: for an unknown source or a missing root, or if `output` holds another corpus.
        DataError: if a source that was asked for got no document.
    """
    limits = _checked_limits(DEFAULT_BYTES if limits is None else limits)
    places = _checked_roots(default_roots() if roots is None else roots)
    # An equal report means equal output: a second call costs one file read instead of minutes.
    settings = {"rules": RULES, "roots": [str(root) for root in places], "limits": limits, "seed": seed}
    if (report := _finished(output, settings)) is not None:
        return report
    refuse_existing(
        [output / name for name in (*(f"{source}.jsonl" for source in limits), REPORT)], overwrite, "--output"
    )
    refuse_unwritable(output, "--output", directory=True)
    selection = _select(candidates(places, seed), limits, progress)
    for source in limits:
        if not selection.documents.get(source):
            raise DataError(
                f"no usable {source} file was found",
                ", ".join(str(root) for root in places),
                f"add directories that contain {source} files, or set its limit to 0",
            )
    report = {**settings, "sources": {source: _write(output, source, selection, seed) for source in limits}}
    report["note"] = "Files of this machine under the licences of their packages: for use here, not for publication."
    write_json(output / REPORT, report)
    return report


def same_words_digest(text: str) -> str:
    """Return the digest of a text's words: letters only, lower case, without the lines that name a copyright's owner.

    Two licences that differ in owner and year, or two files that differ in white space, have the same one.
    """
    return digest(_NOT_A_LETTER.sub(" ", _OWNER_LINE.sub("", text).lower()).strip())


def _select(remaining: Sequence[Candidate], limits: Mapping[str, int], progress: Progress | None) -> _Selection:
    """Take documents in order until every source is full; first with the cap on a package's share, then without."""
    selection = _Selection(limits, progress)
    with warnings.catch_warnings(), _without_garbage_collection():
        warnings.simplefilter("ignore")  # parsing warns of other people's escape sequences
        # Two passes: the cap on packages gives way only where nothing else is left to fill a source.
        for share in (PACKAGE_SHARE, 1.0):
            skipped = []
            for candidate in remaining:
                wanted = selection.open_sources(candidate, share)
                if wanted:
                    _take(candidate, wanted, selection)
                else:
                    skipped.append(candidate)
            remaining = skipped
    return selection


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the collector off: syntax trees are freed by reference counts, and tracing them doubles the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _take(candidate: Candidate, wanted: Sequence[str], selection: _Selection) -> None:
    """Read one file and offer its documents to the sources that want them."""
    text, reason = _read(candidate.path)
    # Exact copies are dropped before parsing. The label keeps file hashes apart from document hashes.
    identity = digest("file", text)
    if not reason and identity in selection.seen:
        reason = "duplicate"
    if reason:
        # Of a file that was not read, its name.
        return selection.drop(candidate.sources[0], reason, text or candidate.path)
    selection.seen.add(identity)
    for source, name, document in _documents(candidate, text, wanted, selection):
        if source in wanted:
            selection.offer(candidate, source, name, document)


def _read(path: str) -> tuple[str, str | None]:
    """Return a file's text, or an empty string and the reason why it has none."""
    try:
        size = os.path.getsize(path)
        if size > MAX_FILE_BYTES:
            return "", "long"
        if size < MIN_FILE_BYTES:
            return "", "short"
        # utf-8-sig: a byte-order mark is not part of the text.
        raw = Path(path).read_bytes()
        text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    except (OSError, EOFError, zlib.error):
        return "", "unreadable"
    return text, None


def _documents(
    candidate: Candidate, text: str, wanted: Sequence[str], selection: _Selection
) -> Iterator[tuple[str, str, str]]:
    """Yield (source, name, text) of the documents in a file."""
    name = candidate.path
    if candidate.kind == "python":
        # Once code is full, parse a module only if its docstrings are worth the time.
        if "code" not in wanted and not _is_rich_in_docstrings(text):
            return
        try:
            code, docstrings = split_docstrings(text)
        # Python 2 sources, test files with broken syntax, expressions nested too deeply.
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return selection.drop("code", "not this Python", text)
        yield "code", name, without_notice(name, code)
        yield "text", f"{name}#docstrings", "\n\n".join(docstrings)
    elif candidate.kind == "manual":
        yield "text", name, manual_page_text(text)
    elif candidate.kind == "metadata":
        yield "text", name, package_description(text)
    else:
        yield candidate.sources[0], name, without_notice(name, text)


# Splitting at the quotes is crude, but parsing every module would be the longest part of a collection.
def _is_rich_in_docstrings(source: str) -> bool:
    """Tell whether triple-quoted strings make up a quarter of a module: parsing others for prose costs too much."""
    return sum(map(len, source.split('"""')[1::2])) * 4 > len(source)


def _write(output: Path, source: str, selection: _Selection, seed: int) -> dict[str, Any]:
    """Write one source's documents, shuffled by a keyed hash, and return its part of the report."""
    # Sorted by content hash: the order no longer tells which files lay side by side.
    documents = sorted(selection.documents[source], key=lambda item: digest(str(seed), "order", item["sha256"]))
    # Documents arrive in hash order of file names; hashing contents breaks up what one file gave.
    path = output / f"{source}.jsonl"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(orjson.dumps(item) + b"\n" for item in documents)
    dropped = selection.dropped.get(source, Counts()).as_json()
    return {
        "path": path.name,
        "documents": len(documents),
        "bytes": selection.bytes[source],
        "file_bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "kinds": dict(Counter(_suffix(item["path"]) for item in documents).most_common()),
        "dropped": {reason: entry["documents"] for reason, entry in dropped.items()},
        "dropped_documents": dropped,
    }


def _suffix(name: str) -> str:
    if name.endswith("#docstrings"):
        return "docstrings"
    if re.search(r"/man\d/[^/]*$", name):
        return "manual pages"
    return os.path.splitext(name.removesuffix(".gz"))[1].lower() or os.path.basename(name)


def _finished(output: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the report of an earlier call with the same settings whose files are all there, else None."""
    try:
        report: dict[str, Any] = orjson.loads((output / REPORT).read_bytes())
        same = all(report[key] == value for key, value in settings.items())
        # Sizes only: hashing the corpus at each call would take longer than the check is worth.
        sizes = [(output / part["path"]).stat().st_size == part["file_bytes"] for part in report["sources"].values()]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if same and all(sizes) else None


def _checked_limits(limits: Mapping[str, int]) -> dict[str, int]:
    for source in limits:
        if source not in DEFAULT_BYTES:
            close = get_close_matches(source, DEFAULT_BYTES, n=1)
            fix = f"did you mean {close[0]!r}?" if close else f"the sources are {', '.join(DEFAULT_BYTES)}"
            raise ConfigError(f"unknown source {source!r}", "--limit", fix)
    return {source: limits[source] for source in DEFAULT_BYTES if limits.get(source, 0) > 0}


def _checked_roots(roots: Sequence[Path]) -> list[Path]:
    for root in roots:
        if not root.is_dir():
            raise ConfigError("no such directory", str(root), "give existing directories with --roots")
    return sorted({root.resolve() for root in roots})
