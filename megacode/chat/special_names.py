"""Tell the special tokens that a template writes from those that stand in a message as text.

A message may contain `<|im_end|>`: it asks about the token, or tries to forge the end of a turn. Such text stays text,
in conversations as in documents (see `data.encoders`). So special tokens in messages become characters of one private
plane before a template sees them, and those that the template has written become characters of another. Then each is
one character, whatever it is called, and a tokenizer whose special tokens are renamed the same way encodes the text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from megacode.chat.conversations import Message

_WRITTEN, _QUOTED, _END = 0xF0000, 0x100000, 0x10FFFE  # first characters of the planes, and behind the last
PRIVATE = re.compile(f"[{chr(_WRITTEN)}-{chr(_END - 1)}]")
QUOTED = re.compile(f"[{chr(_QUOTED)}-{chr(_END - 1)}]")  # a special token in a message
WRITTEN = re.compile(f"[{chr(_WRITTEN)}-{chr(_QUOTED - 1)}]")  # a special token of the template


class SpecialNames:
    """The special tokens of a tokenizer.

    Args:
        names: of the tokens.
    """

    def __init__(self, names: Sequence[str]) -> None:
        # The longest first: one name may begin with another.
        ordered = sorted(dict.fromkeys(name for name in names if name), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered)) or "(?!)")
        self._written = {name: chr(_WRITTEN + number) for number, name in enumerate(ordered)}
        self._quoted = {name: chr(_QUOTED + number) for number, name in enumerate(ordered)}
        self._names = {character: name for table in (self._quoted, self._written) for name, character in table.items()}

    @property
    def written(self) -> dict[str, str]:
        """The character of each token that a template writes, by name."""
        return self._written

    def quoted(self, message: Message) -> Message:
        """Return a message whose special tokens are characters that stand for text.

        Raises:
            ValueError: it holds such a character already.
        """
        # Templates write names and the ids of calls, too.
        if any(PRIVATE.search(text) for text in message.values()):
            raise ValueError(
                "a message holds a character of Unicode's private planes 15 and 16, which is not supported"
            )
        return {key: self._pattern.sub(lambda match: self._quoted[match[0]], text) for key, text in message.items()}

    def short(self, text: str) -> str:
        """Return a rendered text in which each special token is one character."""
        return self._pattern.sub(lambda match: self._written[match[0]], text)

    def spelled(self, text: str) -> str:
        """Return a text of `short` in which the special tokens of messages are spelled out again."""
        return QUOTED.sub(lambda match: self._names[match[0]], text)

    def full(self, text: str) -> str:
        """Return a text of `short` as it was rendered."""
        return PRIVATE.sub(lambda match: self._names[match[0]], text)
