"""Tables for terminals that fit 80 columns without cutting a number.

By default rich cuts what does not fit with an ellipsis, and reads `[text]` in a name as markup. Here text wraps,
columns of numbers shrink last, and cells are printed literally.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


class FigureTable(Table):
    """A table without a frame, for text and numbers.

    Args:
        headings: column headings; a line break in one saves width.
        figures: the headings of columns with numbers, which are right-aligned.
        options: passed to `rich.table.Table`.
    """

    def __init__(self, *headings: str, figures: Collection[str] = (), **options: Any) -> None:
        options = {"box": None, "header_style": "dim", "padding": (0, 2, 0, 0), "pad_edge": False, **options}
        super().__init__(**options)
        for heading in headings:
            figure = heading in figures
            # rich shrinks `no_wrap` columns last; `_whole` below still lets their cells fold where they must.
            self.add_column(
                heading,
                justify="right" if figure else "left",
                no_wrap=figure,
                overflow="fold",
                vertical="bottom" if any("\n" in heading for heading in headings) else "top",
            )

    def add_row(self, *cells: RenderableType | None, style: Any = None, end_section: bool = False) -> None:
        """Add a row; strings are printed literally, without markup."""
        super().add_row(*(_whole(cell) for cell in cells), style=style, end_section=end_section)


def _whole(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, str):
        # A plain string would be parsed as markup: `[text]` in a source's name would vanish.
        cell = Text(cell)
    if isinstance(cell, Text):
        cell.no_wrap, cell.overflow = False, "fold"
    return cell
