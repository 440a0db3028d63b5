"""Parse counts, shares and durations (`200B`, `10%`, `3h50m`), and format numbers for people."""

from __future__ import annotations

import math
import re

# 10^9 is G in SI, and B (billion) for tokens and parameters; both are accepted.
_DECIMAL = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_COUNT = re.compile(r"^\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*$", re.IGNORECASE)
_DURATION = re.compile(r"^(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")
_CLOCK = re.compile(r"^(?:(\d+)-)?(\d+):(\d{2}):(\d{2})$")
_ENDLESS = 1e18  # seconds
_SCALES = (("E", 10**18), ("P", 10**15), ("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3))
_SI_SCALES = (("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3))
_BYTE_SCALES = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def parse_count(text: str | int | float) -> int:
    """Read a whole number with an optional decimal (`k M B T`) or binary (`Ki Mi Gi Ti`) suffix.

    Args:
        text: `200B`, `1.5M`, `64Ki`, `1_000`, `2e9` or a plain number.

    Raises:
        ValueError: if it is not a number, not whole, or the suffix is unknown.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a number")
    if isinstance(text, (int, float)):
        return _whole(text, str(text))
    match = _COUNT.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"{text!r} is not a number such as 200B, 1.5M or 4096")
    digits, suffix = match[1].replace("_", "").replace(",", ""), match[2].lower()
    scale = _DECIMAL.get(suffix, _BINARY.get(suffix))
    if scale is None:
        raise ValueError(f"{text!r} has the unknown suffix {match[2]!r}; use k, M, B, T or Ki, Mi, Gi, Ti")
    # Integers stay exact: as a float, 9007199254740993 would lose its last digit.
    return _whole(int(digits) * scale if digits.isdigit() else float(digits) * scale, text)


def parse_bytes(text: str | int | float) -> int:
    """Read a size in bytes: `100GB`, `64 MiB`, `1.5T`, or a plain number.

    Raises:
        ValueError: if it is not a size.
    """
    try:
        # GB is 10^9 and GiB is 2^30; the B may be left out.
        return parse_count(
            re.sub(r"(?<=[kmgtpei])b\s*$", "", text, flags=re.IGNORECASE) if isinstance(text, str) else text
        )
    except ValueError:
        raise ValueError(f"{text!r} is not a size in bytes; write for example 100GB or 64 MiB") from None


def _whole(value: int | float, text: str) -> int:
    if value != value or value in (float("inf"), float("-inf")) or round(value) != value:
        raise ValueError(f"{text} is not a whole number")
    return round(value)


def parse_fraction(text: str | int | float) -> float:
    """Read a share: `10%` or `0.1`.

    Raises:
        ValueError: if it is not a number.
    """
    if isinstance(text, bool):
        raise ValueError(f"{text!r} is not a share; write for example 0.005 or 0.5%")
    try:
        if isinstance(text, str) and text.strip().endswith("%"):
            return float(text.strip()[:-1]) / 100
        return float(text)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{text!r} is not a share; write for example 0.005 or 0.5%") from None


def parse_seconds(text: str | int | float) -> float:
    """Read a duration: `3h50m`, `90 s`, SLURM's `1-02:30:00`, or a plain number of seconds.

    Raises:
        ValueError: if it is not a duration, or not positive.
    """
    message = f"{text!r} is not a duration; write for example 3h50m, 45s or 1-02:30:00"
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(message)
    if isinstance(text, (int, float)):
        # An integer above 1e308 does not fit a float; zero is refused below, with the same message.
        seconds = float(text) if abs(text) < _ENDLESS else 0.0
    else:
        match = _DURATION.match(text.replace(" ", "").lower()) or _CLOCK.match(text.strip())
        if not match:
            raise ValueError(message)
        days, hours, minutes, rest = (int(part or 0) for part in match.groups())
        seconds = float(((days * 24 + hours) * 60 + minutes) * 60 + rest)
    if not 0 < seconds < float("inf"):
        raise ValueError(message)
    return seconds


def format_count(value: int | float) -> str:
    """Return a number with three significant digits and a decimal suffix: `12.3M`."""
    return _scaled(value, _SCALES, "")


def format_rate(value: int | float, unit: str) -> str:
    """Return a rate with an SI prefix: `107 GFLOP/s`."""
    return _scaled(float(value), _SI_SCALES, " ") + unit


def format_bytes(value: int | float) -> str:
    """Return a size in bytes with a binary suffix: `1.5 GiB`."""
    return _scaled(value, _BYTE_SCALES, " ") if abs(value) >= 1024 else f"{value:.0f} B"


def _scaled(value: int | float, scales: tuple[tuple[str, int], ...], gap: str) -> str:
    for suffix, scale in scales:
        if abs(value) >= scale:
            short = f"{value / scale:.3g}"
            # 999.9 rounds to 1e+03 at three digits.
            if "e" in short:
                short = f"{value / scale:.0f}"
            return f"{short}{gap}{suffix}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def format_seconds(seconds: float) -> str:
    """Return a duration: `850 ms`, `12.3 s`, `4 min 05 s`, `3 h 12 min`, `9 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def format_measured(value: float | None, digits: int) -> str:
    """Return a measurement with `digits` decimals; None (null in a file) and NaN become `not finite`."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def counted(number: int, one: str) -> str:
    """Return `1 arm`, `3 arms`."""
    return f"{number:,} {one if number == 1 else one + 's'}"
