"""Expected confidence intervals of a study's differences, from its numbers of seeds and items, before training.

Scores are in points. An item is right or wrong, at a coin's spread, which is the widest; two arms' answers to it
correlate. Whoever has scores knows better: `megacode compare` gives the intervals of real ones.
"""

from __future__ import annotations

import math
from typing import Any

from megacode.statistics.power import Expected, expected, item_standard_error
from megacode.study.grid import Grid

USUAL_ITEMS = 1000
ITEM_SPREAD = 50.0  # points: an item that is right half of the time
CORRELATION = 0.5  # of two arms over items
SEED_SPREAD = 0.5  # points, where the study does not say


def expected_intervals(grid: Grid, items: int = USUAL_ITEMS) -> dict[str, Any] | None:
    """Return the expected intervals of an arm's difference from the baseline, with the study's seeds and one more.

    Args:
        grid: of the study; the combination of levels with most arms counts.
        items: of a task, or of all tasks of a mean.

    Returns:
        what is assumed, and `rows` by number of seeds, in points; None where there is one arm.
    """
    arms = _most_arms(grid)
    if arms < 2:
        return None
    seed_sd = grid.study.compare.seed_sd
    spread = SEED_SPREAD if seed_sd is None else seed_sd
    error = item_standard_error(items, ITEM_SPREAD, CORRELATION)
    # One seed more shows what it would buy, which is the decision to make before training.
    counts = (len(grid.study.seeds), len(grid.study.seeds) + 1)
    rows = [_row(seeds, expected(arms, seeds, error, spread, items)) for seeds in counts]
    return {
        "arms": arms,
        "items": items,
        "item_spread": ITEM_SPREAD,
        "correlation": CORRELATION,
        "seed_spread": spread,
        "seed_spread_assumed": seed_sd is None,
        "rows": rows,
    }


def _most_arms(grid: Grid) -> int:
    """Return the number of arms, second names left out, at the combination of levels that has most."""
    places = [cell.place for cell in grid.cells if cell.arm == cell.original]
    return max(places.count(place) for place in set(places)) // len(grid.study.seeds)


def _row(seeds: int, interval: Expected) -> dict[str, Any]:
    return {
        "seeds": seeds,
        "degrees_of_freedom": interval.df if math.isfinite(interval.df) else None,
        "half_width": interval.half_width,
        "critical": interval.critical,
        "smallest_visible": interval.smallest_visible,
        "smallest_visible_together": interval.smallest_visible_together,
    }
