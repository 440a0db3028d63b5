"""Rules for prose.

Source: Rae et al. 2021 (Gopher), appendix A.1.1. Words are what stands between ASCII white space; every byte outside
ASCII counts as a letter. So the counts take a few passes over bytes instead of a Python loop over words.
"""

from __future__ import annotations

import string
from functools import cached_property

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_HEAD = 4_096  # characters in which ordinary prose shows its stop words
_ELLIPSES = ("...", "…")
_BULLETS = ("•", "-")
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
    def words(self) -> int:
        """Number of words."""
        return len(self.raw.split())

    @cached_property
    def mean_word(self) -> float:
        """Characters of a word on average."""
        spaces = len(self.raw) - len(self.raw.translate(None, string.whitespace.encode()))
        return (len(self.text) - spaces) / max(1, self.words)

    @cached_property
    def words_with_letter(self) -> float:
        """Share of the words with at least one letter."""
        # Words without a letter vanish when all that is neither letter nor space is deleted.
        return len(self.raw.translate(None, _NEITHER_LETTER_NOR_SPACE).split()) / max(1, self.words)

    @cached_property
    def symbols_per_word(self) -> float:
        """`#` per word or ellipses per word, whichever is more."""
        ellipses = sum(map(self.text.count, _ELLIPSES))
        return max(self.text.count("#"), ellipses) / max(1, self.words)

    def has_stop_words(self, number: int) -> bool:
        """Tell whether so many different stop words occur."""
        if len(STOP_WORDS.intersection(self.text[:_HEAD].split())) >= number:
            return True
        return len(STOP_WORDS.intersection(self.text.split())) >= number

    @cached_property
    def lines(self) -> list[str]:
        """Lines with their white space at both ends removed."""
        return [line.strip() for line in self.text.splitlines()]

    def bullet_lines_exceed(self, share: float) -> bool:
        """Tell whether a larger share of the lines begins with a bullet or a hyphen."""
        return _share_exceeds([line.startswith(_BULLETS) for line in self.lines], share)

    def ellipsis_lines_exceed(self, share: float) -> bool:
        """Tell whether a larger share of the lines ends with an ellipsis."""
        return _share_exceeds([line.endswith(_ELLIPSES) for line in self.lines], share)


def _share_exceeds(found: list[bool], share: float) -> bool:
    return sum(found) > share * len(found)
