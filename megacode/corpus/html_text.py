"""Text of HTML: what a browser shows of a page, and posts with their code blocks as fences."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser

# XML cannot hold these characters, so posts have none.
_CODE, _BLOCK, _END = "\x01", "\x02", "\x03"
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
    # Marks put into the HTML are three times as cheap as nodes put into the tree. Inside a tag they are not shown.
    if "<code" in html:
        html = html.replace("<code>", f"{_CODE}<code>").replace("</code>", f"</code>{_CODE}")
        html = html.replace("<pre", f"{_BLOCK}<pre").replace("</pre>", f"</pre>{_END}")
    if "<li" in html:
        html = html.replace("<li>", "<li>- ")
    tree = parse_html(html)
    if tree is None or tree.body is None:
        return ""
    text = tree.body.text().strip()
    first, *blocks = text.split(_BLOCK)
    if blocks:
        text = first + "".join(map(_fenced, blocks))
    return text.replace(_CODE, "`").replace(_END, "")


def _fenced(block: str) -> str:
    """Return a block of code between fences, and the text that follows it."""
    code, end, rest = block.partition(_END)
    if not end:  # the block is in another one
        return block
    code = code.strip(_CODE)
    # A fence must be longer than any in the code.
    fence = "```" if "```" not in code else "`" * (max(map(len, _BACKQUOTES.findall(code))) + 1)
    return f"{fence}\n{code}{fence}{rest}" if code.endswith("\n") else f"{fence}\n{code}\n{fence}{rest}"
