"""Suggestions for a fix: the nearest legal numbers, or a similar name."""

from __future__ import annotations

import difflib
import math
from itertools import islice


def neighbours(value: int, divisor: int) -> str:
    """Return the nearest multiples of `divisor` around `value`, as text for a fix."""
    low, high = value // divisor * divisor, -(-value // divisor) * divisor
    return f"{low} or {high}" if low else str(high)


def divisors(value: int) -> list[int]:
    """Return the divisors of a positive number, ascending."""
    small = [number for number in range(1, math.isqrt(value) + 1) if value % number == 0]
    return sorted({*small, *(value // number for number in small)})


def nearest_divisors(value: int, wanted: int) -> str:
    """Return the divisors of `value` around `wanted`, as text for a fix."""
    known = divisors(value)
    low, high = (n for n in reversed(known) if n <= wanted), (n for n in known if n >= wanted)
    return " or ".join(str(n) for n in dict.fromkeys([*islice(low, 1), *islice(high, 1)]))


def did_you_mean(name: str, known: list[str]) -> str:
    """Return the known name most similar to a misspelt one, or the list of all known names."""
    # 0.6 still matches one wrong letter in a short name such as `text`.
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "known: " + ", ".join(sorted({*known}))
