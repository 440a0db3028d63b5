"""The chat template that an export carries: the one that wrote the conversations of the run's sources.

It is in their manifests, and wins over the tokenizer's own: the model has seen no other. All sources of a run have one
template, which its plan checks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacode.base.errors import MegacodeError
from megacode.chat.answers import end_of_turn
from megacode.chat.templates import FILE_NAME, ChatTemplate, template_variables
from megacode.config.run import RunConfig
from megacode.data import manifest as manifests
from megacode.data import objects
from megacode.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)


def chat_form(config: RunConfig, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the template that wrote the conversations of a run; None: it has read none, or they are not there.

    Args:
        config: of the run.
        tokenizer: of the run.
    """
    objects.use(config.objects)
    for name, source in sorted(config.sources.items()):
        try:
            manifest = manifests.read(source.path)
        except MegacodeError as error:
            log.warning("whether the source %s has a chat template is unknown: %s", name, error.problems[0].what)
            continue
        if manifest is not None and manifest.chat is not None:
            return ChatTemplate(manifest.chat["template"], f"sources.{name}", template_variables(tokenizer))
    return None


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
