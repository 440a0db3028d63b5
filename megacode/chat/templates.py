"""Chat templates: where a tokenizer keeps one, and what it writes for a conversation.

transformers renders them, with the same sandbox and the same variables as when the exported model is asked.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacode.base.errors import ConfigError
from megacode.base.imports import uncollected
from megacode.chat.conversations import Message
from megacode.data.tokenizer import HuggingFaceTokenizer, Tokenizer, named_token

FILE_NAME = "chat_template.jinja"
_MARK = re.compile(r"\{%-?\+?\s*generation\s*-?%\}")
_DATE = "strftime_now"
_ROLES = ("bos_token", "pad_token", "unk_token")


class TemplateRefusalError(ValueError):
    """A template refuses a conversation, or fails on it."""


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and the variables that it is rendered with.

    Attributes:
        text: its Jinja text.
        origin: where it was read from, for messages.
        variables: special tokens by their names, such as `bos_token`.
    """

    text: str
    origin: str
    variables: dict[str, str]

    @property
    def hash(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def marks_answers(self) -> bool:
        """Whether it marks what the model writes, by `{% generation %}`."""
        return _MARK.search(self.text) is not None

    def render(self, messages: Sequence[Message], *, ask: bool = False) -> str:
        """Return the text of a conversation.

        Args:
            messages: as of `conversations.messages_of`.
            ask: add the beginning of an answer behind them.

        Raises:
            TemplateRefusalError: the template refuses the conversation or fails on it.
        """
        return str(self._rendered(messages, add_generation_prompt=ask)[0][0])

    def render_marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text, and the first and last character (exclusive) of each stretch that the template marks.

        Raises:
            TemplateRefusalError: see `render`.
        """
        texts, marks = self._rendered(messages, return_assistant_tokens_mask=True)
        return str(texts[0]), [(int(first), int(end)) for first, end in marks[0]]

    def _rendered(self, messages: Sequence[Message], **how: Any) -> Any:
        import jinja2

        render = _renderer()
        try:
            return render([list(messages)], chat_template=self.text, **how, **self.variables)
        except jinja2.TemplateSyntaxError as error:
            message = f"the chat template is not valid: {error.message} in its line {error.lineno}"
            raise ConfigError(message, self.origin, "correct it, or give --chat-template FILE") from None
        except jinja2.TemplateError as error:
            # `raise_exception` of a template ends here, too.
            raise TemplateRefusalError(f"the chat template refuses it: {' '.join(str(error).split())}") from None
        except Exception as error:  # a template is a program, which may fail in any way
            message = f"the chat template fails on it: {type(error).__name__}: {' '.join(str(error).split())}"
            raise TemplateRefusalError(message) from None


def _renderer() -> Any:
    with uncollected():
        from transformers.utils.chat_template_utils import render_jinja_template
    return render_jinja_template


def find_template(tokenizer: Tokenizer, file: str | None) -> ChatTemplate:
    """Return the template to use: that of a file, else the tokenizer's own.

    Raises:
        ConfigError: there is none, it cannot be read, or it writes the date of the day.
    """
    if file is not None:
        origin, text = f"--chat-template {file}", _read(Path(file))
    else:
        own = own_template(tokenizer)
        if own is None:
            fix = "give --chat-template FILE, or put a chat_template.jinja beside the tokenizer"
            raise ConfigError("the tokenizer has no chat template", str(tokenizer.path.parent), fix)
        origin, text = own
    if _DATE in text:
        message = (
            f"the chat template writes the date of the day ({_DATE}), so that the same input gives other data each day"
        )
        fix = "copy it to a file, write a fixed date there, and give that as --chat-template FILE"
        raise ConfigError(message, origin, fix)
    return ChatTemplate(text, origin, template_variables(tokenizer))


def own_template(tokenizer: Tokenizer) -> tuple[str, str] | None:
    """Return the file of a tokenizer's own chat template and its text; None: it has none.

    Raises:
        ConfigError: a file cannot be read, or holds several templates and no default.
    """
    beside, config = tokenizer.path.with_name(FILE_NAME), tokenizer.path.with_name("tokenizer_config.json")
    # The order of transformers, where both are there.
    if beside.is_file():
        return str(beside), _read(beside)
    if not config.is_file():
        return None
    try:
        given = json.loads(_read(config)).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"it cannot be read: {error}", str(config), "fetch the tokenizer again") from None
    if isinstance(given, list):
        # An older form: several templates by name.
        named = {one.get("name"): one.get("template") for one in given if isinstance(one, dict)}
        given = named.get("default")
        if given is None:
            fix = "put one of them into a file, and give it as --chat-template FILE"
            raise ConfigError("it has several chat templates, and none is named default", str(config), fix)
    return (str(config), str(given)) if given else None


def template_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """Return the special tokens that templates are rendered with: those that an export of this tokenizer names."""
    end = token_name(tokenizer, tokenizer.eod) if tokenizer.eod is not None else ""
    own = {}
    if tokenizer.kind == "huggingface":
        own = {role: name for role in _ROLES if (name := named_token(tokenizer.path.parent, role))}
    # Without a token of their own, the beginning and padding have the end of text, as in an export.
    both = {"eos_token": end, "bos_token": own.get("bos_token", end), "pad_token": own.get("pad_token", end)}
    return {role: name for role, name in {**own, **both}.items() if name}


def token_name(tokenizer: Tokenizer, token: int) -> str:
    """Return the name of a token of the vocabulary."""
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return next((name for name, number in tokenizer.vocabulary().items() if number == token), "")
    return str(tokenizer.reference.processor.id_to_piece(token))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("the chat template is not UTF-8", str(path), "save it as UTF-8") from None
    except OSError as error:
        fix = "give the path of a Jinja template"
        raise ConfigError(f"the chat template cannot be read: {error.strerror}", str(path), fix) from None


def padding_token(tokenizer: Tokenizer) -> int:
    """Return the token that fills windows: the tokenizer's own for padding, else its end-of-document token.

    It never counts and no conversation sees it, so that any token would do; this one reads as what it is.

    Raises:
        ConfigError: it has neither.
    """
    name = named_token(tokenizer.path.parent, "pad_token") if tokenizer.kind == "huggingface" else ""
    token = tokenizer.id_of(name) if name else None
    padding = tokenizer.eod if token is None else token
    if padding is None:
        message = "the tokenizer has neither a padding token nor an end-of-document token"
        raise ConfigError(message, str(tokenizer.path), "name one as pad_token in its tokenizer_config.json")
    return padding
