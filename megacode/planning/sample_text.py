"""What samples say: their tokens as text, by document, with special tokens and invisible characters made visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from megacode.base.errors import ConfigError
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data.document_ids import open_ids
from megacode.data.source_stream import SourceStream, window_tokens
from megacode.data.tokenizer import Tokenizer, load_tokenizer
from megacode.data.windows import open_source, source_sizes
from megacode.plan.phases import build_schedule
from megacode.planning.order import Row, order_rows

_KEPT = ("\n", "\t")


@dataclass(frozen=True)
class DocumentText:
    """The part of a sample that one document fills.

    Attributes:
        document: its number in the source.
        id: its id, if the source has ids.
        first_token: where the part begins in the sample.
        tokens: how many there are.
        begins, ends: whether the document begins and ends inside the sample.
        fim: whether it is read as prefix, suffix and middle.
        text: what they say as training reads them; see `visible`.
    """

    document: int
    id: str | None
    first_token: int
    tokens: int
    begins: bool
    ends: bool
    fim: bool
    text: str


def decoded_rows(config: RunConfig, first: int, count: int) -> list[tuple[Row, list[DocumentText]]]:
    """Return what some samples read, as `order_rows` does, each with the text of its documents.

    The window of a sample has seq_length + 1 tokens: the last one is only a label. A packed one has seq_length.

    Raises:
        ConfigError: if the run has no tokenizer, or `first` lies outside the run.
        DataError: if a source or the tokenizer cannot be read, or a source was made with another tokenizer.
    """
    if config.tokenizer is None:
        raise ConfigError("the run has no tokenizer to decode with", "tokenizer", "set the one that made the data")
    rows, tokenizer = order_rows(config, first, count), load_tokenizer(config.tokenizer)
    streams = {name: open_source(config, name) for name in {row["source"] for row in rows}}
    # Ids of another tokenizer decode to fluent nonsense, and nothing would fail.
    for stream in streams.values():
        manifests.check_tokenizer(stream.prefix, manifests.read(stream.prefix), tokenizer.hash)
    schedule = build_schedule(config, source_sizes(config))
    starts = schedule.draws(np.array([row["sample"] for row in rows], dtype=np.int64)).first_token.tolist()
    return [
        (row, list(_pieces(streams[row["source"]], start, row["epoch"], tokenizer)))
        for row, start in zip(rows, starts, strict=True)
    ]


def _pieces(stream: SourceStream, first_token: int, epoch: int, tokenizer: Tokenizer) -> Iterator[DocumentText]:
    read, names = window_tokens(stream, first_token, epoch), open_ids(stream.prefix, stream.data.documents)
    tokens = read.tokens[: stream.reads]
    borders = [0, *stream.document_starts(first_token).tolist(), len(tokens)]
    for begin, end in pairwise(borders):
        document = stream.data.document_at(first_token + begin)
        first, last = stream.data.document_bounds(document)
        yield DocumentText(
            document=document,
            id=names[document] if names is not None else None,
            first_token=begin,
            tokens=end - begin,
            begins=first == first_token + begin,
            ends=last == first_token + end - 1,
            fim=document in read.fim_documents,
            text=decoded(tokens[begin:end].tolist(), tokenizer),
        )


def decoded(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Return the text of some ids: special tokens as ⟦name⟧, which no text can be mistaken for.

    Args:
        ids: the tokens.
        tokenizer: that made them.
    """
    names, parts, start = {number: name for name, number in tokenizer.special_ids.items()}, [], 0
    for place in [*(n for n, token in enumerate(ids) if token in names), len(ids)]:
        if start < place:
            # All ids between two special tokens at once: a character may be spread over several.
            parts.append(visible(tokenizer.decode(ids[start:place])))
        if place < len(ids):
            parts.append(f"⟦{names[ids[place]]}⟧")
        start = place + 1
    return "".join(parts)


def visible(text: str) -> str:
    """Return a text with its invisible characters shown by their code points, such as ⟨U+200B⟩.

    Line ends and tabs stay. Brackets that could be mistaken for what is put in here are shown by theirs, too.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character in _KEPT or character == " ":
        return character
    # Control and format characters (also those that turn the direction of writing), all spaces, and unassigned ones.
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Co", "Cn", "Cs", "Zs", "Zl", "Zp")
    return f"⟨U+{ord(character):04X}⟩" if hidden or character in "⟦⟧⟨⟩" else character


def shortened(text: str, most: int) -> str:
    """Return the head and the tail of a text, and how much is left out between them."""
    if len(text) <= most:
        return text
    # The head tells what a text is. The tail only shows how it ends.
    tail = most // 4
    return f"{text[: most - tail]}\n  [... {len(text) - most:,} characters ...]\n{text[len(text) - tail :]}"
