"""The demo suite's items, made from held-out documents.

Three kinds of task, each from passages that no phase trains on:

- *endings*: which of four endings is the true one? Every false ending is the true one of a passage from another
  document. So an ending's length, frequency or style gives nothing away; only the context does. A model that ignores
  the context scores 25 % (in `acc_mutual_info` even if it prefers some endings).
- *bits*: bits per byte of passages, the metric that improves first and most with training.
- *next word*: the model writes the word of code that comes next. The chosen words occur in the
  prompt already and follow a space, where byte-level tokenizers split anyway. A prompt cut inside a token would measure
  the effect of the cut.

Passages are taken in rounds, one of each document before a second of any, in a keyed order: so the items depend on
the documents and the seed only, and a few long documents do not crowd out many short ones. Passages that training data
hold as well are skipped.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from megacode.base.errors import ConfigError, DataError
from megacode.base.files import atomic_path, digest, file_digest, write_json

_LOG = logging.getLogger(__name__)

SOURCES = ("text", "code", "markup")
INDEX = "items.json"
ENDINGS = 4
CONTEXT_CHARACTERS = 160
ENDING_CHARACTERS = 64
BITS_CHARACTERS = 800
LEAST_CLEAN = 8  # items; a task that would have fewer takes passages that training holds too
MIN_LETTERS = 24
PROMPT_CHARACTERS = 300
_LAST_WORD = re.compile(r"\s+\S*$")
_WORD = re.compile(r"(?<=\S) ([A-Za-z_]\w{2,})\b")


Clean = Callable[[str], bool]


@dataclass(frozen=True)
class SuiteSizes:
    """Maximum number of items of each kind of task."""

    endings: int = 80
    bits: int = 32
    next_words: int = 64


@dataclass(frozen=True)
class Passage:
    """A stretch of a document.

    Attributes:
        document: index of its document among the held-out ones of its source.
        position: its first character there.
        text: the stretch itself; it begins at the beginning of a line.
    """

    document: int
    position: int
    text: str


def build_demo_tasks(
    heldout: Mapping[str, Sequence[str]],
    out_dir: Path,
    seed: int,
    sizes: SuiteSizes | None = None,
    clean: Mapping[str, Clean] | None = None,
) -> dict[str, Any]:
    """Write the demo suite's items, one JSON-lines file a task, and their index `items.json`.

    Args:
        heldout: held-out documents of the sources `text`, `code`, `markup`, or of some of them.
        out_dir: the directory to write to.
        seed: a different seed takes different passages.
        sizes: items a task at most; fewer documents give fewer items.
        clean: by source, whether training data hold a passage nowhere; None: all passages are used.

    Returns:
        The index: for each task its file, number of items, hash, and what guessing scores (`chance`).

    Raises:
        ConfigError: for a source that the suite has no task for.
        DataError: if a source has too few or too short documents.
    """
    sizes = sizes or SuiteSizes()
    for source in heldout:
        # The tasks are shipped as YAML files per source, so other names have none.
        if source not in SOURCES:
            fix = f"the suite's sources are {', '.join(SOURCES)}; for others, write your own suite"
            raise ConfigError(f"the demo suite has no task for the source {source!r}", "demo suite", fix)
    tasks: dict[str, list[dict[str, Any]]] = {}
    for source, documents in heldout.items():
        test = clean[source] if clean else None
        tasks[f"demo_endings_{source}"] = _clean_items(_endings, source, documents, seed, sizes.endings, test)
        tasks[f"demo_bits_{source}"] = _clean_items(_bits, source, documents, seed, sizes.bits, test)
    if "code" in heldout:
        test = clean["code"] if clean else None
        tasks["demo_next_word_code"] = _clean_items(_next_words, "code", heldout["code"], seed, sizes.next_words, test)
    index = {"seed": seed, "tasks": {name: _written(out_dir, name, items) for name, items in tasks.items()}}
    write_json(out_dir / INDEX, index)
    return index


def _clean_items(
    make: Callable[..., list[dict[str, Any]]],
    source: str,
    documents: Sequence[str],
    seed: int,
    count: int,
    clean: Clean | None,
) -> list[dict[str, Any]]:
    """Return the items of a task; if too few passages are clean, from all passages, with a warning."""
    if clean is None:
        return make(source, documents, seed, count)
    try:
        items = make(source, documents, seed, count, clean)
    except DataError:
        items = []
    if len(items) >= min(LEAST_CLEAN, count):
        return items
    # Overlapping items are better than none: a score file says how many of them the model has read.
    every = make(source, documents, seed, count)
    if len(every) > len(items):
        _LOG.warning("%s: most held-out passages are in the training data too, so items overlap with it", source)
    return every


def write_items(out_dir: Path, name: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write the items of one task as JSON lines; return its part of the index."""
    path = out_dir / f"{name}.jsonl"
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.writelines(orjson.dumps(item) + b"\n" for item in items)
    return {"file": path.name, "items": len(items), "sha256": file_digest(path)}


