"""Rules for prose.

Source: Rae et al. 2021 (Gopher), appendix A.1.1. Words are what stands between ASCII white space; every byte outside
ASCII counts as a letter. So the counts take a few passes over bytes instead of a Python loop over words.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cached_property

import numpy as np

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_HEAD = 4_096  # characters in which ordinary prose shows its stop words
_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-")
_INK = bytes(chr(byte) not in string.whitespace for byte in range(256))
_NEITHER_LETTER_NOR_SPACE = bytes(
    byte for byte in range(128) if chr(byte) not in string.ascii_letters + string.whitespace
)


class Prose:
    """Counts of words and lines of a text, each made when a rule first asks.

    Args:
        text: the text.
        raw: its UTF-8 bytes.
    """

    def __init__(self, text: str, raw: bytes) -> None:
        self.text = text
        self.raw = raw

    @cached_property
    def _ink(self) -> np.ndarray:
        """Which bytes are no white space: uint8 [bytes], 0 or 1."""
        return _ink(self.raw)

    @cached_property
    def words(self) -> int:
        """Number of words."""
        return _starts(self._ink)

    @cached_property
    def mean_word(self) -> float:
        """Characters of a word on average."""
        spaces = len(self.raw) - int(np.count_nonzero(self._ink))
        return (len(self.text) - spaces) / max(1, self.words)

    @cached_property
    def words_with_letter(self) -> float:
        """Share of the words with at least one letter."""
        # Words without a letter vanish when all that is neither letter nor space is deleted.
        return _starts(_ink(self.raw.translate(None, _NEITHER_LETTER_NOR_SPACE))) / max(1, self.words)

    @cached_property
    def symbols_per_word(self) -> float:
        """`#` per word or ellipses per word, whichever is more."""
        ellipses = sum(map(self.text.count, _ELLIPSES))
        return max(self.text.count("#"), ellipses) / max(1, self.words)

    def has_stop_words(self, number: int) -> bool:
        """Tell whether so many different stop words occur."""
        # Splitting costs a Python string a word. Ordinary prose passes at its beginning, so few texts are split whole.
        if len(STOP_WORDS.intersection(self.text[:_HEAD].split())) >= number:
            return True
        return len(STOP_WORDS.intersection(self.text.split())) >= number

    def bullet_lines_exceed(self, share: float) -> bool:
        """Tell whether a larger share of the lines begins with a bullet or a hyphen."""
        return self._lines_exceed(share, _BULLETS, str.startswith)

    def ellipsis_lines_exceed(self, share: float) -> bool:
        """Tell whether a larger share of the lines ends with an ellipsis."""
        return self._lines_exceed(share, _ELLIPSES, str.endswith)

    def _lines_exceed(self, share: float, marks: tuple[str, ...], has: Callable[[str, tuple[str, ...]], bool]) -> bool:
        # There are at least as many lines as line feeds, and no more marked lines than marks.
        if sum(map(self.text.count, marks)) <= share * self.raw.count(b"\n"):
            return False
        lines = self.text.splitlines()
        return sum(has(line.strip(), marks) for line in lines) > share * len(lines)


def _ink(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw.translate(_INK), np.uint8)


def _starts(ink: np.ndarray) -> int:
    """Return how many runs of ones there are."""
    return int(ink[:1].sum()) + int(np.count_nonzero(ink[1:] > ink[:-1]))
