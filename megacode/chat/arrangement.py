"""Which conversations a data set gets, how long they are in it, and in which order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacode.base.errors import DataError
from megacode.base.units import format_count
from megacode.chat.encoded_spool import EncodedSpool
from megacode.chat.job import ChatJob
from megacode.chat.packing import in_order, pack


@dataclass(frozen=True)
class Arrangement:
    """What is written, in order.

    Attributes:
        numbers: of conversations, as they were read, int64 [conversations].
        lengths: of their tokens that are written, int64 [conversations].
        padding: tokens of padding behind each, int64 [conversations].
        truncated, dropped_long, dropped_without_answer: how many conversations.
    """

    numbers: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    padding: npt.NDArray[np.int64]
    truncated: int
    dropped_long: int
    dropped_without_answer: int


def arrange(job: ChatJob, spool: EncodedSpool, longest: str) -> Arrangement:
    """Decide about long conversations, and pack or shuffle.

    Args:
        job: the settings.
        spool: finished.
        longest: place of the longest conversation, for a message.

    Raises:
        DataError: some are too long, and neither flag says what becomes of them; or none is left.
    """
    whole = spool.lengths.astype(np.int64)
    # Without a limit the longest conversation is the limit, so nothing exceeds it.
    limit = job.limit or int(whole.max(initial=1))
    long = np.flatnonzero(whole > limit)
    if len(long) and not (job.truncate or job.drop_long):
        raise _too_long(whole, long, limit, longest)
    # A cut may take all that counts, as behind a long prompt: then nothing is left to learn.
    dropped = long if job.drop_long else _without_answer(spool, long, limit)
    kept = np.setdiff1d(np.arange(len(whole)), dropped, assume_unique=True)
    if not len(kept):
        fix = f"give a longer --{'pack' if job.pack == limit else 'max-length'}, or other conversations"
        raise DataError(f"no conversation is left: all are longer than {limit:,} tokens", longest, fix)
    lengths = np.minimum(whole[kept], limit)
    truncated, by_length = (0, len(dropped)) if job.drop_long else (len(long) - len(dropped), 0)
    facts = truncated, by_length, len(dropped) - by_length
    if job.pack is None:
        order = in_order(len(kept), job.shuffle_seed)
        return Arrangement(kept[order], lengths[order], np.zeros(len(kept), np.int64), *facts)
    # Packed windows are always shuffled, so that a seed is needed even where none was given.
    packing = pack(lengths, job.pack, job.shuffle_seed or 0)
    placed = lengths[packing.order]
    padding = np.zeros(len(kept), np.int64)
    # Padding belongs to the last conversation of its window: no document is padding alone.
    ends = np.cumsum(placed)[packing.ends - 1]
    padding[packing.ends - 1] = job.pack - np.diff(ends, prepend=0)
    return Arrangement(kept[packing.order], placed, padding, *facts)


def _without_answer(spool: EncodedSpool, long: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.int64]:
    """Return the conversations of which no token that counts is left when they are truncated."""
    return np.array([number for number in long.tolist() if not spool.counted(number, limit).any()], dtype=np.int64)


def _too_long(whole: npt.NDArray[np.int64], long: npt.NDArray[np.int64], limit: int, longest: str) -> DataError:
    tokens, lost = int(whole[long].sum()), int((whole[long] - limit).sum())
    message = (
        f"{len(long):,} of {len(whole):,} conversations are longer than {limit:,} tokens; "
        f"the longest has {int(whole.max()):,}"
    )
    fix = (
        f"give --truncate (loses {format_count(lost)} of {format_count(int(whole.sum()))} tokens), "
        f"--drop-long (loses {format_count(tokens)}), or a greater length"
    )
    return DataError(message, longest, fix)
