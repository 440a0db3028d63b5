"""One rule of a filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from megacode.corpus.filters.measured_text import MeasuredText


@dataclass(frozen=True)
class FilterRule:
    """One rule.

    Attributes:
        reason: what a document that breaks it is counted under.
        thresholds: it is used where one of these is neither null nor false.
        breaks: called with a text and the thresholds; tells whether the text breaks the rule.
    """

    reason: str
    thresholds: tuple[str, ...]
    breaks: Callable[[MeasuredText, Any], bool]

    def is_used(self, limits: Any) -> bool:
        """Tell whether one of its thresholds is set."""
        values = [getattr(limits, name) for name in self.thresholds]
        # By identity: 0 is a threshold, though it equals False.
        return any(value is not None and value is not False for value in values)
