"""Which of many hashes may be among a few known ones: a Bloom filter that rejects nearly all others quickly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_SPREADS = (np.uint64(0xD6E8FEB86659FD93), np.uint64(0xC2B2AE3D27D4EB4F))


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
