"""Records to encoded conversations, in this process or in several, always in the order of the input."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from megacode.base.child_processes import end_with
from megacode.base.errors import DataError
from megacode.chat.conversations import Message, messages_of
from megacode.chat.encoding import ChatEncoder, Encoded, Fault, Loss
from megacode.chat.templates import ChatTemplate
from megacode.config.model import TokenizerConfig
from megacode.data.records import Records
from megacode.data.texts import id_of
from megacode.data.tokenizer import load_tokenizer

_ROWS = 256  # that are encoded at once
Row = Mapping[str, Any]


@dataclass(frozen=True)
class RowSettings:
    """What a process needs to encode records; see `ChatEncoder`. `id_key`: None: `id`, where there is one."""

    tokenizer: TokenizerConfig
    template: ChatTemplate
    loss: Loss
    append_eod: bool
    id_key: str | None


@dataclass(frozen=True)
class EncodedRows:
    """Some records, encoded: for each its conversation, or what is wrong with it; and the ids of the good ones."""

    found: list[Encoded | Fault]
    ids: list[str | None]


Parsed = tuple[list[Message], str | None] | Fault  # messages and id of a record, or what is wrong with it


def _parsed(row: Row, id_key: str | None) -> Parsed:
    try:
        if id_key is not None:
            return messages_of(row), id_of(row.get(id_key), id_key)
        return messages_of(row), id_of(row["id"], "id") if row.get("id") is not None else None
    except ValueError as error:
        return Fault(str(error))


def _messages(parsed: Sequence[Parsed]) -> list[list[Message]]:
    return [item[0] for item in parsed if not isinstance(item, Fault)]


def _joined(parsed: Sequence[Parsed], encoded: Sequence[Encoded | Fault]) -> EncodedRows:
    following = iter(encoded)
    results = [item if isinstance(item, Fault) else next(following) for item in parsed]
    both = zip(parsed, results, strict=True)
    return EncodedRows(
        results, [item[1] for item, one in both if isinstance(one, Encoded) and not isinstance(item, Fault)]
    )


def _encoder(settings: RowSettings) -> ChatEncoder:
    return ChatEncoder(load_tokenizer(settings.tokenizer), settings.template, settings.loss, settings.append_eod)


def encode_records(
    reader: Iterator[Records], settings: RowSettings, processes: int
) -> Generator[tuple[Records, int, EncodedRows]]:
    """Encode records.

    Args:
        reader: of the records.
        settings: how.
        processes: how many encode; 1: this one.

    Yields:
        records, the number of the first of their rows that was encoded, and the result; in order.

    Raises:
        DataError: a process was ended from outside.
    """
    # Records are looked at here: only messages that are texts go to other processes.
    batches = (
        (records, first, [_parsed(row, settings.id_key) for row in records.rows[first : first + _ROWS]])
        for records in reader
        # Once even without rows: lines that were skipped are counted with the first part.
        for first in range(0, max(1, len(records.rows)), _ROWS)
    )
    if processes == 1:
        encoder = _encoder(settings)
        for records, first, parsed in batches:
            yield records, first, _joined(parsed, encoder.encode(_messages(parsed)))
        return
    # Fresh interpreters: a fork would copy the threads' locks of the tokenizers.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _in_pool, (os.getpid(), settings))
    waiting: deque[tuple[Records, int, list[Parsed], Future[list[Encoded | Fault]]]] = deque()
    try:
        for records, first, parsed in batches:
            waiting.append((records, first, parsed, pool.submit(_encode, _messages(parsed))))
            # Bounded: memory holds some batches of each process, whatever the input's size.
            while len(waiting) > 4 * processes:
                done, place, rows, future = waiting.popleft()
                yield done, place, _joined(rows, future.result())
        for done, place, rows, future in waiting:
            yield done, place, _joined(rows, future.result())
    except BrokenProcessPool:
        message = "a process that encodes conversations was ended from outside, as by a system without memory"
        raise DataError(message, "--workers", "give fewer --workers, or more memory") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_of_process: list[ChatEncoder] = []  # of a process of the pool: one


def _in_pool(parent: int, settings: RowSettings) -> None:
    """Prepare a process of the pool: it ends with its parent, however that ends, and uses one core."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    end_with(parent)
    _of_process.append(_encoder(settings))


def _encode(conversations: Sequence[Sequence[Message]]) -> list[Encoded | Fault]:
    return _of_process[0].encode(conversations)
