"""Charts whose rows are arms: one panel per metric side by side, in bands one below the other where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from markupsafe import Markup

from megacode.report.figure import plain
from megacode.report.svg import Scale, element
from megacode.study_report.charts.marks import WIDE, label, width_of

LEAST = 138  # pixels a panel needs for marks and its figures
GAP = 16
FIGURES = 50  # pixels for the figure at the right of each row
Panel = TypeVar("Panel")


@dataclass(frozen=True)
class PanelLayout:
    """Where panels stand.

    Attributes:
        width: of the drawing.
        gutter: width of the rows' names, on the left.
        per_band: panels side by side.
    """

    width: int
    gutter: float
    per_band: int

    def edges(self, index: int) -> tuple[float, float]:
        """Return the left and right edge of the `index`-th panel of a band."""
        one = (self.width - self.gutter) / self.per_band
        left = self.gutter + one * index
        return left + (GAP if index else 4), left + one


def layout(width: int, names: Sequence[str], panels: int) -> PanelLayout:
    """Return the layout for panels with rows of these names."""
    most = 250 if width == WIDE else 150
    gutter = min(max(map(width_of, names), default=0) + 12, most)
    per_band = max(min(int((width - gutter) // LEAST), panels), 1)
    # Two bands of three look better than one of five and one of one.
    bands = -(-panels // per_band)
    return PanelLayout(width, gutter, -(-panels // bands))


def bands_of(panels: Sequence[Panel], place: PanelLayout) -> list[Sequence[Panel]]:
    """Return the panels of each band."""
    return [panels[start : start + place.per_band] for start in range(0, len(panels), place.per_band)]


def value_axis(scale: Scale, top: float, bottom: float) -> Markup:
    """Return a panel's vertical grid lines, with their figures below; 0 is a stronger line."""
    parts = []
    room = 0.0
    for tick in scale.ticks(4 if scale.stop - scale.start > 130 else 3):
        x = scale(tick)
        parts.append(element("line", class_="zero" if tick == 0 else "grid", x1=x, x2=x, y1=top, y2=bottom))
        text = signed(tick) if scale.low < 0 else plain(tick)
        # A figure that would touch the one before it is left out.
        if x - width_of(text) / 2 > room:
            parts.append(label(text, x, bottom + 15, anchor="middle"))
            room = x + width_of(text) / 2 + 4
    return element("g", *parts)


def signed(tick: float) -> str:
    """Return an axis label with a sign."""
    text = plain(abs(tick))
    return text if tick == 0 else f"{'+' if tick > 0 else '-'}{text}"
