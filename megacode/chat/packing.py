"""Pack whole conversations into windows of one length, so that none is cut and little is padding.

Best fit decreasing: conversations are taken from the longest to the shortest, and each goes to the window with the
least room that still holds it, or to a new one. It needs at most 11/9 of the fewest windows possible, and four more;
in practice padding stays below a per cent where there are short conversations to fill gaps with.

The window with the least sufficient room is found in constant time, in two levels of bits by the tokens of room. So n
conversations take n steps whatever the length of a window, and some 60 bytes each. Nothing but lengths, their order
and the seed decides the result.

Source: D. S. Johnson, Near-optimal bin packing algorithms, PhD thesis, MIT, 1973, chapter 2 (the bound of 11/9).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacode.data.shuffle import document_keys

_BITS = 10  # of a room that one word of the lower level holds
_WORD = (1 << _BITS) - 1
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Which conversations a window holds.

    Attributes:
        order: conversations, window after window, int64 [conversations].
        ends: where in `order` each window ends, int64 [windows].
    """

    order: Numbers
    ends: Numbers

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.ends)


class _Rooms:
    """Open windows by the tokens of room they have left."""

    def __init__(self, size: int) -> None:
        self._windows: dict[int, list[int]] = {}
        self._words, self._top = [0] * ((size >> _BITS) + 1), 0

    def put(self, room: int, window: int) -> None:
        """Add a window with some room."""
        waiting = self._windows.setdefault(room, [])
        if not waiting:
            word = room >> _BITS
            self._words[word] |= 1 << (room & _WORD)
            self._top |= 1 << word
        waiting.append(window)

    def take(self, length: int) -> tuple[int, int] | None:
        """Remove and return the window with the least room for `length` tokens, and its room; None: there is none."""
        word = length >> _BITS
        bits = self._words[word] >> (length & _WORD)
        if bits:
            # In the word of this length; else below, in the first later word that has any window.
            room = length + _lowest(bits)
        else:
            above = self._top >> (word + 1)
            if not above:
                return None
            word += 1 + _lowest(above)
            room = (word << _BITS) + _lowest(self._words[word])
        waiting = self._windows[room]
        # Any of them would do, but it must be the same one on every machine.
        window = waiting.pop()
        if not waiting:
            self._words[word] ^= 1 << (room & _WORD)
            if not self._words[word]:
                self._top ^= 1 << word
        return window, room


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def pack(lengths: npt.NDArray[np.integer], size: int, seed: int) -> Packing:
    """Pack conversations into windows.

    Args:
        lengths: tokens of each, 1 to `size`, [conversations].
        size: tokens of a window.
        seed: of the order of the windows.

    Returns:
        windows in shuffled order; inside a window longer conversations come first.
    """
    if not len(lengths):
        return Packing(np.zeros(0, np.int64), np.zeros(0, np.int64))
    # Stable: conversations of one length stay in the order of the input, on every machine.
    falling = np.argsort(-lengths.astype(np.int64), kind="stable")
    window_of, windows = _assigned(lengths[falling], size)
    # Without a shuffle the windows of the longest conversations would come first, and the shortest be held out.
    ranks = np.empty(windows, np.int64)
    ranks[np.argsort(document_keys(seed, 0, windows), kind="stable")] = np.arange(windows)
    order = np.argsort(ranks[window_of], kind="stable")
    ends = np.cumsum(np.bincount(ranks[window_of], minlength=windows))
    return Packing(falling[order].astype(np.int64), ends.astype(np.int64))


def _assigned(falling: npt.NDArray[np.integer], size: int) -> tuple[Numbers, int]:
    """Return the window of each conversation, given their lengths from the longest on, and the number of windows."""
    rooms, windows, window_of = _Rooms(size), 0, np.empty(len(falling), np.int64)
    # Block by block: one list of all lengths would hold a Python integer for each.
    for first in range(0, len(falling), 1 << 16):
        for number, length in enumerate(falling[first : first + (1 << 16)].tolist(), first):
            fitting = rooms.take(length)
            if fitting is None:
                window, room = windows, size
                windows += 1
            else:
                window, room = fitting
            window_of[number] = window
            if room > length:
                rooms.put(room - length, window)
    return window_of, windows


def in_order(count: int, seed: int | None) -> Numbers:
    """Return the numbers of `count` conversations in shuffled order; without a seed, as they are."""
    return np.arange(count) if seed is None else np.argsort(document_keys(seed, 0, count), kind="stable")
