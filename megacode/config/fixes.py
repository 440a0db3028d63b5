"""How to mend a value: the nearest legal numbers, the name that was meant."""

from __future__ import annotations

import difflib


def neighbours(value: int, divisor: int) -> str:
    """Return the nearest multiples of `divisor` around `value`, as text for a fix."""
    low, high = value // divisor * divisor, -(-value // divisor) * divisor
    return f"{low} or {high}" if low else str(high)


def did_you_mean(name: str, known: list[str]) -> str:
    """Return a suggestion for a misspelt name, or the list of known ones."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(sorted(known))
