"""Hashes of runs of values, and which of many hashes may be among a few known ones.

A Bloom filter rejects nearly all others quickly.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BASE = 0x9E3779B97F4A7C15
_SPREADS = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xC2B2AE3D27D4EB4F))


def polynomials(values: npt.NDArray[np.uint64], size: int) -> npt.NDArray[np.uint64]:
    """Return the hash of each run of `size` values: sum of v_j * B^(size-1-j) modulo 2^64.

    Args:
        values: uint64 [count], count >= size.
        size: values of a run.

    Returns:
        uint64 [count - size + 1].
    """
    if size == 1:
        return values.copy()
    # Two halves make a whole: 10 = 2 * 5 and 5 = 2 * 2 + 1 take four steps in place of nine.
    half = size // 2
    part = polynomials(values, half)
    whole = part[:-half] * np.uint64(pow(_BASE, half, 1 << 64))
    whole += part[half:]
    if size % 2:
        whole = whole[:-1] * np.uint64(_BASE)
        whole += values[size - 1 :]
    return whole


class HashFilter:
    """Knows some 64-bit hashes; rejects nearly all others, and none of its own.

    Args:
        hashes: uint64 [count].
    """

    def __init__(self, hashes: npt.NDArray[np.uint64]) -> None:
        # At least 16 slots a hash keep false positives low; the table has at most 32 MiB.
        bits = min(28, max(16, len(hashes).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        marked = np.zeros(1 << bits, dtype=bool)
        for spread in _SPREADS:
            marked[self._slots(hashes, spread)] = True
        self._table = np.packbits(marked, bitorder="little")

    def _slots(self, hashes: npt.NDArray[np.uint64], spread: np.uint64) -> npt.NDArray[np.int64]:
        with np.errstate(over="ignore"):
            return ((hashes * spread) >> self._shift).astype(np.int64)

    def places(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """Return the places of hashes that may be among the known ones, ascending."""
        slots = self._slots(hashes, _SPREADS[0])
        # Random table look-ups are the cost of a scan; the second one runs on the survivors only.
        places = np.flatnonzero(self._has(slots))
        return places[self._has(self._slots(hashes[places], _SPREADS[1]))]

    def _has(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        return (self._table[slots >> 3] >> (slots & 7).astype(np.uint8)) & 1 == 1
