"""Ask an exported model in its chat template, for `generate --chat` and the judge.

A special token that stands in a message is text, as in the conversations that the model was trained on: nobody ends a
turn by typing its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError
from megacode.chat.answers import end_of_turn
from megacode.chat.encoding import HuggingFaceText
from megacode.chat.special_names import QUOTED, SpecialNames
from megacode.chat.templates import ChatTemplate, TemplateRefusalError

Turns = Sequence[Mapping[str, str]]


def has_template(tokenizer: Any) -> bool:
    """Return whether transformers' tokenizer has a chat template; pre-trained models have none, as a rule."""
    return bool(getattr(tokenizer, "chat_template", None))


class ChatPrompts:
    """Encodes conversations up to the start of the model's answer.

    Args:
        tokenizer: transformers' tokenizer, with a chat template.
        where: the model's directory, for messages.
        fix: what to do where the template refuses a conversation.
    """

    def __init__(self, tokenizer: Any, where: Path, fix: str) -> None:
        self._tokenizer, self._where, self._fix = tokenizer, where, fix
        variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
        self._template = ChatTemplate(tokenizer.get_chat_template(), str(where), variables)
        added = tokenizer.added_tokens_decoder.values()
        self._specials = [str(token) for token in added if token.special]
        self._names = SpecialNames(self._specials)

    def ids(self, turns: Turns) -> list[int]:
        """Return the ids of a conversation, in the model's chat template.

        Raises:
            ConfigError: the template refuses the conversation, or its text cannot be told from special tokens.
        """
        names = self._names
        try:
            raw = self._template.render([names.quoted(dict(turn)) for turn in turns], ask=True)
        except TemplateRefusalError as error:
            raise ConfigError(str(error), str(self._where), self._fix) from None
        except ValueError as error:
            raise ConfigError(str(error), "the prompt", "remove it") from None
        if self._encoder is not None:
            return [int(token) for token in self._encoder.encode([names.spelled(names.short(raw))])[0].ids]
        quoted = QUOTED.search(raw)
        if quoted:
            message = f"the prompt holds {names.full(quoted[0])!r}, which this model's tokenizer reads as its own"
            raise ConfigError(message, str(self._where), "remove it from the prompt")
        return [*self._tokenizer(raw, add_special_tokens=False)["input_ids"]]

    def ends(self, ends_of_text: Iterable[int]) -> list[int]:
        """Return what ends an answer: what ends a text, and the token that the template writes behind an answer."""
        # Published models name that token in their generation config, most others nowhere.
        known = [*ends_of_text]
        return known if self._end is None or self._end in known else [*known, self._end]

    @cached_property
    def _end(self) -> int | None:
        token = end_of_turn(self._template, self._specials)
        return None if token is None else int(self._tokenizer.convert_tokens_to_ids(token))

    @cached_property
    def _encoder(self) -> HuggingFaceText | None:
        # Tokenizers that are Python code have no such document.
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        return None if backend is None else HuggingFaceText(self._specials, json.loads(backend.to_str()))
