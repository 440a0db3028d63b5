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


class RowEncoder:
    """Encodes records."""

    def __init__(self, settings: RowSettings) -> None:
        tokenizer = load_tokenizer(settings.tokenizer)
        self._encoder = ChatEncoder(tokenizer, settings.template, settings.loss, settings.append_eod)
        self._id_key = settings.id_key

    def encode(self, rows: Sequence[Row]) -> EncodedRows:
        """Encode some records."""
        parsed = [self._parsed(row) for row in rows]
        encoded = iter(self._encoder.encode([item[0] for item in parsed if not isinstance(item, Fault)]))
        found: list[Encoded | Fault] = [item if isinstance(item, Fault) else next(encoded) for item in parsed]
        good = [item for item, one in zip(parsed, found, strict=True) if isinstance(one, Encoded)]
        return EncodedRows(found, [item[1] for item in good if not isinstance(item, Fault)])

    def _parsed(self, row: Row) -> tuple[list[Message], str | None] | Fault:
        try:
            if self._id_key is not None:
                return messages_of(row), id_of(row.get(self._id_key), self._id_key)
            return messages_of(row), id_of(row["id"], "id") if row.get("id") is not None else None
        except ValueError as error:
            return Fault(str(error))


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
    batches = ((records, first) for records in reader for first in range(0, max(1, len(records.rows)), _ROWS))
    if processes == 1:
        encoder = RowEncoder(settings)
        for records, first in batches:
            yield records, first, encoder.encode(records.rows[first : first + _ROWS])
        return
    # Fresh interpreters: a fork would copy the threads' locks of the tokenizers.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _in_pool, (os.getpid(), settings))
    waiting: deque[tuple[Records, int, Future[EncodedRows]]] = deque()
    try:
        for records, first in batches:
            waiting.append((records, first, pool.submit(_encode, records.rows[first : first + _ROWS])))
            # Bounded: memory holds some batches of each process, whatever the input's size.
            while len(waiting) > 4 * processes:
                done, place, future = waiting.popleft()
                yield done, place, future.result()
        for done, place, future in waiting:
            yield done, place, future.result()
    except BrokenProcessPool:
        what = "a process that encodes conversations was ended from outside, as by a system without memory"
        raise DataError(what, "--workers", "give fewer --workers, or more memory") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


_of_process: list[RowEncoder] = []  # of a process of the pool: one


def _in_pool(parent: int, settings: RowSettings) -> None:
    """Prepare a process of the pool: it ends with its parent, however that ends, and uses one core."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends the pool
    end_with(parent)
    _of_process.append(RowEncoder(settings))


def _encode(rows: Sequence[Row]) -> EncodedRows:
    return _of_process[0].encode(rows)
