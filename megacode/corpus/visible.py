"""Text of documents made fit to be shown: what cannot be seen, or moves other text, is named instead."""

from __future__ import annotations

import re
import unicodedata

# Controls except line feed and tab; marks of direction, which can reorder the text around them; characters without
# width; halves of surrogate pairs; tags, which carry text that nobody sees.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufe00-\ufe0e\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def pieces(text: str) -> list[tuple[str, bool]]:
    """Return a text in pieces: plain ones, and marks such as `U+202E RIGHT-TO-LEFT OVERRIDE` in place of a character.

    Returns:
        Each piece, and whether it is a mark.
    """
    parts, end = list[tuple[str, bool]](), 0
    for match in _UNSEEN.finditer(text.replace("\r\n", "\n")):
        parts += [(match.string[end : match.start()], False), (_mark(match.group()), True)]
        end = match.end()
    return [piece for piece in [*parts, (text.replace("\r\n", "\n")[end:], False)] if piece[0]]


def one_line(text: str, limit: int) -> str:
    """Return the beginning of a text on one line, with what cannot be seen named."""
    shown = "".join(f"[{part.split(' ')[0]}]" if is_mark else part for part, is_mark in pieces(text[: 4 * limit]))
    line = " ".join(shown.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _mark(character: str) -> str:
    return f"U+{ord(character):04X} {unicodedata.name(character, '')}".rstrip()
