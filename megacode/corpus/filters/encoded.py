"""Encoded data in a text: base64, lists of hexadecimal bytes, Unicode escapes.

Source: Lozhkov et al. 2024 (StarCoder2 and The Stack v2), the three expressions for encoded data. Alone they run at
10 MB a second; here vector operations first find the few places where they can match.
"""

from __future__ import annotations

import re

from megacode.corpus.filters.measured_text import BASE64, HEX_LIST, MeasuredText

# Base64 needs no expression: a match of `[a-zA-Z0-9+/\n=]{64,}` is exactly a longest run of its characters.
_BASE64_LENGTH = 64
# White space and word borders are those of ASCII.
_HEX_LIST = re.compile(rb"(?:\b(?:0x|\\x)?[0-9a-fA-F]{2}(?:,|\b\s*)){8,}")
_HEX_LIST_LENGTH = 8 * 2 + 7  # eight pairs with something between them
_ESCAPES = re.compile(rb"(?:\\u[0-9a-fA-F]{4}){8,}")


def encoded_runs(measured: MeasuredText) -> list[int]:
    """Return the lengths in characters of all stretches of encoded data."""
    lengths: list[int] = []
    if measured.longest_run_reaches(BASE64, _BASE64_LENGTH):
        runs = measured.runs(BASE64, _BASE64_LENGTH)
        lengths += (runs[:, 1] - runs[:, 0]).tolist()
    if measured.longest_run_reaches(HEX_LIST, _HEX_LIST_LENGTH):
        lengths += _hex_lists(measured)
    if measured.raw.count(b"\\u") >= 8:
        lengths += [len(match.group()) for match in _ESCAPES.finditer(measured.raw)]
    return lengths


def _hex_lists(measured: MeasuredText) -> list[int]:
    """Return the lengths of lists of hexadecimal bytes."""
    lengths: list[int] = []
    for start, end in measured.runs(HEX_LIST, _HEX_LIST_LENGTH).tolist():
        # Most of these runs are indentation.
        if len(measured.raw[start:end].strip()) >= _HEX_LIST_LENGTH:
            # One byte more shows the expression where the last word ends.
            matches = _HEX_LIST.finditer(measured.raw, start, min(end + 1, len(measured.raw)))
            lengths += [len(match.group()) for match in matches]
    return lengths
