"""Conversations to tokens, each with a bit: whether predicting it counts in the loss."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megacode.chat.answers import MARK_THEM, Rendered, UnmarkedError, render, render_whole
from megacode.chat.conversations import Message
from megacode.chat.special_names import WRITTEN, SpecialNames
from megacode.chat.templates import ChatTemplate
from megacode.data.tokenizer import HuggingFaceTokenizer, SentencePieceTokenizer, Tokenizer

Loss = Literal["answers", "all"]


class Pieces(NamedTuple):
    """Tokens of a text: `ids`, and the first and last character (exclusive) of each, int64 [tokens]."""

    ids: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]

    @staticmethod
    def joined(parts: Sequence[tuple[int, Pieces]]) -> Pieces:
        """Return the tokens of several texts as one, given where each text begins."""
        arrays = zip(*((some.ids, at + some.firsts, at + some.ends) for at, some in parts), strict=True)
        return Pieces(*(np.concatenate(array) for array in arrays))


@dataclass(frozen=True)
class Encoded:
    """A conversation as tokens.

    Attributes:
        ids: int32 [tokens].
        counted: whether predicting a token counts, bool [tokens].
    """

    ids: npt.NDArray[np.int32]
    counted: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fault:
    """Why a conversation cannot be encoded.

    Attributes:
        what: is wrong.
        fix: what to do about its template, which is at fault then; empty: the conversation is.
    """

    what: str
    fix: str = ""


class TextEncoder(ABC):
    """Encodes rendered conversations, in which special tokens are one character each.

    Attributes:
        names: of the special tokens.
        is_cut_anywhere: whether a text can be encoded in two parts and gives no other text then.
    """

    names: SpecialNames
    is_cut_anywhere: bool

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """Return the tokens of each text, with no tokens added."""


class HuggingFaceText(TextEncoder):
    """A `tokenizer.json` whose special tokens are renamed to those characters; all else is as it was.

    Args:
        specials: names of its special tokens.
        document: the file's content.
    """

    def __init__(self, specials: Sequence[str], document: dict[str, Any]) -> None:
        import tokenizers

        self.names = SpecialNames(specials)
        document = _renamed(document, self.names.written)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(document))
        self.is_cut_anywhere = _adds_nothing(self)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """See `TextEncoder.encode`."""
        return [_pieces(encoding) for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _pieces(encoding: Any) -> Pieces:
    offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return Pieces(np.array(encoding.ids, dtype=np.int64), offsets[:, 0], offsets[:, 1])


def _renamed(document: dict[str, Any], new: dict[str, str]) -> dict[str, Any]:
    """Return a tokenizer.json whose special tokens have other names, and which adds nothing to a text."""
    model = dict(document["model"])
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        model["vocab"] = [[new.get(piece, piece), score] for piece, score in vocabulary]
    else:
        model["vocab"] = {new.get(token, token): number for token, number in vocabulary.items()}
    # WordPiece and Unigram name or number the token for what they do not know.
    if model.get("unk_token") in new:
        model["unk_token"] = new[model["unk_token"]]
    added = [
        {**token, "content": new.get(token["content"], token["content"])}
        for token in document.get("added_tokens") or []
    ]
    # Truncation would cut long conversations without a word, and padding would lengthen short ones.
    nothing = dict.fromkeys(("post_processor", "truncation", "padding"))
    return {**document, **nothing, "model": model, "added_tokens": added}


class SentencePieceText(TextEncoder):
    """A SentencePiece model: each stretch between special tokens is encoded by itself, as in an export."""

    def __init__(self, tokenizer: SentencePieceTokenizer) -> None:
        self.names = SpecialNames(list(tokenizer.special_ids))
        self._processor = tokenizer.reference.processor
        self._ids = {self.names.written[name]: number for name, number in tokenizer.special_ids.items()}
        self.is_cut_anywhere = _adds_nothing(self)

    def encode(self, texts: Sequence[str]) -> list[Pieces]:
        """See `TextEncoder.encode`."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> Pieces:
        parts, at = [(0, _NOTHING)], 0
        for special in WRITTEN.finditer(text):
            parts += self._stretch(text[at : special.start()], at)
            at = special.end()
            one = Pieces(*(np.array([number], np.int64) for number in (self._ids[special[0]], 0, 1)))
            parts.append((special.start(), one))
        return Pieces.joined([*parts, *self._stretch(text[at:], at)])

    def _stretch(self, text: str, at: int) -> list[tuple[int, Pieces]]:
        if not text:
            return []
        encoded = self._processor.encode(text, return_type="offset_mapping")
        offsets = np.array(encoded["offsets"], dtype=np.int64).reshape(-1, 2)
        return [(at, Pieces(np.array(encoded["ids"], dtype=np.int64), offsets[:, 0], offsets[:, 1]))]


