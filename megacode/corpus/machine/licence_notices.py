"""Licence notices at the head of source files: the same words in thousands of files, and nothing to learn from.

If they stay, training and held-out documents share them, and items made from held-out documents look contaminated.
"""

from __future__ import annotations

import re

_BLANK = r"[ \t]*\n"
# A comment at the very beginning, of lines or between marks, and such comments that follow it.
_LINES = r"(?:[ \t]*(?:#|//|;|--|%)[^\n]*\n)+"
_BLOCK = r"[ \t]*(?:/\*.*?\*/|<!--.*?-->|\(\*.*?\*\))[^\n]*\n"
_COMMENT = re.compile(rf"(?:{_BLANK})*(?:{_BLOCK}|{_LINES})", re.DOTALL)
_NOTICE = re.compile(
    r"copyright|\(c\)|©|licen[sc]e|SPDX-|public domain|all rights reserved|warrant|this file is part of", re.IGNORECASE
)
_PROSE = (".md", ".markdown", ".rst", ".txt")  # where a line that begins with # is a heading
_MOST_COMMENTS = 6  # at the head of a file; a notice is among the first few, or absent


def without_notice(name: str, text: str) -> str:
    """Return a file's text without the comments at its head that name licences and owners.

    Other comments at the head stay; nothing below the first line of code is touched.

    Args:
        name: of the file; prose has no comments.
        text: its text.
    """
    if name.lower().endswith(_PROSE):
        return text
    kept, rest = [], text
    # Bounded: a file of comments only would otherwise be searched to its end.
    for _ in range(_MOST_COMMENTS):
        comment = _COMMENT.match(rest)
        if comment is None:
            break
        if not _NOTICE.search(comment.group()):
            kept.append(comment.group())
        rest = rest[comment.end() :]
    return ("".join(kept) + rest).lstrip("\n") if rest != text else text
