"""The chat template that an export carries: the one that wrote the conversations of its run.

It wins over the tokenizer's own: the model has seen no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacode.chat.answers import end_of_turn
from megacode.chat.run_template import run_template
from megacode.chat.templates import FILE_NAME, ChatTemplate, template_variables
from megacode.convert.opened_checkpoint import OpenedCheckpoint
from megacode.data.tokenizer import Tokenizer


def chat_form(source: OpenedCheckpoint) -> ChatTemplate | None:
    """Return the template that wrote the conversations of a checkpoint's run; None: it has read none."""
    text = run_template(source.config, source.run)
    return None if text is None else ChatTemplate(text, str(source.run.path), template_variables(source.tokenizer))


def write_template(template: ChatTemplate, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Write a template into an export, and return the settings of its tokenizer without another one."""
    (out / FILE_NAME).write_text(template.text, encoding="utf-8")
    # Older readers look here first.
    return {name: value for name, value in settings.items() if name != "chat_template"}


def with_end_of_turn(
    settings: Mapping[str, Any], template: ChatTemplate | None, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return a generation config that also ends where the template ends an answer."""
    token = end_of_turn(template, tokenizer.specials) if template is not None else None
    number = tokenizer.id_of(token) if token else None
    ends = settings.get("eos_token_id")
    known = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if number is None or number in known:
        return dict(settings)
    return {**settings, "eos_token_id": [*known, number]}