_NOTHING = Pieces(*(np.zeros(0, np.int64) for _ in range(3)))


def _adds_nothing(encoder: TextEncoder) -> bool:
    """Return whether an encoder puts nothing before a text; some put a space there."""
    # A space would go before the line feed, not before `a`: equal tokens show that none was added.
    alone, behind = (encoder.encode([text])[0].ids.tolist() for text in ("a", "\na"))
    return bool(behind[-len(alone) :] == alone)


def text_encoder(tokenizer: Tokenizer) -> TextEncoder:
    """Return what encodes rendered conversations with a tokenizer."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return HuggingFaceText(tokenizer.specials, tokenizer.document)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    return SentencePieceText(tokenizer)


class ChatEncoder:
    """Encodes conversations in a chat template.

    Args:
        tokenizer: of the model.
        template: to render them with.
        loss: `answers` counts what the model has to write, `all` every token.
        append_eod: end each conversation with the tokenizer's end-of-document token.
    """

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, loss: Loss, append_eod: bool) -> None:
        self._text, self._template, self._loss = text_encoder(tokenizer), template, loss
        self._eod = tokenizer.eod if append_eod else None

    def encode(self, conversations: Sequence[Sequence[Message]]) -> list[Encoded | Fault]:
        """Encode conversations, or return what is wrong with one."""
        rendered = [self._rendered(messages) for messages in conversations]
        # In one call: Hugging Face's tokenizers can encode a batch in several threads.
        pieces = iter(self._text.encode([item.text for item in rendered if isinstance(item, Rendered)]))
        return [self._encoded(item, next(pieces)) if isinstance(item, Rendered) else item for item in rendered]

    def _rendered(self, messages: Sequence[Message]) -> Rendered | Fault:
        names = self._text.names
        if self._loss == "answers" and not any(message["role"] == "assistant" for message in messages):
            return Fault("it has no message of the assistant, so nothing of it would count (--loss answers)")
        try:
            if self._loss == "all":
                return render_whole(self._template, names, messages)
            rendered = render(self._template, names, messages)
        except UnmarkedError as error:
            return Fault(f"the chat template does not mark answers: {error}; {_example(messages)}", MARK_THEM)
        except ValueError as error:
            return Fault(str(error))
        if not rendered.ended and self._eod is None:
            problem = f"the chat template writes nothing that ends an answer; {_example(messages)}"
            fix = "write a special token behind answers, or give --append-eod: else the model never learns to stop"
            return Fault(problem, fix)
        return rendered

    def _encoded(self, rendered: Rendered, pieces: Pieces) -> Encoded | Fault:
        begun_inside = [first for first, _ in rendered.answers if _cuts_a_token(pieces, first)]
        if begun_inside:
            if not self._text.is_cut_anywhere:
                return Fault("one token holds the end of a prompt and the beginning of its answer")
            # The model will see the prompt alone, and write the answer in tokens of its own.
            cuts = list(pairwise([0, *begun_inside, len(rendered.text)]))
            parts = self._text.encode([rendered.text[first:end] for first, end in cuts])
            pieces = Pieces.joined([(first, part) for (first, _), part in zip(cuts, parts, strict=True)])
        counted = np.full(len(pieces.ids), self._loss == "all")
        for first, end in rendered.answers:
            # A token belongs to an answer if it begins there, also where it ends behind it.
            counted[np.searchsorted(pieces.firsts, first) : np.searchsorted(pieces.firsts, end)] = True
        return self._ended(rendered, pieces.ids, counted)

    def _ended(self, rendered: Rendered, ids: npt.NDArray[np.int64], counted: npt.NDArray[np.bool_]) -> Encoded:
        if self._eod is not None:
            # It ends an answer that no other token ends; behind one that has its own it is never generated.
            is_open = bool(rendered.answers) and rendered.answers[-1][1] == len(rendered.text)
            needed = self._loss == "all" or (is_open and not WRITTEN.match(rendered.text[-1]))
            ids, counted = np.append(ids, self._eod), np.append(counted, needed)
        if self._loss == "answers":
            # Nothing of the conversation comes before its first token.
            counted[:1] = False
        return Encoded(ids.astype(np.int32), counted)


def _cuts_a_token(pieces: Pieces, place: int) -> bool:
    """Return whether a token holds characters on both sides of a place."""
    before = int(np.searchsorted(pieces.firsts, place)) - 1
    return before >= 0 and int(pieces.ends[before]) > place


def _example(messages: Sequence[Message]) -> str:
    """Return the roles of a conversation and the beginning of its last message, for an error."""
    roles, last = ", ".join(message["role"] for message in messages[:6]), messages[-1]["content"][:40]
    return f"for example in a conversation of {len(messages)} messages ({roles}) that ends in {last!r}"
