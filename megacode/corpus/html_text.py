"""Text of HTML: what a browser shows of a page, and posts with their code blocks as fences."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

_BACKQUOTES = re.compile("`+")
# Parsing costs the square of the number of open block elements: 16,000 nested ones take a second.
_MOST_UNCLOSED = 20_000


def parse_html(text: str) -> LexborHTMLParser | None:
    """Return the tree of an HTML text, or None if it leaves so many tags open that parsing would take too long."""
    # Short texts cannot hold so many tags, and need no count.
    if len(text) > 2 * _MOST_UNCLOSED and text.count("<") - 2 * text.count("</") > _MOST_UNCLOSED:
        return None
    return LexborHTMLParser(text)


def visible_characters(text: str) -> int:
    """Return how many characters of a page are text outside scripts and styles; 0 if it cannot be parsed."""
    tree = parse_html(text)
    if tree is None or tree.root is None:
        return 0
    tree.strip_tags(["script", "style"])
    return len(tree.root.text())


def post_text(html: str) -> str:
    """Return a post's HTML as text: code blocks become fences, inline code stands in backquotes, items get a hyphen.

    Blocks keep the line feeds that stand between them in the HTML, as rendered Markdown has them.

    Args:
        html: of a post, without scripts. If it leaves very many tags open, the result is empty.
    """
    tree = parse_html(html)
    if tree is None or tree.body is None:
        return ""
    # `tags` is three times as fast as a selector; posts without these elements are not even searched.
    if "<li" in html:
        for node in tree.tags("li"):
            node.insert_before("- ")
    if "<pre" in html:
        for node in tree.tags("pre"):
            _fence(node)
    if "<code" in html:
        for node in tree.tags("code"):
            if node.parent is None or node.parent.tag != "pre":
                node.insert_before("`")
                node.insert_after("`")
    return tree.body.text().strip()


def _fence(node: LexborNode) -> None:
    """Put a block of code between fences."""
    code = node.text()
    # A fence must be longer than any in the code.
    fence = "```" if "```" not in code else "`" * (max(map(len, _BACKQUOTES.findall(code))) + 1)
    node.insert_before(fence + "\n")
    node.insert_after(fence if code.endswith("\n") else "\n" + fence)
