"""Conversations as their records hold them: `messages`, or `prompt` and `completion`.

What a chat template would leave out without a word (calls of tools, images, weights of messages) is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from megacode.data.records import text_of

ROLES = ("system", "user", "assistant", "tool")
COLUMNS = ("messages", "prompt", "completion", "tools")
"""Keys of a record that are read."""
_PASSED_ON = ("name", "tool_call_id")  # to the template, beside role and content
# What would be lost without a word: most templates do not write it, or it changes which tokens should count.
_REFUSED = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "images",
    "audio",
    "weight",
    "train",
)

Message = dict[str, str]


def messages_of(row: Mapping[str, Any]) -> list[Message]:
    """Return the messages of a record, each with `role`, `content`, and perhaps `name` and `tool_call_id`.

    Args:
        row: it has `messages`; or `prompt` and `completion`, each a text or a list of messages.

    Raises:
        ValueError: it has none, or one that cannot be used; the message says which and why.
    """
    if row.get("tools"):
        raise ValueError("it has tools, which are not supported")
    # Not `in`: Parquet has every column in every row, and None where a record lacks it.
    if row.get("messages") is not None:
        if row.get("prompt") is not None or row.get("completion") is not None:
            raise ValueError("it has messages, and a prompt or completion as well")
        messages = _list_of(row["messages"], "messages")
    else:
        missing = [key for key in ("prompt", "completion") if row.get(key) is None]
        if missing:
            raise ValueError(f"it has no messages, and no {' and no '.join(missing)}")
        messages = _part(row["prompt"], "prompt", "user") + _part(row["completion"], "completion", "assistant")
    if not messages:
        raise ValueError("it has no messages: the list is empty")
    return messages


def _part(value: Any, key: str, role: str) -> list[Message]:
    if isinstance(value, str):
        return [_message({"role": role, "content": value}, key)]
    return _list_of(value, key)


def _list_of(value: Any, key: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"{key} is {shown(value)}, not a list of messages")
    return [_message(one, f"message {number} of {key}") for number, one in enumerate(value, 1)]


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} is {shown(value)}, not an object with role and content")
    role = value.get("role")
    if role not in ROLES:
        raise ValueError(f"{where} has the role {shown(role)}; the roles are {', '.join(ROLES)}")
    # Parquet has every key in every message, most of them empty.
    for key in _REFUSED:
        if value.get(key) not in (None, [], {}, ""):
            raise ValueError(f"{where} has {key}, which is not supported")
    content = _content(value.get("content"), where)
    # Without a word to learn, the model would learn to end its turn at once.
    if not content.strip() and role in ("user", "assistant"):
        raise ValueError(f"{where} is empty")
    others = {key: text_of(value[key], f"{where}: {key}") for key in _PASSED_ON if value.get(key) is not None}
    return {"role": role, "content": content, **others}


def _content(value: Any, where: str) -> str:
    if isinstance(value, list):
        return "".join(_part_text(part, f"part {number} of {where}") for number, part in enumerate(value, 1))
    if value is None:
        raise ValueError(f"{where} has no content")
    return text_of(value, f"{where}: content")


def _part_text(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        told = f"has the type {shown(kind)}" if isinstance(part, Mapping) else f"is {shown(part)}"
        raise ValueError(f"{where} {told}; only parts of the type 'text' are supported")
    return text_of(part.get("text"), f"{where}: text")


def shown(value: Any, length: int = 40) -> str:
    """Return the beginning of a value as JSON, for a message."""
    try:
        return json.dumps(value, default=str)[:length]
    except RecursionError:
        return "a value nested too deeply"
