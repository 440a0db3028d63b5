"""Measures of a document's text, made once each and only when a filter asks.

Nearly all documents pass nearly all filters. So each measure has a cheap bound on the UTF-8 bytes that is enough to
let a document pass; the exact count of characters is made only where the bound does not decide. The results are those
of the exact definitions (`str.splitlines`, `str.isalnum`, `str.isalpha`), which the tests compare.
"""

from __future__ import annotations

import string
from functools import cached_property
from typing import Any

import numpy as np

from megacode.corpus.filters.prose import Prose

# One pass of bytes.translate gives every byte its classes, which cheap vector operations then look at.
DIGIT, LETTER, CONTROL, BASE64, HEX_LIST = 1, 2, 4, 8, 16
_MEMBERS = {
    DIGIT: string.digits.encode(),
    LETTER: string.ascii_letters.encode(),
    CONTROL: bytes([*range(9), *range(0x0E, 0x1B), *range(0x1C, 0x20)]),
    BASE64: (string.ascii_letters + string.digits + "+/\n=").encode(),
    HEX_LIST: (string.hexdigits + "x\\," + string.whitespace).encode(),
}
_CLASSES = bytes(sum(flag for flag, members in _MEMBERS.items() if byte in members) for byte in range(256))


class MeasuredText:
    """A text and what the filters have measured of it.

    Args:
        text: the document's text.
        fields: the record's other keys.
    """

    def __init__(self, text: str, fields: dict[str, Any]) -> None:
        self.text = text
        self.fields = fields
        self.characters = len(text)

    @cached_property
    def raw(self) -> bytes:
        """The text's UTF-8 bytes; lone surrogates count as three bytes."""
        return self.text.encode("utf-8", "surrogatepass")

    @cached_property
    def classes(self) -> np.ndarray:
        """Classes of every byte: uint8 [bytes], sums of DIGIT, LETTER, CONTROL, BASE64, HEX_LIST."""
        return np.frombuffer(self.raw.translate(_CLASSES), np.uint8)

    @cached_property
    def prose(self) -> Prose:
        """Its words and lines as prose."""
        return Prose(self.text, self.raw)

    @cached_property
    def newlines(self) -> np.ndarray:
        """Positions of the newlines in `raw`: int64 [newlines]."""
        return np.flatnonzero(np.frombuffer(self.raw, np.uint8) == ord("\n"))

    def has_longer_line(self, limit: int) -> bool:
        """Tell whether a line has more characters than `limit`."""
        # Other line breaks and characters of several bytes only make lines shorter, so this bound is safe.
        ends = np.concatenate(([-1], self.newlines, [len(self.raw)]))
        if len(self.raw) <= limit or int(np.diff(ends).max()) - 1 <= limit:
            return False
        return max(map(len, self.text.splitlines()), default=0) > limit

    def mean_line_exceeds(self, limit: float) -> bool:
        """Tell whether lines have more characters than `limit` on average."""
        # A text without a newline at its end has one line more; leaving it out keeps the bound above the mean.
        if self.characters - len(self.newlines) <= limit * len(self.newlines):
            return False
        lines = self.text.splitlines()
        return sum(map(len, lines)) > limit * len(lines)

    def has_share_of(self, classes: int, share: float) -> bool:
        """Tell whether so large a share of the characters are letters (LETTER), or letters or digits (both)."""
        needed = share * self.characters
        count = int(np.count_nonzero(self.classes & classes))
        if count >= needed or self.text.isascii():
            return count >= needed
        # Only characters outside ASCII are left to look at: a slow loop over few of them.
        belongs = str.isalnum if classes & DIGIT else str.isalpha
        return count + sum(map(belongs, filter("\x7f".__lt__, self.text))) >= needed

    def points(self) -> int:
        """Return the number of dots before a digit."""
        dots = np.flatnonzero(np.frombuffer(self.raw, np.uint8)[:-1] == ord("."))
        return int(np.count_nonzero(self.classes[dots + 1] & DIGIT))

    def longest_run_reaches(self, classes: int, length: int) -> bool:
        """Tell whether `length` bytes in a row belong to one class."""
        member = self.classes & classes
        reached = 1
        # After a step of s, an element says that s more bytes in a row belong: the length doubles each time.
        while reached < length and len(member) > (step := min(reached, length - reached)):
            member = member[step:] & member[:-step]
            reached += step
        return reached >= length and bool(member.any())

    def runs(self, classes: int, length: int) -> np.ndarray:
        """Return the starts and ends of all runs of at least `length` bytes of a class: int64 [runs, 2]."""
        member = np.concatenate(([False], self.classes & classes != 0, [False]))
        edges = np.flatnonzero(member[1:] != member[:-1]).reshape(-1, 2)
        return edges[edges[:, 1] - edges[:, 0] >= length]
