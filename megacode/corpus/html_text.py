"""Text of HTML: what a browser shows of a page, and posts with their code blocks as fences."""

from __future__ import annotations

import re
from collections.abc import Sequence

from selectolax.lexbor import LexborHTMLParser

# XML cannot hold these characters, so posts have none.
_CODE, _BLOCK, _END, _NEXT = "\x01", "\x02", "\x03", "\x04"
# All that Markdown makes. Other elements, such as an open table or title, may change how what follows them is read.
_UNUSUAL = re.compile(
    r"<(?!/?(?:a|b|blockquote|br|code|dd|del|div|dl|dt|em|h[1-6]|hr|i|img|kbd|li|ol|p|pre|s|span|strike|strong|sub|sup|ul)"
    r"[\s/>])"
)
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


def post_texts(posts: Sequence[str]) -> list[str]:
    """Return posts' HTML as text: code blocks become fences, inline code stands in backquotes, items get a hyphen.

    Blocks keep the line feeds that stand between them in the HTML, as rendered Markdown has them.

    Args:
        posts: HTML without scripts. The text of one that leaves very many tags open is empty.
    """
    # To make a parser costs five times as much as to parse a post, so posts that end what they begin share one.
    if len(posts) > 1 and not any(map(_UNUSUAL.search, posts)):
        texts = _shown(_NEXT.join(posts)).split(_NEXT)
        # An open quote or comment swallows what follows, and the count tells.
        if len(texts) == len(posts):
            return [_with_fences(text) for text in texts]
    return [_with_fences(_shown(post)) for post in posts]


def _shown(html: str) -> str:
    """Return the text of a post's HTML, with marks in place of fences and backquotes."""
    # Marks put into the HTML are cheaper than nodes put into the tree. Inside a tag they are not shown.
    if "<code" in html:
        html = html.replace("<code>", f"{_CODE}<code>").replace("</code>", f"</code>{_CODE}")
        html = html.replace("<pre", f"{_BLOCK}<pre").replace("</pre>", f"</pre>{_END}")
    if "<li" in html:
        html = html.replace("<li>", "<li>- ")
    tree = parse_html(html)
    return "" if tree is None or tree.body is None else tree.body.text()


def _with_fences(text: str) -> str:
    """Return a text with fences and backquotes in place of the marks."""
    first, *blocks = text.strip().split(_BLOCK)
    return (first + "".join(map(_fenced, blocks))).replace(_CODE, "`").replace(_END, "")


def _fenced(block: str) -> str:
    """Return a block of code between fences, and the text that follows it."""
    code, end, rest = block.partition(_END)
    if not end:  # the block is in another one
        return block
    code = code.strip(_CODE)
    # A fence must be longer than any in the code.
    fence = "```" if "```" not in code else "`" * (max(map(len, _BACKQUOTES.findall(code))) + 1)
    return f"{fence}\n{code}{fence}{rest}" if code.endswith("\n") else f"{fence}\n{code}\n{fence}{rest}"
