"""Tables for terminals: whole at 80 columns, with figures that are never cut.

Left to itself, rich ends what does not fit with an ellipsis, and reads `[text]` in a name as markup. Here text is
folded, columns of figures give way last, and every cell is taken as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text


class FigureTable(Table):
    """A table without a frame, of text and of figures.

    Args:
        headings: of its columns; a line break in one saves width.
        figures: those of them that are over figures, which stand on the right.
        options: of `rich.table.Table`.
    """

    def __init__(self, *headings: str, figures: Collection[str] = (), **options: Any) -> None:
        options = {"box": None, "header_style": "dim", "padding": (0, 2, 0, 0), "pad_edge": False, **options}
        super().__init__(**options)
        for heading in headings:
            figure = heading in figures
            # A column that is not wrapped gives way after all others; its cells fold nevertheless where they must.
            self.add_column(
                heading,
                justify="right" if figure else "left",
                no_wrap=figure,
                overflow="fold",
                vertical="bottom" if any("\n" in one for one in headings) else "top",
            )

    def add_row(self, *cells: RenderableType | None, style: Any = None, end_section: bool = False) -> None:
        """Add a row; strings are shown as they are, without markup."""
        super().add_row(*(_whole(cell) for cell in cells), style=style, end_section=end_section)


def _whole(cell: RenderableType | None) -> RenderableType | None:
    if isinstance(cell, str):
        cell = Text(cell)
    if isinstance(cell, Text):
        cell.no_wrap, cell.overflow = False, "fold"
    return cell