def _written(out_dir: Path, name: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    facts = write_items(out_dir, name, items)
    return {**facts, "chance": 1 / ENDINGS} if "_endings_" in name else facts


def _endings(
    source: str, documents: Sequence[str], seed: int, count: int, clean: Clean | None = None
) -> list[dict[str, Any]]:
    """Return items `{context, endings[4], answer, document}`."""
    size = CONTEXT_CHARACTERS + ENDING_CHARACTERS
    candidates = passages(documents, size, f"{seed}/endings/{source}", clean=clean)
    pairs = _distinct((pair for pair in map(split_ending, candidates) if pair), count)
    items = []
    for number, (passage, context, ending) in enumerate(pairs):
        # Taking the following pairs in a ring uses each ending about as often as a false one as any other.
        others = pairs[number + 1 :] + pairs[:number]
        false = [item[2] for item in others if item[0].document != passage.document][: ENDINGS - 1]
        if len(false) < ENDINGS - 1:
            raise _too_few(source, f"{ENDINGS} passages of {size} characters from several documents")
        # A hash, not a generator: adding documents leaves the other items' answers in place.
        answer = int(digest(str(seed), source, context, ending)[:8], 16) % ENDINGS
        # All endings get the true one's white space, which would give it away (a line break after a heading).
        gap = ending[: len(ending) - len(ending.lstrip())]
        endings = [gap + text.lstrip() for text in false]
        endings.insert(answer, ending)
        items.append({"context": context, "endings": endings, "answer": answer, "document": passage.document})
    if not items:
        raise _too_few(source, f"{ENDINGS} passages of {size} characters from several documents")
    return items


def _distinct(pairs: Iterable[tuple[Passage, str, str]], count: int) -> list[tuple[Passage, str, str]]:
    """Return the first pairs with distinct endings: if two were equal, an item would have two true answers."""
    by_ending: dict[str, tuple[Passage, str, str]] = {}
    for pair in pairs:
        by_ending.setdefault(pair[2].strip(), pair)
        if len(by_ending) == count:
            break
    return list(by_ending.values())


def _bits(
    source: str, documents: Sequence[str], seed: int, count: int, clean: Clean | None = None
) -> list[dict[str, Any]]:
    """Return items `{text, document}`."""
    stretches = passages(documents, BITS_CHARACTERS, f"{seed}/bits/{source}", whole=False, clean=clean)
    items = [{"text": passage.text, "document": passage.document} for passage in islice(stretches, count)]
    if not items:
        raise _too_few(source, "one document")
    return items


def _next_words(
    source: str, documents: Sequence[str], seed: int, count: int, clean: Clean | None = None
) -> list[dict[str, Any]]:
    """Return items `{prompt, word, document}`."""
    items: list[dict[str, Any]] = []
    for passage in passages(documents, PROMPT_CHARACTERS, f"{seed}/words/{source}", clean=clean):
        if len(items) == count:
            break
        if cut := _repeated_word(passage.text, f"{seed}/{passage.text}"):
            items.append({"prompt": cut[0], "word": cut[1], "document": passage.document})
    if not items:
        raise _too_few(source, f"one document of {PROMPT_CHARACTERS} characters")
    return items


def passages(
    documents: Sequence[str], size: int, key: str, whole: bool = True, clean: Clean | None = None
) -> Iterator[Passage]:
    """Yield passages of `size` characters that begin at a line, one of each document before a second of any.

    Args:
        documents: the documents.
        size: characters of a passage.
        key: decides the order of the documents in each round.
        whole: skip passages shorter than `size` at the end of a document.
        clean: skip passages of which this is false; it is asked in their order, one by one.
    """
    # rounds[k] holds the k-th passage of every document that has one.
    rounds: list[list[Passage]] = []
    for number, text in enumerate(documents):
        for turn, passage in enumerate(_passages_of(number, text, size, whole)):
            if turn == len(rounds):
                rounds.append([])
            rounds[turn].append(passage)
    for one_each in rounds:
        ordered = sorted(one_each, key=lambda item: digest(key, str(item.position), item.text))
        yield from (passage for passage in ordered if clean is None or clean(passage.text))


def _passages_of(number: int, text: str, size: int, whole: bool) -> Iterator[Passage]:
    position = 0
    while position < len(text):
        stretch = text[position : position + size]
        if len(stretch) == size or (stretch.strip() and not whole):
            yield Passage(number, position, stretch)
        # The next passage begins at the next line, so passages never start inside a word.
        position = text.find("\n", position + len(stretch) - 1) + 1 or len(text)


def split_ending(passage: Passage) -> tuple[Passage, str, str] | None:
    """Split a passage at white space near `CONTEXT_CHARACTERS`.

    Returns:
        The passage, its context without white space at the end, and its ending, which begins with the white space and
        stops at a word's end; None without such a place, or with too few letters to tell endings apart.
    """
    head = passage.text[:CONTEXT_CHARACTERS]
    context = head[: len(head) - len(head.split()[-1])].rstrip() if head.strip() else ""
    # The white space goes to the ending: tokenizers join it to the word after it.
    rest = passage.text[len(context) : len(context) + ENDING_CHARACTERS]
    ending = _LAST_WORD.sub("", rest)
    fit = (
        len(context) >= CONTEXT_CHARACTERS // 2
        and ending[:1].isspace()
        and sum(map(str.isalpha, ending)) >= MIN_LETTERS
    )
    return (passage, context, ending) if fit else None


def _repeated_word(text: str, key: str) -> tuple[str, str] | None:
    """Return the text up to a word that occurred before, and the word; None if no word is repeated."""
    prompts = [
        (text[: match.start()], match[1])
        # The first third stays context, so that a prompt is never too short to predict from.
        for match in _WORD.finditer(text, len(text) // 3)
        if re.search(rf"\b{match[1]}\b", text[: match.start()])
    ]
    return prompts[int(digest(key)[:8], 16) % len(prompts)] if prompts else None


def _too_few(source: str, wanted: str) -> DataError:
    return DataError(
        f"the held-out documents of {source} give no items: at least {wanted} needed",
        f"source {source}",
        "increase validation.fraction",
    )
