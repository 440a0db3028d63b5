"""The filters of one source: thresholds by extension, and the first reason to drop a document."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from megacode.corpus.document import Document
from megacode.corpus.filters.measured_text import MeasuredText
from megacode.corpus.filters.rule import FilterRule
from megacode.corpus.filters.rules import RULES
from megacode.corpus.filters.settings import FilterSettings, Thresholds
from megacode.corpus.settings import read_settings

Filter = Callable[[Document], str | None]


def make_filters(settings: Mapping[str, Any] | FilterSettings, where: str = "filters") -> Filter:
    """Return the filter of a source.

    Args:
        settings: the recipe's `filters:` section; see `FilterSettings`.
        where: the section's name in the recipe, for messages.

    Returns:
        a function that returns the reason to drop a document, or None.

    Raises:
        ConfigError: with every mistake in the settings.
    """
    checked = read_settings(FilterSettings, settings, where)
    checked.for_extension("")  # an unknown preset is an error before any document is read
    by_extension: dict[str, tuple[Thresholds, tuple[FilterRule, ...]]] = {}

    def reason_to_drop(document: Document) -> str | None:
        extension = extension_of(document.fields)
        used = by_extension.get(extension)
        if used is None:
            # Extensions come from file names, so there may be any number of them.
            limits = checked.for_extension(extension)
            used = limits, tuple(rule for rule in RULES if rule.is_used(limits))
            if len(by_extension) < _MOST_EXTENSIONS:
                by_extension[extension] = used
        limits, rules = used
        measured = MeasuredText(document.text, document.fields)
        for rule in rules:
            if rule.breaks(measured, limits):
                return rule.reason
        return None

    return reason_to_drop


_MOST_EXTENSIONS = 10_000


def extension_of(fields: Mapping[str, Any]) -> str:
    """Return a document's extension in lower case without the dot: its field `extension`, else that of its `path`."""
    extension = fields.get("extension")
    if isinstance(extension, str):
        return extension.lower().removeprefix(".")
    path = fields.get("path")
    return os.path.splitext(path)[1][1:].lower() if isinstance(path, str) else ""
