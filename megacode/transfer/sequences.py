"""Micro-batches of one row: a window of a source, or a question with its answer, on which alone the loss counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megacode.data.loader import isolated
from megacode.data.source_stream import SourceStream, window_tokens
from megacode.data.tokenizer import Tokenizer
from megacode.mcore.micro_batch import MicroBatch
from megacode.transfer.gold_items import GoldItem

_MULTIPLE = 64  # lengths are rounded up to it: kernels of few shapes, and as FP8 and context parallelism like them


@dataclass(frozen=True)
class AnswerTokens:
    """An item as the model reads it.

    Attributes:
        tokens: question and answer.
        answer: how many of the last ones are the answer.
        cut: tokens that the question lost at its beginning to the model's context.
    """

    tokens: Sequence[int]
    answer: int
    cut: int


def answer_tokens(tokenizer: Tokenizer, items: Sequence[GoldItem], context: int) -> list[AnswerTokens]:
    """Return items as ids, as lm-eval gives them to an export of the model.

    Spaces at a question's end belong to the answer, since tokenizers merge them with the word after them. Without a
    question the answer follows the end of a document. A question that does not fit loses its beginning, an answer that
    does not fit its beginning too.

    Args:
        tokenizer: the run's, with an end-of-document token.
        items: the items.
        context: the most inputs that the model reads, seq_length.
    """
    assert tokenizer.eod is not None
    kept = [item.question.rstrip() for item in items]
    wholes = tokenizer.encode_each([item.question + item.answer for item in items])
    questions = tokenizer.encode_each(kept)
    encoded = []
    for whole, question in zip(wholes, questions, strict=True):
        begin = [] if question else [tokenizer.eod]
        # By length, as lm-eval does it: a token over the border would be part of the answer.
        answer = len(whole) - len(question)
        # The last token is a label only.
        ids = [*begin, *whole][-(context + 1) :]
        cut = len(begin) + len(whole) - len(ids)
        # The first token of a row is never predicted: nothing stands before it.
        # At least the last one: a tokenizer may write the whole in as few tokens as the question.
        encoded.append(AnswerTokens(ids, max(1, min(answer, len(ids) - 1)), cut))
    return encoded


def answer_batch(item: AnswerTokens, eod: int, context: int) -> MicroBatch:
    """Return an item as a micro-batch: the loss counts on the answer alone, and padding follows it."""
    inputs = len(item.tokens) - 1
    length = min(-(-inputs // _MULTIPLE) * _MULTIPLE, context)
    # Padding comes last, so no token of the item sees it.
    row = torch.full((length + 1,), eod, dtype=torch.int64)
    row[: inputs + 1] = torch.tensor(item.tokens, dtype=torch.int64)
    mask = torch.zeros(1, length)
    mask[0, inputs - item.answer : inputs] = 1.0
    return _micro_batch(row, mask, torch.arange(length)[None], None)


def window_batch(stream: SourceStream, first_token: int, isolate: bool) -> MicroBatch:
    """Return a window as a micro-batch, as training's validation reads it.

    Args:
        stream: the source.
        first_token: where the window begins.
        isolate: whether the run isolates documents.
    """
    # None: without an epoch nothing is rearranged for fill in the middle, as in validation.
    window = window_tokens(stream, first_token, None)
    length = stream.seq_length
    mask, positions, borders = torch.ones(1, length), torch.arange(length)[None], None
    # Packed conversations never see each other, whatever the run says of documents.
    if isolate or stream.packed:
        mask, positions, borders = isolated([stream.document_starts(first_token)], length)
    if window.loss_mask is not None:
        mask = mask * torch.from_numpy(window.loss_mask)[None]
    row = torch.from_numpy(np.asarray(window.tokens).astype(np.int64))
    return _micro_batch(row, mask, positions, borders)


def _micro_batch(
    row: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, borders: torch.Tensor | None
) -> MicroBatch:
    # All rows are of source 0: the caller knows which source or task they belong to.
    nothing = torch.zeros(1, dtype=torch.int64)
    return MicroBatch(row[None, :-1], row[None, 1:], mask, positions, borders, source_ids=nothing, samples=nothing)
