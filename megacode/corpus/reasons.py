"""Why documents are dropped after the map pass."""

from __future__ import annotations

from enum import IntEnum

from megacode.corpus.duplicates import reduce


class DropReason(IntEnum):
    """Why a document is dropped; the first ones are those of `duplicates`."""

    KEPT = reduce.KEPT
    EXACT = reduce.EXACT
    NORMALISED = reduce.NORMALISED
    NEAR = reduce.NEAR
    BENCHMARK = 4
    PASSAGE = 5


# The step of the funnel, and the reason, as counts and lists name them.
REASONS = {
    **{DropReason(number): ("duplicates", text) for number, text in enumerate(reduce.REASONS) if number},
    DropReason.BENCHMARK: ("decontamination", "benchmark item"),
    DropReason.PASSAGE: ("decontamination", "passage of a held-out document"),
}
