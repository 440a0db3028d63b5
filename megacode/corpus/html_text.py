"""Text of HTML: what a browser shows of a page, and posts with their code blocks as fences."""

from __future__ import annotations

from selectolax.lexbor import LexborHTMLParser

# Parsing costs the square of the number of open block elements: 16,000 nested ones take a second.
_MOST_UNCLOSED = 20_000


def parse_html(text: str) -> LexborHTMLParser | None:
    """Return the tree of an HTML text, or None if it leaves so many tags open that parsing would take too long."""
    if text.count("<") - 2 * text.count("</") > _MOST_UNCLOSED:
        return None
    return LexborHTMLParser(text)


def visible_characters(text: str) -> int:
    """Return how many characters of a page are text outside scripts and styles; 0 if it cannot be parsed."""
    tree = parse_html(text)
    if tree is None or tree.root is None:
        return 0
    tree.strip_tags(["script", "style"])
    return len(tree.root.text())
